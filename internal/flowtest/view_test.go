package flowtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover/sender"
)

// copying is a Snapshotter that copies the volume within the freeze. It tells in what order it was called, and fails where it is told to.
type copying struct {
	r *rig

	mu    sync.Mutex // guards all below
	calls []string
	fails map[string]error
	copy  *frozenCopy
}

type frozenCopy struct {
	*fault.Mem
	c *copying
}

func (v *frozenCopy) Check() error { return v.c.call("check") }
func (v *frozenCopy) ReadAt(p []byte, off int64) (int, error) {
	if err := v.c.call("read"); err != nil {
		return 0, err
	}
	return v.Mem.ReadAt(p, off)
}

func (c *copying) call(what string) error {
	frozen := (freezer{c.r.vol}).Held()
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.fails[what]
	if frozen {
		what += " while frozen"
	}
	if n := len(c.calls); n == 0 || c.calls[n-1] != what {
		c.calls = append(c.calls, what)
	}
	return err
}

func (c *copying) Prepare(context.Context) error { return c.call("prepare") }
func (c *copying) Drop(context.Context) error    { c.copy = nil; return c.call("drop") }
func (c *copying) Snap(context.Context) error {
	if err := c.call("snap"); err != nil {
		return err
	}
	c.copy = &frozenCopy{fault.NewMem(c.r.vol.Size()), c}
	c.copy.SetIdentity(c.r.vol.Identity())
	_, err := c.copy.WriteAt(read(c.r.t, c.r.vol, c.r.vol.Size()), 0)
	return err
}

func (c *copying) Volume() (blockdev.Volume, error) {
	if c.copy == nil {
		return nil, errors.New("no view was made")
	}
	return c.copy, nil
}

// viewed gives all disks but the last one snapshots.
func (s *server) viewed() (all []*copying) {
	for _, r := range s.disks {
		r.config.SnapshotFrom = time.Nanosecond
	}
	for _, r := range s.disks[:len(s.disks)-1] {
		c := &copying{r: r, fails: map[string]error{}}
		all = append(all, c)
		r.stopSource()
		r.deps = func(d *sender.Deps) { d.Snapshot = func() (blockdev.Snapshotter, error) { return c, nil } }
		r.startSource()
	}
	r := s.disks[len(s.disks)-1]
	r.stopSource()
	r.deps = func(d *sender.Deps) {
		d.Snapshot = func() (blockdev.Snapshotter, error) {
			return nil, fmt.Errorf("no logical volume: %w", sentinel.ErrNotSupported)
		}
	}
	r.startSource()
	return all
}

var withViews = sender.PointOptions{Limit: 5 * time.Second, Deadline: 10 * time.Second}

// TestViews: moments that are read after the thaw, while the writers go on, of some disks, and within the freeze of another, are prefixes of one
// order of writes (C13), and nothing that was written meanwhile is lost (C9).
func TestViews(t *testing.T) {
	s := newServer(t, 6)
	s.points()
	views := s.viewed()
	s.points()
	var last uint64
	for i := range 4 {
		reports, errs := s.point(s.hooked(), withViews)
		must(t, errors.Join(errs...))
		var all [][]byte
		for k, r := range s.disks {
			rep := reports[k]
			if !rep.OK || rep.Consistency != "app" || rep.Viewed != (k < len(views)) || (rep.Unviewed != "") != (k == len(views)) {
				t.Fatalf("disk %d: %+v", k, rep)
			}
			all = append(all, r.copies.content(rep.Point))
		}
		n := s.prefixOf(all)
		if n < last {
			t.Fatalf("moment %d holds %d writes, the one before %d", i, n, last)
		}
		last = n
		s.goOn()
	}
	for k, c := range views {
		if calls := strings.Join(c.calls, ", "); !strings.HasPrefix(calls, "prepare, snap while frozen, read, check, drop") || strings.Contains(calls, "read while frozen") || strings.Contains(calls, "drop while") {
			t.Errorf("disk %d: %s", k, calls)
		}
	}
	if n := s.stop(); last == 0 || last > n {
		t.Errorf("%d writes in the last moment, %d were made", last, n)
	}
	for _, r := range s.disks {
		r.sync()
		r.same()
	}
}

// TestViewFails: a view that cannot be made costs the pause, one that did not hold costs the point, and neither costs anything else.
func TestViewFails(t *testing.T) {
	s := newServer(t, 7)
	s.points()
	views := s.viewed()
	s.points()
	overflow := fmt.Errorf("the store overflowed: %w", sentinel.ErrRefused)
	for _, c := range []struct {
		fails string
		point bool // all the same
	}{{"prepare", true}, {"snap", true}, {"read", false}, {"check", false}, {"drop", true}} {
		t.Run(c.fails, func(t *testing.T) {
			bad := views[1]
			bad.mu.Lock()
			bad.calls, bad.fails = nil, map[string]error{c.fails: overflow}
			bad.mu.Unlock()
			s.disks[1].vol.write(0, slot) // something to read in any case
			before := s.disks[1].kept()
			reports, errs := s.point(s.hooked(), withViews)
			rep := reports[1]
			if c.point != (errs[1] == nil) || c.point != (rep.Point != "") || (s.disks[1].kept() > before) != c.point {
				t.Errorf("%v, %+v", errs[1], rep)
			}
			if !c.point && (!errors.Is(errs[1], sentinel.ErrRefused) || !strings.Contains(rep.PointError, "overflowed")) {
				t.Errorf("told %v, %q", errs[1], rep.PointError)
			}
			if readInFreeze := c.fails == "prepare" || c.fails == "snap"; readInFreeze != (rep.Unviewed != "") {
				t.Errorf("%+v", rep)
			}
			if calls := strings.Join(bad.calls, ", "); !strings.HasSuffix(calls, "drop") {
				t.Errorf("calls: %s", calls)
			}
			for i, err := range errs {
				if i != 1 && err != nil {
					t.Errorf("disk %d: %v", i, err)
				}
			}
			s.goOn()
			bad.mu.Lock()
			bad.fails = nil
			bad.mu.Unlock()
			must(t, s.disks[1].flow.Resume())
			s.disks[1].sync()
			if _, errs := s.point(s.hooked(), withViews); errors.Join(errs...) != nil {
				t.Errorf("the next moment: %v", errors.Join(errs...))
			}
		})
	}
	s.stop()
}
