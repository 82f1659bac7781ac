package bucket

// Fencing (C20). No store that matters here refuses a write because its writer was given up meanwhile. So a worker that was given up is not kept from writing late; what
// it may write late is remembered until it cannot any more, and then made right:
//
//	give      who has a unit is durable before the worker is told what to do
//	take      the holder was silent for its lease: what is left of the unit goes to another worker, and is durably noted as fenced, with the state of each object
//	ended     the holder says that it does nothing of that unit any more, or its successor on the same machine knows that it is dead; or fenceFor has passed, after which
//	          a store refuses what was signed before
//	over      ended, and linger has passed: nothing of it is on the way
//	settle    when it is over, the next pass copies (or deletes) again what is in doubt
//
// In doubt is an object of which the ledger holds another state than the one that the fenced worker had: a late write of the same state changes nothing. A final pass ends
// when nothing is in doubt; it waits until fenced workers are over, and runs again for what is.

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// fenceFor is how long a worker that was given up, and that nobody knows to be dead, may write: stores take signatures of 30 minutes (BOS), or of clocks that are 15
	// minutes off (S3), and cut a body that does not go on.
	fenceFor = 35 * time.Minute
	// linger is how long a request may take to be done after the kernel of the sender has given it up, or the sender has died.
	linger = 30 * time.Second
)

// hold is a unit in the hands of a worker.
type hold struct {
	Holder Who
	Seq    uint64 // Ask.Seq: a later Alive that does not name the unit says that nothing of it is under way
}

// fenced is a unit that was taken from a worker.
type fenced struct {
	Hold  hold
	Unit  uint64
	Ended bool
	Items []Item // that were left; not in memory

	since time.Time // of the taking, or of the end; counted anew by each coordinator
}

func (f *fenced) key() []byte { return append(numbered('f', f.Unit), f.Hold.Holder.Life...) }

// give makes durable who has a unit, and what was taken from whom; nil: from nobody.
func (l *Ledger) give(unit uint64, h hold, was *fenced) error {
	return l.update(func(c change) error {
		if err := c.set(numbered('h', unit), h); err != nil || was == nil {
			return err
		}
		return c.set(was.key(), was)
	})
}

// take makes durable that the unit o is in the hands of who asks, and what was left of it in those of another one.
func (c *Coordinator) take(u Unit, o *openUnit, was hold, a Ask) error {
	var f *fenced
	if was.Holder != (Who{}) && was.Holder != a.Who {
		f = &fenced{Hold: was, Unit: u.ID, Items: u.Items, since: time.Now()}
	}
	err := c.ledger.give(u.ID, hold{a.Who, a.Seq}, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	o.giving = false
	switch {
	case err != nil: // it has not been told anything
		o.hold, o.heard = was, time.Time{}
	case f != nil:
		c.fences[string(f.key())] = &fenced{Hold: f.Hold, Unit: f.Unit, since: f.since}
	}
	return err
}

// fences gives what is fenced, without the items.
func (l *Ledger) fences() (map[string]*fenced, error) {
	out := map[string]*fenced{}
	err := l.each([]byte{'f'}, func(key, value []byte) error {
		f := &fenced{since: time.Now()}
		if err := unpack(value, f); err != nil || len(key) < 9 || binary.BigEndian.Uint64(key[1:]) != f.Unit {
			return fmt.Errorf("fence %x: %v", key, err)
		}
		f.Items = nil
		out[string(bytes.Clone(key))] = f
		return nil
	})
	return out, err
}

// doubtful tells whether a fenced worker may make, or have made, the target other than the record says. over: it writes nothing any more.
func doubtful(it Item, r Record, found, over bool) bool {
	switch {
	case it.Delete:
		return found
	case !found, !it.Sure, !r.is(it.Entry):
		return true
	}
	return !over && it.Entry.Size >= leastPart // the same state, but maybe an upload that nobody ends
}

// doubts gives the items of f that are in doubt.
func (l *Ledger) doubts(f *fenced, over bool, take func(it Item, r Record, found bool) error) error {
	var all fenced
	if _, err := l.get(f.key(), &all); err != nil {
		return err
	}
	for _, it := range all.Items {
		r, found, err := l.record(it.Entry.Key)
		if err != nil {
			return err
		}
		if !doubtful(it, r, found, over) {
			continue
		}
		if err := take(it, r, found); err != nil {
			return err
		}
	}
	return nil
}

// settle lets the pass that begins look again at what is in doubt of units that are over, and forgets those.
func (l *Ledger) settle(c change, over []*fenced) error {
	for _, f := range over {
		err := l.doubts(f, true, func(it Item, r Record, found bool) error {
			if !found { // it was deleted, and may be there again
				r = Record{Outcome: Gone, Modified: time.Unix(0, 0), Why: "a worker that was given up may have written it late"}
			}
			r.Sure = false
			return c.Set(objectKey(it.Entry.Key), r.append(nil), nil)
		})
		if err != nil {
			return err
		}
		if err := c.Delete(f.key(), nil); err != nil {
			return err
		}
	}
	return nil
}

// over tells whether nothing can come of f any more. mu is held.
func (c *Coordinator) isOver(f *fenced) bool {
	since := time.Since(f.since)
	return since >= c.cfg.fenceFor || f.Ended && since >= c.cfg.Linger
}

// over gives the fenced units of which nothing can come.
func (c *Coordinator) over() (out []*fenced) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.fences {
		if c.isOver(f) {
			out = append(out, f)
		}
	}
	return out
}

