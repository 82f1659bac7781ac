package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// unit is what stands still at one moment: the flows of a group, or a flow that is in none.
type unit struct {
	o       Options
	source  *source
	name    string
	group   *config.Group // nil: one flow
	c       config.Cutover
	slots   []*slot
	shared  *freezer // of a group; a single flow's is its slot's
	run     string
	state   string
	log     *slog.Logger
	busy    chan struct{} // capacity 1: who holds it takes a moment, cuts over, or takes that back
	started time.Time

	mu       sync.Mutex // guards all below
	doing    string
	last     *mover.LastMoment
	taken    int64
	failed   int64
	skipped  int64
	trouble  string
	skip     string // why the last one that was due was not begun
	schedule mover.Schedule
}

// newUnits makes the units of a source with their slots, in the order of the config: the flows of a group where the first of them stands.
func (s *source) newUnits(newSlot func(config.SourceFlow) *slot) {
	c := s.o.Config.Source
	groups := map[string]*unit{}
	for _, f := range c.Flows {
		p := newSlot(f)
		s.slots = append(s.slots, p)
		g := c.GroupOf(f.Name)
		if g == nil {
			p.unit = s.newUnit(f.Name, nil, f.Cutover)
			s.units = append(s.units, p.unit)
		} else if p.unit = groups[g.Name]; p.unit == nil {
			p.unit = s.newUnit(g.Name, g, g.Cutover)
			groups[g.Name] = p.unit
			s.units = append(s.units, p.unit)
		}
		p.unit.slots = append(p.unit.slots, p)
	}
}

func (s *source) newUnit(name string, g *config.Group, cut config.Cutover) *unit {
	c := s.o.Config.Source
	u := &unit{o: s.o, source: s, name: name, group: g, c: cut, run: string(c.Run), state: string(c.State), log: s.o.Log.With("flow", name),
		busy: make(chan struct{}, 1), started: time.Now()}
	if g != nil {
		u.log = s.o.Log.With("group", name)
		u.schedule.Every = time.Duration(g.Points.Every)
		u.shared = newGroupFreezer(freezerOptions{Name: name, Volumes: u.volumes, Cutover: cut, Hooks: g.Hooks, Run: u.run, Log: u.log})
	}
	var err error
	if u.last, err = lastMoment(u.run, name); err != nil {
		u.log.Warn("the record of the last moment cannot be read", "error", err)
	}
	return u
}

// volumes are those of all members; none may be missing, or a freeze would leave its writers out.
func (u *unit) volumes() (all []*disk.Volume, err error) {
	for _, p := range u.slots {
		p.mu.Lock()
		v, why := p.volume, p.why
		p.mu.Unlock()
		if v == nil {
			return nil, fmt.Errorf("flow %s of group %s is not open: %v: %w", p.f.Name, u.name, why, sentinel.ErrRefused)
		}
		all = append(all, v)
	}
	return all, nil
}

// freezer is that of the unit; nil: a single flow that is not open.
func (u *unit) freezer() *freezer {
	if u.group != nil {
		return u.shared
	}
	p := u.slots[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.freezer
}

// stopper is a freezer as flows see it, with the hooks of applications.
type stopper struct{ *freezer }

func (s stopper) Pre(ctx context.Context, moment string) error { return s.pre(ctx, moment) }
func (s stopper) Post() error                                  { return s.post() }
func (s stopper) Raw() []string                                { return s.users() }

// moment makes the group of a cutover or a point.
func (u *unit) moment() *sender.Group {
	name := ""
	if u.group != nil {
		name = u.name
	}
	g := sender.NewGroup(name, stopper{u.freezer()}, len(u.slots))
	g.Hooks = u.group != nil && len(u.group.Hooks.Pre) > 0
	return g
}

// what names the unit for people.
func (u *unit) what() string {
	if u.group != nil {
		return "group " + u.name
	}
	return "flow " + u.name
}

// hold waits until nothing else is done with the unit's freezes, and says what is done now.
func (u *unit) hold(ctx context.Context, doing string) (done func(), err error) {
	select {
	case u.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: waiting for its %s to end: %w", u.what(), u.at(), context.Cause(ctx))
	}
	u.mu.Lock()
	u.doing = doing
	u.mu.Unlock()
	return func() {
		u.mu.Lock()
		u.doing = ""
		u.mu.Unlock()
		<-u.busy
	}, nil
}

func (u *unit) at() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.doing
}

