package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/mover"
)

// Delta rewrites 1 % of the pages of the /usr volume and compares a delta pass with a full rescan by restic and by rsync.
func (p *Perf) Delta(ctx context.Context) (err error) {
	img, err := p.usrImage(ctx)
	if err != nil {
		return err
	}
	base := filepath.Join(p.Work, "delta.img")
	if _, err := Run(ctx, "cp", "--sparse=always", img, base); err != nil {
		return err
	}
	defer os.Remove(base)
	r, err := NewRig(ctx, p.Bin, RigOptions{Create: true, Interval: "1h", NoProxy: true, Conns: 4, SkipFree: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	dev, err := r.attach(ctx, base)
	if err != nil {
		return err
	}
	repo, copied := filepath.Join(p.Work, "restic"), filepath.Join(p.Work, "rsync-copy.img")
	defer os.RemoveAll(repo)
	defer os.Remove(copied)
	restic := []string{"restic", "-q", "--no-cache", "--insecure-no-password", "-r", repo}
	if err := p.peersFirst(ctx, &restic, base, copied); err != nil {
		return err
	}
	r.o.Volume, r.o.Target = dev, filepath.Join(p.Work, "delta-copy.img")
	r.Defer(func() error { return os.Remove(r.o.Target) })
	if _, _, err := p.moved(ctx, r); err != nil {
		return err
	}
	var ours, restics, rsyncs, wires []float64
	for i := range p.Repeat {
		changed, err := rewritePages(dev, p.SizeGiB<<30, 0.01, uint64(i)+1)
		if err != nil {
			return err
		}
		if err := dropCaches(); err != nil {
			return err
		}
		m, wire, err := p.deltaMover(ctx, r)
		if err != nil {
			return err
		}
		if err := Cmp(ctx, dev, r.o.Target, p.SizeGiB<<30); err != nil {
			return fmt.Errorf("after a delta pass: %w", err)
		}
		packed, err := zstdSize(ctx, changed)
		if err != nil {
			return err
		}
		a, err := p.timed(ctx, append(restic, "backup", base)...)
		if err != nil {
			return err
		}
		b, err := p.timed(ctx, "rsync", "--inplace", "--no-whole-file", base, copied)
		if err != nil {
			return err
		}
		ours, restics, rsyncs, wires = append(ours, m), append(restics, a), append(rsyncs, b), append(wires, float64(wire)/float64(packed))
		err = errors.Join(p.add("delta", "mover", "seconds", m, "s"), p.add("delta", "restic backup", "seconds", a, "s"), p.add("delta", "rsync --inplace", "seconds", b, "s"),
			p.add("delta", "mover", "wire bytes", float64(wire), "B"), p.add("delta", "zstd -3 of the changed pages", "bytes", float64(packed), "B"))
		if err != nil {
			return err
		}
	}
	m := Median(ours)
	return errors.Join(p.add("delta", "restic / mover", "ratio of medians (at least 20)", Median(restics)/m, "ratio"),
		p.add("delta", "rsync / mover", "ratio of medians (at least 20)", Median(rsyncs)/m, "ratio"),
		p.add("delta", "mover", "wire bytes / compressed pages (at most 1.1)", Median(wires), "ratio"))
}

func (p *Perf) deltaMover(ctx context.Context, r *Rig) (float64, int64, error) {
	before, err := r.Status(ctx, "source")
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if _, err := r.Ctl(ctx, "source", "sync", flowName); err != nil {
		return 0, 0, err
	}
	secs := time.Since(start).Seconds()
	after, err := r.Status(ctx, "source")
	if err == nil && after.PointEpoch != before.PointEpoch+1 {
		err = fmt.Errorf("sync made epoch %d of epoch %d, want one delta pass", after.PointEpoch, before.PointEpoch)
	}
	if err != nil {
		return 0, 0, err
	}
	_, err = r.Await(ctx, "gateway", "done applying", time.Minute, func(s mover.Status) bool { return s.Log == 0 })
	return secs, after.WireOut - before.WireOut, err
}

// peersFirst has restic and rsync take the volume as it is, so that what is measured later is their second run.
func (p *Perf) peersFirst(ctx context.Context, restic *[]string, base, copied string) error {
	os.Setenv("RESTIC_PASSWORD", "bench")
	*restic = []string{"restic", "-q", "--no-cache", "-r", (*restic)[len(*restic)-1]}
	for _, c := range [][]string{append(*restic, "init"), append(*restic, "backup", base), {"cp", "--sparse=always", base, copied}} {
		if _, err := Run(ctx, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (p *Perf) timed(ctx context.Context, argv ...string) (float64, error) {
	if err := dropCaches(); err != nil {
		return 0, err
	}
	start := time.Now()
	_, err := Run(ctx, argv[0], argv[1:]...)
	return time.Since(start).Seconds(), err
}

// rewritePages overwrites a share of the 4 KiB pages with O_DIRECT and returns what it wrote.
func rewritePages(dev string, size int64, share float64, seed uint64) ([]byte, error) {
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pool := buffers.New(4096, 2*4096)
	page, err := pool.Get(context.Background())
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	defer pool.Put(page)
	rng := rand.New(rand.NewPCG(seed, 1))
	pages := size / 4096
	var out bytes.Buffer
	seen := map[int64]bool{}
	for n := int64(float64(pages) * share); int64(len(seen)) < n; {
		i := rng.Int64N(pages)
		if seen[i] {
			continue
		}
		seen[i] = true
		churn.Fill(page, seed, uint64(len(seen)), i*4096)
		if _, err := f.WriteAt(page, i*4096); err != nil {
			return nil, err
		}
		out.Write(page)
	}
	return out.Bytes(), nil
}

// zstdSize is what the zstd program makes of b.
func zstdSize(ctx context.Context, b []byte) (int64, error) {
	cmd := exec.CommandContext(ctx, "zstd", "-3", "-c")
	cmd.Stdin = bytes.NewReader(b)
	var n counter
	cmd.Stdout = &n
	return int64(n), errors.Join(cmd.Run(), func() error {
		if n == 0 {
			return errors.New("zstd wrote nothing")
		}
		return nil
	}())
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// Pause rehearses cutovers under 50 MB/s of random 4 KiB writes.
func (p *Perf) Pause(ctx context.Context) (err error) {
	r, err := NewRig(ctx, p.Bin, RigOptions{Create: true, Interval: "0s", Limit: "3s", Deadline: "10s", NoProxy: true, Conns: 4, SkipFree: true, Freeze: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	img := filepath.Join(p.Work, "pause.img")
	r.Defer(func() error { return os.Remove(img) })
	dev, err := r.Loop(ctx, img, 12<<30, 512, true)
	if err != nil {
		return err
	}
	if err := Mkfs(ctx, dev, "ext4"); err != nil {
		return err
	}
	dir, err := r.Mount(ctx, dev, "mnt")
	if err != nil {
		return err
	}
	if err := randomFiles(ctx, dir, 1<<30); err != nil {
		return err
	}
	r.o.Volume, r.o.Target = dev, filepath.Join(p.Work, "pause-copy.img")
	r.Defer(func() error { return os.Remove(r.o.Target) })
	if _, _, err := p.moved(ctx, r); err != nil {
		return err
	}
	writer, err := r.Writer(ctx, "--dir", dir, "--pages", "--threads", "4", "--size", "256MiB", "--rate", "50MB")
	if err != nil {
		return err
	}
	defer func() {
		Thaw(dir)
		writer.Kill()
	}()
	var pauses []float64
	for range max(5, p.Repeat) {
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		report, err := r.Cutover(ctx, p.W, "--rehearse")
		if err != nil {
			return err
		}
		pauses = append(pauses, report.Pause)
		for _, s := range report.Steps {
			p.say("           %-30s %.3f s", s.Name, s.Seconds)
		}
		err = errors.Join(p.add("pause", "mover", "pause under 50 MB/s of random 4 KiB writes", report.Pause, "s"),
			p.add("pause", "mover", "final delta", float64(report.FinalDelta), "B"))
		if err != nil {
			return err
		}
	}
	return p.add("pause", "mover", "median pause (under 1)", Median(pauses), "s")
}

// Overhead runs fio while the tracker's programs come and go, so that what else the machine does hits both of a pair: single turns differ
// by far more than the 2 % that are looked for.
func (p *Perf) Overhead(ctx context.Context) (err error) {
	r, err := NewRig(ctx, p.Bin, RigOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	img := filepath.Join(p.Work, "fio.img")
	r.Defer(func() error { return os.Remove(img) })
	const size = 2 << 30
	dev, err := r.Loop(ctx, img, size, 512, true)
	if err != nil {
		return err
	}
	if err := fio(ctx, dev, "write", "1M", 0); err != nil { // allocate
		return err
	}
	progs, end, err := programs(r, dev)
	if err != nil {
		return err
	}
	defer end()
	ctx, stop := context.WithCancel(ctx)
	writes := make(chan error, 1)
	go func() { writes <- fio(ctx, dev, "randwrite", "4k", time.Hour) }()
	defer func() { stop(); <-writes }()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	var ratios []float64
	var all [2][]float64
	for i := range 100 * max(5, p.Repeat) {
		var rate [2]float64
		for _, with := range []int{i % 2, 1 - i%2} {
			if rate[with], err = turn(ctx, dev, progs[:with*len(progs)]); err != nil {
				return err
			}
			all[with] = append(all[with], rate[with])
		}
		ratios = append(ratios, rate[1]/rate[0])
	}
	return errors.Join(p.add("overhead", "with tracker", "median IOPS", Median(all[1]), "1/s"), p.add("overhead", "without", "median IOPS", Median(all[0]), "1/s"),
		p.add("overhead", "with / without", "pairs of turns", float64(len(ratios)), "pairs"),
		p.add("overhead", "with / without", "median ratio (at least 0.98)", Median(ratios), "ratio"))
}

// programs loads the tracker's programs for dev and takes them off again.
func programs(r *Rig, dev string) (progs []*ebpf.Program, end func(), err error) {
	v, err := disk.OpenVolume(dev)
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	t, err := cbt.Open(cbt.Options{Name: "fio", Map: v.Map(), Size: v.Size(), PinDir: r.pinDir()})
	if err != nil {
		return nil, nil, err
	}
	end = func() {
		for _, p := range progs {
			p.Close()
		}
		t.Remove()
		os.RemoveAll(r.pinDir())
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	pins, err := filepath.Glob(filepath.Join(r.pinDir(), "fio", "*"))
	if err != nil {
		return nil, end, err
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			continue // a map
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return nil, end, err
		}
		prog, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			return nil, end, err
		}
		progs = append(progs, prog)
		if err := os.Remove(pin); err != nil {
			return nil, end, err
		}
	}
	if len(progs) < 2 {
		return nil, end, fmt.Errorf("%d programs are pinned in %v", len(progs), pins)
	}
	return progs, end, nil
}

// turn is the writes per second that the kernel counts on dev while progs are attached.
func turn(ctx context.Context, dev string, progs []*ebpf.Program) (float64, error) {
	for _, p := range progs {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return 0, err
		}
		defer l.Close()
	}
	if err := pause(ctx, 50*time.Millisecond); err != nil {
		return 0, err
	}
	before, err := writesOf(dev)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := pause(ctx, 150*time.Millisecond); err != nil {
		return 0, err
	}
	took := time.Since(began).Seconds()
	after, err := writesOf(dev)
	return float64(after-before) / took, err
}

// writesOf is the number of writes that the kernel counts on a device.
func writesOf(dev string) (n int64, err error) {
	b, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(dev), "stat"))
	if err != nil {
		return 0, err
	}
	if f := strings.Fields(string(b)); len(f) > 4 {
		return strconv.ParseInt(f[4], 10, 64)
	}
	return 0, fmt.Errorf("stat of %s: %q", dev, b)
}
