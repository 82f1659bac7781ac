package sender

// A recovery point, of one flow or of a group at one moment:
//
//	rounds   deltas until the rest is read and acked within the limit
//	pre      hooks make the applications ready
//	freeze   writers stop; the deadline runs from here to the thaw
//	delta    Take, read, send, until everything is acked: it is in the gateway's log and is not read again
//	barrier  all have, the trackers saw no write since their Takes, and the freeze has held: only then is it one moment (C13)
//	thaw     the writers go on; post hooks follow
//	commit   of each member, on its own
//	keep     the gateway records what the point is worth, and keeps a copy
//
// Whatever fails before the thaw thaws, and no member has a point. What fails after it makes the moment incomplete.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
	"golang.org/x/sync/errgroup"
)

// PointOptions say how far a recovery point may go.
type PointOptions struct {
	Limit    time.Duration // longest pause that is asked for; default 1 s
	Deadline time.Duration // longest pause that is possible; default 10 s
	Timeout  time.Duration // for the rounds before the freeze, and for the commit after it; default 10 min
	// NoSnapshot has everything read within the freeze. Else a view of the volume is read after the thaw, where that makes a long pause short
	// and the volume can have one.
	NoSnapshot bool
	Group      *Group // those that do the same at the same moment, with equal options; nil: nobody
}

// Point makes a recovery point that is called crash or app: a moment at which the writers stood still. A failure before the thaw leaves
// everything as it was. The report comes along with an error where there is something to tell: with Moment set, the moment is one, but this
// flow has no point of it. progress may be nil.
func (f *Flow) Point(ctx context.Context, o PointOptions, progress func(mover.Progress)) (*mover.Report, error) {
	c := CutoverOptions{Limit: o.Limit, Deadline: o.Deadline, Timeout: o.Timeout}.withDefaults()
	if err := c.validate(); err != nil {
		if o.Group != nil {
			o.Group.fail(fmt.Errorf("flow %s: %w", f.cfg.Flow, err))
		}
		return nil, err
	}
	o.Limit, o.Deadline, o.Timeout = c.Limit, c.Deadline, c.Timeout
	if o.Group == nil {
		o.Group = NewGroup("", f.deps.Freezer, 1)
	}
	if err := f.readyForPoint(); err != nil {
		o.Group.fail(fmt.Errorf("flow %s: %w", f.cfg.Flow, err))
		return nil, err
	}
	tell, told := relay(progress)
	m := &moment{still: still{f: f, g: o.Group, deadline: o.Deadline, until: "everything was read"}, o: o, progress: tell}
	err := f.order(ctx, m.run, tell)
	if err != nil {
		o.Group.fail(fmt.Errorf("flow %s: %w", f.cfg.Flow, err)) // also when its turn never came
	}
	hookErr := o.Group.over()
	if m.report != nil {
		m.report.HookError = hookErr
	}
	told()
	return m.report, err
}

// readyForPoint refuses what would take as long as a full pass.
func (f *Flow) readyForPoint() error {
	if err := f.ready(); err != nil {
		return err
	}
	s := f.Status()
	switch {
	case s.Phase != mover.Point.String():
		return fmt.Errorf("%w: the target has no recovery point yet to build on (%s); wait for the first pass", sentinel.ErrRefused, s.State)
	case s.Pass != nil && s.Pass.Kind != mover.Delta.String() && !f.scans():
		return fmt.Errorf("%w: a %s pass is under way; wait for its end", sentinel.ErrRefused, s.Pass.Kind)
	}
	return nil
}

func (f *Flow) scans() bool {
	method, _ := f.deps.Tracker.Method()
	return method == "scan"
}

// moment is one member's way to its point.
type moment struct {
	still
	o        PointOptions
	progress teller
	report   *mover.Report
	step     time.Time
	view     viewing
}

func (m *moment) run(ctx context.Context) error {
	f := m.f
	m.report = f.newReport("point")
	m.report.Group = m.g.name
	wireAt := f.link.view().Out
	f.mu.Lock()
	f.view.cutover, f.view.pointing = true, true
	f.mu.Unlock()
	err := m.all(ctx)
	f.mu.Lock()
	f.view.cutover, f.view.pointing = false, false
	f.mu.Unlock()
	f.closeReport(m.report, wireAt, err)
	if err != nil {
		f.noteError(err)
		f.due = time.Time{}
	}
	if shape, ok := errors.AsType[errShape](err); ok {
		return shape.error // the next pass meets it and ends Run
	}
	return err
}

