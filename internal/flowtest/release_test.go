package flowtest

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
	"golang.org/x/sys/unix"
)

// A gateway that is told to stop while it hands the target over says so to the source, and has handed it over. The source must not take that
// for a failure and let its writers go on.
func TestReleaseWhileGatewayStops(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 8<<20)
	r.start()
	r.wait("a point", func(s mover.Status) bool { return s.PointEpoch > 0 })
	var once sync.Once
	ended := make(chan struct{})
	r.plan.Hook(func(op fault.Op, _ extent.Extent) error {
		r.vol.mu.Lock()
		kept := r.vol.kept
		r.vol.mu.Unlock()
		if op == fault.Sync && kept { // of RELEASE
			once.Do(func() {
				end := r.gwEnd
				go func() { defer close(ended); end() }()
				time.Sleep(200 * time.Millisecond) // until the source has read that the gateway stops
			})
		}
		return nil
	})
	started := make(chan struct{})
	go func() {
		defer close(started)
		<-ended
		r.gwEnd = nil
		r.startGateway()
	}()
	rep, err := r.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 20 * time.Second})
	select {
	case <-started:
	case <-time.After(30 * time.Second):
		t.Fatalf("the gateway was not told to stop: %v; %+v", err, rep)
	}
	if err != nil || !rep.OK || rep.Left != "frozen" || !(freezer{r.vol}).Held() {
		t.Fatalf("%v; %+v", err, rep)
	}
	r.same()
	must(t, r.flow.Rollback(context.Background()))
}

// released is a rig with a point, a server whose RELEASE is about to be carried out when at is called, once, and a cutover.
func released(t *testing.T, at func(r *rig) error) *rig {
	t.Helper()
	r := newRig(t, 2<<20, 0)
	r.vol.write(0, 2<<20)
	r.start()
	r.wait("a point", func(s mover.Status) bool { return s.PointEpoch > 0 })
	var once sync.Once
	r.plan.Hook(func(op fault.Op, _ extent.Extent) (err error) {
		r.vol.mu.Lock()
		kept := r.vol.kept
		r.vol.mu.Unlock()
		if op == fault.Sync && kept { // of RELEASE
			once.Do(func() { err = at(r) })
		}
		return err
	})
	return r
}

// away cuts the line and keeps it cut.
func (p *proxy) away(yes bool) {
	p.mu.Lock()
	p.refuse = yes
	p.mu.Unlock()
	if yes {
		p.cutAll()
	}
}

// doubtful checks what a cutover leaves whose RELEASE is not answered.
func (r *rig) doubtful(rep *mover.Report, err error) {
	r.t.Helper()
	if !errors.Is(err, sentinel.ErrBrokenOff) || rep == nil || rep.OK || !rep.Doubt || rep.Released || rep.Partly || rep.Left != "frozen" {
		r.t.Fatalf("%v; %+v", err, rep)
	}
	if s := r.flow.Status(); !(freezer{r.vol}).Held() || s.HandOver != mover.HandOverDoubt {
		r.t.Fatalf("held %v; %+v", (freezer{r.vol}).Held(), s)
	}
}

// The line is cut when the target has been handed over, and before the source hears of it: the freeze outlives the deadline, and as soon as the
// gateway answers the cutover is known to have been made (C15).
func TestReleaseUnanswered(t *testing.T) {
	r := released(t, func(r *rig) error { r.proxy.away(true); return nil })
	r.doubtful(r.cutover(sender.CutoverOptions{Limit: 2 * time.Second, Deadline: 2 * time.Second}))
	s := r.wait("stopped", func(s mover.Status) bool { return s.State == mover.Stopped })
	if !strings.Contains(s.Reason, "may be handed over") || !strings.Contains(s.Next, "rollback") || !strings.Contains(s.Next, "shut the source down") {
		t.Errorf("%+v", s)
	}
	if r.flow.Sync(context.Background()) == nil {
		t.Error("a pass was made")
	}
	r.proxy.away(false)
	s = r.wait("the answer", func(s mover.Status) bool { return s.HandOver == mover.HandedOver })
	s = r.wait("done", func(s mover.Status) bool { return s.State == mover.Done })
	if !(freezer{r.vol}).Held() {
		t.Errorf("the answer thawed: %+v", s)
	}
	r.same()
	must(t, r.flow.Rollback(context.Background()))
	r.vol.write(0, 64<<10)
	r.sync()
	r.same()
	r.stopSource()
	if r.report != nil {
		t.Errorf("still recorded: %+v", r.report)
	}
}

