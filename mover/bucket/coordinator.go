package bucket

// A coordinator lists the source, plans units by what the ledger knows, and takes in what workers tell:
//
//	lister ─▶ planner ─▶ ledger ─▶ feeder ─▶ queue ─▶ workers
//	                       ▲                             │ ask, result, alive
//	                       └─────────────────────────────┘
//
// A unit is in the hands of the worker that asked for it, until all its items are recorded, or until the worker is silent for its lease: then it is handed out again (fence.go).

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/shape"
)

// Config is a bucket flow.
type Config struct {
	Name     string // of the flow
	From, To objstore.Store
	Prefix   string // of keys at the source
	Filter   Filter
	Deletes  bool // what is gone at the source is deleted at the target
	Listers  int  // calls side by side; 16
	Log      *slog.Logger
	// Flow says what is moved where, and by which version: a worker that says otherwise is refused.
	Flow string
	// Workers may work for the flow, by their names, beside Local.
	Workers []string
	// Rate is how many bytes a second all workers together may send; 0, or nil: as many as they can.
	Rate func() int64
	// Class is what the flow sends for now; may be nil.
	Class func() shape.Class
	// Linger is how long a request may still be done after its sender has given it up, or died; 30 s.
	Linger time.Duration

	pulse    pulse
	fenceFor time.Duration
}

// leastPart is the least size of an object that may be moved in parts.
const leastPart = 1 << 20

// window is how many units are handed out and not done, and in memory.
const window = 256

// Coordinator runs the passes of a flow.
type Coordinator struct {
	cfg     Config
	ledger  *Ledger
	queue   *queue
	listens bool

	mu      sync.Mutex // guards all below
	open    map[uint64]*openUnit
	last    uint64         // unit handed out last
	held    map[uint64]Who // by whom, as workers say; of units that are not open yet
	wake    chan struct{}
	ready   chan struct{}      // closed when all units are open that were under way
	fences  map[string]*fenced // by their keys in the ledger
	workers map[Who]*member
	shares  shares
	waits   string // why a final pass has not ended, for people

	refusals bool // the next pass tries what was refused again
}

// TryRefused has the next pass that begins try again what was refused: an archive may have been restored, and another config takes other keys.
func (c *Coordinator) TryRefused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals = true
}

// openUnit is a unit that was handed out.
type openUnit struct {
	Unit
	left    map[string]int // items not done: index in Items
	hold    hold           // who has it; nobody: the zero value
	heard   time.Time      // of the holder; zero: not by this coordinator
	offered time.Time      // to the queue, last
	giving  bool           // hold is not durable yet
	again   bool           // another worker had it before this one
	writing int            // items done whose record is not durable yet
}

// free tells whether a worker may have the unit: nobody has it, or the holder was silent for its lease, or is dead, as who took its name knows.
func (o *openUnit) free(by Who, sole bool, lease time.Duration) bool {
	h := o.hold.Holder
	return h == Who{} || h == by || time.Since(o.heard) >= lease || sole && h.Worker == by.Worker
}

// NewCoordinator makes one. The connection and the ledger stay the caller's.
func NewCoordinator(cfg Config, ledger *Ledger, nc *nats.Conn) (*Coordinator, error) {
	if cfg.Listers <= 0 {
		cfg.Listers = 16
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.pulse == (pulse{}) {
		cfg.pulse = usual
	}
	if cfg.Linger <= 0 {
		cfg.Linger = linger
	}
	if cfg.fenceFor <= 0 {
		cfg.fenceFor = fenceFor
	}
	q, err := newQueue(nc, cfg.Name)
	if err != nil {
		return nil, err
	}
	c := &Coordinator{cfg: cfg, ledger: ledger, queue: q, open: map[uint64]*openUnit{}, held: map[uint64]Who{}, wake: make(chan struct{}), ready: make(chan struct{}),
		workers: map[Who]*member{}}
	if s := ledger.State(); s.Units == 0 {
		close(c.ready)
	}
	if c.fences, err = ledger.fences(); err != nil {
		return nil, err
	}
	return c, nil
}

// passesTried is how many final passes try what failed.
const passesTried = 3

// Pass ends the pass that is under way, or runs a new one, and returns when all is copied. final: the writers stand still, so a pass that began before is not
// enough, and what failed in one is tried again in the next. What fails in the last one too is in the ledger, and counted in State.Failed.
func (c *Coordinator) Pass(ctx context.Context, final bool) (State, error) {
	if !c.listens {
		stop, err := c.Listen()
		if err != nil {
			return c.ledger.State(), err
		}
		defer stop()
	}
	return c.passes(ctx, final)
}

// Listen answers workers from now until stop, also between passes: they tell what they have ended, are shown, and are refused if they have to be. Not beside Pass.
func (c *Coordinator) Listen() (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
		c.listens = false
	}
	for what, f := range map[string]answerer{"alive": c.alive, "ask": c.ask, "result": c.result} {
		s, err := c.queue.answer(what, f)
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, s)
	}
	c.listens = true
	return stop, nil
}

