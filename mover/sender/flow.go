package sender

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
	"golang.org/x/sync/errgroup"
)

// Flow moves one volume to one target. One loop (Run) does everything, one step at a time: passes when they are due, and the orders of
// the operator between them. Its other methods may be called at any time from any goroutine.
type Flow struct {
	cfg  Config
	deps Deps
	link *link

	orders chan *order
	wake   chan struct{} // capacity 1: something of mu has changed, the loop looks again
	halt   chan struct{} // closed when Run has been told to end
	ended  chan struct{} // closed when Run has returned

	mu       sync.Mutex // guards all below: what the operator wants and sees
	paused   bool
	stopped  error         // why nothing goes on without the operator
	syncNow  []chan error  // who waits for the end of the next pass that begins
	syncing  []chan error  // who waits for the end of the one under way
	view     view          // see status.go
	current  *pass         // under way or waiting for a link
	steps    int64         // that the loop has begun
	cancel   func(error)   // ends the step under way; nil: it must not be ended from outside
	report   *mover.Report // of the cutover that was made; nil: not cut over
	released bool          // the target is handed over

	table  *chunker.Table // set by Run before the loop; the rest below is the loop's alone
	reader *reader
	packer *packer
	gov    *governor
	pipe   *pipeline

	lost     error  // why the tracker lost its history, until a pass has restarted it
	force    string // why the next pass has to be a rescan
	reclaim  bool   // the operator takes the released target back
	due      time.Time
	retry    time.Duration // wait after the last error, growing
	deferred uint64        // epoch that is committed and will be retired after the thaw
}

// order is something that the operator wants and the loop does.
type order struct {
	ctx  context.Context
	do   func(ctx context.Context) error
	done chan error // capacity 1
}

// New checks cfg and deps and makes a Flow. Nothing happens before Run.
func New(cfg Config, deps Deps) (*Flow, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if deps.Volume == nil || deps.Tracker == nil || len(deps.Paths) == 0 || deps.Table == "" || deps.Buffers == nil {
		return nil, fmt.Errorf("%w: a flow needs Volume, Tracker, Paths, Table and Buffers", sentinel.ErrUsage)
	}
	cfg.Conns = min(cfg.Conns, wire.MaxConns-len(deps.Paths)) // each path may have one without batches
	if deps.Buffers.Size() != chunker.BatchSize {
		return nil, fmt.Errorf("%w: buffers of %d bytes, want %d", sentinel.ErrUsage, deps.Buffers.Size(), chunker.BatchSize)
	}
	if deps.Log == nil {
		deps.Log = discard
	}
	f := &Flow{cfg: cfg, deps: deps, orders: make(chan *order), wake: make(chan struct{}, 1), halt: make(chan struct{}), ended: make(chan struct{}),
		report: deps.Recorded, gov: newGovernor(cfg.CPU, runtime.NumCPU())}
	f.link = newLink(cfg, deps.Paths, deps.Log)
	f.link.wants = f.wants
	f.reader = newReader(deps.Volume, cfg)
	f.view.since = time.Now()
	return f, nil
}

// SetLimits changes what Config gave: bytes per second that are read, 0 for no cap, and cores for the process, 0 for all.
func (f *Flow) SetLimits(readRate int64, cpu int) {
	f.reader.limit(readRate)
	f.gov.limit(cpu, runtime.NumCPU())
}

// wants is what the flow would send now: for what, and about how many bytes of the line.
func (f *Flow) wants() (class shape.Class, backlog int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.current; p != nil {
		class = shape.Delta
		if p.kind != mover.Delta {
			class = shape.Bulk
		}
		backlog = max(0, p.total-p.acked.Load()) / 2 // what compression usually leaves
	}
	if f.view.cutover {
		class, backlog = shape.Cutover, max(backlog, f.view.pending/2)
		if f.view.final && f.view.frozen {
			class = shape.Final
		}
	}
	return class, backlog
}

