package bucket

// A coordinator lists the source, plans units by what the ledger knows, and takes in what workers tell:
//
//	lister ─▶ planner ─▶ ledger ─▶ feeder ─▶ queue ─▶ workers
//	                       ▲                             │ ask, result
//	                       └─────────────────────────────┘

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/objstore"
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
}

// leastPart is the least size of an object that may be moved in parts.
const leastPart = 1 << 20

// window is how many units are handed out and not done, and in memory.
const window = 256

// Coordinator runs the passes of a flow.
type Coordinator struct {
	cfg    Config
	ledger *Ledger
	queue  *queue

	mu   sync.Mutex // guards all below
	open map[uint64]*openUnit
	last uint64            // unit handed out last
	held map[uint64]string // by whom, as workers say; of units that are not open yet
	wake chan struct{}
}

// openUnit is a unit that was handed out.
type openUnit struct {
	Unit
	left    map[string]int // items not done: index in Items
	holder  string         // worker that has it
	heard   time.Time      // of the holder
	writing int            // items done whose record is not durable yet
}

// NewCoordinator makes one. The connection and the ledger stay the caller's.
func NewCoordinator(cfg Config, ledger *Ledger, nc *nats.Conn) (*Coordinator, error) {
	if cfg.Listers <= 0 {
		cfg.Listers = 16
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	q, err := newQueue(nc, cfg.Name)
	if err != nil {
		return nil, err
	}
	return &Coordinator{cfg: cfg, ledger: ledger, queue: q, open: map[uint64]*openUnit{}, wake: make(chan struct{})}, nil
}

// passesTried is how many final passes try what failed.
const passesTried = 3

// Pass ends the pass that is under way, or runs a new one, and returns when all is copied. final: the writers stand still, so a pass that began before is not
// enough, and what failed in one is tried again in the next. What fails in the last one too is in the ledger, and counted in State.Failed.
func (c *Coordinator) Pass(ctx context.Context, final bool) (State, error) {
	for n := 1; ; n++ {
		s, err := c.pass(ctx, final)
		if err != nil || !final || s.Final && (s.Failed+s.Changed == 0 || n >= passesTried) {
			return s, err
		}
	}
}

func (c *Coordinator) pass(ctx context.Context, final bool) (State, error) {
	if err := c.begin(final); err != nil {
		return c.ledger.State(), err
	}
	if err := c.queue.fresh(ctx, window); err != nil {
		return c.ledger.State(), err
	}
	walks, err := c.ledger.walks()
	if err != nil {
		return c.ledger.State(), err
	}
	c.mu.Lock()
	c.open, c.last, c.held = map[uint64]*openUnit{}, 0, map[uint64]string{}
	c.mu.Unlock()
	answering, stop := context.WithCancel(ctx)
	defer stop()
	answers, answered := errgroup.WithContext(answering) // ends with the first that cannot answer: workers would wait for ever
	answers.Go(func() error { return c.queue.answer(answering, "ask", c.ask) })
	answers.Go(func() error { return c.queue.answer(answering, "result", c.result) })
	alive, err := c.queue.hear("alive", c.alive)
	if err != nil {
		return c.ledger.State(), err
	}
	defer func() { _ = alive.Unsubscribe() }()
	if err := c.roll(ctx); err != nil {
		return c.ledger.State(), err
	}
	g, gctx := errgroup.WithContext(answered)
	g.Go(func() error {
		l := &lister{store: c.cfg.From, prefix: c.cfg.Prefix, width: c.cfg.Listers, cut: c.ledger.cut}
		p := &planner{ledger: c.ledger, filter: c.cfg.Filter, deletes: c.cfg.Deletes, planned: c.stir}
		l.page = func(_ context.Context, page listed) error { return p.take(page) }
		if err := l.run(gctx, walks); err != nil {
			return fmt.Errorf("list %s: %w", c.cfg.From, err)
		}
		defer c.stir()
		return c.ledger.update(func(ch change) error { ch.Listing = false; return nil })
	})
	g.Go(func() error { return c.feed(gctx) })
	err = g.Wait()
	stop()
	if e := answers.Wait(); !errors.Is(e, context.Canceled) {
		err = e // what followed is its doing
	}
	return c.ledger.State(), err
}

// begin starts a pass unless one is under way.
func (c *Coordinator) begin(final bool) error {
	s := c.ledger.State()
	if s.Listing || s.Units > 0 {
		return nil
	}
	return c.ledger.update(func(ch change) error {
		*ch.State = State{Pass: s.Pass + 1, Listing: true, Final: final, LastUnit: s.LastUnit, Objects: s.Objects, Bytes: s.Bytes,
			NowRefused: s.NowRefused, NowFailed: s.NowFailed, NowPartly: s.NowPartly, Ever: s.Ever}
		return ch.set(numbered('w', 1), walkRecord{})
	})
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

// alive notes which worker holds what.
func (c *Coordinator) alive(b []byte) {
	var a Alive
	if unpack(b, &a) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range a.Units {
		if o := c.open[id]; o == nil {
			if id > c.last {
				c.held[id] = a.Worker
			}
		} else if o.holder == "" || o.holder == a.Worker {
			o.holder, o.heard = a.Worker, time.Now()
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

// feed hands out units, as many at a time as the window allows, until all are done.
func (c *Coordinator) feed(ctx context.Context) error {
	for {
		c.mu.Lock()
		room, last, wake := window-len(c.open), c.last, c.wake
		c.mu.Unlock()
		units, err := c.ledger.unitsAfter(last, room)
		if err != nil {
			return err
		}
		for _, u := range units {
			if err := c.handOut(ctx, u); err != nil {
				return err
			}
		}
		if len(units) > 0 {
			continue
		}
		if s := c.ledger.State(); !s.Listing && s.Units == 0 {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
	c.mu.Lock()
	if who := c.held[u.ID]; who != "" {
		o.holder, o.heard = who, time.Now()
		delete(c.held, u.ID)
	}
	c.open[u.ID], c.last = o, u.ID
	c.mu.Unlock()
	if len(o.left) == 0 {
		return c.close(u.ID)
	}
	return c.queue.publish(ctx, u.ID)
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
		return ch.Delete(numbered('u', id), nil)
	})
	c.mu.Lock()
	delete(c.open, id)
	c.mu.Unlock()
	c.stir()
	return err
}

// ask answers a worker with what is left of a unit; nothing, where another one is alive that has it.
func (c *Coordinator) ask(b []byte) (any, error) {
	var a Ask
	if err := unpack(b, &a); err != nil {
		return nil, err
	}
	c.mu.Lock()
	u := Unit{ID: a.Unit}
	if o := c.open[a.Unit]; o != nil {
		if o.holder != "" && o.holder != a.Worker && time.Since(o.heard) < ackWait {
			c.mu.Unlock()
			return Unit{ID: a.Unit, Held: true}, nil
		}
		o.holder, o.heard = a.Worker, time.Now()
		u.Pass = o.Pass
		for i, it := range o.Items {
			if at, ok := o.left[it.Entry.Key]; ok && at == i {
				u.Items = append(u.Items, it)
			}
		}
	}
	c.mu.Unlock()
	for i := range u.Items {
		if u.Items[i].Entry.Size < leastPart {
			continue
		}
		p, err := c.ledger.progress(u.Items[i].Entry.Key)
		if err != nil {
			return nil, err
		}
		u.Items[i].Upload = p
	}
	return u, nil
}

// result takes in what a worker tells. Told twice it counts once (C17).
func (c *Coordinator) result(b []byte) (any, error) {
	var r Result
	if err := unpack(b, &r); err != nil {
		return nil, err
	}
	if r.Part != nil {
		return true, c.ledger.part(*r.Part)
	}
	var fresh []ItemResult
	again := int64(0)
	c.mu.Lock()
	for _, it := range r.Items {
		o := c.open[it.Unit]
		if o == nil {
			again++
		} else if _, ok := o.left[it.Key]; !ok {
			again++
		} else {
			delete(o.left, it.Key)
			o.writing++
			fresh = append(fresh, it)
		}
	}
	c.mu.Unlock()
	err := c.ledger.results(fresh, again)
	var ended []uint64
	c.mu.Lock()
	for _, it := range fresh {
		o := c.open[it.Unit]
		if o.writing--; err != nil {
			o.left[it.Key] = slices.IndexFunc(o.Items, func(x Item) bool { return x.Entry.Key == it.Key })
		}
		if len(o.left) == 0 && o.writing == 0 && !slices.Contains(ended, it.Unit) { // all of it is durable
			ended = append(ended, it.Unit)
		}
	}
	c.mu.Unlock()
	for _, id := range ended {
		err = errors.Join(err, c.close(id))
	}
	return true, err
}

// number reads a unit's number from the queue.
func number(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("queue: a unit's number has %d bytes", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
