// Package retry asks an object store again when a call failed and another try may succeed (objstore.Retryable): with waits that grow and are drawn by lot, with
// a brake that all calls of a store share while it asks for fewer requests, until the tries or the time are used up, or the caller's context ends.
//
// A try whose answer was lost may have done its work. List, Head, Get, Put, PutPart, Delete and Abort can be done twice. The others:
//   - Put with Absent finds what it stored itself and is told ErrExists. Then the object is read and compared with the body: equal bytes are success.
//   - Complete finds that its upload is gone. Then the object tells: it is of this upload if its ETag is that of the parts, or if it has their size and was not
//     there before the first try. For that Complete asks Head before.
//   - Begin may leave an upload that nobody knows. Whoever ends a flow lists what is left, and aborts it.
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/objstore"
)

// Config tells how long to try. The zero value is good.
type Config struct {
	Tries int                                 // of one call; 0: 10
	Time  time.Duration                       // no try begins later than this after the first; 0: 10 minutes
	First time.Duration                       // the second try comes within this; each further one within the double; 0: 200 ms
	Most  time.Duration                       // but within this; 0: 20 s
	Log   func(err error, wait time.Duration) // told before each wait; may be nil
}

// Stats counts since the beginning.
type Stats struct {
	Calls   uint64 // that were asked for
	Tries   uint64 // that they took, bodies that were resumed included
	Slow    uint64 // tries that ended with ErrSlowDown
	Resumed uint64 // bodies that broke and went on
	Ended   uint64 // calls that ended with an error that another try might have mended
}

// Store asks the store below it again.
type Store struct {
	in    objstore.Store
	c     Config
	brake brake
	over  chan struct{} // closed by Close
	once  sync.Once

	calls, tries, slow, resumed, ended atomic.Uint64
}

// New wraps a store.
func New(in objstore.Store, c Config) *Store {
	if c.Tries <= 0 {
		c.Tries = 10
	}
	if c.Time <= 0 {
		c.Time = 10 * time.Minute
	}
	if c.First <= 0 {
		c.First = 200 * time.Millisecond
	}
	if c.Most <= 0 {
		c.Most = 20 * time.Second
	}
	over := make(chan struct{})
	return &Store{in: in, c: c, over: over, brake: brake{turn: make(chan struct{}, 1), over: over}}
}

// Stats gives the counts of now.
func (s *Store) Stats() Stats {
	return Stats{s.calls.Load(), s.tries.Load(), s.slow.Load(), s.resumed.Load(), s.ended.Load()}
}

// try is the tries of one call.
type try struct {
	s       *Store
	op, key string
	began   time.Time
	n       int // tries so far
}

func (s *Store) try(op, key string) *try { return &try{s: s, op: op, key: key, began: time.Now()} }

// do calls f until it succeeds, or no further try may.
func (s *Store) do(ctx context.Context, op, key string, f func() error) error {
	s.calls.Add(1)
	t := s.try(op, key)
	for {
		err := t.once(ctx, f)
		if err == nil {
			return nil
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// once is one try. It waits for the brake.
func (t *try) once(ctx context.Context, f func() error) error {
	if err := t.s.brake.wait(ctx); err != nil {
		return t.fail(err)
	}
	t.n++
	t.s.tries.Add(1)
	began := time.Now()
	err := f()
	if slow(err) {
		t.s.slow.Add(1)
		t.s.brake.cut(began)
	}
	return err
}

// slow tells whether the store itself asks for fewer requests, not one that a body comes from.
func slow(err error) bool {
	var e *objstore.Error
	if errors.As(err, &e) {
		return errors.Is(e.Kind, objstore.ErrSlowDown)
	}
	return errors.Is(err, objstore.ErrSlowDown)
}

// again waits for the next try, or gives the error that the call ends with.
func (t *try) again(ctx context.Context, err error) error {
	if !objstore.Retryable(err) {
		return err
	}
	if ctx.Err() != nil {
		return t.fail(fmt.Errorf("%w after %d tries, the last one: %v", ctx.Err(), t.n, err))
	}
	wait := t.s.c.wait(t.n)
	if t.n >= t.s.c.Tries || time.Since(t.began)+wait > t.s.c.Time {
		t.s.ended.Add(1)
		return t.last(err)
	}
	if t.s.c.Log != nil {
		t.s.c.Log(err, wait)
	}
	if end := sleep(ctx, t.s.over, wait); end != nil {
		return t.fail(fmt.Errorf("%w after %d tries, the last one: %v", end, t.n, err))
	}
	return nil
}

// wait is how long to wait after n tries: anything up to a bound that doubles, so that callers which failed together do not come back together.
func (c Config) wait(n int) time.Duration {
	most := min(c.First, c.Most)
	for ; n > 1 && most < c.Most; n-- {
		if most > c.Most/2 {
			most = c.Most
			break
		}
		most *= 2
	}
	return time.Duration(rand.Int64N(int64(most) + 1))
}

var errClosed = fmt.Errorf("the store is closed: %w", fs.ErrClosed)

// sleep waits, but ends with ctx, or when the store is closed.
func sleep(ctx context.Context, over <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return errClosed
	}
}

// last is the error of the last try, which keeps its kind.
func (t *try) last(err error) error {
	var e *objstore.Error
	if !errors.As(err, &e) {
		return t.fail(fmt.Errorf("given up after %d tries: %w", t.n, err))
	}
	last := *e
	if last.Err == nil {
		last.Err = fmt.Errorf("given up after %d tries", t.n)
	} else {
		last.Err = fmt.Errorf("given up after %d tries: %w", t.n, e.Err)
	}
	return &last
}

func (t *try) fail(err error) error {
	return &objstore.Error{Op: t.op, Store: t.s.String(), Key: t.key, Err: err}
}

// String is that of the store below.
func (s *Store) String() string { return s.in.String() }

// Format prints String for every verb.
func (s *Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Limits are those of the store below.
func (s *Store) Limits() objstore.Limits { return s.in.Limits() }

// Close closes the store below. Calls that wait end at once.
func (s *Store) Close() error {
	s.once.Do(func() { close(s.over) })
	return s.in.Close()
}

// List tries again.
func (s *Store) List(ctx context.Context, q objstore.Query) (p objstore.Page, err error) {
	err = s.do(ctx, "list", "", func() (err error) {
		p, err = s.in.List(ctx, q)
		return err
	})
	return p, err
}

// Head tries again.
func (s *Store) Head(ctx context.Context, key string) (o objstore.Object, err error) {
	err = s.do(ctx, "head", key, func() (err error) {
		o, err = s.in.Head(ctx, key)
		return err
	})
	return o, err
}

// Delete tries again, with those that are left for a reason that may pass.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	left := map[string]error{}
	var open map[string]error // of the last try, to be tried again
	err := s.do(ctx, "delete", "", func() error {
		now, err := s.in.Delete(ctx, keys...)
		if err != nil {
			return err
		}
		keys, open = nil, nil
		for key, why := range now {
			if !objstore.Retryable(why) {
				left[key] = why
				continue
			}
			if open == nil {
				open = map[string]error{}
			}
			open[key], err = why, why
			keys = append(keys, key)
		}
		return err
	})
	for key, why := range open {
		left[key] = why
	}
	if open != nil && objstore.Retryable(err) { // the call itself succeeded: those that are left tell why
		err = nil
	}
	if len(left) == 0 {
		left = nil
	}
	return left, err
}
