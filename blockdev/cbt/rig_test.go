package cbt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// testPins is where this process's tests pin.
func testPins() string { return fmt.Sprintf("%s/movertest%d", bpffs, os.Getpid()) }

func TestMain(m *testing.M) {
	if os.Getenv("CBT_CHILD") != "" {
		child()
	}
	if os.Geteuid() == 0 {
		removeKilled()
	}
	code := m.Run()
	if os.Geteuid() == 0 && removeAll(testPins()) > 0 {
		code = 1
	}
	os.Exit(code)
}

// removeKilled removes what tests have pinned whose process was killed: the kernel would run their programs for ever.
func removeKilled() {
	dirs, _ := filepath.Glob(bpffs + "/movertest*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), "movertest"))
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			removeAll(d)
		}
	}
}

// removeAll removes the pins of a process, and tells how many trackers it had left.
func removeAll(pins string) int {
	dirs, _ := os.ReadDir(pins)
	for _, d := range dirs {
		fmt.Fprintf(os.Stderr, "pins of %s were left behind in %s\n", d.Name(), pins)
		removePins(pins + "/" + d.Name())
		os.Remove(pins + "/" + d.Name())
	}
	os.Remove(pins)
	return len(dirs)
}

// rig is a loop device with a tracker.
type rig struct {
	t    testing.TB
	loop *looptest.Loop
	size int64
	o    Options
	tr   *Tracker
	f    *os.File // O_DIRECT
}

func devOf(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Rdev
}

func wholeMap(dev uint64, size int64) extent.Map { return extent.Map{{Len: size, Dev: dev}} }

func openDirect(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// aligned is memory that O_DIRECT takes.
func aligned(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

type rigOptions struct {
	sector  int
	variant string
	memory  int64
}

func newRig(t testing.TB, size int64, ro rigOptions) *rig {
	t.Helper()
	looptest.NeedRoot(t)
	l := looptest.New(t, size, looptest.Options{DirectIO: true, SectorSize: ro.sector})
	r := &rig{t: t, loop: l, size: size}
	r.o = Options{Name: t.Name(), Map: wholeMap(devOf(t, l.Dev), size), Size: size, PinDir: testPins(), Memory: ro.memory, variant: ro.variant}
	r.f = openDirect(t, l.Dev)
	r.open()
	t.Cleanup(func() {
		if r.tr.closed { // a test that closes leaves the pins to us
			removePins(r.tr.dir)
			os.Remove(r.tr.dir)
			return
		}
		if err := r.tr.Remove(); err != nil {
			t.Errorf("remove the tracker: %v", err)
		}
	})
	return r
}

func (r *rig) open() {
	r.t.Helper()
	tr, err := Open(r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.tr = tr
}

func (r *rig) reopen() {
	r.t.Helper()
	if err := r.tr.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func (r *rig) take() *extent.Set {
	r.t.Helper()
	_, set, err := r.tr.Take(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return set
}

// fresh takes and retires, so that the next take tells only what comes now.
func (r *rig) fresh() {
	r.t.Helper()
	r.take()
	r.retire()
}

func (r *rig) retire() {
	r.t.Helper()
	if err := r.tr.Retire(r.tr.History().Taken); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) prove() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if p, err := r.tr.Prove(ctx); err != nil || p != blockdev.Proven {
		for _, l := range r.tr.leaves {
			s, _ := l.sample()
			r.t.Logf("%+v base %d %d", s, l.st.Written, l.st.Discarded)
		}
		r.t.Fatalf("prove: %v, %v", p, err)
	}
}

func (r *rig) write(off int64, b []byte) {
	r.t.Helper()
	if _, err := r.f.WriteAt(b, off); err != nil {
		r.t.Fatal(err)
	}
}

func exts(s *extent.Set) (out []extent.Extent) {
	for e := range s.All() {
		out = append(out, e)
	}
	return out
}
