package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
)

// audited is a role whose verbs and states go into the trail.
type audited struct {
	role
	log    *Log // with trail and history
	door   *door
	conf   *config.Config
	groups []config.Group
	notes  string // run folder in which others leave records; "" at a gateway

	mu     sync.Mutex      // guards all below
	parked map[string]bool // flows that an earlier process left frozen: each has a hold of its own
}

// openTrail makes the trail before anything that is to be recorded. While a flow is frozen it touches no disk: the state may lie there.
func openTrail(o *Options, p place) (*audited, error) {
	t, err := audit.New(audit.Config{Dir: filepath.Join(p.state, "audit"), Keep: keepOf(*o), Spill: filepath.Join(p.run, o.Role+".audit")})
	if err != nil {
		return nil, err
	}
	past := history.Open(history.Config{Dir: filepath.Join(p.state, "history"), Spill: filepath.Join(p.run, o.Role+".history"), Log: o.Log.Logger})
	a := &audited{conf: o.Config, parked: map[string]bool{}, door: newDoor()}
	a.log = &Log{Logger: o.Log.Logger, buf: o.Log.buf, trail: t, past: past, later: make(chan audit.Record, laterQueue)}
	if o.Role == Source {
		a.groups, a.notes = o.Config.Source.Groups, p.run
		for _, f := range o.Config.Source.Flows {
			if r, err := recorded(p.run, f.Name); err == nil && r != nil && r.Left == "frozen" {
				a.parked[f.Name] = true
				a.log.hold()
			}
		}
	}
	o.Log, o.door = a.log, a.door
	return a, nil
}

// laterQueue is more than the points of a second.
const laterQueue = 256

func keepOf(o Options) time.Duration {
	if o.Role == Source {
		return time.Duration(o.Config.Source.Audit.Keep)
	}
	return time.Duration(o.Config.Gateway.Audit.Keep)
}

// Names of events.
const (
	begins  = ".begin" // follows a verb
	ends    = ".end"
	stopped = "daemon.stop"
)

// begin and end are the daemon's own records.
func (a *audited) begin(o Options) {
	details := map[string]any{"role": o.Role, "version": version.String(), "pid": os.Getpid()}
	if raw, err := os.ReadFile(o.File); err == nil {
		details["config_digest"] = digest.Sum(raw).String()
	}
	a.note(audit.Record{Event: "daemon.start", Details: details})
	seq, last := a.log.trail.Head()
	a.log.Info("audit trail", "seq", seq, "digest", last)
	a.unclean()
}

// unclean records that the process before did not come to its end.
func (a *audited) unclean() {
	switch last, found := a.log.trail.Found(); {
	case !found || last.Event == stopped:
	default:
		a.note(audit.Record{Event: "daemon.unclean", Details: map[string]any{"last_seq": last.Seq, "last_event": last.Event, "last_time": last.Time.Format(time.RFC3339)}})
	}
}

// reloaded records what became of a signal to read the config again.
func (a *audited) reloaded(o Options, err error) {
	details := map[string]any{"ok": err == nil}
	if g := a.conf.Gateway; g != nil && g.Policy != "" {
		if raw, err := os.ReadFile(string(g.Policy)); err == nil {
			details["policy_digest"] = digest.Sum(raw).String()
		}
	}
	if err != nil {
		details["error"] = err.Error()
	}
	if raw, err := os.ReadFile(o.File); err == nil {
		details["config_digest"] = digest.Sum(raw).String()
	}
	a.note(audit.Record{Event: "config.reload", Details: details})
}

func (a *audited) end(why error) {
	details := map[string]any{"version": version.String()}
	if why != nil {
		details["error"] = why.Error()
	}
	a.door.flush(a.note)
	a.note(audit.Record{Event: stopped, Details: details})
	if err := a.shut(); err != nil {
		a.log.Error("what was recorded is not all written", "error", err)
	}
}

// shut ends what records, for as long as a stop may last.
func (a *audited) shut() error {
	err := a.log.trail.Close()
	if a.log.past != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		err = errors.Join(err, a.log.past.Close(ctx))
	}
	return err
}

