package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// Perf holds what the measuring workloads share: where they work, what they have measured, and where they tell of it.
type Perf struct {
	Bin     string
	Work    string // folder with room for about 60 GiB
	Results *Results
	W       io.Writer
	Repeat  int
	SizeGiB int64 // of the /usr volume; 12 in the published figures
}

func (p *Perf) say(format string, args ...any) { fmt.Fprintf(p.W, format+"\n", args...) }

func (p *Perf) add(workload, subject, metric string, v float64, unit string) error {
	p.say("%-10s %-22s %-44s %12s %s", workload, subject, metric, number(v), unit)
	if p.Results == nil { // a trial
		return nil
	}
	return p.Results.Add(workload, subject, metric, v, unit)
}

func dropCaches() error {
	if _, err := Run(context.Background(), "sync"); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}

// usrImage makes, once, an ext4 image of SizeGiB holding /usr.
func (p *Perf) usrImage(ctx context.Context) (string, error) {
	img := filepath.Join(p.Work, fmt.Sprintf("usr-%d.img", p.SizeGiB))
	if _, err := os.Stat(img); err == nil {
		return img, nil
	}
	p.say("making %s, a %d GiB ext4 volume holding /usr", img, p.SizeGiB)
	tmp, dir := img+".new", filepath.Join(p.Work, "usr-mnt")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.RemoveAll(tmp)); err != nil {
		return "", err
	}
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dG", p.SizeGiB), tmp},
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", tmp},
		{"mount", "-o", "loop", tmp, dir},
	} {
		if _, err := Run(ctx, c[0], c[1:]...); err != nil {
			return "", err
		}
	}
	_, err := Run(ctx, "cp", "-ax", "/usr", dir)
	if err = errors.Join(err, Unmount(dir), os.Remove(dir)); err != nil {
		return "", err
	}
	return img, os.Rename(tmp, img)
}

// moved starts both daemons on the rig's volume and waits for the first recovery point. It returns the seconds from the source's start.
func (p *Perf) moved(ctx context.Context, r *Rig) (float64, mover.Status, error) {
	if err := r.StartGateway(); err != nil {
		return 0, mover.Status{}, err
	}
	if _, err := r.Await(ctx, "gateway", "ready", 30*time.Second, func(mover.Status) bool { return true }); err != nil {
		return 0, mover.Status{}, err
	}
	start := time.Now()
	if err := r.StartSource(); err != nil {
		return 0, mover.Status{}, err
	}
	st, err := r.Await(ctx, "source", "at a recovery point", 30*time.Minute, func(s mover.Status) bool { return s.PointEpoch > 0 })
	return time.Since(start).Seconds(), st, err
}

// Full compares a full pass with nbdcopy over TLS, alternately.
func (p *Perf) Full(ctx context.Context) error {
	img, err := p.usrImage(ctx)
	if err != nil {
		return err
	}
	var ours, theirs []float64
	for i := range p.Repeat {
		m, err := p.fullMover(ctx, img, i == 0)
		if err != nil {
			return err
		}
		n, err := p.nbdcopy(ctx, img)
		if err != nil {
			return err
		}
		ours, theirs = append(ours, m), append(theirs, n)
		err = errors.Join(p.add("full", "mover", "seconds", m, "s"), p.add("full", "nbdcopy over TLS", "seconds", n, "s"))
		if err != nil {
			return err
		}
	}
	return errors.Join(p.add("full", "mover", "median seconds", Median(ours), "s"), p.add("full", "nbdcopy over TLS", "median seconds", Median(theirs), "s"),
		p.add("full", "mover / nbdcopy", "ratio of medians (at most 1)", Median(ours)/Median(theirs), "ratio"))
}

