package sender

// A cutover:
//
//	rounds   deltas until one is a delta upon a point; then delta and settle, until the pause is short enough (mover.Converge)
//	freeze   writers stop; the deadline runs from here to the verdict
//	delta    the last one; the source reads whole leaves for it and knows them then
//	readback the target, what the last delta has touched; the source, what it does not know yet
//	verdict  roots equal, the tracker's witness exact, the freeze unbroken
//	release  the target is handed over, the source left as asked; or, in a rehearsal, thawed
//
// Whatever fails before the release thaws, and the flow goes on. Once RELEASE is on its way nothing thaws by itself (C15, handover.go).

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
	"golang.org/x/sys/unix"
)

type cutover struct {
	still
	o        CutoverOptions
	progress teller
	report   *mover.Report

	step   time.Time
	wireAt int64

	generation mover.ID
	announced  bool // a record says that the target may have been handed over
}

// flusher is a volume that can have page caches above it written back.
type flusher interface{ Flush() error }

// since is a tracker that can tell what was written after its last Take. Scan cannot.
type since interface{ Since() (int64, error) }

// held is what a freezer may tell beyond its contract.
type held interface {
	Held() bool              // unbroken until now
	Thawed() <-chan struct{} // closed when the freeze ends
}

func (c *cutover) run(ctx context.Context) error {
	f := c.f
	kind := "cutover"
	if c.o.Rehearse {
		kind = "rehearsal"
	}
	c.report = f.newReport(kind)
	c.wireAt = f.link.view().Out
	f.mu.Lock()
	f.view.cutover, f.view.final = true, !c.o.Rehearse
	f.mu.Unlock()
	err := c.all(ctx)
	f.mu.Lock()
	f.view.cutover, f.view.final = false, false
	f.mu.Unlock()
	f.closeReport(c.report, c.wireAt, err)
	switch {
	case err != nil && c.g.handed.Load():
		err = errors.Join(err, c.brokenOff())
	case err != nil && c.announced:
		err = errors.Join(err, f.deps.Record(nil))
	}
	if err != nil {
		f.noteError(err)
		if errors.Is(err, sentinel.ErrDiffer) {
			f.force = "the cutover's comparison found differences"
		}
		f.due = time.Time{}
	}
	if shape, ok := errors.AsType[errShape](err); ok {
		return shape.error // the next pass meets it and ends Run
	}
	return err
}

// brokenOff remembers, also for a later process, that some target was, or may have been, handed over: the writers stay stopped until the operator
// rolls back.
func (c *cutover) brokenOff() error {
	f := c.f
	f.mu.Lock()
	known := f.report != nil
	if !known {
		c.report.Partly = c.g.partly()
		f.report, f.released = c.report, c.report.Released
	}
	f.mu.Unlock()
	if known || f.deps.Record == nil {
		return nil
	}
	return f.deps.Record(c.report)
}

// timed ends the step before and says which begins.
func (c *cutover) timed(name string) { c.step = time.Now(); c.progress.say(name, name, 0, 0) }

func (c *cutover) ended(name string) {
	c.report.Steps = append(c.report.Steps, mover.Step{Name: name, Seconds: time.Since(c.step).Seconds()})
}

func (c *cutover) all(ctx context.Context) error {
	began := time.Now()
	if err := c.rounds(ctx); err != nil {
		return err
	}
	c.report.Steps = append(c.report.Steps, mover.Step{Name: "rounds", Seconds: time.Since(began).Seconds()})
	if c.g.Hooks {
		c.timed("pre")
		if err := c.g.step(ctx, func() error { return c.g.pre(ctx) }); err != nil {
			return fmt.Errorf("the pre hook: %w", err)
		}
		c.ended("pre")
	}
	return c.frozen(ctx)
}

// rounds brings the target so near that the rest fits the limit.
func (c *cutover) rounds(ctx context.Context) error {
	f := c.f
	defer f.deps.Priority.raise(fair)()
	var began time.Time
	for {
		c.progress.say("rounds", "sending what has changed", 0, 0)
		if err := f.flushCaches(ctx); err != nil {
			return err
		}
		p, err := f.follow(ctx, c.progress, inRound)
		if err != nil {
			return err
		}
		scan, _ := f.deps.Tracker.Method()
		if p.kind != mover.Delta && scan != "scan" {
			continue // however long a full pass takes, it is not a round
		}
		if began.IsZero() {
			began = p.started
		}
		c.report.Rounds++
		f.show(mover.Settling, "reading back what was touched", "")
		c.progress.say("settle", "reading both ends back", 0, 0)
		if _, err := f.settle(ctx, wire.ScopeTouched, c.progress); err != nil {
			return err
		}
		estimate, written, moved := f.estimate()
		c.progress.say("rounds", fmt.Sprintf("round %d: %s sent, the pause would be about %s", c.report.Rounds, units.Size(p.total), seconds(estimate)), 0, 0)
		verdict, err := c.g.round(ctx, c.o.Limit, c.o.Timeout, round{estimate, time.Since(began), written, moved})
		if err != nil {
			return err
		}
		if verdict == mover.Go {
			return nil
		}
	}
}

