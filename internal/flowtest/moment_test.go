package flowtest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
	"golang.org/x/sys/unix"
)

var moverKeep = mover.Keep{Last: 100}

// hooked is a freezer of several volumes with hooks of applications and users that no freeze stops.
type hooked struct {
	together
	raw     []string
	preErr  error
	postErr error

	mu    sync.Mutex // guards all below
	calls []string
}

func (h *hooked) call(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if what != "freeze" && len(h.together) > 0 && h.together[0].Held() {
		what += " while frozen"
	}
	h.calls = append(h.calls, what)
}

func (h *hooked) Pre(context.Context, string) error { h.call("pre"); return h.preErr }
func (h *hooked) Post() error                       { h.call("post"); return h.postErr }
func (h *hooked) Raw() []string                     { return h.raw }
func (h *hooked) Freeze(ctx context.Context, d time.Duration) error {
	h.call("freeze")
	return h.together.Freeze(ctx, d)
}

func (s *server) hooked() *hooked {
	h := &hooked{}
	for _, r := range s.disks {
		h.together = append(h.together, freezer{r.vol})
	}
	return h
}

// points waits until every disk has one to build on.
func (s *server) points() {
	s.t.Helper()
	for _, r := range s.disks {
		r.wait("a point", func(st mover.Status) bool { return st.Passes > 0 && st.Phase == "point" })
	}
}

// point takes a moment of all disks.
func (s *server) point(h *hooked, o sender.PointOptions) ([]*mover.Report, []error) {
	o.Group = sender.NewGroup("server", h, len(s.disks))
	o.Group.Hooks = true
	if o.Limit == 0 {
		o.Limit, o.Deadline = 5*time.Second, 10*time.Second
	}
	reports, errs := make([]*mover.Report, len(s.disks)), make([]error, len(s.disks))
	var wg sync.WaitGroup
	for i, r := range s.disks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			reports[i], errs[i] = r.flow.Point(ctx, o, nil)
		})
	}
	wg.Wait()
	return reports, errs
}

// kept is how many points a disk has that are called crash or app.
func (r *rig) kept() (n int) {
	r.t.Helper()
	all, err := r.gw.Points("acme/db1/disk")
	must(r.t, err)
	for _, p := range all {
		if p.Consistency >= mover.Crash {
			n++
		}
	}
	return n
}

// goOn fails unless all writers go on.
func (s *server) goOn() {
	s.t.Helper()
	for i, r := range s.disks {
		if (freezer{r.vol}).Held() {
			s.t.Errorf("disk %d stays frozen", i)
		}
	}
}

// Moments of disks that are written all the time in one order: what is kept of each is a prefix of that order, and the target goes on.
func TestMoments(t *testing.T) {
	s := newServer(t, 4)
	s.points()
	h := s.hooked()
	var last uint64
	for i := range 5 {
		reports, errs := s.point(h, sender.PointOptions{})
		must(t, errors.Join(errs...))
		var all [][]byte
		for k, r := range s.disks {
			rep := reports[k]
			if !rep.OK || rep.Kind != "point" || rep.Consistency != "app" || rep.Moment == "" || rep.Moment != reports[0].Moment || rep.Pause <= 0 || rep.Proof != "exact" {
				t.Fatalf("disk %d: %+v", k, rep)
			}
			b := r.copies.content(rep.Point)
			if b == nil {
				t.Fatalf("disk %d: no copy %q", k, rep.Point)
			}
			all = append(all, b)
			if n := r.kept(); n != i+1 {
				t.Fatalf("disk %d: %d points after %d moments", k, n, i+1)
			}
		}
		n := s.prefixOf(all)
		if n < last {
			t.Fatalf("moment %d holds %d writes, the one before %d", i, n, last)
		}
		last = n
		s.goOn()
	}
	if want := strings.Repeat("pre freeze post ", 5); strings.Join(h.calls, " ")+" " != want {
		t.Errorf("hooks: %v", h.calls)
	}
	if n := s.stop(); last == 0 || last > n {
		t.Errorf("%d writes in the last moment, %d were made", last, n)
	}
	whole := mover.Whole("server", "point", nil)
	if whole.OK {
		t.Error("a moment of nobody is well")
	}
}

