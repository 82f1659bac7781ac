package bucket

import (
	"errors"
	"time"

	"github.com/moverd/mover/objstore"
)

// planner turns pages of a listing into units, by what the ledger knows.
type planner struct {
	ledger   *Ledger
	filter   Filter
	deletes  bool   // what is gone at the source is deleted at the target
	refusals bool   // what was refused is tried again
	planned  func() // units were added
}

const (
	// planAhead is how many items are gathered before they are written, where much is gone at the source.
	planAhead = 8192
	// settles is how long after a change another one may have the same time: stores count seconds.
	settles = 2 * time.Second
	// unknownClock takes the place of settles where a store does not tell its clock: signed requests bear so much of a difference.
	unknownClock = 15 * time.Minute
)

// sure tells whether another change of e would show in a listing (C16).
func sure(e objstore.Entry, now time.Time) bool {
	if now.IsZero() {
		return e.Modified.Before(time.Now().Add(-unknownClock))
	}
	return e.Modified.Before(now.Add(-settles))
}

// plan is what was found out since the last write.
type plan struct {
	*planner
	page  listed
	items []Item
	State // what to add to the counts
	gone  []string
	again []string // were refused
}

// take takes in a page: what is new or changed, or gone, becomes units, durable with how far the walk is.
func (p *planner) take(page listed) error {
	w := &plan{planner: p, page: page}
	next := page.entries
	err := p.ledger.scan(page.span, func(key string, r Record) error {
		for len(next) > 0 && next[0].Key < key {
			w.found(next[0], Record{}, false)
			next = next[1:]
		}
		if len(next) > 0 && next[0].Key == key {
			w.found(next[0], r, true)
			next = next[1:]
		} else {
			w.missed(key, r)
		}
		if len(w.items)+len(w.gone) >= planAhead { // again is among items
			return w.write(key, false)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range next {
		w.found(e, Record{}, false)
	}
	return w.write(page.to, page.end)
}

// found takes in an object that the source has.
func (w *plan) found(e objstore.Entry, r Record, known bool) {
	if !w.filter.Takes(e.Key) {
		w.Left++
		return
	}
	w.Listed, w.ListedBytes = w.Listed+1, w.ListedBytes+e.Size
	if tried := w.refusals && r.Outcome == Refused; known && r.is(e) && tried {
		w.again = append(w.again, e.Key)
	} else if known && r.is(e) {
		w.Same, w.SameBytes = w.Same+1, w.SameBytes+e.Size
		return
	}
	w.Planned, w.PlannedBytes = w.Planned+1, w.PlannedBytes+e.Size
	w.items = append(w.items, Item{Entry: e, Sure: sure(e, w.page.now)})
}

// missed takes in an object that the source has no longer.
func (w *plan) missed(key string, r Record) {
	switch {
	case r.Outcome == Gone && !w.deletes, !w.filter.Takes(key):
		return
	case w.deletes:
		w.items = append(w.items, Item{Delete: true, Entry: objstore.Entry{Key: key}})
	default:
		w.gone = append(w.gone, key)
	}
	if r.Outcome != Gone {
		w.Vanished++
	}
}

// write makes all durable that was found out, and that the walk is listed up to a key, or wholly: in one write (C18).
func (w *plan) write(upto string, end bool) error {
	units := w.units()
	err := w.ledger.update(func(c change) error {
		for _, u := range units {
			c.LastUnit++
			c.Units++
			u.ID, u.Pass = c.LastUnit, c.Pass
			if err := c.set(numbered('u', u.ID), u); err != nil {
				return err
			}
		}
		if err := errors.Join(w.become(c, Gone, w.gone), w.become(c, Failed, w.again)); err != nil {
			return err
		}
		c.Listed, c.ListedBytes, c.Left = c.Listed+w.Listed, c.ListedBytes+w.ListedBytes, c.Left+w.Left
		c.Same, c.SameBytes = c.Same+w.Same, c.SameBytes+w.SameBytes
		c.Planned, c.PlannedBytes = c.Planned+w.Planned, c.PlannedBytes+w.PlannedBytes
		c.Vanished += w.Vanished
		if end {
			return c.Delete(numbered('w', w.page.walk), nil)
		}
		return w.ledger.walkAt(c, w.page.walk, upto)
	})
	w.items, w.gone, w.again, w.State = w.items[:0], w.gone[:0], w.again[:0], State{}
	if err == nil && len(units) > 0 {
		w.planned()
	}
	return err
}

// become changes the outcome of records.
func (w *plan) become(c change, o Outcome, keys []string) error {
	for _, key := range keys {
		r, found, err := w.ledger.record(key)
		if err != nil || !found {
			return err
		}
		c.stands(r, -1)
		r.Outcome = o
		c.stands(r, 1)
		if err := c.Set(objectKey(key), r.append(nil), nil); err != nil {
			return err
		}
	}
	return nil
}

// units cuts the items into units: large objects alone.
func (w *plan) units() (out []Unit) {
	var u Unit
	bytes := int64(0)
	flush := func() {
		if len(u.Items) > 0 {
			out = append(out, u)
		}
		u, bytes = Unit{}, 0
	}
	for _, it := range w.items {
		if bytes+it.Entry.Size > unitBytes {
			flush()
		}
		u.Items = append(u.Items, it)
		bytes += it.Entry.Size
		if len(u.Items) == unitItems {
			flush()
		}
	}
	flush()
	return out
}
