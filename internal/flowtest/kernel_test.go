package flowtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// TestKernel moves a mounted filesystem on a loop device that is written all the time, with the kernel's tracker and a real freeze; the
// source is dropped and made again in between, connections are cut. The device and the target are equal to the byte.
func TestKernel(t *testing.T) {
	looptest.NeedRoot(t)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { kernel(t, kind) })
	}
}

func kernel(t *testing.T, kind string) {
	loop := looptest.New(t, 400<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, loop.Dev, kind)
	dir := looptest.Mount(t, loop.Dev)

	r := newRig(t, 1<<20, 0)
	r.config.Interval = 50 * time.Millisecond
	pins := fmt.Sprintf("/sys/fs/bpf/flowtest%d", os.Getpid())
	var tr *cbt.Tracker
	var vol *disk.Volume
	closeBoth := func() {
		if tr != nil {
			must(t, tr.Close())
			must(t, vol.Close())
			tr = nil
		}
	}
	fr := freeze.New([]string{dir}, freeze.Options{RunDir: tmpfs(t), Name: "flowtest", Log: logger()})
	r.deps = func(d *sender.Deps) {
		closeBoth()
		var err error
		vol, err = disk.OpenVolume(loop.Dev)
		must(t, err)
		tr, err = cbt.Open(cbt.Options{Name: "flowtest-" + kind, Map: vol.Map(), Size: vol.Size(), PinDir: pins})
		must(t, err)
		d.Volume, d.Tracker, d.Used, d.Freezer = vol, tr, nil, fr
	}
	defer func() {
		r.stopSource()
		if tr != nil {
			must(t, tr.Remove())
			must(t, vol.Close())
		}
		_ = os.Remove(pins)
	}()
	r.start()
	stop := fileWriter(t, dir)
	stopped := false
	defer func() {
		if !stopped {
			_ = fr.Thaw()
			stop()
		}
	}()
	r.wait("two passes", func(s mover.Status) bool { return s.Passes >= 2 })
	r.proxy.cutAll()
	r.stopSource()
	r.startSource()
	r.wait("a delta by the second process", func(s mover.Status) bool { return s.Passes >= 2 })
	if s := r.flow.Status(); s.Rescans != 0 || s.Gap != "" {
		t.Errorf("a restart cost a rescan: %+v", s)
	}
	rep, err := r.cutover(sender.CutoverOptions{Rehearse: true, Limit: 10 * time.Second})
	must(t, err)
	t.Logf("rehearsal: pause %.3f s, %d rounds, final delta %d, proof %s", rep.Pause, rep.Rounds, rep.FinalDelta, rep.Proof)
	rep, err = r.cutover(sender.CutoverOptions{Limit: 10 * time.Second})
	must(t, err)
	t.Logf("cutover: pause %.3f s, %d rounds, final delta %d, proof %s, steps %v", rep.Pause, rep.Rounds, rep.FinalDelta, rep.Proof, rep.Steps)
	if rep.Proof != "exact" || rep.Consistency != mover.Crash.String() {
		t.Errorf("report %+v", rep)
	}
	want := read(t, vol, vol.Size())
	got := read(t, r.target.Reopen(), vol.Size())
	if !bytes.Equal(want, got) {
		n := 0
		for at := 0; at < len(want); at += 4096 {
			if !bytes.Equal(want[at:at+4096], got[at:at+4096]) {
				if n++; n < 5 {
					t.Errorf("block at %d differs", at)
				}
			}
		}
		t.Fatalf("%d blocks differ", n)
	}
	must(t, fr.Thaw())
	stop()
	stopped = true
}

// tmpfs is a folder that is never on what is frozen.
func tmpfs(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "flowtest")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fileWriter writes files in dir at random, buffered, mapped and synchronous, punches holes and removes, until stop is called.
func fileWriter(t *testing.T, dir string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 11))
			f, err := os.OpenFile(filepath.Join(dir, "file"+string(rune('a'+w))), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			const size = 24 << 20
			_ = f.Truncate(size)
			buf := make([]byte, 64<<10)
			for i := uint64(0); ; i++ {
				select {
				case <-done:
					return
				default:
				}
				off, n := rnd.Int64N(size/4096)*4096, 4096*(1+rnd.IntN(16))
				for k := 0; k < n; k += 512 {
					binary.LittleEndian.PutUint64(buf[k:], i)
					binary.LittleEndian.PutUint64(buf[k+8:], uint64(off)+uint64(k))
				}
				switch rnd.IntN(20) {
				case 0:
					err = f.Sync()
				case 1:
					err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n))
				default:
					_, err = f.WriteAt(buf[:min(n, int(size-off))], off)
				}
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond) // the rate of the workload
			}
		})
	}
	return func() { close(done); wg.Wait() }
}