// What goes wrong before the thaw costs the moment, and nothing else: no disk has a point of it, writers and flows go on, and the next one is whole.
func TestMomentFailsAsOne(t *testing.T) {
	s := newServer(t, 5)
	s.points()
	bad := s.disks[2]
	within := func(f func()) { // of the next freeze
		bad.vol.mu.Lock()
		defer bad.vol.mu.Unlock()
		bad.vol.onFreeze = func() {
			bad.vol.onFreeze = nil // mu is not held, the writers stand still
			go f()
		}
	}
	short := sender.PointOptions{Limit: 2 * time.Second, Deadline: 2 * time.Second}
	for _, c := range []struct {
		name  string
		begin func(*hooked) sender.PointOptions
		end   func()
		want  string
	}{
		{"a member cannot be read", func(*hooked) sender.PointOptions {
			within(func() { bad.vol.plan.Fail(fault.Read, fault.All, unix.EIO) })
			bad.vol.write(0, slot) // something to read in any case
			return short
		}, bad.vol.plan.Clear, "input/output error"},
		{"the gateway goes down", func(*hooked) sender.PointOptions {
			within(bad.stopGateway)
			return short
		}, bad.startGateway, "freeze deadline of 2s|the deadline thawed it before"},
		{"the operator thaws", func(h *hooked) sender.PointOptions {
			within(func() {
				slow := make(chan struct{})
				bad.vol.plan.Hook(func(fault.Op, extent.Extent) error { <-slow; return nil })
				must(t, h.together.Thaw()) // by the freezer itself, whose next Thaw says that all is well
				time.Sleep(20 * time.Millisecond)
				close(slow)
			})
			bad.vol.write(0, slot)
			return sender.PointOptions{}
		}, bad.vol.plan.Clear, "let go on before"},
		{"somebody thaws", func(*hooked) sender.PointOptions {
			within(func() {
				slow := make(chan struct{})
				bad.vol.plan.Hook(func(fault.Op, extent.Extent) error { <-slow; return nil })
				bad.vol.unfreeze(true)
				time.Sleep(20 * time.Millisecond) // somebody may write now
				close(slow)
			})
			bad.vol.write(0, slot)
			return sender.PointOptions{}
		}, bad.vol.plan.Clear, "did not hold"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := make([]int, len(s.disks))
			for i, r := range s.disks {
				before[i] = r.kept()
			}
			h := s.hooked()
			reports, errs := s.point(h, c.begin(h))
			for i, err := range errs {
				if err == nil || reports[i] == nil || reports[i].OK || reports[i].Moment != "" || reports[i].Point != "" {
					t.Errorf("disk %d: %v %+v", i, err, reports[i])
				}
			}
			if err := errors.Join(errs...); !regexp.MustCompile(c.want).MatchString(fmt.Sprint(err)) {
				t.Errorf("told %v, want %q", err, c.want)
			}
			s.goOn()
			c.end()
			for i, r := range s.disks {
				if n := r.kept(); n != before[i] {
					t.Errorf("disk %d: %d points, %d before", i, n, before[i])
				}
				must(t, r.flow.Resume()) // a read error stops a flow, as in any pass
				r.sync()
			}
			if calls := strings.Join(h.calls, " "); calls != "pre freeze post" {
				t.Errorf("hooks: %s", calls)
			}
			again := s.hooked()
			if _, errs = s.point(again, sender.PointOptions{}); errors.Join(errs...) != nil {
				t.Errorf("the next moment: %v", errors.Join(errs...))
			}
		})
	}
	s.stop()
}