func (m *moment) timed(name string) { m.step = time.Now(); m.progress.say(name, name, 0, 0) }

func (m *moment) ended(name string) {
	m.report.Steps = append(m.report.Steps, mover.Step{Name: name, Seconds: time.Since(m.step).Seconds()})
}

func (m *moment) all(ctx context.Context) error {
	began := time.Now()
	defer func() { m.dropView(ctx) }()
	if err := m.rounds(ctx); err != nil {
		return err
	}
	m.report.Steps = append(m.report.Steps, mover.Step{Name: "rounds", Seconds: time.Since(began).Seconds()})
	if m.g.Hooks {
		if err := m.pre(ctx); err != nil {
			return err
		}
	}
	p, err := m.read(ctx)
	if err != nil {
		return err
	}
	return m.finish(context.WithoutCancel(ctx), p)
}

// rounds sends what has changed until the rest is read within the limit. Nothing is read back.
func (m *moment) rounds(ctx context.Context) error {
	f := m.f
	defer f.deps.Priority.raise(fair)()
	began := time.Now()
	for {
		if err := m.round(ctx); err != nil {
			return err
		}
		estimate, written, moved := f.reading()
		if m.prepareView(ctx, estimate); m.view.ready {
			estimate = 0 // the writers do not wait for the reading
		}
		m.progress.say("rounds", fmt.Sprintf("round %d: the pause would be about %s", m.report.Rounds, seconds(estimate)), 0, 0)
		verdict, err := m.g.round(ctx, m.o.Limit, m.o.Timeout, round{estimate, time.Since(began), written, moved})
		if err != nil {
			return err
		}
		if verdict == mover.Go {
			return nil
		}
	}
}

func (m *moment) round(ctx context.Context) error {
	m.progress.say("rounds", "sending what has changed", 0, 0)
	if err := m.f.flushCaches(ctx); err != nil {
		return err
	}
	p, err := m.f.follow(ctx, m.progress, onSchedule)
	if err != nil {
		return err
	}
	if p.kind != mover.Delta && !m.f.scans() {
		return fmt.Errorf("%w: a %s pass was needed (%s); now that it has ended, try again", sentinel.ErrRefused, p.kind, p.why)
	}
	m.report.Rounds++
	return nil
}

// reading measures what the pause would be now, and the rates of writing and moving.
func (f *Flow) reading() (pause time.Duration, written, moved float64) {
	pending := f.deps.Tracker.Pending()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view.pace.Reading(pending), f.view.dirty.PerSecond(), f.view.pace.Line
}

