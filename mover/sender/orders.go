package sender

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

var (
	errPaused = errors.New("paused by the operator")
	discard   = slog.New(slog.DiscardHandler)
)

// Pause ends the pass under way, which Resume takes up where it was. A cutover is not paused; a recovery point comes to its end first.
func (f *Flow) Pause() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view.cutover && !f.view.pointing {
		return fmt.Errorf("%w: a cutover is under way; interrupt it instead", sentinel.ErrRefused)
	}
	f.paused = true
	if f.cancel != nil && !f.view.pointing {
		f.cancel(errPaused)
	}
	f.nudge()
	return nil
}

// Resume ends a pause, and a stop after the operator has mended its cause; of a fenced flow it takes the target over.
func (f *Flow) Resume() error {
	f.mu.Lock()
	stopped := f.stopped != nil
	f.paused, f.stopped = false, nil
	f.due, f.retry = f.due.Truncate(0), 0
	f.mu.Unlock()
	if stopped || f.link.view().Fatal != nil {
		f.link.Reset()
	}
	f.nudge()
	return nil
}

// Sync begins a pass now, or after the one under way, and returns when it is committed.
func (f *Flow) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	refused := f.link.view().Fatal
	f.mu.Lock()
	switch {
	case f.report != nil || f.released:
		f.mu.Unlock()
		return fmt.Errorf("%w: the flow is cut over; rollback first", sentinel.ErrRefused)
	case f.paused:
		f.mu.Unlock()
		return fmt.Errorf("%w: the flow is paused; resume it first", sentinel.ErrRefused)
	case f.stopped != nil:
		err := f.stopped
		f.mu.Unlock()
		return fmt.Errorf("the flow is stopped: %w; %s", err, whatNow(err))
	case refused != nil:
		f.mu.Unlock()
		return fmt.Errorf("the flow is stopped: %w; %s", refused, whatNow(refused))
	}
	f.syncNow = append(f.syncNow, done)
	f.mu.Unlock()
	f.nudge()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.ended:
		return errEnded
	}
}

// beginSync is called before a Take: who waits until now gets what it brings.
func (f *Flow) beginSync() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncing = append(f.syncing, f.syncNow...)
	f.syncNow = nil
}

// answerSync tells those who wait for a pass how it went; an error goes to those too who wait for the next one.
func (f *Flow) answerSync(err error) {
	f.mu.Lock()
	waiting := f.syncing
	f.syncing = nil
	if err != nil {
		waiting = append(waiting, f.syncNow...)
		f.syncNow = nil
	}
	f.mu.Unlock()
	for _, ch := range waiting {
		ch <- err
	}
}

// order has the loop do something and waits for it. While a pass is under way first, tell hears of that.
func (f *Flow) order(ctx context.Context, do func(context.Context) error, tell teller) error {
	o := &order{ctx: ctx, do: do, done: make(chan error, 1)}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for accepted := false; !accepted; {
		select {
		case f.orders <- o:
			accepted = true
		case <-tick.C:
			if s := f.Status(); s.Pass != nil {
				tell.say(s.Pass.Kind, "first the pass under way: "+s.Reason, s.Pass.Acked, s.Pass.Total)
			} else {
				tell.say(string(s.State), s.Reason, 0, 0)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.ended:
			return errEnded
		}
	}
	select {
	case err := <-o.done:
		return err
	case <-f.ended:
		return errEnded
	}
}

// ready refuses orders that need a flow that is moving.
func (f *Flow) ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.report != nil || f.released:
		return fmt.Errorf("%w: the flow is cut over; rollback takes the target back", sentinel.ErrRefused)
	case f.paused:
		return fmt.Errorf("%w: the flow is paused; resume it first", sentinel.ErrRefused)
	case f.stopped != nil:
		return fmt.Errorf("%w: the flow is stopped: %v; %s", sentinel.ErrRefused, f.stopped, whatNow(f.stopped))
	}
	if l := f.link.view(); l.Fatal != nil {
		return fmt.Errorf("the flow is stopped: %w; %s", l.Fatal, whatNow(l.Fatal))
	}
	return nil
}