// Run moves the volume until ctx ends (nil), or until the volume is no longer the one that was opened (ErrTrackLost: open volume and
// tracker again and make a new Flow). All other trouble is told by Status while Run goes on.
func (f *Flow) Run(ctx context.Context) (err error) {
	defer close(f.ended)
	defer context.AfterFunc(ctx, func() { close(f.halt) })()
	if f.table, err = openTable(f.deps.Table, f.deps.Volume.Size()); err != nil {
		return err
	}
	codec, err := chunker.NewCodec(chunker.CodecConfig{Encoders: min(f.cfg.CPU, runtime.NumCPU()), Decoders: 1})
	if err != nil {
		return errors.Join(err, f.table.Close())
	}
	defer codec.Close()
	f.packer = newPacker(codec, f.cfg)
	f.pipe = &pipeline{link: f.link, reader: f.reader, table: f.table, buffers: f.deps.Buffers, packer: f.packer, gov: f.gov,
		window: f.cfg.Window, workers: min(8, max(2, f.cfg.QueueDepth/2))}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.link.Run(gctx) })
	g.Go(func() error { return f.reader.run(gctx, f.cfg.QueueDepth) })
	g.Go(func() error { return f.sample(gctx) })
	g.Go(func() error { return f.watchLine(gctx) })
	g.Go(func() error { defer stop(); return f.loop(gctx) })
	err = g.Wait()
	if p := f.currentPass(); p != nil {
		p.close()
	}
	f.answerSync(errEnded)
	return errors.Join(err, f.table.Close())
}

var errEnded = errors.New("the flow has ended")

// openTable opens the digest table. It is a cache: one that does not fit or is broken is made anew, which costs a rescan.
func openTable(path string, size int64) (*chunker.Table, error) {
	t, err := chunker.OpenTable(path, size)
	if err == nil {
		return t, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("digest table: %w", err)
	}
	return chunker.OpenTable(path, size)
}

// errShape: the volume is no longer what was opened; Run ends.
type errShape struct{ error }

func (e errShape) Unwrap() error { return e.error }

// loop is the flow's life.
func (f *Flow) loop(ctx context.Context) error {
	defer func() { // whatever happens, nobody's writers stay stopped by a flow that is gone
		f.mu.Lock()
		frozen := f.view.frozen && f.report == nil
		f.mu.Unlock()
		if frozen {
			f.thaw()
		}
	}()
	for {
		o, err := f.idle(ctx)
		if err != nil {
			return nil
		}
		if o != nil {
			o.done <- f.step(ctx, o.ctx, o.do)
			continue
		}
		if f.inDoubt() {
			f.step(ctx, ctx, f.askWhich)
			continue
		}
		err = f.step(ctx, ctx, func(ctx context.Context) error { _, err := f.pass(ctx, onSchedule); return err })
		if ctx.Err() != nil {
			return nil
		}
		if shape, ok := errors.AsType[errShape](err); ok {
			f.answerSync(err)
			return shape
		}
		f.after(err)
	}
}

// step runs do so that Pause can end it, and with octx, the order's context, too.
func (f *Flow) step(ctx, octx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(octx, func() { cancel(context.Cause(octx)) })
	defer stop()
	f.mu.Lock()
	f.steps++
	f.cancel = cancel
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.cancel = nil
		f.mu.Unlock()
	}()
	err := do(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	return err
}

// after decides what follows a pass.
func (f *Flow) after(err error) {
	if errors.Is(err, errPaused) {
		return
	}
	now := time.Now()
	if err == nil {
		f.retry = 0
		f.due = now.Add(f.cfg.Interval)
		return
	}
	f.noteError(err)
	if f.needsOperator(err) {
		f.stop(err)
		f.answerSync(err)
		return
	}
	// The link's own troubles have their back-off in the link.
	f.retry = min(max(f.cfg.BackOff, 2*f.retry), 64*f.cfg.BackOff)
	f.due = now.Add(f.retry)
	f.deps.Log.Warn("pass will be tried again", "flow", f.cfg.Flow, "after", f.retry, "err", err)
}

// needsOperator tells whether trying again is of no use.
func (f *Flow) needsOperator(err error) bool {
	if _, bad := errors.AsType[*readError](err); bad {
		return true
	}
	return uplink.Permanent(err) || errors.Is(err, sentinel.ErrRefused) || errors.Is(err, sentinel.ErrDenied) || errors.Is(err, sentinel.ErrFenced)
}

