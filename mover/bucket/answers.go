package bucket

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ask answers a worker with what is left of a unit; nothing, where another one is alive that has it. Who has it, and what was taken from whom, is durable before (C20).
func (c *Coordinator) ask(ctx context.Context, worker string, b []byte) (any, error) {
	var a Ask
	if err := unpack(b, &a); err != nil {
		return nil, err
	}
	if text := c.refuse(worker, a.Who, a.Flow); text != "" {
		return nil, errors.New(text)
	}
	if err := c.prepared(ctx); err != nil {
		return nil, err
	}
	u := Unit{ID: a.Unit}
	c.mu.Lock()
	o := c.open[a.Unit]
	if o == nil {
		c.mu.Unlock()
		return u, nil
	}
	if o.giving || !o.free(a.Who, a.Sole, c.cfg.pulse.lease) {
		c.mu.Unlock()
		return Unit{ID: a.Unit, Held: true}, nil
	}
	was := o.hold
	if was.Holder == a.Who { // a question may come late
		a.Seq = max(a.Seq, was.Seq)
	} else if was.Holder != (Who{}) {
		o.again = true
	}
	o.hold, o.heard, o.giving = hold{a.Who, a.Seq}, time.Now(), true
	u.Pass = o.Pass
	for i, it := range o.Items {
		if at, ok := o.left[it.Entry.Key]; ok && at == i {
			it.Again = o.again
			u.Items = append(u.Items, it)
		}
	}
	c.mu.Unlock()
	if err := c.take(u, o, was, a); err != nil {
		return nil, err
	}
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
func (c *Coordinator) result(ctx context.Context, worker string, b []byte) (any, error) {
	var r Result
	if err := unpack(b, &r); err != nil {
		return nil, err
	}
	if token(r.Worker) != worker {
		return nil, errName
	}
	if err := c.prepared(ctx); err != nil {
		return nil, err
	}
	if r.Part != nil {
		c.mu.Lock()
		o := c.open[r.Part.Unit]
		ok := o != nil && o.hold.Holder == r.Who
		c.mu.Unlock()
		if !ok {
			return true, nil
		}
		return true, c.ledger.part(*r.Part)
	}
	var fresh []ItemResult
	again := int64(0)
	c.mu.Lock()
	for _, it := range r.Items {
		o := c.open[it.Unit]
		if o == nil || o.hold.Holder != r.Who { // who has it now does it, later than this
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
