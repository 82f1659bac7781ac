package bucket

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

const (
	mostRounds = 5 // passes before the writers stop, as long as each has less to copy
	mostFinal  = 5 // passes after that
)

// Cutover stops the writers, or relies upon that they stand still, runs final passes until one has copied all that it found, and compares both ends. From then on the
// flow is done. When ctx ends before, or anything fails, the writers go on and so does the flow (C19).
func (f *Flow) Cutover(ctx context.Context, o VerifyOptions, progress func(mover.Progress)) (*mover.Report, error) {
	defer f.hasten(func() { f.hurry.Add(1) }, func() { f.hurry.Add(-1) })() // with the pass that is waited for
	if err := f.hold(ctx); err != nil {
		return nil, err
	}
	defer f.release()
	switch n := f.noted(); {
	case n.Phase != phaseMoving:
		return nil, f.isOver()
	case n.Paused:
		return nil, fmt.Errorf("flow %s is paused; moverctl resume: %w", f.cfg.Name, sentinel.ErrRefused)
	}
	defer f.stir()
	r := f.report("cutover")
	c := &cutover{f, o, r, progress}
	f.tryRefused()
	if err := c.beside(ctx); err != nil {
		return r.end(err)
	}
	if err := c.rounds(ctx); err != nil {
		return r.end(err)
	}
	if err := c.count(ctx); err != nil {
		return r.end(err)
	}
	stopped := time.Now()
	moving := f.hasten(func() { f.still.Store(true) }, func() { f.still.Store(false) })
	err := c.stopped(ctx)
	moving()
	r.Pause = time.Since(stopped).Seconds()
	if err != nil && f.cfg.Stopper != nil {
		err = errors.Join(err, f.cfg.Stopper.Start())
	}
	if err == nil {
		r.Left = "stopped"
		r.Released = true
	}
	f.settle()
	return r.end(err)
}

type cutover struct {
	*Flow
	o        VerifyOptions
	r        *report
	progress func(mover.Progress)
}

// pass runs a pass as a step.
func (c *cutover) pass(ctx context.Context, name string, final bool) (s State, err error) {
	err = c.r.step(name, c.progress, func() mover.Progress {
		s := c.State()
		text := fmt.Sprintf("pass %d: %d objects listed, %d of %d copied", s.Pass, s.Listed, s.Copied, s.Planned)
		return mover.Progress{Text: text, Done: s.CopiedBytes, Total: s.PlannedBytes}
	}, func() (err error) { s, err = c.Flow.pass(ctx, final); return err })
	return s, err
}

// rounds brings the target near, while the writers go on.
func (c *cutover) rounds(ctx context.Context) error {
	last := int64(-1)
	for range mostRounds {
		s, err := c.pass(ctx, "rounds", false)
		if err != nil {
			return err
		}
		c.r.Rounds++
		if s.NowRefused > 0 && !c.o.WithoutRefused {
			return c.refused(s.NowRefused)
		}
		if s.Planned == 0 || last >= 0 && s.Planned >= last {
			break
		}
		last = s.Planned
	}
	return nil
}

// beside finds, where all is to be compared, objects whose attributes were changed alone, so that the rounds copy them and not the writers have to wait for that.
func (c *cutover) beside(ctx context.Context) error {
	if !c.o.Read {
		return nil
	}
	l, err := c.known()
	if err == nil {
		err = c.open(ctx)
	}
	if err != nil {
		return err
	}
	var missed error
	cfg := VerifyConfig{From: c.s.from, To: c.s.to, Copy: c.cfg.Copy, Differ: func(key, how string) { missed = errors.Join(missed, l.again(key, how)) }}
	err = c.r.step("attributes", c.progress, func() mover.Progress { return mover.Progress{Text: "looking for attributes that were changed alone"} }, func() error {
		_, err := l.Beside(ctx, cfg)
		return err
	})
	return errors.Join(err, missed)
}

// count counts what the source keeps beside its objects.
func (c *cutover) count(ctx context.Context) error {
	l, err := c.known()
	if err != nil || !l.State().Versions.More {
		return err
	}
	return c.r.step("versions", c.progress, func() mover.Progress { return mover.Progress{Text: "counting older versions"} },
		func() error { return c.countVersions(ctx, c.s, l, versionsMost) })
}