// prepared returns when the units are open that were under way before this coordinator: what is told of them would be lost otherwise.
func (c *Coordinator) prepared(ctx context.Context) error {
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepare notes whether they are.
func (c *Coordinator) prepare(ready bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ready:
		if !ready {
			c.ready = make(chan struct{})
		}
	default:
		if ready {
			close(c.ready)
		}
	}
}

func (c *Coordinator) passes(ctx context.Context, final bool) (State, error) {
	for n := 1; ; n++ {
		s, err := c.pass(ctx, final)
		if err != nil || !final {
			return s, err
		}
		if !s.Final || s.Failed+s.Changed > 0 && n < passesTried {
			continue
		}
		if clear, err := c.clear(ctx); err != nil || clear {
			return s, err
		}
	}
}

func (c *Coordinator) pass(ctx context.Context, final bool) (State, error) {
	if err := c.begin(final); err != nil {
		return c.ledger.State(), err
	}
	if err := c.fresh(ctx); err != nil {
		return c.ledger.State(), err
	}
	walks, err := c.ledger.walks()
	if err != nil {
		return c.ledger.State(), err
	}
	c.mu.Lock()
	c.open, c.last, c.held = map[uint64]*openUnit{}, 0, map[uint64]Who{}
	c.mu.Unlock()
	if err := c.roll(ctx); err != nil {
		return c.ledger.State(), err
	}
	if err := c.fill(ctx); err != nil {
		return c.ledger.State(), err
	}
	c.prepare(true)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		l := &lister{store: c.cfg.From, prefix: c.cfg.Prefix, width: c.cfg.Listers, cut: c.ledger.cut}
		p := &planner{ledger: c.ledger, filter: c.cfg.Filter, deletes: c.cfg.Deletes, refusals: c.ledger.State().Refusals, planned: c.stir}
		l.page = func(_ context.Context, page listed) error { return p.take(page) }
		if err := l.run(gctx, walks); err != nil {
			return fmt.Errorf("list %s: %w", c.cfg.From, err)
		}
		defer c.stir()
		return c.ledger.update(func(ch change) error { ch.Listing = false; return nil })
	})
	g.Go(func() error { return c.feed(gctx) })
	if err = g.Wait(); err != nil {
		c.prepare(false) // its units are under way still
	}
	return c.ledger.State(), err
}

// begin starts a pass unless one is under way.
func (c *Coordinator) begin(final bool) error {
	s := c.ledger.State()
	if s.Listing || s.Units > 0 {
		return nil
	}
	over := c.over()
	c.mu.Lock()
	refusals := c.refusals
	c.refusals = false
	c.mu.Unlock()
	err := c.ledger.update(func(ch change) error {
		*ch.State = State{Pass: s.Pass + 1, Listing: true, Final: final, Refusals: refusals, LastUnit: s.LastUnit, Objects: s.Objects, Bytes: s.Bytes,
			NowRefused: s.NowRefused, NowFailed: s.NowFailed, NowPartly: s.NowPartly, Ever: s.Ever, Versions: s.Versions}
		return errors.Join(ch.set(numbered('w', 1), walkRecord{}), c.ledger.settle(ch, over))
	})
	if err == nil {
		c.settled(over)
	}
	return err
}

// rollCall is how long workers have to say what they hold when a coordinator goes on with a pass: they may have to find its queue again.
const rollCall = 1500 * time.Millisecond