// Cutover brings the target up to date, stops the writers, sends the rest, compares both ends and hands the target over; or, as a
// rehearsal, lets the writers go on after the comparison. Any failure before the release lets them go on too. The report comes along
// with an error where there is something to tell. progress may be nil.
func (f *Flow) Cutover(ctx context.Context, o CutoverOptions, progress func(mover.Progress)) (*mover.Report, error) {
	o = o.withDefaults()
	if err := f.mayCutOver(o); err != nil {
		if o.Group != nil {
			o.Group.fail(fmt.Errorf("flow %s: %w", f.cfg.Flow, err)) // nobody waits for who never comes
		}
		return nil, err
	}
	tell, told := relay(progress)
	if o.Group == nil {
		o.Group = NewGroup("", f.deps.Freezer, 1)
	}
	c := &cutover{still: still{f: f, g: o.Group, deadline: o.Deadline, until: "the verdict"}, o: o, progress: tell}
	err := f.order(ctx, c.run, tell)
	if err != nil {
		o.Group.fail(fmt.Errorf("flow %s: %w", f.cfg.Flow, err)) // also when its turn never came
	}
	hookErr := o.Group.over()
	if c.report != nil {
		c.report.HookError = hookErr
	}
	told()
	return c.report, err
}

// mayCutOver refuses before anything is done.
func (f *Flow) mayCutOver(o CutoverOptions) error {
	if err := o.validate(); err != nil {
		return err
	}
	if o.Leave != "frozen" && f.deps.Leave == nil && !o.Rehearse {
		return fmt.Errorf("%w: this flow can only be left frozen", sentinel.ErrNotSupported)
	}
	return f.ready()
}

// Verify compares both ends while the source is in use. Different content is ErrDiffer and named in the report.
func (f *Flow) Verify(ctx context.Context, o VerifyOptions, progress func(mover.Progress)) (*mover.Report, error) {
	if err := f.ready(); err != nil {
		return nil, err
	}
	tell, told := relay(progress)
	v := &verify{f: f, o: o, progress: tell}
	err := f.order(ctx, v.run, tell)
	told()
	return v.report, err
}

// relay passes news on without ever waiting for who gets them: a terminal may live on what is frozen. told waits for the rest.
func relay(progress func(mover.Progress)) (tell teller, told func()) {
	if progress == nil {
		return nil, func() {}
	}
	news, ended := make(chan mover.Progress, newsKept), make(chan struct{})
	go func() {
		defer close(ended)
		for p := range news {
			progress(p)
		}
	}()
	var mu sync.Mutex
	closed := false
	tell = func(p mover.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if closed {
			return
		}
		select {
		case news <- p:
		default:
		}
	}
	return tell, func() {
		mu.Lock()
		closed = true
		close(news)
		mu.Unlock()
		<-ended
	}
}

const newsKept = 256 // lines of progress that may wait

// ErrNothingToTakeBack is a rollback of a flow that is not cut over.
var ErrNothingToTakeBack = fmt.Errorf("%w: the flow is not cut over, there is nothing to take back", sentinel.ErrRefused)

// Rollback lets the source go on after a cutover: thaws it, undoes what it was left as, and takes the target back by a rescan.
func (f *Flow) Rollback(ctx context.Context) error {
	return f.order(ctx, f.rollback, nil)
}

func (f *Flow) rollback(ctx context.Context) error {
	f.mu.Lock()
	report, done := f.report, f.report != nil || f.released
	f.mu.Unlock()
	if !done {
		return ErrNothingToTakeBack
	}
	var errs []error
	if f.deps.Leave != nil && report != nil && report.Left != "" && report.Left != "frozen" {
		if err := f.deps.Leave(ctx, report.Left, true); err != nil {
			return fmt.Errorf("undo %s: %w", report.Left, err)
		}
	}
	if f.deps.Freezer != nil {
		// What was thawed by hand meanwhile is as it should be.
		if err := f.deps.Freezer.Thaw(); err != nil {
			f.deps.Log.Warn("thaw after the rollback", "flow", f.cfg.Flow, "err", err)
		}
	}
	errs = append(errs, f.resumeWriting())
	if f.deps.Record != nil {
		errs = append(errs, f.deps.Record(nil))
	}
	f.mu.Lock()
	f.report, f.released, f.stopped = nil, false, nil
	f.mu.Unlock()
	f.reclaim = true
	f.due = f.due.Truncate(0)
	// At once: the rescan takes a while to begin, and who asks meanwhile whether the flow is cut over must not hear yes.
	f.show(mover.Idle, "taken back; a rescan is about to begin", "")
	return errors.Join(errs...)
}

// Thaw lets the writers go on now, whatever the flow is doing. A cutover under way fails by it.
func (f *Flow) Thaw() error {
	if f.deps.Freezer == nil {
		return nil
	}
	return f.deps.Freezer.Thaw()
}
