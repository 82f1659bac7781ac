package sender

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

// announce records that the target may have been handed over, before anything of that begins: a process that comes after a kill has to know.
func (c *cutover) announce() error {
	if c.f.deps.Record == nil {
		return nil
	}
	r := *c.report
	r.Doubt, r.Left, r.Ended = true, "frozen", time.Now()
	r.Error = "moverd ended while the target was handed over"
	c.announced = true
	if err := c.f.deps.Record(&r); err != nil {
		return fmt.Errorf("record that the target is about to be handed over: %w", err)
	}
	return nil
}

// handOver sends RELEASE until it is answered. Before it is on its way the freeze's deadline ends that. Then whether the target is handed over is
// the gateway's knowledge, so it is asked for as long again as the deadline. doubt: it has not said. C15
func (c *cutover) handOver(ctx context.Context, m *wire.Release) (doubt bool, err error) {
	f := c.f
	long, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), c.deadline, fmt.Errorf("the gateway has not answered within %v", c.deadline))
	defer stop()
	long, release := c.guard(long)
	defer release()
	defer func() {
		if doubt {
			if why := f.link.view().Why; why != "" {
				err = fmt.Errorf("%w: %s", err, why)
			}
			f.link.Renew() // whatever is said of it later is said over a link that is newer than the last RELEASE
		}
	}()
	for wait := f.cfg.BackOff; ; wait = min(2*wait, 16*f.cfg.BackOff) {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		doubt, err = f.releaseOnce(long, m)
		if err == nil || !doubt && (errors.Is(err, sentinel.ErrRefused) || errors.Is(err, sentinel.ErrProtocol)) {
			return false, err
		}
		for doubt {
			var s mover.FlowState
			if err = f.linkUp(long); err != nil {
				return true, err
			}
			if s, err = f.link.flowState(long); err == nil && s.Phase == mover.Released {
				return false, nil
			}
			doubt = err != nil // over a newer link: that RELEASE has failed
		}
		if err := f.linkUp(ctx); err != nil {
			return false, err
		}
		sleep(ctx, wait)
	}
}

// releaseOnce sends RELEASE once. doubt: the connection that it was on was lost; the link is a new one then.
func (f *Flow) releaseOnce(ctx context.Context, m *wire.Release) (doubt bool, err error) {
	c, err := f.link.Pick()
	if err != nil {
		return false, err
	}
	if _, err = f.link.askOn(ctx, c, m); err == nil || errors.Is(err, sentinel.ErrRefused) {
		return false, err
	}
	if ctx.Err() == nil { // also when the gateway said before that it stops or fails
		f.link.Renew()
	}
	return true, err
}

func (f *Flow) inDoubt() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.report != nil && f.report.Doubt
}

// askWhich asks the gateway whether the target was handed over, when the cutover has ended without knowing. It thaws nothing: the operator was told
// that the target may be in use, and may have acted on it.
func (f *Flow) askWhich(ctx context.Context) error {
	s, err := f.link.flowState(ctx)
	if err != nil {
		sleep(ctx, f.cfg.BackOff)
		return err
	}
	f.mu.Lock()
	f.report = f.report.Settled(s.Phase == mover.Released)
	f.released = f.report.Released
	r := f.report
	f.mu.Unlock()
	_, reason, next := r.Standing()
	f.deps.Log.Warn("the gateway has said whether the target was handed over", "flow", f.cfg.Flow, "handed_over", r.HandOver(), "reason", reason, "next", next)
	if f.deps.Record == nil {
		return nil
	}
	return f.deps.Record(r)
}

// AskState asks the gateway where a flow stands, over a link of its own that is newer than all before (C8), until it answers. It needs neither
// volume nor state: for a flow that does not run. The error is ctx's, or a refusal.
func AskState(ctx context.Context, cfg Config, paths []uplink.Path, log *slog.Logger) (mover.FlowState, error) {
	if err := cfg.Validate(); err != nil {
		return mover.FlowState{}, err
	}
	cfg = cfg.withDefaults()
	cfg.Conns = 1
	l := newLink(cfg, paths, log)
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run(ctx) }()
	defer func() { stop(); <-ended }()
	for {
		var fatal error
		err := l.Until(ctx, func(s uplink.State) bool { fatal = s.Fatal; return fatal != nil || s.Conns > 0 })
		if err = errors.Join(err, fatal); err != nil {
			return mover.FlowState{}, err
		}
		if s, err := l.flowState(ctx); err == nil || ctx.Err() != nil {
			return s, err
		}
		sleep(ctx, cfg.BackOff)
	}
}