func (a *audited) note(r audit.Record) { a.log.record(r) }

// Do records the verb and its outcome. What changes who writes the target is not begun without a record.
func (a *audited) Do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	switch {
	case verb == control.Points && r.Change == "", verb == control.Lines && r.Set == nil, verb == control.Objects: // a look
		return a.role.Do(ctx, verb, r, progress)
	case verb == control.Report:
		d, err := a.document(ctx, r.Flow)
		return control.Result{Past: d}, err
	}
	actor := control.Peer(ctx)
	asked := audit.Record{Actor: actor, Event: verb + begins, Flow: r.Flow, Details: map[string]any{}}
	for name, on := range map[string]bool{"rehearse": r.Rehearse, "all": r.All, "overwrite": r.Overwrite, "drop": r.Drop, "without_refused": r.WithoutRefused} {
		if on {
			asked.Details[name] = true
		}
	}
	for name, v := range map[string]string{"point": r.Point, "change": r.Change, "to": r.To, "dir": r.Dir, "line": r.Line} {
		if v != "" {
			asked.Details[name] = v
		}
	}
	if r.Set != nil {
		asked.Details["set"] = r.Set
	}
	switch verb {
	case control.Pause, control.Resume, control.Sync, control.Verify, control.Thaw, control.Point, control.Manifest, control.Plan: // harmless, or must not be held up
		a.note(asked)
	default:
		if err := a.log.trail.Require(asked); err != nil {
			return control.Result{}, err
		}
	}
	result, err := a.role.Do(ctx, verb, r, progress)
	if err == nil && (verb == control.Thaw || verb == control.Rollback) {
		for _, flow := range a.frozenWith(r.Flow) {
			a.unpark(flow)
		}
	}
	a.log.append(audit.Record{Actor: actor, Event: verb + ends, Flow: r.Flow, Details: outcome(result, err)})
	a.log.note(ended(actor, verb, r.Flow, result, err))
	return result, err
}

// ended is the event of a verb: of a cutover and the like by its report's kind.
func ended(actor, verb, flow string, result control.Result, err error) mover.Event {
	e := mover.Event{Kind: verb, Flow: flow, Actor: actor, Text: result.Text, Report: result.Report}
	if err != nil {
		e.Error = err.Error()
	}
	if r := result.Report; r != nil {
		e.Kind, e.Began, e.Pause, e.Consistency = r.Kind, r.Started, r.Pause, r.Consistency
	}
	return e
}

func outcome(result control.Result, err error) map[string]any {
	d := map[string]any{"ok": err == nil}
	if err != nil {
		d["error"] = err.Error()
	}
	if r := result.Report; r != nil {
		d["source_root"], d["target_root"], d["pause_seconds"], d["left"] = r.SourceRoot, r.TargetRoot, r.Pause, r.Left
		d["generation"], d["epoch"], d["consistency"] = r.Generation, r.Epoch, r.Consistency
		if b := r.Bucket; b != nil {
			d["objects"], d["bytes"], d["refused"], d["partly"], d["differ"], d["manifest"], d["manifest_root"] = b.Objects, b.Bytes, b.Refused, b.Partly, b.Differ, b.Manifest, b.Root
		}
		if r.Kind == "cutover" {
			d["handed_over"] = handedOver(r)
		}
	}
	return d
}

// handedOver is what a cutover's report says of its targets: one answer, or one for each member.
func handedOver(r *mover.Report) any {
	if len(r.Members) == 0 {
		return r.HandOver()
	}
	all := map[string]any{}
	for _, m := range r.Members {
		all[m.Flow] = m.HandOver()
	}
	return all
}

// frozenWith is the flows that are thawed with the one, or the group, of that name.
func (a *audited) frozenWith(name string) []string {
	for _, g := range a.groups {
		if g.Name == name || slices.Contains(g.Flows, name) {
			return g.Flows
		}
	}
	return []string{name}
}

