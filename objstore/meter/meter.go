// Package meter counts what is asked of an object store: calls, errors by kind, bytes and seconds, by operation.
package meter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/moverd/mover/objstore"
)

// Bounds are the upper ends of Count.Took in seconds; what takes longer is in its last place.
var Bounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}

// Count is what has been asked so far, all of it only growing.
type Count struct {
	Calls   uint64
	Errors  map[string]uint64 // by kind: "not found", "slow down", ..., "canceled", "other"; of a delete, one for each key that is left
	In, Out uint64            // bytes read from the store and given to it, also by calls that failed
	Seconds float64           // all calls together
	Took    [len(Bounds) + 1]uint64
}

// Snapshot has the counts by operation: "list", "head", "get" (until the body begins), "get body" (until it is closed), "put", "delete", "begin", "put part",
// "parts", "complete", "abort", "uploads", "tags", "set tags", "grants", "set grants", "versioned", "older", "location", "sum". Those that nobody asked for are not there.
type Snapshot map[string]Count

// Store counts what is asked of the store below it.
type Store struct {
	in objstore.Store

	mu  sync.Mutex
	ops Snapshot
}

// New wraps a store.
func New(in objstore.Store) *Store { return &Store{in: in, ops: Snapshot{}} }

// Snapshot gives the counts of now.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.ops)
	for op, c := range out {
		c.Errors = maps.Clone(c.Errors)
		out[op] = c
	}
	return out
}

// change changes the count of an operation.
func (s *Store) change(op string, f func(*Count)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.ops[op]
	f(&c)
	s.ops[op] = c
}

// done counts a call that began at a time.
func (s *Store) done(op string, began time.Time, errs ...error) {
	took := time.Since(began).Seconds()
	at := 0
	for at < len(Bounds) && took > Bounds[at] {
		at++
	}
	s.change(op, func(c *Count) {
		c.Calls++
		c.Seconds += took
		c.Took[at]++
		for _, err := range errs {
			if err == nil {
				continue
			}
			if c.Errors == nil {
				c.Errors = map[string]uint64{}
			}
			c.Errors[Kind(err)]++
		}
	})
}

var kinds = []error{objstore.ErrSlowDown, objstore.ErrTransient, objstore.ErrNotFound, objstore.ErrDenied, objstore.ErrCorrupt, objstore.ErrNotSupported,
	objstore.ErrRefused, objstore.ErrChanged, objstore.ErrExists, objstore.ErrArchived, objstore.ErrClock}

// Kind names the kind of an error as Count.Errors does.
func Kind(err error) string {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, objstore.ErrTransient) {
		return "canceled"
	}
	var e *objstore.Error
	if errors.As(err, &e) {
		err = e.Kind // not that of a body which came from another store
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return "other"
}

// String is that of the store below.
func (s *Store) String() string { return s.in.String() }

// Format prints String for every verb.
func (s *Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Limits are those of the store below.
func (s *Store) Limits() objstore.Limits { return s.in.Limits() }

// Close closes the store below.
func (s *Store) Close() error { return s.in.Close() }

// List is counted.
func (s *Store) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	began := time.Now()
	p, err := s.in.List(ctx, q)
	s.done("list", began, err)
	return p, err
}

// Head is counted.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	began := time.Now()
	o, err := s.in.Head(ctx, key)
	s.done("head", began, err)
	return o, err
}

// Get is counted, and then what is read.
func (s *Store) Get(ctx context.Context, key string, g objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	began := time.Now()
	o, body, err := s.in.Get(ctx, key, g)
	s.done("get", began, err)
	if err != nil {
		return o, nil, err
	}
	return o, &received{ReadCloser: body, s: s, began: time.Now()}, nil
}

type received struct {
	io.ReadCloser
	s     *Store
	began time.Time
	once  sync.Once

	mu  sync.Mutex
	err error // that the body ended with
}

func (r *received) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.s.change("get body", func(c *Count) { c.In += uint64(n) })
	if err != nil && err != io.EOF {
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
	}
	return n, err
}

func (r *received) Close() error {
	r.once.Do(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.s.done("get body", r.began, r.err)
	})
	return r.ReadCloser.Close()
}

// Put is counted.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	began := time.Now()
	w, err := s.in.Put(ctx, key, s.counted("put", b), o)
	s.done("put", began, err)
	return w, err
}

// Delete is counted.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	began := time.Now()
	left, err := s.in.Delete(ctx, keys...)
	errs := []error{err}
	for _, err := range left {
		errs = append(errs, err)
	}
	s.done("delete", began, errs...)
	return left, err
}

// counted is a body whose bytes count as given to the store: each once in a call, however often it is read.
func (s *Store) counted(op string, b objstore.Body) objstore.Body {
	open, high := b.Open, int64(0)
	b.Open = func() (io.ReadCloser, error) {
		r, err := open()
		if err != nil {
			return nil, err
		}
		c := &sent{ReadCloser: r, s: s, op: op, high: &high}
		if seek, ok := r.(io.Seeker); ok {
			return &sentAgain{c, seek}, nil
		}
		return c, nil
	}
	return b
}

type sent struct {
	io.ReadCloser
	s    *Store
	op   string
	at   int64
	high *int64 // of all readers of a call
}

func (r *sent) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.at += int64(n); r.at > *r.high {
		more := uint64(r.at - *r.high)
		*r.high = r.at
		r.s.change(r.op, func(c *Count) { c.Out += more })
	}
	return n, err
}

type sentAgain struct {
	*sent
	seek io.Seeker
}

func (r *sentAgain) Seek(off int64, whence int) (int64, error) {
	at, err := r.seek.Seek(off, whence)
	if err == nil {
		r.at = at
	}
	return at, err
}