func (p *Perf) fullMover(ctx context.Context, img string, check bool) (secs float64, err error) {
	r, err := NewRig(ctx, p.Bin, RigOptions{Create: true, Interval: "1h", NoProxy: true, Conns: 4, SkipFree: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	dev, err := r.attach(ctx, img)
	if err != nil {
		return 0, err
	}
	dir, err := r.Mount(ctx, dev, "mnt") // in use, as on a server: the map of free space is asked from it
	if err != nil {
		return 0, err
	}
	r.o.Volume, r.o.Target = dev, filepath.Join(p.Work, "mover-copy.img")
	r.Defer(func() error { return os.Remove(r.o.Target) })
	if err := dropCaches(); err != nil {
		return 0, err
	}
	secs, st, err := p.moved(ctx, r)
	if err != nil {
		return 0, err
	}
	if check {
		if err := p.add("full", "mover", "wire bytes", float64(st.WireOut), "B"); err != nil {
			return 0, err
		}
		if _, err := Run(ctx, "fsfreeze", "-f", dir); err != nil {
			return 0, err
		}
		if _, err := r.Ctl(ctx, "source", "sync", flowName); err != nil {
			return 0, err
		}
		if _, err := compare(ctx, dev, r.o.Target, p.SizeGiB<<30); err != nil {
			return 0, err
		}
	}
	return secs, nil
}

// attach makes a loop device of an image that exists.
func (r *Rig) attach(ctx context.Context, img string) (string, error) {
	dev, err := Run(ctx, "losetup", "--find", "--show", "--direct-io=on", img)
	if err != nil {
		return "", err
	}
	r.Defer(func() error { return detach(dev) })
	return dev, nil
}

// nbdcopy copies the same device with nbdkit and nbdcopy over TLS into a file, flushed at the end.
func (p *Perf) nbdcopy(ctx context.Context, img string) (secs float64, err error) {
	r, err := NewRig(ctx, p.Bin, RigOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	dev, err := r.attach(ctx, img)
	if err != nil {
		return 0, err
	}
	certs := r.path("nbd")
	if err := nbdCerts(r.path("pki"), certs); err != nil {
		return 0, err
	}
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	server, err := r.command("nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "--tls=require", "--tls-certificates="+certs, "--tls-verify-peer", "file", dev)
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	if err := awaitPort(ctx, port); err != nil {
		return 0, err
	}
	out := filepath.Join(p.Work, "nbd-copy.img")
	defer os.Remove(out)
	start := time.Now()
	_, err = Run(ctx, "nbdcopy", "--flush", fmt.Sprintf("nbds://127.0.0.1:%d/?tls-certificates=%s", port, certs), out)
	return time.Since(start).Seconds(), err
}

// nbdCerts gives the rig's certificates the names that nbdkit and libnbd look for.
func nbdCerts(pki, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for to, from := range map[string]string{"ca-cert.pem": "ca.pem", "server-cert.pem": "gw.pem", "server-key.pem": "gw.key",
		"client-cert.pem": "web1.pem", "client-key.pem": "web1.key"} {
		if err := copyFile(filepath.Join(pki, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return nil
}

// Memory watches the resident memory of both daemons through a full pass of a huge sparse volume.
func (p *Perf) Memory(ctx context.Context) (err error) {
	const size, data = 4 << 40, 20 << 30
	r, err := NewRig(ctx, p.Bin, RigOptions{Create: true, Interval: "1h", NoProxy: true, Conns: 4, SkipFree: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	img := filepath.Join(p.Work, "huge.img")
	r.Defer(func() error { return os.Remove(img) })
	dev, err := r.Loop(ctx, img, size, 512, true)
	if err != nil {
		return err
	}
	if _, err := Run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-N", "1000000", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", dev); err != nil {
		return err
	}
	dir, err := r.Mount(ctx, dev, "mnt", "-o", "noinit_itable")
	if err != nil {
		return err
	}
	if err := randomFiles(ctx, dir, data); err != nil {
		return err
	}
	r.o.Volume, r.o.Target = dev, filepath.Join(p.Work, "huge-copy.img")
	r.Defer(func() error { return os.Remove(r.o.Target) })
	secs, st, err := p.moved(ctx, r)
	if err != nil {
		return err
	}
	for _, v := range []struct {
		name  string
		pid   int
		limit string
	}{{"source", r.SourcePid(), "at most 256"}, {"gateway", r.GatewayPid(), "at most 512"}} {
		peak, err := peakMemory(v.pid)
		if err != nil {
			return err
		}
		if err := p.add("memory", v.name, "peak resident memory ("+v.limit+")", float64(peak)/(1<<20), "MiB"); err != nil {
			return err
		}
	}
	return errors.Join(p.add("memory", "mover", "full pass of 4 TiB with 20 GiB of data", secs, "s"), p.add("memory", "mover", "wire bytes", float64(st.WireOut), "B"))
}

// peakMemory is VmHWM in bytes.
func peakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no VmHWM of process %d", pid)
}
