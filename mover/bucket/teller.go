package bucket

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// teller keeps what a worker has under way: it asks for units, tells results, several together, and says again and again what the worker has, by which it keeps its lease.
type teller struct {
	worker *Worker
	ask    chan struct{} // capacity 1: say at once what is under way

	mu   sync.Mutex // guards all below
	open map[uint64]*working
	seq  uint64        // Alive messages
	wake chan struct{} // closed when a unit has ended
}

// working is a unit that was asked for, or is under way.
type working struct {
	left int                // items not told and not given up
	lose context.CancelFunc // ends what is under way; nil: nothing is, yet
}

// room waits until another unit may be taken: there are few, and few objects in them.
func (t *teller) room(ctx context.Context) error {
	for {
		n := 0
		t.mu.Lock()
		for _, u := range t.open {
			n += u.left
		}
		ok, wake := len(t.open) < unitsAhead && n < 2*t.worker.cfg.Most, t.wake
		t.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take asks for a unit. of is nil where there is nothing to do. From before the question until all of it has ended the unit is among those that alive names (C20).
func (t *teller) take(ctx context.Context, id uint64) (u Unit, of context.Context, err error) {
	w := t.worker
	t.mu.Lock()
	if t.open[id] != nil { // the number came twice
		t.mu.Unlock()
		return u, nil, nil
	}
	t.open[id] = &working{}
	a := Ask{Who: w.who, Seq: t.seq, Sole: w.cfg.Sole, Flow: w.cfg.Moves, Unit: id}
	t.mu.Unlock()
	err = w.queue.request(ctx, "ask", a, &u)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || u.Held || len(u.Items) == 0 {
		t.forget(id)
		return u, nil, err
	}
	of, lose := context.WithCancel(ctx)
	t.open[id] = &working{len(u.Items), lose}
	return u, of, nil
}

// forget ends a unit. mu is held.
func (t *teller) forget(id uint64) {
	if u := t.open[id]; u != nil && u.lose != nil {
		u.lose()
	}
	delete(t.open, id)
	close(t.wake)
	t.wake = make(chan struct{})
}

// ended notes that an item is told, or given up.
func (t *teller) ended(unit uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.open[unit]
	u.left--
	if u.left == 0 {
		t.forget(unit)
		return
	}
	close(t.wake)
	t.wake = make(chan struct{})
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
	for enough := min(tellItems, t.worker.cfg.Ahead) / 4; len(r.Items) < enough; {
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
	r.Who = t.worker.who
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if ctx.Err() == nil {
		last = ctx
	}
	var ok bool
	if err := t.worker.queue.request(last, "result", r, &ok); err != nil {
		return err
	}
	t.worker.most.Release(int64(len(r.Items)))
	for _, it := range r.Items {
		t.ended(it.Unit)
	}
	return nil
}

// lastWords is how long a worker that has to end takes to tell what it has done.
const lastWords = 2 * time.Second

// alive keeps the lease, and gives up what others have now.
func (t *teller) alive(ctx context.Context) error {
	asked, err := t.worker.queue.hear("who", func([]byte) {
		select {
		case t.ask <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = asked.Unsubscribe() }()
	every := t.worker.cfg.pulse.every
	for wait := time.Duration(0); ; {
		ok, err := t.present(ctx)
		if err != nil {
			return err
		}
		if wait = min(every, max(every/40, 2*wait)); ok { // while no coordinator is there, it may come at any moment
			wait = every
		}
		select {
		case <-time.After(wait):
		case <-t.ask:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// present says what is under way here. false: nobody answered. An error: the worker is refused.
func (t *teller) present(ctx context.Context) (bool, error) {
	w := t.worker
	a := Alive{Who: w.who, Sole: w.cfg.Sole, Flow: w.cfg.Moves, Host: w.cfg.Host, Done: w.done.Load(), Use: w.pacer.use()}
	t.mu.Lock()
	t.seq++
	a.Seq = t.seq
	for id, u := range t.open {
		a.Units = append(a.Units, id)
		a.Objects += int64(u.left)
	}
	t.mu.Unlock()
	try, cancel := context.WithTimeout(ctx, w.cfg.pulse.every)
	defer cancel()
	asked := now()
	var h Heard
	if ok, err := w.queue.once(try, "alive", a, &h); !ok || err != nil {
		return false, err
	}
	if h.Refused != "" {
		return false, fmt.Errorf("the coordinator refuses this worker: %s: %w", h.Refused, sentinel.ErrRefused)
	}
	t.mu.Lock()
	for _, id := range h.Lost {
		if u := t.open[id]; u != nil && u.lose != nil {
			u.lose()
		}
	}
	t.mu.Unlock()
	w.pacer.set(h.Share)
	w.class.Store(uint32(h.Class))
	w.lease.renew(asked)
	return true, nil
}