// roll asks who holds what. In a new pass nobody holds anything.
func (c *Coordinator) roll(ctx context.Context) error {
	if c.ledger.State().Units == 0 {
		return nil
	}
	end := time.After(rollCall)
	for {
		c.queue.say("who", true)
		select {
		case <-time.After(rollCall / 8):
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stir wakes the feeder.
func (c *Coordinator) stir() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.wake)
	c.wake = make(chan struct{})
}

// feed hands out units, as many at a time as the window allows, until all are done; again those whose holder was silent, and all of them when the queue was lost.
func (c *Coordinator) feed(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.pulse.every)
	defer tick.Stop()
	for n := 1; ; {
		c.mu.Lock()
		wake := c.wake
		c.mu.Unlock()
		if err := c.fill(ctx); err != nil {
			return err
		}
		if s := c.ledger.State(); !s.Listing && s.Units == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-tick.C:
			if n++; n%3 == 0 && c.queue.lost(ctx) {
				if err := c.refill(ctx); err != nil {
					return err
				}
			}
			if err := c.offer(ctx, func(o *openUnit) bool {
				return o.hold.Holder != Who{} && time.Since(o.heard) >= c.cfg.pulse.lease && time.Since(o.offered) >= c.cfg.pulse.lease
			}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fill hands out units until the window is full, or no more are planned.
func (c *Coordinator) fill(ctx context.Context) error {
	for {
		c.mu.Lock()
		room, last := window-len(c.open), c.last
		c.mu.Unlock()
		units, err := c.ledger.unitsAfter(last, room)
		if err != nil || len(units) == 0 {
			return err
		}
		for _, u := range units {
			if err := c.handOut(ctx, u); err != nil {
				return err
			}
		}
	}
}

// offer gives open units to the queue again.
func (c *Coordinator) offer(ctx context.Context, which func(*openUnit) bool) error {
	var ids []uint64
	c.mu.Lock()
	for id, o := range c.open {
		if len(o.left) > 0 && which(o) {
			o.offered = time.Now()
			ids = append(ids, id)
		}
	}
	c.mu.Unlock()
	slices.Sort(ids)
	for _, id := range ids {
		if err := c.publish(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// fresh makes an empty queue; where its server does not answer, it waits a while.
func (c *Coordinator) fresh(ctx context.Context) error {
	for end := time.Now().Add(queueWait); ; {
		try, cancel := context.WithTimeout(ctx, serverWait)
		err := c.queue.fresh(try, window, c.cfg.pulse.lease)
		cancel()
		if err == nil || ctx.Err() != nil || time.Now().After(end) || c.queue.nc.IsClosed() {
			return err
		}
		select {
		case <-time.After(workerRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refill makes the queue anew, with what nobody works on.
func (c *Coordinator) refill(ctx context.Context) error {
	c.cfg.Log.Warn("the queue was lost; it is made anew from the ledger", "flow", c.cfg.Name)
	if err := c.fresh(ctx); err != nil {
		return err
	}
	return c.offer(ctx, func(o *openUnit) bool { return o.hold.Holder == Who{} || time.Since(o.heard) >= c.cfg.pulse.lease })
}

// publish hands out an open unit, over a lost server if need be.
func (c *Coordinator) publish(ctx context.Context, id uint64) error {
	try, cancel := context.WithTimeout(ctx, serverWait)
	err := c.queue.publish(try, id)
	cancel()
	if err == nil || ctx.Err() != nil {
		return err
	}
	c.cfg.Log.Warn("a unit could not be handed out", "flow", c.cfg.Name, "error", err)
	return c.refill(ctx) // with this one
}

// handOut gives a unit to the queue. What was recorded of it before the last start is done.
func (c *Coordinator) handOut(ctx context.Context, u Unit) error {
	o := &openUnit{Unit: u, left: map[string]int{}}
	for i, it := range u.Items {
		done, err := c.done(it)
		if err != nil {
			return err
		}
		if !done {
			o.left[it.Entry.Key] = i
		}
	}
	if _, err := c.ledger.get(numbered('h', u.ID), &o.hold); err != nil {
		return err
	}
	c.mu.Lock()
	if who, ok := c.held[u.ID]; ok && who == o.hold.Holder {
		o.heard = time.Now()
	}
	delete(c.held, u.ID)
	for _, f := range c.fences {
		o.again = o.again || f.Unit == u.ID
	}
	o.offered = time.Now()
	kept := !o.heard.IsZero()
	c.open[u.ID], c.last = o, u.ID
	c.mu.Unlock()
	if len(o.left) == 0 {
		return c.close(u.ID)
	}
	if kept { // when its holder falls silent it is offered
		return nil
	}
	return c.publish(ctx, u.ID)
}

// done tells whether the ledger has the outcome of an item already.
func (c *Coordinator) done(it Item) (bool, error) {
	r, found, err := c.ledger.record(it.Entry.Key)
	if err != nil {
		return false, err
	}
	if it.Delete {
		return !found, nil
	}
	if !it.Sure { // the unit of it was done before the last start, perhaps; a later pass makes sure
		r.Sure = true
	}
	return found && r.is(it.Entry), nil
}

// close forgets a unit of which nothing is left.
func (c *Coordinator) close(id uint64) error {
	err := c.ledger.update(func(ch change) error {
		ch.Units--
		return errors.Join(ch.Delete(numbered('u', id), nil), ch.Delete(numbered('h', id), nil))
	})
	c.mu.Lock()
	delete(c.open, id)
	c.mu.Unlock()
	c.stir()
	return err
}