func (c *cutover) refused(n int64) error {
	return fmt.Errorf("%d objects cannot be carried: moverctl objects %s --refused shows which, and why; --without-refused cuts over without them: %w",
		n, c.cfg.Name, sentinel.ErrRefused)
}

// stopped is what happens while the writers stand still.
func (c *cutover) stopped(ctx context.Context) error {
	if c.cfg.Stopper != nil {
		if err := c.r.step("stop", c.progress, func() mover.Progress { return mover.Progress{Text: "stop hook"} }, func() error { return c.cfg.Stopper.Stop(ctx) }); err != nil {
			return err
		}
	}
	// What was written just before may have the time of another write: one that is listed later than this has not.
	err := c.r.step("settle", c.progress, func() mover.Progress { return mover.Progress{Text: "waiting until the store's clock has moved on"} }, func() error {
		select {
		case <-time.After(c.cfg.Settle):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return err
	}
	if err := c.final(ctx); err != nil {
		return err
	}
	if n := c.State().NowRefused; n > 0 && !c.o.WithoutRefused {
		return c.refused(n)
	}
	if err := c.verify(ctx, c.o, c.r, c.progress); err != nil {
		return err
	}
	return c.hand(ctx)
}

// final runs passes until one found nothing new. The first one has all that was written before the writers stopped; the second one shows that they did stand still.
func (c *cutover) final(ctx context.Context) error {
	var s State
	var err error
	for n := 1; n <= mostFinal; n++ {
		if s, err = c.pass(ctx, "final", true); err != nil {
			return err
		}
		b := c.r.Bucket
		if b.Passes = n; n == 1 {
			c.r.FinalDelta = s.CopiedBytes
		}
		clean := s.Failed == 0 && s.Changed == 0
		switch {
		case clean && s.Planned == 0 && (s.Vanished == 0 || n == 1):
			if n > 1 || s.Listed == 0 {
				return nil
			}
		case clean && n > 1 && !c.s.clock: // what is young is copied in every pass
			b.Unproven = fmt.Sprintf("the source does not tell its clock, so what was changed in the last %v counts as changed in each pass", unknownClock)
			return nil
		}
	}
	if s.Failed > 0 {
		return fmt.Errorf("%d objects could not be copied in %d passes; moverctl objects %s --failed shows which, and why: %w", s.Failed, mostFinal, c.cfg.Name, sentinel.ErrNotConverged)
	}
	return fmt.Errorf("the source is still written to: the last of %d final passes found %d objects that were new or changed, and %d that were gone; stop its writers: %w",
		mostFinal, s.Planned, s.Vanished, sentinel.ErrNotConverged)
}

// hand ends uploads that are left, writes the manifest, and makes the flow done.
func (c *cutover) hand(ctx context.Context) error {
	l, err := c.known()
	if err != nil {
		return err
	}
	b := c.r.Bucket
	err = c.r.step("sweep", c.progress, func() mover.Progress { return mover.Progress{Text: "ending uploads that are left"} }, func() (err error) {
		b.Swept, b.Foreign, err = l.Sweep(ctx, c.s.to, c.cfg.Copy)
		return err
	})
	if err != nil {
		return err
	}
	var closing Closing
	err = c.r.step("manifest", c.progress, func() mover.Progress { return mover.Progress{Text: "writing the manifest"} }, func() (err error) {
		closing, b.Manifest, err = c.Manifest("")
		return err
	})
	if err != nil {
		return err
	}
	b.Root = closing.Root
	c.r.TargetRoot = closing.Root
	if c.cfg.Stopper != nil {
		if err := c.cfg.Stopper.Keep(); err != nil {
			return err
		}
	}
	return c.change(func(n *note) {
		n.Phase, n.Done, n.Objects, n.Bytes, n.Manifest, n.Root = phaseDone, time.Now().UTC(), closing.Objects, closing.Bytes, b.Manifest, b.Root
	})
}