// The same, but RELEASE has failed at the gateway: nothing thaws by itself, for the operator was told that the target may be in use.
func TestReleaseUnansweredAndFailed(t *testing.T) {
	r := released(t, func(r *rig) error { r.proxy.away(true); return unix.EIO })
	r.doubtful(r.cutover(sender.CutoverOptions{Limit: 2 * time.Second, Deadline: 2 * time.Second}))
	r.proxy.away(false)
	s := r.wait("the answer", func(s mover.Status) bool { return s.HandOver == mover.NotHandedOver })
	s = r.wait("stopped", func(s mover.Status) bool { return s.State == mover.Stopped && s.HandOver == mover.NotHandedOver })
	if !strings.Contains(s.Reason, "was not handed over") || !strings.Contains(s.Next, "rollback") || !(freezer{r.vol}).Held() {
		t.Errorf("%+v", s)
	}
	must(t, r.flow.Rollback(context.Background()))
	r.vol.write(0, 64<<10)
	r.sync()
	r.same()
}

// A source that ends while RELEASE is on its way, as by a kill, leaves a record that says so, and the next one finds out.
func TestReleaseWhileSourceEnds(t *testing.T) {
	at, goOn := make(chan struct{}), make(chan struct{})
	r := released(t, func(*rig) error { close(at); <-goOn; return nil })
	cut := make(chan error, 1)
	go func() {
		_, err := r.cutover(sender.CutoverOptions{Limit: 5 * time.Second, Deadline: 10 * time.Second})
		cut <- err
	}()
	<-at
	if rec := r.recorded(); rec == nil || !rec.Doubt || rec.Left != "frozen" || rec.OK {
		t.Errorf("record while RELEASE is on its way: %+v", rec)
	}
	r.stopSource()
	<-cut
	if !(freezer{r.vol}).Held() {
		t.Error("the end of the source thawed")
	}
	close(goOn)
	// As a daemon asks whose flow stays where the cutover has left it.
	client, err := wire.ClientTLS(files("db1"), "localhost")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	st, err := sender.AskState(ctx, r.config, []uplink.Path{{Name: "test", Dial: func(ctx context.Context) (net.Conn, error) { return wire.Dial(ctx, r.proxy.addr(), client) }}}, logger())
	if err != nil || st.Phase != mover.Released {
		t.Errorf("asked: %+v, %v", st, err)
	}
	r.startSource()
	s := r.wait("the answer", func(s mover.Status) bool { return s.State == mover.Done })
	if s.HandOver != mover.HandedOver || !(freezer{r.vol}).Held() {
		t.Errorf("%+v", s)
	}
	must(t, r.flow.Rollback(context.Background()))
	r.sync()
	r.same()
}

// A deadline that passes before RELEASE is on its way thaws, and nothing is left that tells of a hand-over.
func TestDeadlineBeforeRelease(t *testing.T) {
	r := newRig(t, 2<<20, 0)
	r.deps = func(d *sender.Deps) {
		d.Freezer = &keeper{hooked: &hooked{together: together{{r.vol}}}, then: func() { r.proxy.away(true) }}
	}
	r.vol.write(0, 2<<20)
	r.start()
	r.wait("a point", func(s mover.Status) bool { return s.PointEpoch > 0 })
	rep, err := r.cutover(sender.CutoverOptions{Limit: 2 * time.Second, Deadline: 2 * time.Second})
	if err == nil || errors.Is(err, sentinel.ErrBrokenOff) || rep.Doubt || rep.Left != "running" || r.recorded() != nil || (freezer{r.vol}).Held() {
		t.Fatalf("%v; %+v; record %+v", err, rep, r.recorded())
	}
	r.proxy.away(false)
	r.vol.write(0, 64<<10)
	r.sync()
	r.same()
}