// flows are those of all members; one that is not open, or is parked, is an error that says so.
func (u *unit) flows() ([]*sender.Flow, error) {
	var all []*sender.Flow
	for _, p := range u.slots {
		flow, err := p.moving()
		if err != nil {
			return nil, err
		}
		all = append(all, flow)
	}
	return all, nil
}

// together runs a verb that ends in reports for all flows at the same time.
func (u *unit) together(kind string, progress func(mover.Progress), each func(i int, f *sender.Flow, tell func(mover.Progress)) (*mover.Report, error)) (*mover.Report, error) {
	flows, err := u.flows()
	if err != nil {
		return nil, err
	}
	reports, errs := make([]*mover.Report, len(flows)), make([]error, len(flows))
	var all errgroup.Group
	for i, f := range flows {
		all.Go(func() error {
			reports[i], errs[i] = each(i, f, u.told(i, progress))
			return nil
		})
	}
	_ = all.Wait() // errors are in errs
	if u.group == nil {
		return reports[0], errs[0]
	}
	for i, r := range reports {
		if r == nil { // refused before it began
			r = &mover.Report{Flow: u.slots[i].f.Name, Group: u.name, Kind: kind, Left: "running", Error: fmt.Sprint(errs[i]), Started: time.Now(), Ended: time.Now()}
			reports[i] = r
		}
	}
	w := mover.Whole(u.name, kind, reports)
	err = u.join(errs)
	if w.Error = ""; err != nil {
		w.Error = err.Error()
	}
	return w, err
}

// told names the member in its news. The step of a freeze goes on as it is: who listens waits for that one.
func (u *unit) told(i int, progress func(mover.Progress)) func(mover.Progress) {
	if progress == nil || u.group == nil {
		return progress
	}
	name := u.slots[i].f.Name
	return func(p mover.Progress) {
		if p.Text != p.Step {
			p.Text = name + ": " + p.Text
		} else if i > 0 && p.Step != control.FreezeStep {
			return // all are at this step; one says so
		}
		progress(p)
	}
}

// join makes one error of those of the members: each once, with the names of those that say the same.
func (u *unit) join(errs []error) error {
	var out []error
	said := map[string][]string{}
	var order []string
	first := map[string]error{}
	for i, err := range errs {
		if err == nil {
			continue
		}
		text := err.Error()
		if said[text] == nil {
			order, first[text] = append(order, text), err
		}
		said[text] = append(said[text], u.slots[i].f.Name)
	}
	for _, text := range order {
		out = append(out, fmt.Errorf("flow %s: %w", strings.Join(said[text], ", "), first[text]))
	}
	return errors.Join(out...)
}

// do runs a verb for the unit.
func (u *unit) do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	switch verb {
	case control.Cutover:
		report, err := u.cutover(ctx, r, progress)
		return control.Result{Report: report}, err
	case control.Point:
		report, err := u.point(ctx, r, progress)
		return control.Result{Report: report}, err
	case control.Rollback:
		return u.rollback(ctx)
	case control.Finish:
		return u.finish(ctx)
	case control.Thaw:
		return u.thaw()
	case control.Verify:
		if u.group == nil {
			break
		}
		report, err := u.together("verify", progress, func(_ int, f *sender.Flow, tell func(mover.Progress)) (*mover.Report, error) {
			return f.Verify(ctx, sender.VerifyOptions{All: r.All}, tell)
		})
		return control.Result{Report: report}, err
	}
	return u.each(ctx, verb, r, progress)
}

// each runs a plain verb of every member at the same time: a line of each.
func (u *unit) each(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	if u.group == nil {
		return u.slots[0].do(ctx, verb, r, progress)
	}
	lines, errs := make([]string, len(u.slots)), make([]error, len(u.slots))
	var all errgroup.Group
	for i, p := range u.slots {
		all.Go(func() error {
			own := r
			own.Flow = p.f.Name
			var result control.Result
			if result, errs[i] = p.do(ctx, verb, own, nil); errs[i] == nil {
				lines[i] = result.Text
			}
			return nil
		})
	}
	_ = all.Wait() // errors are in errs
	lines = slices.DeleteFunc(lines, func(s string) bool { return s == "" })
	text := strings.Join(lines, "\n")
	if err := u.join(errs); err != nil {
		if text != "" {
			err = fmt.Errorf("%w\n(%s)", err, strings.ReplaceAll(text, "\n", "; "))
		}
		return control.Result{}, err
	}
	return control.Result{Text: text}, nil
}