// settled forgets what has been settled.
func (c *Coordinator) settled(over []*fenced) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range over {
		delete(c.fences, string(f.key()))
	}
}

// ended notes which fenced units a worker, or the one before it, has ended.
func (c *Coordinator) ended(a Alive) error {
	var some []*fenced
	c.mu.Lock()
	for _, f := range c.fences {
		h := f.Hold.Holder
		if !f.Ended && (c.dead(h, a.Who) || h == a.Who && a.Seq > f.Hold.Seq && !slices.Contains(a.Units, f.Unit)) {
			f.Ended, f.since = true, time.Now()
			some = append(some, f)
		}
	}
	c.mu.Unlock()
	if len(some) == 0 {
		return nil
	}
	return c.ledger.update(func(ch change) error {
		for _, f := range some {
			var all fenced
			if found, err := c.ledger.get(f.key(), &all); err != nil || !found {
				return err
			}
			all.Ended = true
			if err := ch.set(f.key(), all); err != nil {
				return err
			}
		}
		return nil
	})
}

// clear returns when nothing is left to wait for: true, nothing is in doubt, false, another pass has to look again (C20).
func (c *Coordinator) clear(ctx context.Context) (bool, error) {
	defer c.wait("")
	for said := ""; ; {
		again := false
		var waits []string
		c.mu.Lock()
		all := make(map[*fenced]bool, len(c.fences))
		for _, f := range c.fences {
			all[f] = c.isOver(f)
		}
		c.mu.Unlock()
		for f, over := range all {
			n := 0
			if err := c.ledger.doubts(f, over, func(Item, Record, bool) error { n++; return nil }); err != nil {
				return false, err
			}
			switch who := f.Hold.Holder.Worker; {
			case n == 0:
			case over:
				again = true
			case !slices.Contains(waits, who):
				waits = append(waits, who)
			}
		}
		if len(waits) == 0 {
			return !again, nil
		}
		slices.Sort(waits)
		if text := strings.Join(waits, ", "); text != said {
			said = text
			c.cfg.Log.Warn("the pass waits for workers that were given up and may still write", "workers", text, "at_most", c.cfg.fenceFor)
		}
		c.wait(fmt.Sprintf("waiting for %s: given up, and may still write what has changed since; until it is heard, started again, or silent for %v", said, c.cfg.fenceFor))
		select {
		case <-time.After(c.cfg.pulse.every / 4):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