// estimate measures what a cutover would take now, and the rates of writing and moving.
func (f *Flow) estimate() (pause time.Duration, written, moved float64) {
	pending := f.deps.Tracker.Pending()
	leaves, known, _ := f.table.Counts()
	f.mu.Lock()
	defer f.mu.Unlock()
	pace := f.view.pace
	pace.LeafSize = chunker.LeafSize
	pace.Granule = granule
	return pace.Pause(pending, (leaves-known)*chunker.LeafSize), f.view.dirty.PerSecond(), pace.Line
}

// flushCaches has the filesystems write back what is dirty in memory, so that it travels before the freeze and not within it.
func (f *Flow) flushCaches(ctx context.Context) error {
	if f.deps.Freezer == nil {
		return nil
	}
	began, done := time.Now(), make(chan struct{})
	go func() { // a write-back cannot be interrupted; it harms nobody when nobody waits for it
		defer close(done)
		for _, dir := range f.deps.Freezer.Names() {
			if d, err := os.Open(dir); err == nil && filepath.IsAbs(dir) {
				_ = unix.Syncfs(int(d.Fd()))
				d.Close()
			}
		}
	}()
	select {
	case <-done:
		took := time.Since(began)
		f.setPace(func(p *mover.Pace) { p.Flushed(took) })
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// granule is the least that one dirty bit stands for.
const granule = 4096

// follow runs a pass and tells its progress.
func (f *Flow) follow(ctx context.Context, tell teller, on occasion) (*pass, error) {
	if tell == nil {
		return f.pass(ctx, on)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if s := f.Status(); s.Pass != nil {
					tell(mover.Progress{Step: s.Pass.Kind, Text: s.Reason, Done: s.Pass.Acked, Total: s.Pass.Total, ETA: s.Pass.ETA})
				}
			case <-stop:
				return
			}
		}
	}()
	defer func() { close(stop); <-ended }()
	return f.pass(ctx, on)
}

// frozen is the way from the freeze to the release. The operator's ctx ends it only before the freeze: later on, whoever asked may be gone
// without harm.
func (c *cutover) frozen(ctx context.Context) (err error) {
	f := c.f
	defer f.deps.Priority.raise(urgent)()
	if err := c.ready(ctx); err != nil {
		return err
	}
	c.timed("freeze")
	fctx, stop, err := c.freeze(ctx)
	if err != nil {
		return err
	}
	defer stop()
	c.ended("freeze")
	thawed := false
	defer func() {
		if thawed {
			return
		}
		if c.report.Pause == 0 {
			c.report.Pause = time.Since(c.froze).Seconds()
		}
		err = errors.Join(err, c.giveUp(err, c.report))
	}()
	fctx, release := c.guard(fctx)
	defer release()
	root, err := c.lastDelta(fctx)
	if err != nil {
		return err
	}
	if err := c.verdict(fctx, root); err != nil {
		return err
	}
	if err := c.g.step(fctx, nil); err != nil { // nobody is released before everybody is proven
		return err
	}
	if c.o.Rehearse {
		c.report.Pause = time.Since(c.froze).Seconds()
		thawed = true
		c.timed("thaw")
		err := c.g.step(context.WithoutCancel(ctx), c.g.part)
		if err := errors.Join(err, f.resumeWriting()); err != nil {
			return fmt.Errorf("the freeze did not hold until the verdict: %w", err)
		}
		c.ended("thaw")
		return c.keepPoint(context.WithoutCancel(ctx), wire.FlagRehearse)
	}
	if err := c.release(fctx); err != nil {
		return err
	}
	thawed = true // from here on the source stays as it was asked to be left
	return c.leave(context.WithoutCancel(ctx))
}

func (f *Flow) quiet(yes bool) {
	if f.deps.Quiet != nil {
		f.deps.Quiet(yes)
	}
}

// thaw lets the writers go on and catches up with what had to wait. An error says that the freeze had been broken before.
func (f *Flow) thaw() error {
	var err error
	if f.deps.Freezer != nil {
		err = f.deps.Freezer.Thaw()
	}
	return errors.Join(err, f.resumeWriting())
}

// resumeWriting ends what holds the daemon's own writes back, and then retires what was committed meanwhile (C4).
func (f *Flow) resumeWriting() error {
	f.mu.Lock()
	f.view.frozen = false
	f.mu.Unlock()
	f.reader.inHurry(false)
	f.quiet(false)
	if err := f.table.Release(); err != nil {
		return fmt.Errorf("digest table: %w", err)
	}
	if e := f.deferred; e > 0 {
		f.deferred = 0
		return f.retire(e)
	}
	return nil
}

