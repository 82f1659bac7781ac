package discover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// noPins fails when a measurement of this process left a folder.
func noPins(t *testing.T) {
	t.Helper()
	left, _ := filepath.Glob("/sys/fs/bpf/" + pinPrefix + "*")
	for _, l := range left {
		if strings.HasSuffix(l, pinPrefix+strconv.Itoa(os.Getpid())) {
			t.Errorf("%s was left", l)
		}
	}
}

func run(t *testing.T, ctx context.Context, o Options) *Host {
	t.Helper()
	h, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	noPins(t)
	return h
}

// certs makes certificates for a host.
func certs(t *testing.T) Files {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(pki.Init(dir, "test"), pki.IssueHost(dir, dir, "acme", "db1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	return Files{"127.0.0.1:1", filepath.Join(dir, "ca.pem"), filepath.Join(dir, "db1.pem"), filepath.Join(dir, "db1.key")}
}

// loadConfig writes and reads a config as moverd does.
func loadConfig(t *testing.T, text []byte) (*config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "moverd.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Load(path, "source")
}

// A server of three disks: partitions with ext4 and swap, XFS on a whole disk, and one that a program writes raw.
func TestServer(t *testing.T) {
	looptest.NeedRoot(t)
	a, b, c := looptest.New(t, 512<<20, looptest.Options{}), looptest.New(t, 512<<20, looptest.Options{}), looptest.New(t, 64<<20, looptest.Options{})
	ro := looptest.New(t, 16<<20, looptest.Options{ReadOnly: true})
	p1, p2 := a.Partition(1, 1<<20, 256<<20), a.Partition(2, 300<<20, 64<<20)
	looptest.Mkfs(t, p1, "ext4", "-L", "bad\nname")
	looptest.Mkfs(t, p2, "swap")
	looptest.Mkfs(t, b.Dev, "xfs")
	ext4, xfs := looptest.Mount(t, p1), looptest.Mount(t, b.Dev)
	if err := os.WriteFile(filepath.Join(ext4, "file"), make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, "sync", "-f", ext4)
	looptest.Run(t, "swapon", p2)
	t.Cleanup(func() { looptest.Run(t, "swapoff", p2) })
	raw := looptest.New(t, 16<<20, looptest.Options{})
	inner := looptest.Attach(t, raw.Dev, looptest.Options{})

	h := run(t, t.Context(), Options{Devices: []string{a.Dev, b.Dev, c.Dev, ro.Dev, raw.Dev}, Line: 100 << 20, Measure: time.Second})
	if len(h.Volumes) != 4 || len(h.Refused) != 1 || h.Refused[0].Device != ro.Dev || !strings.Contains(h.Refused[0].Why, "read-only") {
		t.Fatalf("%d volumes, refused %+v", len(h.Volumes), h.Refused)
	}
	v := h.Volumes[0]
	if len(v.Layers) != 3 || len(v.Layers[1].Mounts) != 1 || v.Layers[1].Mounts[0].Type != "ext4" || !v.Layers[2].Swap {
		t.Errorf("layers %+v", v.Layers)
	}
	if v.InUse < 20<<20 || v.InUse > 100<<20 {
		t.Errorf("%d bytes in use, 20 MiB were written", v.InUse)
	}
	// All but the free space of the filesystem and the swap: gaps count.
	if least := v.Size - (256+64)<<20; v.FirstPass < least+20<<20 || v.FirstPass > least+100<<20 {
		t.Errorf("a full pass looks at %d of %d", v.FirstPass, v.Size)
	}
	if !slices.Equal(v.Freezes, []string{ext4}) || len(v.NotFrozen) != 1 || !strings.Contains(v.NotFrozen[0], p2+" is active swap") {
		t.Errorf("freezes %q, not %q", v.Freezes, v.NotFrozen)
	}
	if x := h.Volumes[1]; !slices.Equal(x.Freezes, []string{xfs}) || x.FirstPass >= x.Size/2 || x.InUse == 0 {
		t.Errorf("xfs: freezes %q, full pass %d of %d", x.Freezes, x.FirstPass, x.Size)
	}
	if !slices.ContainsFunc(h.Volumes[2].Notes, func(s string) bool { return strings.Contains(s, "looks blank") }) {
		t.Errorf("blank disk: %q", h.Volumes[2].Notes)
	}
	if r := h.Volumes[3]; len(r.NotFrozen) == 0 || !strings.Contains(r.NotFrozen[0], inner.Dev) {
		t.Errorf("a loop device on the disk is not told: %q", r.NotFrozen)
	}
	for _, v := range h.Volumes {
		if want := cbt.Probe().Method; v.Tracking.Method != want || v.Dirty == nil || v.Estimate == nil || want == "ebpf" && v.Tracking.Granule != 4096 {
			t.Errorf("%s: tracking %+v, dirty %+v, estimate %+v", v.Name, v.Tracking, v.Dirty, v.Estimate)
		}
	}
	attempt(t, h)

	// Partition by partition.
	h = run(t, t.Context(), Options{Devices: []string{a.Dev}, Volumes: true})
	if len(h.Volumes) != 1 || h.Volumes[0].Device != p1 || len(h.Refused) != 1 || h.Refused[0].Device != p2 || !strings.Contains(h.Refused[0].Why, "swap") {
		t.Errorf("partitions: %+v, refused %+v", h.Volumes, h.Refused)
	}
	attempt(t, h)
}

// attempt lets the daemon judge the config.
func attempt(t *testing.T, h *Host) {
	t.Helper()
	text := h.YAML(certs(t))
	c, err := loadConfig(t, text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(c.Source.Flows) != len(h.Volumes) {
		t.Errorf("%d flows for %d volumes in\n%s", len(c.Source.Flows), len(h.Volumes), text)
	}
	var out bytes.Buffer
	if err := daemon.Check(t.Context(), c, &out); err != nil {
		t.Errorf("check: %v\n%s\n%s", err, out.String(), text)
	}
	if _, err := loadConfig(t, h.YAML(Files{})); err == nil || !strings.Contains(err.Error(), "source.gateway.address") || !strings.Contains(err.Error(), FillIn) {
		t.Errorf("the check does not name the placeholder: %v", err)
	}
	var table bytes.Buffer
	h.Table(&table)
	for _, v := range h.Volumes {
		if !strings.Contains(table.String(), v.Path) {
			t.Errorf("the table does not name %s:\n%s", v.Path, table.String())
		}
	}
}

// A writer of 4 KiB pages, some of them again and again: with the tracker each counts once.
func TestRate(t *testing.T) {
	looptest.NeedRoot(t)
	if cbt.Probe().Method != cbt.MethodEBPF {
		t.Fatal("this kernel runs no eBPF tracker: the measurement cannot be tested")
	}
	l := looptest.New(t, 256<<20, looptest.Options{})
	f, err := os.OpenFile(l.Dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	wrote := make(chan int64)
	go func() { // 500 pages each second, each of them three times
		mem, _ := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		defer unix.Munmap(mem)
		pages := rand.Perm(256 << 20 / 4096)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		n := int64(0)
		for ctx.Err() == nil {
			<-tick.C
			for range 3 {
				if _, err := f.WriteAt(mem, int64(pages[int(n)%len(pages)])*4096); err != nil {
					t.Error(err)
				}
			}
			n++
		}
		wrote <- n * 4096
	}()
	begin := time.Now()
	h := run(t, t.Context(), Options{Devices: []string{l.Dev}, Measure: 2 * time.Second, Line: 100 << 20})
	cancel()
	total, took := <-wrote, time.Since(begin)
	d := h.Volumes[0].Dirty
	rate := float64(total) / took.Seconds()
	if d.Method != cbt.MethodEBPF || d.Rate < rate*0.6 || d.Rate > rate*1.5 || d.Bytes%4096 != 0 {
		t.Errorf("measured %+v, the writer changed %.0f bytes a second", d, rate)
	}
	if d.Written < d.Bytes*5/2 {
		t.Errorf("%d bytes written, %d changed: each page was written three times", d.Written, d.Bytes)
	}
	if e := h.Volumes[0].Estimate; e.Converges == nil || !*e.Converges || e.Pause <= 0 {
		t.Errorf("estimate %+v", e)
	}
	slow := load{first: 256 << 20, size: 1 << 40, known: true, gran: 4096, curves: []curve{d.curve}}
	if e := slow.estimate(1<<20, time.Second); *e.Converges {
		t.Errorf("a line of half the rate of change converges: %+v", e)
	}
}

// An interrupted measurement gives what it has, and leaves no pins.
func TestInterrupted(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 64<<20, looptest.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { // as soon as the tracker is there
		pins := filepath.Join("/sys/fs/bpf", pinPrefix+strconv.Itoa(os.Getpid()))
		for list, _ := os.ReadDir(pins); len(list) == 0 && ctx.Err() == nil; list, _ = os.ReadDir(pins) {
			runtime.Gosched()
		}
		cancel()
	}()
	h, err := Run(ctx, Options{Devices: []string{l.Dev}, Measure: time.Hour})
	if !errors.Is(err, ErrInterrupted) || !h.Interrupted || h.Volumes[0].Dirty == nil || h.Measured > 30 {
		t.Errorf("%v, %+v", err, h)
	}
	noPins(t)
}

// What a killed measurement left is removed by the next; that of a living one is not.
func TestSweep(t *testing.T) {
	looptest.NeedRoot(t)
	dead, alive := filepath.Join("/sys/fs/bpf", pinPrefix+"2147483646"), filepath.Join("/sys/fs/bpf", pinPrefix+strconv.Itoa(os.Getppid()))
	for _, d := range []string{dead, alive} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(d)
	}
	l := looptest.New(t, 16<<20, looptest.Options{})
	run(t, t.Context(), Options{Devices: []string{l.Dev}, Measure: 100 * time.Millisecond})
	if _, err := os.Stat(dead); err == nil {
		t.Error("the pins of a dead process are still there")
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error("the pins of a living process are gone")
	}
}

// Without a bpffs the kernel's count of written bytes stands in.
func TestWithoutBPF(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 16<<20, looptest.Options{})
	h := run(t, t.Context(), Options{Devices: []string{l.Dev}, Measure: 100 * time.Millisecond, PinDir: t.TempDir()})
	if d := h.Volumes[0].Dirty; d.Method != "stat" || !strings.Contains(d.Why, "bpffs") {
		t.Errorf("%+v", d)
	}
}

func TestNothing(t *testing.T) {
	looptest.NeedRoot(t)
	ro := looptest.New(t, 16<<20, looptest.Options{ReadOnly: true})
	if h, err := Run(t.Context(), Options{Devices: []string{ro.Dev}}); !errors.Is(err, sentinel.ErrNotFound) || len(h.Refused) != 1 {
		t.Errorf("%v", err)
	}
	for _, path := range []string{"/dev/nonexistent", "/etc/passwd", ""} {
		if _, err := Run(t.Context(), Options{Devices: []string{path}}); !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%q: %v", path, err)
		}
	}
	new(Host).Table(io.Discard)
}

// Two processes: one has the disk open for writing, one has it mounted in a mount namespace of its own.
func TestOthers(t *testing.T) {
	looptest.NeedRoot(t)
	raw, away := looptest.New(t, 16<<20, looptest.Options{}), looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, away.Dev, "ext4")
	dir := looptest.Dir(t)
	pid := background(t, "exec 3<>"+raw.Dev)
	background(t, "mount "+away.Dev+" "+dir)
	h := run(t, t.Context(), Options{Devices: []string{raw.Dev, away.Dev}})
	if v := h.Volumes[0]; len(v.NotFrozen) != 1 || !strings.Contains(v.NotFrozen[0], "(pid "+strconv.Itoa(pid)+") has it open for writing") {
		t.Errorf("raw writer: %q", v.NotFrozen)
	}
	v := h.Volumes[1]
	if len(v.Freezes) != 1 || !strings.HasSuffix(v.Freezes[0], dir) || !strings.HasPrefix(v.Freezes[0], "/proc/") || v.InUse == 0 {
		t.Errorf("mount elsewhere: %q, %d in use", v.Freezes, v.InUse)
	}
	if !slices.ContainsFunc(v.Notes, func(s string) bool { return strings.Contains(s, "another mount namespace") }) {
		t.Errorf("notes %q", v.Notes)
	}
	attempt(t, h)
}

// background runs a line of shell in a mount namespace of its own and keeps the shell until the test ends.
func background(t *testing.T, line string) (pid int) {
	t.Helper()
	c := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", line+" && echo ready && read x")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = c.Wait() // read ends with 1 at the end of its input
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return c.Process.Pid
}