// cutover cuts over or rehearses.
func (u *unit) cutover(ctx context.Context, r control.Request, progress func(mover.Progress)) (*mover.Report, error) {
	kind := "cutover"
	if r.Rehearse {
		kind = "rehearsal"
	}
	o, err := u.options(r)
	if err != nil {
		return nil, err
	}
	done, err := u.hold(ctx, kind)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := u.alone(); err != nil {
		return nil, err
	}
	o.Group = u.moment()
	w, err := u.together(kind, progress, func(_ int, f *sender.Flow, tell func(mover.Progress)) (*mover.Report, error) {
		return f.Cutover(ctx, o, tell)
	})
	if w != nil {
		u.noteMoment(w, err, r.Rehearse)
	}
	return w, err
}

// options merges the request with the config.
func (u *unit) options(r control.Request) (sender.CutoverOptions, error) {
	c := u.c
	o := sender.CutoverOptions{Limit: time.Duration(c.Limit), Deadline: time.Duration(c.FreezeDeadline), Leave: c.Leave, Rehearse: r.Rehearse}
	if r.Limit > 0 {
		o.Limit = time.Duration(r.Limit * float64(time.Second))
	}
	if r.Deadline > 0 {
		o.Deadline = time.Duration(r.Deadline * float64(time.Second))
	}
	if r.Leave != "" {
		o.Leave = r.Leave
	}
	switch {
	case o.Deadline > 10*time.Minute:
		return o, usagef("--deadline %v is longer than 10m; a server whose writers stand still that long is down", o.Deadline)
	case o.Limit > o.Deadline:
		return o, usagef("--limit %v is longer than the freeze deadline %v; give a longer --deadline", o.Limit, o.Deadline)
	case o.Leave == "stopped" && len(c.StopHook) == 0:
		return o, usagef("--leave stopped needs a stop-hook in the config of %s", u.what())
	}
	if o.Leave == "read-only" && !r.Rehearse {
		for _, p := range u.slots {
			if p.image() {
				return o, usagef("flow %s is an image file, which cannot be left read-only; --leave frozen leaves it to its stop hook", p.f.Name)
			}
		}
		if u.holdsState() {
			return o, usagef("%s cannot be left read-only: the state folder %s lies on it and has files open for writing; leave it frozen", u.what(), u.state)
		}
	}
	return o, nil
}

// rollback takes everything back, also what an earlier process or another boot handed over.
func (u *unit) rollback(ctx context.Context) (control.Result, error) {
	for _, p := range u.slots {
		if at, is := p.isFinished(); is {
			return control.Result{}, fmt.Errorf("flow %s was finished at %s, so the way back was given up: %w", p.f.Name, at.Format(time.RFC3339), sentinel.ErrRefused)
		}
	}
	done, err := u.hold(ctx, "rollback")
	if err != nil {
		return control.Result{}, err
	}
	defer done()
	for _, p := range u.slots {
		if err := p.unpark(); err != nil {
			return control.Result{}, err
		}
	}
	flows, err := u.flows()
	if err != nil {
		return control.Result{}, err
	}
	errs := make([]error, len(flows))
	var all errgroup.Group
	for i, f := range flows {
		all.Go(func() error { errs[i] = f.Rollback(ctx); return nil })
	}
	_ = all.Wait() // errors are in errs
	// A member that was not cut over has nothing to take back, as long as another one has.
	some := slices.Contains(errs, nil)
	for i, err := range errs {
		if !errors.Is(err, sender.ErrNothingToTakeBack) {
			continue
		}
		switch s := flows[i].Status(); {
		case s.Conns == 0 || s.Phase == mover.Released.String(): // after a boot only the gateway knows
			errs[i] = fmt.Errorf("only the gateway knows whether its target was handed over, and it is not connected; roll back again when it is: %w", sentinel.ErrRefused)
		case some:
			errs[i] = nil
		}
	}
	err = u.join(errs)
	if u.group == nil {
		err = errs[0]
	}
	if fr := u.freezer(); fr != nil && some {
		err = errors.Join(err, fr.post()) // what pre did before the cutover
	}
	if err != nil {
		return control.Result{}, err
	}
	return control.Result{Text: u.name + " goes on at the source, and is replicated again"}, nil
}

// thaw lets the writers go on now, whatever is being done.
func (u *unit) thaw() (control.Result, error) {
	fr := u.freezer()
	if fr == nil {
		return control.Result{}, u.slots[0].reason()
	}
	if err := fr.Thaw(); err != nil {
		return control.Result{}, err
	}
	text := u.name + " is thawed"
	if u.at() == "" {
		if err := fr.post(); err != nil {
			return control.Result{}, fmt.Errorf("%s, but its applications wait for the post hook: %w", text, err)
		}
	}
	return control.Result{Text: text}, nil
}