// What is written past the freeze makes the moment fuzzy, is named, and nothing of it is kept as if it were one moment.
func TestMomentWithRawWrites(t *testing.T) {
	s := newServer(t, 6)
	s.points()
	raw := s.disks[1]
	raw.vol.mu.Lock()
	raw.vol.onFreeze = func() {
		raw.vol.onFreeze = nil
		var once sync.Once
		raw.vol.plan.Hook(func(fault.Op, extent.Extent) error { // after its Take, while it is read
			once.Do(func() { raw.vol.raw(3<<20, slot) })
			return nil
		})
	}
	raw.vol.mu.Unlock()
	raw.vol.raw(2<<20, slot)
	reports, errs := s.point(s.hooked(), sender.PointOptions{})
	raw.vol.plan.Clear()
	for i, r := range s.disks {
		if errs[i] == nil || reports[i].Consistency != "fuzzy" || reports[i].Moment == "" || len(reports[i].Worse) != 1 || !strings.Contains(reports[i].Worse[0], "written while") {
			t.Errorf("disk %d: %v %+v", i, errs[i], reports[i])
		}
		if n := r.kept(); n != 0 {
			t.Errorf("disk %d: %d points are called consistent", i, n)
		}
	}
	h := s.hooked()
	h.raw = []string{"dbwriter (pid 7) on disk 1"}
	reports, _ = s.point(h, sender.PointOptions{})
	if reports[0].Consistency != "fuzzy" || !strings.Contains(fmt.Sprint(reports[0].Worse), "dbwriter") {
		t.Errorf("with a raw user: %+v", reports[0])
	}
	s.goOn()
	s.stop()
}

// Hooks that fail are told; only pre changes what the moment is worth.
func TestMomentHooks(t *testing.T) {
	s := newServer(t, 7)
	s.points()
	h := s.hooked()
	h.preErr = errors.New("the database is down")
	reports, errs := s.point(h, sender.PointOptions{})
	must(t, errors.Join(errs...))
	if r := reports[0]; r.Consistency != "crash" || !strings.Contains(fmt.Sprint(r.Worse), "the database is down") || r.HookError != "" {
		t.Errorf("pre fails: %+v", r)
	}
	h = s.hooked()
	h.postErr = errors.New("it hangs")
	reports, errs = s.point(h, sender.PointOptions{})
	must(t, errors.Join(errs...))
	if r := mover.Whole("server", "point", reports); r.Consistency != "app" || r.HookError != "it hangs" || !r.OK || r.PointError != "" {
		t.Errorf("post fails: %+v", r)
	}
	if calls := strings.Join(h.calls, " "); calls != "pre freeze post" {
		t.Errorf("hooks: %s", calls)
	}
	s.stop()
}

// Connections that break cost time. A gateway that is away when the writers go on makes the moment incomplete, if it stays away.
func TestMomentAndLinks(t *testing.T) {
	s := newServer(t, 8)
	s.points()
	bad := s.disks[3]
	bad.vol.mu.Lock()
	bad.vol.onFreeze = func() { bad.vol.onFreeze = nil; bad.proxy.cutAll() }
	bad.vol.mu.Unlock()
	reports, errs := s.point(s.hooked(), sender.PointOptions{})
	must(t, errors.Join(errs...))
	var all [][]byte
	for i, r := range s.disks {
		all = append(all, r.copies.content(reports[i].Point))
	}
	s.prefixOf(all)

	// At the thaw of another disk this one has read everything and not committed.
	gone := make(chan struct{})
	h := s.hooked()
	first := &thawer{hooked: h, then: func() { bad.stopGateway(); close(gone) }}
	o := sender.PointOptions{Limit: 5 * time.Second, Deadline: 20 * time.Second, Timeout: 3 * time.Second, Group: sender.NewGroup("server", first, len(s.disks))}
	var wg sync.WaitGroup
	for i, r := range s.disks {
		wg.Go(func() { reports[i], errs[i] = r.flow.Point(context.Background(), o, nil) })
	}
	wg.Wait()
	<-gone
	for i := range s.disks {
		if r := reports[i]; (errs[i] != nil) != (i == 3) || r.Consistency != "crash" || r.Moment == "" || (r.Point == "") != (i == 3) {
			t.Errorf("disk %d: %v %+v", i, errs[i], r)
		}
	}
	if w := mover.Whole("server", "point", reports); w.OK || !strings.Contains(w.PointError, "1 of 4 members have no point kept: disk") {
		t.Errorf("whole: %+v", w)
	}
	bad.startGateway()
	bad.sync()
	if n := bad.kept(); n != 1 {
		t.Errorf("%d points, want that of the first moment", n)
	}
	reports, errs = s.point(s.hooked(), sender.PointOptions{})
	must(t, errors.Join(errs...))
	s.stop()
}

