package cbt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// follower copies what a tracker says changed to a shadow: after a last Take at rest, shadow and disk have to be equal (C1, C9).
type follower struct {
	disk, shadow *os.File
	buf          []byte
}

func (f *follower) copy(e extent.Extent) error {
	for off := e.Off; off < e.End(); {
		n, err := f.disk.ReadAt(f.buf[:min(int64(len(f.buf)), e.End()-off)], off)
		if n == 0 {
			return err
		}
		if _, err := f.shadow.WriteAt(f.buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// follow does one delta: take, copy, retire (C4).
func (f *follower) follow(tr *Tracker) error {
	epoch, set, err := tr.Take(context.Background())
	if err != nil {
		return err
	}
	for e := range set.All() {
		if err := f.copy(e); err != nil {
			return err
		}
	}
	return tr.Retire(epoch)
}

func newFollower(t testing.TB, r *rig) *follower {
	shadow, err := os.Create(filepath.Join(looptest.Dir(t), "shadow"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shadow.Close() })
	if err := shadow.Truncate(r.size); err != nil {
		t.Fatal(err)
	}
	return &follower{disk: r.f, shadow: shadow, buf: aligned(t, 1<<20)}
}

// begin is the first Take of a generation and the full pass that belongs to it.
func (f *follower) begin(r *rig) {
	r.t.Helper()
	epoch, _, err := r.tr.Take(context.Background())
	if err == nil {
		err = f.copy(extent.Extent{Len: r.size})
	}
	if err == nil {
		err = r.tr.Retire(epoch)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (f *follower) compare(r *rig) {
	r.t.Helper()
	a, b := readAll(r.t, r.f, r.size), make([]byte, r.size)
	if _, err := f.shadow.ReadAt(b, 0); err != nil {
		r.t.Fatal(err)
	}
	if bytes.Equal(a, b) {
		return
	}
	for off := int64(0); off < r.size; off += 512 {
		if !bytes.Equal(a[off:off+512], b[off:off+512]) {
			r.t.Errorf("sector %d differs", off/512)
			return
		}
	}
}

// writers change the disk at random places in random ways until stop is called.
func writers(r *rig, n int, seed uint64) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		buf := aligned(r.t, 256<<10)
		rand.Read(buf)
		wg.Go(func() {
			rng := mrand.New(mrand.NewPCG(seed, uint64(i)))
			for {
				select {
				case <-done:
					return
				default:
				}
				change(r, rng, buf)
			}
		})
	}
	var once sync.Once
	stop = func() { once.Do(func() { close(done); wg.Wait() }) }
	r.t.Cleanup(stop)
	return stop
}

func change(r *rig, rng *mrand.Rand, buf []byte) {
	n := int64(1+rng.IntN(8)) * 512
	if rng.IntN(20) == 0 {
		n = int64(1+rng.IntN(len(buf)/512)) * 512
	}
	off := rng.Int64N((r.size-n)/512) * 512
	var err error
	switch rng.IntN(40) {
	case 0:
		arg := [2]uint64{uint64(off), uint64(n)}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, r.f.Fd(), blkZeroOut, uintptr(unsafe.Pointer(&arg))); e != 0 {
			err = e
		}
	case 1:
		n = (1 + rng.Int64N(r.size/16/4096)) * 4096
		if rng.IntN(4) > 0 {
			n = 8192
		}
		arg := [2]uint64{uint64(min(off, r.size-n) / 4096 * 4096), uint64(n)}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, r.f.Fd(), blkDiscard, uintptr(unsafe.Pointer(&arg))); e != 0 {
			err = e
		}
	default:
		b := buf[rng.Int64N((int64(len(buf))-n)/512+1)*512:][:n]
		_, err = r.f.WriteAt(b, off)
	}
	if err != nil {
		r.t.Errorf("change %d+%d: %v", off, n, err)
	}
}

// TestHistory: deltas that are taken while writers run add up to the disk.
func TestHistory(t *testing.T) {
	for _, variant := range variants() {
		t.Run(variant, func(t *testing.T) {
			r := newRig(t, 16<<20+512, rigOptions{variant: variant})
			f := newFollower(t, r)
			stop := writers(r, 4, 1)
			f.begin(r)
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
				if err := f.follow(r.tr); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if err := f.follow(r.tr); err != nil {
				t.Fatal(err)
			}
			f.compare(r)
			r.prove()
			t.Logf("%d epochs", r.tr.History().Taken)
		})
	}
}

// TestKilled: a process that follows is killed again and again, at any instant; who adopts its pins goes on in the same generation and misses
// nothing (C1, C4).
func TestKilled(t *testing.T) {
	for _, variant := range variants() {
		t.Run(variant, func(t *testing.T) {
			r := newRig(t, 12<<20, rigOptions{variant: variant})
			f := newFollower(t, r)
			f.begin(r)
			generation := r.tr.History().Generation
			if err := r.tr.Close(); err != nil {
				t.Fatal(err)
			}
			stop := writers(r, 2, 2)
			rng := mrand.New(mrand.NewPCG(3, 4))
			for range 25 {
				killChild(t, r, f, rng)
			}
			stop()
			r.open()
			h := r.tr.History()
			if h.Generation != generation {
				t.Fatalf("generation %s became %s", generation, h.Generation)
			}
			if err := f.follow(r.tr); err != nil {
				t.Fatal(err)
			}
			f.compare(r)
			r.prove()
			t.Logf("%d epochs", h.Taken)
		})
	}
}

// killChild runs a follower in a process of its own and kills it a random moment after its first epoch.
func killChild(t *testing.T, r *rig, f *follower, rng *mrand.Rand) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CBT_CHILD="+r.loop.Dev, "CBT_NAME="+r.o.Name, "CBT_PINS="+r.o.PinDir, "CBT_SHADOW="+f.shadow.Name(),
		"CBT_VARIANT="+r.o.variant, fmt.Sprintf("CBT_SIZE=%d", r.size))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("the child ended by itself: %s", &stderr)
	}
	<-time.After(time.Duration(rng.IntN(30_000)) * time.Microsecond)
	cmd.Process.Kill()
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the child says: %s", &stderr)
	}
}

// child is the process that is killed.
func child() {
	size, _ := strconv.ParseInt(os.Getenv("CBT_SIZE"), 10, 64)
	err := func() error {
		disk, err := os.OpenFile(os.Getenv("CBT_CHILD"), os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		shadow, err := os.OpenFile(os.Getenv("CBT_SHADOW"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
			return err
		}
		tr, err := Open(Options{Name: os.Getenv("CBT_NAME"), PinDir: os.Getenv("CBT_PINS"), Size: size,
			Map: wholeMap(st.Rdev, size), variant: os.Getenv("CBT_VARIANT")})
		if err != nil {
			return err
		}
		f := &follower{disk: disk, shadow: shadow, buf: buf}
		for i := 0; ; i++ {
			if err := f.follow(tr); err != nil {
				return err
			}
			if i == 0 {
				os.Stdout.Write([]byte("."))
			}
		}
	}()
	if !errors.Is(err, os.ErrClosed) {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}
