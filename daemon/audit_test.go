package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/wire"
)

// worker is a role whose verbs are a function.
type worker struct {
	stuck
	do func() (control.Result, error)
}

func (w *worker) Do(context.Context, string, control.Request, func(mover.Progress)) (control.Result, error) {
	return w.do()
}

func trailFor(t *testing.T, r role) (*audited, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	tr, err := audit.New(audit.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return &audited{role: r, log: &Log{Logger: slog.New(slog.DiscardHandler), trail: tr}, parked: map[string]bool{}, door: newDoor()}, dir
}

func events(t *testing.T, dir string) (all []string) {
	t.Helper()
	if _, err := audit.Verify(dir, func(r audit.Record) error { all = append(all, r.Event); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestVerbsAreRecorded(t *testing.T) {
	a, dir := trailFor(t, &worker{do: func() (control.Result, error) {
		return control.Result{Report: &mover.Report{SourceRoot: "aa", Pause: 0.2}}, errors.New("no")
	}})
	if _, err := a.Do(t.Context(), control.Cutover, control.Request{Flow: "root"}, nil); err == nil {
		t.Error("the verb's error is lost")
	}
	if got := fmt.Sprint(events(t, dir)); got != "[audit.continued cutover.begin cutover.end]" {
		t.Error(got)
	}
}

// Without a trail that can be written nothing begins that has to be recorded; the rest goes on.
func TestNoTrailNoCutover(t *testing.T) {
	began := 0
	a, _ := trailFor(t, &worker{do: func() (control.Result, error) { began++; return control.Result{}, nil }})
	tr, err := audit.New(audit.Config{Dir: "/proc/audit"}) // cannot be made
	if err != nil {
		t.Fatal(err)
	}
	a.log.trail = tr
	for _, verb := range []string{control.Cutover, control.Claim, control.Rollback} {
		if _, err := a.Do(t.Context(), verb, control.Request{Flow: "root"}, nil); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if began != 0 {
		t.Errorf("%d began", began)
	}
	if _, err := a.Do(t.Context(), control.Thaw, control.Request{Flow: "root"}, nil); err != nil || began != 1 {
		t.Errorf("thaw: %v", err)
	}
}

// A flood of refused connections leaves a few records and a count, also while the trail's disk hangs, and holds nobody up.
func TestDoor(t *testing.T) {
	a, dir := trailFor(t, &worker{})
	stop, block := make(chan struct{}), make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() { a.door.run(stop, func(r audit.Record) { <-block; a.note(r) }) })
	begin := time.Now()
	const n = 5000
	for i := range n {
		e := receiver.Event{Did: receiver.Refused, Kind: wire.KindNoCert, Peer: &net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: i}, Err: errors.New(strings.Repeat("x", 9999))}
		switch i % 3 {
		case 1:
			e.Kind, e.Name, e.Proven, e.Flow = receiver.KindForeign, "mover://acme/db2", true, "root"
		case 2:
			e.Kind, e.Name = wire.KindForeignCA, "mover://acme/db1"
		}
		a.door.seen(e)
	}
	a.door.seen(receiver.Event{Did: receiver.Accepted, Peer: &net.TCPAddr{}, Name: "mover://acme/db1", Proven: true, Flow: "acme/db1/root"})
	if d := time.Since(begin); d > time.Second {
		t.Errorf("%v for %d", d, n)
	}
	close(block)
	close(stop)
	beside.Wait()
	a.door.flush(a.note)
	told, counted, accepted := 0, 0, 0
	if _, err := audit.Verify(dir, func(r audit.Record) error {
		switch r.Event {
		case linkRefused:
			told++
			if kind := r.Details["kind"]; (kind == receiver.KindForeign) != (r.Actor == "mover://acme/db2") {
				t.Errorf("actor %q of kind %v: only what is proven is one", r.Actor, kind)
			}
			if len(fmt.Sprint(r.Details["error"])) > 512 || r.Flow != "" {
				t.Error("what strangers say is not bounded")
			}
		case linkRefused + more:
			counted += int(r.Details["attempts"].(float64))
		case linkAccepted:
			accepted++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if told+counted != n || told < 3 || told > 40 || accepted != 1 {
		t.Errorf("%d told, %d counted, %d accepted", told, counted, accepted)
	}
}

func TestChanges(t *testing.T) {
	var got []string
	for _, r := range changes(mover.Status{Conns: 2}, mover.Status{State: mover.Stopped, Phase: "released", Gap: "reboot", Rescans: 1}) {
		got = append(got, r.Event)
	}
	if fmt.Sprint(got) != "[flow.released flow.gap flow.stopped link.down]" {
		t.Error(got)
	}
}

// A hand-over in doubt, and what becomes known of it, is in the trail (C15).
func TestHandOverIsRecorded(t *testing.T) {
	none, doubt, no := mover.Status{}, mover.Status{HandOver: mover.HandOverDoubt}, mover.Status{HandOver: mover.NotHandedOver}
	for _, c := range []struct {
		old, new mover.Status
		want     int
	}{{none, doubt, 1}, {doubt, no, 1}, {doubt, doubt, 0}, {none, mover.Status{HandOver: mover.HandedOver}, 0}} {
		out := changes(c.old, c.new)
		if len(out) != c.want || c.want > 0 && (out[0].Event != "flow.handover" || out[0].Details["handed_over"] != c.new.HandOver) {
			t.Errorf("%q to %q: %+v", c.old.HandOver, c.new.HandOver, out)
		}
	}
	whole := mover.Whole("server", "cutover", []*mover.Report{{Flow: "a", Kind: "cutover", Released: true}, {Flow: "b", Kind: "cutover", Doubt: true}})
	if d, _ := outcome(control.Result{Report: whole}, nil)["handed_over"].(map[string]any); d["a"] != "yes" || d["b"] != "unknown" {
		t.Errorf("%+v", d)
	}
}

// What becomes of a bucket flow is in the trail: each refused start with its reason, each state but the turns of passes, and its keys.
func TestBucketChanges(t *testing.T) {
	trouble := map[string]mover.BucketKeys{"target": {Trouble: "nobody answers", Left: 60}}
	at := func(state mover.State, reason string, keys map[string]mover.BucketKeys) mover.Status {
		return mover.Status{Flow: "photos", State: state, Reason: reason, Bucket: &mover.Bucket{Pass: 3, Keys: keys}}
	}
	steps := []struct {
		s    mover.Status
		want string
	}{
		{at(mover.Connecting, "it has just started", nil), ""},
		{at(mover.Stopped, "claim", nil), "flow.stopped claim"},
		{at(mover.Stopped, "claim", nil), ""},
		{at(mover.Stopped, "region", nil), "flow.stopped region"},
		{at(mover.Passing, "", nil), "flow.moving"},
		{at(mover.Idle, "next pass in 5m", nil), ""},
		{at(mover.Passing, "", trouble), "flow.keys nobody answers"},
		{at(mover.Connecting, "no keys", trouble), "flow.connecting no keys"},
		{at(mover.Connecting, "no keys: other words", trouble), ""},
		{at(mover.Passing, "", nil), "flow.moving, flow.keys"},
		{at(mover.Paused, "by the operator", nil), "flow.paused by the operator"},
		{at(mover.Idle, "", nil), "flow.moving"},
		{at(mover.Settling, "", nil), ""},
		{at(mover.Done, "cut over", nil), "flow.done cut over"},
	}
	var old mover.Status
	for i, step := range steps {
		var got []string
		for _, r := range changes(old, step.s) {
			why, _ := r.Details["why"].(string)
			got = append(got, strings.TrimSpace(r.Event+" "+why))
		}
		if strings.Join(got, ", ") != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
		old = step.s
	}
}