// pre runs the hooks once for all, and then another round where they took so long that the rest has grown beyond the limit. Hooks that fail
// cost the moment what they were for, not more.
func (m *moment) pre(ctx context.Context) error {
	m.timed("pre")
	err := m.g.step(ctx, func() error {
		if err := m.g.pre(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m.g.doubt(false, "the pre hook failed, so the applications were not prepared: %v", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.ended("pre")
	if estimate, _, _ := m.f.reading(); estimate > m.o.Limit && !m.view.ready {
		return m.round(ctx)
	}
	return nil
}

// read is the way from the freeze to the thaw. The operator's ctx ends it only before the freeze.
func (m *moment) read(ctx context.Context) (_ *pass, err error) {
	f := m.f
	defer f.deps.Priority.raise(urgent)()
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	m.timed("freeze")
	fctx, stop, err := m.freeze(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	m.ended("freeze")
	thawed := false
	defer func() {
		if !thawed {
			if p := f.currentPass(); p != nil {
				f.drop(p)
			}
			m.report.Pause = time.Since(m.froze).Seconds()
			err = errors.Join(err, m.giveUp(err, m.report))
		}
	}()
	fctx, release := m.guard(fctx)
	defer release()
	p, err := m.delta(fctx)
	if err != nil {
		return nil, err
	}
	if err := m.g.step(fctx, nil); err != nil { // everybody has read everything
		return nil, err
	}
	if err := m.witness(); err != nil {
		return nil, err
	}
	m.timed("thaw")
	if err := m.g.step(fctx, m.g.part); err != nil { // says also when the freeze had been broken before
		return nil, fmt.Errorf("the freeze did not hold until everything was read: %w", err)
	}
	thawed = true
	worth, worse, froze, pause := m.g.worth()
	m.report.Pause = pause.Seconds()
	m.report.Moment, m.report.MomentTime, m.report.Consistency, m.report.Worse = m.g.moment.String(), froze, worth.String(), worse
	m.ended("thaw")
	if err := f.resumeWriting(); err != nil {
		f.drop(p)
		return nil, err
	}
	return p, nil
}

// delta takes an epoch and sends it. When it returns, everything is durable at the gateway and p is sealed.
func (m *moment) delta(ctx context.Context) (*pass, error) {
	f := m.f
	m.timed("delta")
	if p := f.currentPass(); p != nil { // what was read then and what is read now are not of one moment
		f.drop(p)
	}
	p, err := f.begin(ctx, inMoment)
	if err != nil {
		return nil, err
	}
	f.setPass(p)
	m.snap(ctx)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { p.proven, err = f.prove(gctx); return err })
	g.Go(func() error {
		for !m.view.ready {
			err := f.bring(gctx, p)
			if !errors.Is(err, errDown) || gctx.Err() != nil {
				return err
			}
		}
		return nil
	})
	if err = g.Wait(); err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		f.drop(p)
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return nil, &mover.OpError{Op: "read the moment", Flow: f.cfg.Flow, Err: err}
	}
	p.sealed.Store(!m.view.ready)
	m.ended("delta")
	m.report.FinalDelta = p.total
	m.report.Generation, m.report.Epoch = fmt.Sprintf("%x", p.generation[:]), p.epoch
	m.report.Proof = map[bool]string{true: "exact", false: "unproven"}[p.proven]
	return p, nil
}

// witness looks, when everybody has read, for writes that the freeze did not stop: disks that were written between their Take and now have
// no moment in common. A write before its Take, on whichever disk, has nothing after it that another one lacks.
func (m *moment) witness() error {
	t, ok := m.f.deps.Tracker.(since)
	if !ok {
		return nil
	}
	n, err := t.Since()
	if err != nil {
		return fmt.Errorf("look for late writes: %w", err)
	}
	if n > 0 {
		m.g.doubt(true, "%s of flow %s were written while the writers were said to be stopped", units.Size(n), m.f.cfg.Flow)
	}
	return nil
}

// finish commits and has the point kept. The writers go on meanwhile, the flow does nothing else.
func (m *moment) finish(ctx context.Context, p *pass) error {
	f := m.f
	ctx, stop := context.WithTimeoutCause(ctx, m.o.Timeout, fmt.Errorf("the gateway did not commit the point within %v", m.o.Timeout))
	defer stop()
	ctx, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		select {
		case <-f.halt:
			ended(errEnded)
		case <-ctx.Done():
		}
	}()
	var err error
	if m.view.ready {
		err = m.readView(ctx, p)
	}
	if err == nil {
		m.timed("commit")
		err = f.commit(ctx, p)
	}
	for errors.Is(err, errDown) && ctx.Err() == nil {
		err = f.carry(ctx, p) // p is sealed: it is opened again, and nothing is read
	}
	f.drop(p)
	if err == nil {
		err = f.finish(p)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		m.report.PointError = err.Error()
		return fmt.Errorf("the moment is over, but this flow has no point of it: %w", err)
	}
	f.answerSync(nil)
	m.ended("commit")
	m.timed("keep")
	if err := f.keep(ctx, m.g, wire.Keep{Generation: p.generation, Epoch: p.epoch}, m.report); err != nil {
		return fmt.Errorf("the gateway did not confirm the point: %w", err)
	}
	m.ended("keep")
	if m.report.Point == "" {
		return fmt.Errorf("%w: the gateway keeps no copy of the point of flow %s: %s", sentinel.ErrRefused, f.cfg.Flow, m.report.PointError)
	}
	return nil
}