func (a *audited) unpark(flow string) {
	a.mu.Lock()
	held := a.parked[flow]
	delete(a.parked, flow)
	a.mu.Unlock()
	if held {
		a.log.release()
		a.unclean()
	}
}

// run watches the states of flows beside the role.
func (a *audited) run(ctx context.Context) error {
	stop := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() { a.watch(stop) })
	beside.Go(func() { a.door.run(stop, a.note) })
	err := a.role.run(ctx)
	close(stop)
	beside.Wait()
	return err
}

// watchEvery is how often states are looked at; a state that comes and goes in between leaves no record.
const watchEvery = time.Second

func (a *audited) watch(stop <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	seen := map[string]mover.Status{}
	for {
		all := a.role.Status()
		if a.log.past != nil {
			a.log.past.Look(all)
		}
		for _, s := range all {
			for _, r := range changes(seen[s.Flow], s) {
				a.note(r)
			}
			seen[s.Flow] = s
		}
		select {
		case <-tick.C:
			a.late()
		case <-stop:
			a.late()
			return
		}
	}
}

// late writes what could not wait for the trail when it happened.
func (a *audited) late() {
	if a.notes != "" {
		for _, r := range takeNotes(a.notes) {
			a.log.record(r)
		}
	}
	for {
		select {
		case r := <-a.log.later:
			a.log.append(r)
		default:
			return
		}
	}
}

// changes are the records of what became of a flow between two looks.
func changes(old, s mover.Status) (out []audit.Record) {
	say := func(event string, d map[string]any) {
		out = append(out, audit.Record{Event: event, Flow: s.Flow, Details: d})
	}
	if s.Phase != old.Phase && s.Phase == "released" {
		say("flow.released", map[string]any{"epoch": s.PointEpoch})
	}
	if s.HandOver != old.HandOver && (s.HandOver == mover.HandOverDoubt || old.HandOver == mover.HandOverDoubt) {
		say("flow.handover", map[string]any{"handed_over": s.HandOver, "why": s.Reason})
	}
	if s.Gap != "" && (s.Gap != old.Gap || s.Rescans > old.Rescans) {
		say("flow.gap", map[string]any{"why": s.Gap, "rescans": s.Rescans})
	}
	if s.Bucket != nil {
		bucketChanges(old, s, say)
	} else if s.State != old.State && (s.State == mover.Stopped || s.State == mover.Frozen || s.State == mover.Done) {
		say("flow."+string(s.State), map[string]any{"why": s.Reason})
	}
	if s.Conns > 0 && old.Conns == 0 {
		say("link.up", map[string]any{"role": s.Role, "connections": s.Conns})
	}
	if s.Conns == 0 && old.Conns > 0 {
		say("link.down", map[string]any{"role": s.Role})
	}
	return out
}

// bucketChanges are those of a bucket flow: each state but the turns of passes and pauses between them, each reason for which it does not begin or go on, and whether
// its keys are renewed.
func bucketChanges(old, s mover.Status, say func(event string, d map[string]any)) {
	turns := func(st mover.State) bool { return st == mover.Idle || st == mover.Passing || st == mover.Settling }
	switch {
	case turns(s.State):
		if old.State != "" && !turns(old.State) {
			say("flow.moving", map[string]any{"pass": s.Bucket.Pass})
		}
	case s.State == mover.Connecting && old.State == "": // it has just started
	case s.State != old.State, s.State == mover.Stopped && s.Reason != old.Reason:
		say("flow."+string(s.State), map[string]any{"why": s.Reason})
	}
	for _, end := range []string{"source", "target"} {
		var was, is mover.BucketKeys
		if is = s.Bucket.Keys[end]; old.Bucket != nil {
			was = old.Bucket.Keys[end]
		}
		if (is.Trouble == "") != (was.Trouble == "") {
			say("flow.keys", map[string]any{"end": end, "renewed": is.Trouble == "", "why": is.Trouble, "left_seconds": int64(is.Left)})
		}
	}
}