// idle waits until a pass is due (nil), or an order comes. The error is that of ctx.
func (f *Flow) idle(ctx context.Context) (*order, error) {
	for {
		select { // first, or passes back to back would never let one in
		case o := <-f.orders:
			return o, nil
		default:
		}
		changed := f.link.Changed() // before the look: what changes after it wakes
		state, reason, next, wait := f.standing()
		if wait == 0 {
			return nil, ctx.Err()
		}
		if err := f.link.view().Fatal; err != nil {
			f.answerSync(err) // the gateway refuses: who waits for a pass would wait for the operator
		}
		f.show(state, reason, next)
		timer := time.NewTimer(wait)
		select {
		case o := <-f.orders:
			timer.Stop()
			return o, nil
		case <-f.wake:
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		timer.Stop()
	}
}

const forever = 24 * time.Hour

// standing tells why no pass runs now, and how long that lasts; 0: one is due.
func (f *Flow) standing() (state mover.State, reason, next string, wait time.Duration) {
	l := f.link.view()
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.Conns > 0 && l.state.Phase == mover.Released && !f.reclaim && f.report == nil {
		f.released = true
	}
	switch {
	case f.report != nil:
		if f.report.Doubt && l.Conns > 0 {
			return "", "", "", 0 // to ask the gateway
		}
		s, reason, next := f.report.Standing()
		return s, reason, next, forever
	case f.released && !f.reclaim:
		return mover.Done, "the target was handed over", "moverctl rollback, to let the source go on instead of the target", forever
	case f.paused:
		return mover.Paused, "paused by the operator", "moverctl resume", forever
	case f.stopped != nil:
		return mover.Stopped, f.stopped.Error(), whatNow(f.stopped), forever
	case l.Fatal != nil:
		return mover.Stopped, l.Fatal.Error(), whatNow(l.Fatal), forever
	case l.Conns == 0:
		return mover.Connecting, connecting(f.cfg.Gateway, l), "", forever
	}
	if d := time.Until(f.due); d > 0 && len(f.syncNow) == 0 {
		if f.retry > 0 {
			return mover.Idle, fmt.Sprintf("%s; next try in %s", f.view.lastError, seconds(d)), "", d
		}
		return mover.Idle, "next pass in " + seconds(d), "moverctl cutover", d
	}
	return "", "", "", 0
}

func connecting(gateway string, l linkView) string {
	if l.Why == "" {
		return fmt.Sprintf("connecting to gateway %s", gateway)
	}
	if d := time.Until(l.Next); d > 0 {
		return fmt.Sprintf("gateway %s: %s, next try in %s", gateway, l.Why, seconds(d))
	}
	return fmt.Sprintf("gateway %s: %s, trying again", gateway, l.Why)
}

func seconds(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// whatNow tells the operator's next step out of a stop.
func whatNow(err error) string {
	switch {
	case errors.Is(err, sentinel.ErrFenced):
		return "end the other source of this flow, or take it over with moverctl resume"
	case errors.Is(err, sentinel.ErrDenied):
		return "let the gateway's config, and its policy, name this flow for this host's certificate, then moverctl resume"
	case errors.Is(err, sentinel.ErrNotSupported):
		return "upgrade the older of source and gateway, then moverctl resume"
	}
	if _, bad := errors.AsType[*readError](err); bad {
		return "replace the disk, or set on-read-error: skip to go on without these bytes, then moverctl resume"
	}
	return "mend it, then moverctl resume"
}

// stop waits for the operator.
func (f *Flow) stop(err error) {
	f.deps.Log.Error("flow is stopped", "flow", f.cfg.Flow, "err", err, "next", whatNow(err))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = err
}

// nudge lets the loop look again.
func (f *Flow) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// used asks which leaves are free. It is called after the Take.
func (f *Flow) used(ctx context.Context) (*extent.Set, error) {
	size := f.deps.Volume.Size()
	if f.deps.Used == nil {
		return nil, nil
	}
	free, err := f.deps.Used(ctx)
	switch {
	case errors.Is(err, sentinel.ErrNotSupported):
		f.deps.Log.Info("all of the volume counts as in use", "flow", f.cfg.Flow, "why", err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ask which space is free: %w", err)
	case free == nil || free.Empty():
		return nil, nil
	}
	return freeLeaves(size, free), nil
}

var _ blockdev.Tracker = (*mover.Scan)(nil)