// thawer does something before it thaws, while everything is read.
type thawer struct {
	*hooked
	then func()
}

func (f *thawer) Thaw() error { f.then(); return f.hooked.Thaw() }

// A target that is not handed over while another is leaves all writers stopped, for this process and the next, until all are rolled back.
func TestHandOverInPart(t *testing.T) {
	s := newServer(t, 9)
	s.points()
	bad := s.disks[1]
	h := &keeper{hooked: s.hooked(), then: func() { bad.plan.Fail(fault.Sync, fault.All, unix.EIO) }}
	o := sender.CutoverOptions{Limit: 5 * time.Second, Deadline: 4 * time.Second, Group: sender.NewGroup("server", h, len(s.disks))}
	reports, errs := make([]*mover.Report, len(s.disks)), make([]error, len(s.disks))
	var wg sync.WaitGroup
	for i, r := range s.disks {
		wg.Go(func() { reports[i], errs[i] = r.cutover(o) })
	}
	wg.Wait()
	// A gateway that opens the target again between two failures says that it has not handed it over: then there is no doubt.
	doubt, why := reports[1].Doubt, "3 of 4 targets of the group were handed over, but not that of disk"
	if doubt {
		why = "3 of 4 targets of the group were handed over; RELEASE was sent and nobody knows of that of disk"
	}
	for i, r := range s.disks {
		rep := reports[i]
		if !errors.Is(errs[i], sentinel.ErrBrokenOff) || rep.OK || rep.Left != "frozen" || rep.Released != (i != 1) || rep.Doubt != (doubt && i == 1) || !strings.Contains(rep.Error, why) {
			t.Errorf("disk %d: %v %+v", i, errs[i], rep)
		}
		if st := r.flow.Status(); (st.HandOver == mover.HandedOver) != (i != 1) || (st.HandOver == mover.NotHandedOver) != (!doubt && i == 1) || !(freezer{r.vol}).Held() {
			t.Errorf("disk %d: %+v", i, st)
		}
	}
	// The end of the process lets nobody go on.
	bad.stopSource()
	if !(freezer{bad.vol}).Held() {
		t.Error("the end of one flow thawed it")
	}
	if rec := bad.recorded(); rec == nil || rec.Doubt != doubt {
		t.Errorf("not recorded: %+v", rec)
	}
	bad.plan.Clear()
	bad.startSource()
	bad.wait("known", func(st mover.Status) bool { return st.State == mover.Stopped && st.HandOver == mover.NotHandedOver })
	for _, r := range s.disks {
		must(t, r.flow.Rollback(context.Background()))
	}
	s.goOn()
	for _, r := range s.disks {
		r.sync()
	}
	s.stop()
	for _, r := range s.disks {
		r.sync()
		r.same()
	}
}

// keeper does something when the freeze is kept, just before the release.
type keeper struct {
	*hooked
	then func()
}

func (f *keeper) Keep() error { f.then(); return f.hooked.Keep() }
