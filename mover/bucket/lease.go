package bucket

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/objstore"
)

// A worker begins a write only while it holds its lease: the coordinator has answered it a short while ago. That makes late writes rare, and does not exclude them: a
// process can stand still between the look at the clock and the write, and what its kernel has, goes out. What does exclude harm is fence.go (C20).

// pulse is how often a worker is heard, and what follows when it is not.
type pulse struct {
	every time.Duration // a worker asks to keep what it has
	use   time.Duration // it begins no write later than this after it asked and was answered
	lease time.Duration // the coordinator gives a unit to others when its holder was silent for so long; longer than use
}

var usual = pulse{2 * time.Second, 6 * time.Second, 10 * time.Second}

// moment is a time by the clock that counts while the machine sleeps, and by the one that requests are signed with: whichever went on tells that one stood still.
type moment struct{ boot, wall time.Duration }

func now() moment {
	read := func(clock int32) time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(clock, &t); err != nil {
			panic(fmt.Sprintf("clock %d: %v", clock, err)) // every Linux since 2.6.39 has both
		}
		return time.Duration(t.Nano())
	}
	return moment{read(unix.CLOCK_BOOTTIME), read(unix.CLOCK_REALTIME)}
}

// lease is a worker's right to begin writes.
type lease struct {
	use time.Duration

	mu    sync.Mutex // guards all below
	asked moment     // when it was asked for last, of what was answered
	held  bool
	wake  chan struct{} // closed when it is renewed
}

func newLease(use time.Duration) *lease { return &lease{use: use, wake: make(chan struct{})} }

// renew takes in an answer to what was asked then.
func (l *lease) renew(asked moment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held && asked.boot < l.asked.boot {
		return
	}
	l.asked, l.held = asked, true
	close(l.wake)
	l.wake = make(chan struct{})
}

// holds tells whether a write may begin, and what closes when it is renewed.
func (l *lease) holds() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held && l.asked.within(l.use), l.wake
}

// within tells whether less than d has passed since m, by both clocks.
func (m moment) within(d time.Duration) bool {
	n := now()
	return n.boot-m.boot < d && max(n.wall-m.wall, m.wall-n.wall) < d
}

// wait returns when a write may begin. ctx is that of the unit: it ends before the lease is renewed, if the unit was lost meanwhile.
func (l *lease) wait(ctx context.Context) error {
	for {
		ok, wake := l.holds()
		if ok {
			return ctx.Err()
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// guarded is a target to which nothing is written without a lease.
type guarded struct {
	objstore.Store
	lease *lease
}

func (g guarded) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (w objstore.Written, err error) {
	if err := g.lease.wait(ctx); err != nil {
		return w, err
	}
	return g.Store.Put(ctx, key, g.body(ctx, b), o)
}

// body asks again before each further try, which opens it.
func (g guarded) body(ctx context.Context, b objstore.Body) objstore.Body {
	open := b.Open
	b.Open = func() (io.ReadCloser, error) {
		if err := g.lease.wait(ctx); err != nil {
			return nil, err
		}
		return open()
	}
	return b
}

func (g guarded) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (w objstore.Written, err error) {
	if err := g.lease.wait(ctx); err != nil {
		return w, err
	}
	return g.Store.PutPart(ctx, key, upload, no, g.body(ctx, b))
}

func (g guarded) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	if err := g.lease.wait(ctx); err != nil {
		return nil, err
	}
	return g.Store.Delete(ctx, keys...)
}

func (g guarded) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	if err := g.lease.wait(ctx); err != nil {
		return "", err
	}
	return g.Store.Begin(ctx, key, o)
}

func (g guarded) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (w objstore.Written, err error) {
	if err := g.lease.wait(ctx); err != nil {
		return w, err
	}
	return g.Store.Complete(ctx, key, upload, parts, o)
}

func (g guarded) Abort(ctx context.Context, key, upload string) error {
	if err := g.lease.wait(ctx); err != nil {
		return err
	}
	return g.Store.Abort(ctx, key, upload)
}

func (g guarded) Tags(ctx context.Context, key string) (map[string]string, error) {
	if t, ok := g.Store.(objstore.Tagger); ok {
		return t.Tags(ctx, key)
	}
	return nil, errLacking
}

func (g guarded) SetTags(ctx context.Context, key string, tags map[string]string) error {
	t, ok := g.Store.(objstore.Tagger)
	if !ok {
		return errLacking
	}
	if err := g.lease.wait(ctx); err != nil {
		return err
	}
	return t.SetTags(ctx, key, tags)
}

func (g guarded) Grants(ctx context.Context, key string) (string, []string, error) {
	if t, ok := g.Store.(objstore.Granter); ok {
		return t.Grants(ctx, key)
	}
	return "", nil, errLacking
}

func (g guarded) SetGrants(ctx context.Context, key, canned string) error {
	t, ok := g.Store.(objstore.Granter)
	if !ok {
		return errLacking
	}
	if err := g.lease.wait(ctx); err != nil {
		return err
	}
	return t.SetGrants(ctx, key, canned)
}
