package bucket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/moverd/mover/objstore"
)

// WorkerConfig is one worker of a flow. Zero values are defaults.
type WorkerConfig struct {
	Flow     string
	Name     string // of the worker; no two that are alive have the same
	Host     string // where it runs, for people
	Moves    string // what it moves where, and its version: Config.Flow of its coordinator, or it is refused
	Sole     bool   // no earlier worker of this name is alive: the caller holds a lock that it would hold
	From, To objstore.Store
	Copy     CopyConfig
	Most     int // objects under way; 256
	Ahead    int // objects under way, or copied and not recorded yet; 2 times Most
	Log      *slog.Logger

	pulse pulse
}

// Worker copies what the queue hands out. It may come and go at any time.
type Worker struct {
	cfg   WorkerConfig
	who   Who
	queue *queue
	lease *lease
	pacer *pacer
	copy  *copier
	gate  *gate               // requests under way
	most  *semaphore.Weighted // what would be done in vain if the worker died now

	results chan ItemResult
	failing atomic.Int64 // objects in a row
	done    atomic.Int64 // objects
	under   atomic.Int64 // objects under way
	class   atomic.Uint32
}

const (
	unitsAhead   = 16                     // units that a worker has at a time
	tellItems    = 256                    // results that are told together, at most
	tellPause    = 20 * time.Millisecond  // for which the first of them waits for others
	workerRetry  = 500 * time.Millisecond // until there is a coordinator
	leastObjects = 2
	mostFailing  = 64
)

// NewWorker makes one. The connection stays the caller's.
func NewWorker(cfg WorkerConfig, nc *nats.Conn) (*Worker, error) {
	if cfg.Most <= 0 {
		cfg.Most = 256
	}
	if cfg.Ahead < cfg.Most {
		cfg.Ahead = 2 * cfg.Most
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.pulse == (pulse{}) {
		cfg.pulse = usual
	}
	q, err := newQueue(nc, cfg.Flow)
	if err != nil {
		return nil, err
	}
	q.me = cfg.Name
	w := &Worker{cfg: cfg, who: Who{cfg.Name, rand.Text()}, queue: q, lease: newLease(cfg.pulse.use), gate: newGate(leastObjects, cfg.Most), most: semaphore.NewWeighted(int64(cfg.Ahead)),
		results: make(chan ItemResult, tellItems)}
	w.pacer = newPacer(cfg.Copy.Pace)
	cfg.Copy.Pace = w.pacer.pace
	w.copy = newCopier(cfg.From, guarded{cfg.To, w.lease}, cfg.Copy)
	return w, nil
}

// Run works until ctx ends, the worker is refused, or a store cannot be used.
func (w *Worker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	t := &teller{worker: w, open: map[uint64]*working{}, wake: make(chan struct{}), ask: make(chan struct{}, 1)}
	g.Go(func() error { return t.run(ctx) })
	g.Go(func() error { return t.alive(ctx) })
	g.Go(func() error {
		return w.units(ctx, t, func(u Unit, of context.Context) {
			for _, it := range u.Items {
				if w.most.Acquire(ctx, 1) != nil || w.gate.enter(ctx) != nil {
					return
				}
				g.Go(func() error { return w.item(ctx, of, t, u.ID, it) })
			}
		})
	})
	return g.Wait()
}

// units takes units from the queue and gives what is left of each to work, which returns when all its items are under way. of ends when the unit is lost.
func (w *Worker) units(ctx context.Context, t *teller, work func(u Unit, of context.Context)) error {
	for {
		if err := t.room(ctx); err != nil {
			return err
		}
		m, err := w.queue.next(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && w.queue.nc.IsClosed():
			return fmt.Errorf("queue: %w", err)
		case err != nil: // no coordinator has made it yet, or its server was started again
			select {
			case <-time.After(workerRetry):
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		case m == nil:
			continue
		}
		id, err := number(m.Data())
		if err != nil {
			return err
		}
		u, of, err := t.take(ctx, id)
		if err != nil {
			return err
		}
		_ = m.Ack() // the coordinator knows who has it
		if of != nil {
			work(u, of)
		}
	}
}

// item copies one object and hands on what became of it.
func (w *Worker) item(ctx, of context.Context, t *teller, unit uint64, it Item) error {
	w.under.Add(1)
	defer w.under.Add(-1)
	r, err := w.copy.copy(of, it, func(p PartResult) error {
		var ok bool
		p.Unit = unit
		return w.queue.request(of, "result", Result{Who: w.who, Part: &p}, &ok)
	})
	w.gate.leave(errors.Is(err, objstore.ErrSlowDown))
	if of.Err() != nil && ctx.Err() == nil { // others do it
		w.most.Release(1)
		t.ended(unit)
		return nil
	}
	if err != nil {
		return err
	}
	if err := w.judge(ctx, r.cause); err != nil {
		return err // what is told no more is tried again
	}
	w.done.Add(1)
	r.Unit = unit
	select {
	case w.results <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// judge gives an error when so many objects failed in a row that it is not of the objects, it seems. Objects that the source does not give, as the keys of another
// account or a customer's encryption make them, are of the objects, however many there are.
func (w *Worker) judge(ctx context.Context, cause error) error {
	ofTarget, denied := errors.Is(cause, errTarget), errors.Is(cause, objstore.ErrDenied)
	if cause == nil {
		w.failing.Store(0)
	}
	if !ofTarget && !denied && !objstore.Retryable(cause) || w.failing.Add(1) < mostFailing {
		return nil
	}
	if denied && !ofTarget {
		w.failing.Store(0)
		if _, err := w.cfg.From.List(ctx, objstore.Query{Prefix: w.cfg.Copy.FromPrefix, Max: 1}); err != nil {
			return fmt.Errorf("%d objects in a row could not be read, the last one: %w", mostFailing, errors.Join(cause, err))
		}
		return nil
	}
	return fmt.Errorf("%d objects in a row could not be copied, the last one: %w: %w", w.failing.Load(), cause, objstore.ErrTransient)
}
