package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/moverd/mover/objstore"
)

// WorkerConfig is one worker of a flow. Zero values are defaults.
type WorkerConfig struct {
	Flow     string
	Name     string // of the worker, for people
	From, To objstore.Store
	Copy     CopyConfig
	Most     int // objects under way, or copied and not recorded yet; 256
	Log      *slog.Logger
}

// Worker copies what the queue hands out. It may come and go at any time.
type Worker struct {
	cfg   WorkerConfig
	queue *queue
	copy  *copier
	gate  *gate               // requests under way
	most  *semaphore.Weighted // what would be done in vain if the worker died now

	results chan ItemResult
	failing atomic.Int64 // objects in a row
}

const (
	unitsAhead   = 16                     // units that a worker has at a time
	tellItems    = 256                    // results that are told together, at most
	tellPause    = 20 * time.Millisecond  // for which the first of them waits for others
	aliveEvery   = ackWait / 3            // says so for its units
	workerRetry  = 500 * time.Millisecond // until there is a coordinator
	leastObjects = 2
	mostFailing  = 64
)

// NewWorker makes one. The connection stays the caller's.
func NewWorker(cfg WorkerConfig, nc *nats.Conn) (*Worker, error) {
	if cfg.Most <= 0 {
		cfg.Most = 256
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	q, err := newQueue(nc, cfg.Flow)
	if err != nil {
		return nil, err
	}
	return &Worker{cfg: cfg, queue: q, copy: newCopier(cfg.From, cfg.To, cfg.Copy), gate: newGate(leastObjects, cfg.Most), most: semaphore.NewWeighted(int64(cfg.Most)), results: make(chan ItemResult, tellItems)}, nil
}

// Run works until ctx ends, or a store cannot be used.
func (w *Worker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	t := &teller{worker: w, open: map[uint64]*working{}, wake: make(chan struct{})}
	g.Go(func() error { return t.run(ctx) })
	g.Go(func() error { return t.alive(ctx) })
	g.Go(func() error {
		return w.units(ctx, t, func(u Unit) {
			for _, it := range u.Items {
				if w.most.Acquire(ctx, 1) != nil || w.gate.enter(ctx) != nil {
					return
				}
				g.Go(func() error { return w.item(ctx, u.ID, it) })
			}
		})
	})
	return g.Wait()
}

// units takes units from the queue and gives what is left of each to work, which returns when all its items are under way.
func (w *Worker) units(ctx context.Context, t *teller, work func(Unit)) error {
	var cons jetstream.Consumer
	for {
		var err error
		if cons, err = w.queue.js.Consumer(ctx, w.queue.stream(), "workers"); err == nil {
			break
		}
		select { // the coordinator makes it
		case <-time.After(workerRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	msgs, err := cons.Messages(jetstream.PullMaxMessages(unitsAhead))
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	defer msgs.Stop()
	stop := context.AfterFunc(ctx, msgs.Stop)
	defer stop()
	for ctx.Err() == nil {
		if err := t.room(ctx); err != nil {
			return err
		}
		m, err := msgs.Next()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, jetstream.ErrNoHeartbeat) || errors.Is(err, jetstream.ErrConsumerDeleted) {
				continue
			}
			return fmt.Errorf("queue: %w", err)
		}
		id, err := number(m.Data())
		if err != nil {
			return err
		}
		var u Unit
		if t.has(id) { // the queue has lost patience, or is a new one
			_ = m.Ack()
			continue
		}
		if err := w.queue.request(ctx, "ask", Ask{w.cfg.Name, id}, &u); err != nil {
			return err
		}
		if u.Held {
			_ = m.NakWithDelay(ackWait / 2) // should its holder die, somebody has to take it
			continue
		}
		if len(u.Items) == 0 {
			_ = m.Ack()
			continue
		}
		t.begin(u, m)
		work(u)
	}
	return ctx.Err()
}

// item copies one object and hands on what became of it.
func (w *Worker) item(ctx context.Context, unit uint64, it Item) error {
	r, err := w.copy.copy(ctx, it, func(p PartResult) error {
		var ok bool
		return w.queue.request(ctx, "result", Result{Worker: w.cfg.Name, Part: &p}, &ok)
	})
	w.gate.leave(errors.Is(err, objstore.ErrSlowDown))
	if err != nil {
		return err
	}
	if r.Record.Outcome != Failed {
		w.failing.Store(0)
	} else if n := w.failing.Add(1); n >= mostFailing { // not of this object, it seems; what is told no more is tried again
		return fmt.Errorf("%d objects in a row could not be copied, the last one: %s: %w", n, r.Record.Why, objstore.ErrTransient)
	}
	r.Unit = unit
	select {
	case w.results <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// teller tells results to the coordinator, several together, and acks units of which all is told.
type teller struct {
	worker *Worker

	mu   sync.Mutex // guards all below
	open map[uint64]*working
	wake chan struct{} // closed when a unit has ended
}

// working is a unit that is under way.
type working struct {
	msg  jetstream.Msg
	left int // items not told
}

// room waits until another unit may be taken.
func (t *teller) room(ctx context.Context) error {
	for {
		t.mu.Lock()
		n, wake := len(t.open), t.wake
		t.mu.Unlock()
		if n < unitsAhead {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// has tells whether a unit is under way.
func (t *teller) has(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.open[id]
	return ok
}

// begin notes that a unit is under way.
func (t *teller) begin(u Unit, m jetstream.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[u.ID] = &working{m, len(u.Items)}
}

// run tells results until ctx ends.
func (t *teller) run(ctx context.Context) error {
	for {
		var r Result
		select {
		case it := <-t.worker.results:
			r.Items = append(r.Items, it)
			t.gather(ctx, &r)
		case <-ctx.Done():
		}
		for more := true; more && len(r.Items) < tellItems; { // those that have come by now
			select {
			case it := <-t.worker.results:
				r.Items = append(r.Items, it)
			default:
				more = false
			}
		}
		if len(r.Items) == 0 {
			return ctx.Err()
		}
		if err := t.tell(ctx, r); err != nil {
			return err
		}
	}
}

// gather waits a moment for others: each time that results are told is a message, and a write to the coordinator's disk.
func (t *teller) gather(ctx context.Context, r *Result) {
	moment := time.NewTimer(tellPause)
	defer moment.Stop()
	for enough := min(tellItems, t.worker.cfg.Most) / 4; len(r.Items) < enough; {
		select {
		case it := <-t.worker.results:
			r.Items = append(r.Items, it)
		case <-moment.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// tell returns when the results are durable.
func (t *teller) tell(ctx context.Context, r Result) error {
	r.Worker = t.worker.cfg.Name
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if ctx.Err() == nil {
		last = ctx
	}
	var ok bool
	if err := t.worker.queue.request(last, "result", r, &ok); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, it := range r.Items {
		t.worker.most.Release(1)
		u := t.open[it.Unit]
		if u.left--; u.left == 0 {
			_ = u.msg.Ack() // lost, it comes again, and nothing is left of it
			delete(t.open, it.Unit)
			close(t.wake)
			t.wake = make(chan struct{})
		}
	}
	return nil
}

// lastWords is how long a worker that has to end takes to tell what it has done.
const lastWords = 2 * time.Second

// alive keeps others from what is under way here.
func (t *teller) alive(ctx context.Context) error {
	asked, err := t.worker.queue.hear("who", func([]byte) { t.present() })
	if err != nil {
		return err
	}
	defer func() { _ = asked.Unsubscribe() }()
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.present()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// present says what is under way here.
func (t *teller) present() {
	a := Alive{Worker: t.worker.cfg.Name}
	t.mu.Lock()
	for id, u := range t.open {
		_ = u.msg.InProgress()
		a.Units = append(a.Units, id)
	}
	t.mu.Unlock()
	t.worker.queue.say("alive", a)
}
