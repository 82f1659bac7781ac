package sender

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/mover"
)

// still is one member's part in a time during which the writers of its group stand still.
type still struct {
	f        *Flow
	g        *Group
	deadline time.Duration
	until    string // what the freeze lasts for: "the verdict", for people
	froze    time.Time
}

// ready does what would only make the freeze longer, and waits for the others.
func (s *still) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := s.f.table.Flush(); err != nil {
		return fmt.Errorf("digest table: %w", err)
	}
	if err := s.f.flushCaches(ctx); err != nil {
		return err
	}
	return s.g.step(ctx, nil) // so that nobody is kept quiet while others write back
}

// freeze stops the writers of the whole group. The returned context ends at the deadline.
func (s *still) freeze(ctx context.Context) (_ context.Context, stop context.CancelFunc, err error) {
	f := s.f
	f.quiet(true)
	if err := f.table.Hold(); err != nil {
		f.quiet(false)
		return nil, nil, fmt.Errorf("digest table: %w", err)
	}
	err = s.g.step(ctx, func() error { return s.g.freeze(ctx, s.deadline) })
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("freeze: %w", err), f.resumeWriting())
	}
	s.froze = s.g.froze
	fctx, stop := context.WithDeadlineCause(context.WithoutCancel(ctx), s.froze.Add(s.deadline),
		fmt.Errorf("the freeze deadline of %v has passed before %s", s.deadline, s.until))
	if v, ok := f.deps.Volume.(flusher); ok { // writers without a filesystem leave bytes in page caches
		if err := v.Flush(); err != nil {
			stop()
			return nil, nil, errors.Join(err, s.giveUp(err, nil))
		}
	}
	f.mu.Lock()
	f.view.frozen = true
	f.mu.Unlock()
	f.reader.inHurry(true)
	f.show(mover.Frozen, "writers are stopped", "moverctl thaw, to give up")
	f.setPace(func(p *mover.Pace) { p.Freeze = time.Since(s.froze) })
	return fctx, stop, nil
}

// guard ends the returned context as soon as the time of standing still is over or worth nothing.
func (s *still) guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, broken := context.WithCancelCause(ctx)
	var thawedEarly <-chan struct{}
	if h, ok := s.g.freezer.(held); ok {
		thawedEarly = h.Thawed()
	}
	go func() {
		select {
		case <-thawedEarly:
			broken(fmt.Errorf("the writers were let go on before %s", s.until))
		case <-s.g.failed:
			broken(s.g.why())
		case <-s.f.halt:
			broken(errEnded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { broken(nil) }
}

// giveUp lets the writers go on, unless a target was, or may have been, handed over: then only the operator does. C15
func (s *still) giveUp(err error, r *mover.Report) error {
	s.g.fail(fmt.Errorf("flow %s: %w", s.f.cfg.Flow, err))
	if s.g.handed.Load() {
		if h, ok := s.g.freezer.(held); ok && !h.Held() {
			return errors.New("a target is, or may be, handed over although the writers were let go on: shut the source down, or moverctl rollback, before anybody uses the target")
		}
		r.Left = "frozen"
		return errors.New("a target is, or may be, handed over, so the writers stay stopped; moverctl rollback takes all of it back")
	}
	thaw := s.g.thaw()
	if thaw != nil && errors.Is(err, thaw) {
		thaw = nil // told already
	}
	return errors.Join(thaw, s.f.resumeWriting())
}