// lastDelta sends the rest and settles both ends.
func (c *cutover) lastDelta(ctx context.Context) (mover.Root, error) {
	f := c.f
	c.timed("delta")
	p, err := f.pass(ctx, inFreeze)
	if err != nil {
		return mover.Root{}, err
	}
	c.ended("delta")
	c.report.FinalDelta = p.total
	c.generation = p.generation
	c.report.Generation, c.report.Epoch = fmt.Sprintf("%x", p.generation[:]), p.epoch
	c.timed("read-back")
	root, err := f.settle(ctx, wire.ScopeTouched, c.progress)
	c.ended("read-back")
	return root, err
}

// verdict compares, and asks whether all this time nothing was written.
func (c *cutover) verdict(ctx context.Context, target mover.Root) error {
	f := c.f
	c.timed("compare")
	defer c.ended("compare")
	proven, err := f.prove(ctx)
	if err != nil {
		return fmt.Errorf("the tracker's account does not agree with the kernel's: %w", err)
	}
	if proven {
		c.report.Proof = "exact"
	} else {
		c.report.Proof = "unproven"
	}
	source, err := f.sourceRoot()
	if err != nil {
		return err
	}
	f.compared(c.report, source, target)
	if source.Digest != target.Digest {
		return f.differ(ctx, c.report)
	}
	if t, ok := f.deps.Tracker.(since); ok {
		n, err := t.Since()
		if err != nil {
			return fmt.Errorf("look for late writes: %w", err)
		}
		if n > 0 {
			return fmt.Errorf("%w: %s were written while the writers were said to be stopped; stop what writes past the filesystems (active swap, raw databases) and cut over again",
				sentinel.ErrDiffer, units.Size(n))
		}
	}
	if h, ok := c.g.freezer.(held); ok && !h.Held() {
		return errors.New("the freeze did not hold until the verdict")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// release keeps the freeze and hands the target over.
func (c *cutover) release(ctx context.Context) error {
	f := c.f
	c.timed("release")
	defer c.ended("release")
	if err := c.announce(); err != nil {
		return err
	}
	if err := c.g.step(ctx, c.g.keep); err != nil {
		return fmt.Errorf("the freeze did not hold until the release: %w", err)
	}
	c.report.Pause = time.Since(c.froze).Seconds()
	// Nothing is handed over before all gateways have answered once more.
	if err := c.keepPoint(ctx, wire.FlagCutover); err != nil {
		return err
	}
	if err := c.g.step(ctx, nil); err != nil {
		return err
	}
	text, err := json.Marshal(c.report)
	if err != nil || len(text) > wire.MaxText {
		text = fmt.Appendf(nil, `{"flow":%q,"source_root":%q,"target_root":%q}`, f.cfg.Flow, c.report.SourceRoot, c.report.TargetRoot)
	}
	root, _ := f.table.Root()
	m := &wire.Release{Digest: root, Generation: c.generation, Epoch: c.report.Epoch, Report: string(text)}
	doubt, err := c.handOver(ctx, m)
	switch {
	case err == nil:
		c.g.handed.Store(true)
		c.report.Released = true
	case doubt:
		c.report.Doubt = true
		c.g.doubtful(f.cfg.Flow, err)
	default:
		c.g.refuse(f.cfg.Flow, err)
	}
	// All hear how it went before anybody decides whether to thaw.
	if serr := c.g.step(context.WithoutCancel(ctx), nil); serr != nil {
		return errors.Join(err, serr)
	}
	if broken := c.g.brokenOff(); broken != nil {
		return broken
	}
	return err
}

// keepPoint has the gateway keep what was proven. That it keeps no copy stands in the report and fails nothing; that it does not answer does.
func (c *cutover) keepPoint(ctx context.Context, flag uint16) error {
	c.timed("keep")
	defer c.ended("keep")
	return c.f.keep(ctx, c.g, wire.Keep{Flags: flag, Generation: c.generation, Epoch: c.report.Epoch}, c.report)
}

// leave leaves the source as asked and records it. The target is handed over already: errors here do not undo that.
func (c *cutover) leave(ctx context.Context) error {
	f := c.f
	c.timed("leave")
	defer c.ended("leave")
	var errs []error
	c.report.Left = "frozen"
	if c.o.Leave != "frozen" {
		if err := f.deps.Leave(ctx, c.o.Leave, false); err != nil {
			errs = append(errs, fmt.Errorf("the target is handed over, but the source stays frozen instead of %s: %w", c.o.Leave, err))
		} else {
			err := c.g.step(ctx, c.g.thaw)
			if err == nil {
				c.report.Left = c.o.Leave
				err = f.resumeWriting()
			}
			errs = append(errs, err)
		}
	}
	c.report.OK, c.report.Ended = true, time.Now()
	f.mu.Lock()
	f.report, f.released = c.report, true
	f.mu.Unlock()
	if f.deps.Record != nil {
		errs = append(errs, f.deps.Record(c.report))
	}
	return errors.Join(errs...)
}
