package flowtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// A real filesystem that is written all the time, with the kernel's tracker and a real freeze: its point is clean to fsck. Somebody who thaws it while
// it is read, with fsfreeze, costs the moment; so does the end of the flow.
func TestMomentKernel(t *testing.T) {
	looptest.NeedRoot(t)
	loop := looptest.New(t, 64<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, loop.Dev, "ext4")
	dir := looptest.Mount(t, loop.Dev)
	r := newRig(t, 1<<20, 0)
	r.keepPoints()
	r.config.Interval = 50 * time.Millisecond
	pins := fmt.Sprintf("/sys/fs/bpf/flowmoment%d", os.Getpid())
	vol, err := disk.OpenVolume(loop.Dev)
	must(t, err)
	tr, err := cbt.Open(cbt.Options{Name: "flowmoment", Map: vol.Map(), Size: vol.Size(), PinDir: pins})
	must(t, err)
	fr := freeze.New([]string{dir}, freeze.Options{RunDir: tmpfs(t), Name: "flowmoment", Log: logger()})
	plan := &fault.Plan{}
	r.deps = func(d *sender.Deps) {
		d.Volume, d.Tracker, d.Used, d.Freezer = fault.NewVolume(vol, plan), tr, nil, fr
	}
	halt := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-halt:
				return
			case <-time.After(2 * time.Millisecond):
			}
			path := filepath.Join(dir, fmt.Sprint("file", i%50))
			if f, err := os.Create(path); err == nil {
				fmt.Fprintln(f, strings.Repeat("content ", 1+i%4000))
				if i%5 == 0 {
					f.Sync()
				}
				f.Close()
			}
		}
	})
	defer func() {
		_ = fr.Thaw()
		close(halt)
		writer.Wait()
		r.stopSource()
		must(t, tr.Remove())
		must(t, vol.Close())
		_ = os.Remove(pins)
	}()
	r.start()
	r.wait("a point to build on", func(s mover.Status) bool { return s.Passes >= 2 && s.Phase == "point" })
	point := func() (*mover.Report, error) {
		return r.flow.Point(context.Background(), sender.PointOptions{Limit: 5 * time.Second, Deadline: 8 * time.Second}, nil)
	}
	for range 2 {
		rep, err := point()
		must(t, err)
		if rep.Consistency != "crash" || rep.Proof != "exact" || rep.Pause <= 0 {
			t.Fatalf("%+v", rep)
		}
		image := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(image, r.copies.content(rep.Point), 0o600))
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("the point is not clean: %v\n%s", err, out)
		}
	}
	before := r.kept()
	within := func(do func()) { // the next read within a freeze
		var once sync.Once
		plan.Hook(func(fault.Op, extent.Extent) error {
			if fr.Held() {
				once.Do(do)
			}
			return nil
		})
		must(t, os.WriteFile(filepath.Join(dir, "something"), []byte("to read"), 0o600))
	}
	within(func() {
		if out, err := exec.Command("fsfreeze", "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("fsfreeze: %v: %s", err, out)
		}
		time.Sleep(50 * time.Millisecond) // the writer writes
	})
	if rep, err := point(); err == nil || rep.OK || rep.Moment != "" || rep.Point != "" {
		t.Errorf("thawed by somebody: %v %+v", err, rep)
	} else {
		t.Log("told:", err)
	}
	plan.Clear()
	var ended sync.WaitGroup
	within(func() { ended.Go(r.stopSource); time.Sleep(100 * time.Millisecond) })
	if rep, err := point(); err == nil || rep != nil && rep.Point != "" {
		t.Errorf("with the end of the flow: %v %+v", err, rep)
	}
	ended.Wait()
	plan.Clear()
	if fr.Held() {
		t.Error("stays frozen")
	}
	r.startSource()
	r.wait("it goes on", func(s mover.Status) bool { return s.Passes >= 1 && s.Phase == "point" })
	if n := r.kept(); n != before {
		t.Errorf("%d points, %d before", n, before)
	}
	if _, err := point(); err != nil {
		t.Error(err)
	}
}
