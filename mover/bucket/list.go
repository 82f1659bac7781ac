package bucket

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
)

// walk is a span that is being listed.
type walk struct {
	id uint64
	span
	last    string // nothing lies behind it, as far as is known: where to look for a place to cut
	pages   int    // listed since it was cut last
	cutting bool   // somebody looks for a place
	waits   int    // pages before it is worth to look again
}

// listed is a page: what lies in span is complete.
type listed struct {
	walk uint64
	span
	entries []objstore.Entry
	now     time.Time // by the store's clock, or zero
	end     bool      // of the walk
}

// lister lists a bucket (C18) with several calls side by side: whoever has nothing to do cuts in two what another one has before it. Memory is a page for each.
type lister struct {
	store  objstore.Store
	prefix string
	width  int                                      // calls side by side
	page   func(context.Context, listed) error      // takes in a page; of one walk they come in order
	cut    func(left, right uint64, mid span) error // remembers that the walk left ends at mid.after, and right begins there, up to mid.to

	mu     sync.Mutex // guards all below, and what walks hold
	wake   chan struct{}
	queue  []*walk
	active map[*walk]struct{}
	nextID uint64
}

// run lists walks until all has been listed.
func (l *lister) run(ctx context.Context, walks []*walk) error {
	l.queue, l.active, l.wake = walks, map[*walk]struct{}{}, make(chan struct{})
	for _, w := range walks {
		l.nextID = max(l.nextID, w.id)
	}
	g, ctx := errgroup.WithContext(ctx)
	for range max(1, l.width) {
		g.Go(func() error {
			for {
				w, err := l.next(ctx)
				if w == nil || err != nil {
					return err
				}
				if err := l.list(ctx, w); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// next gives a walk, cut out of another one if there is none; nil: all is listed.
func (l *lister) next(ctx context.Context) (*walk, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if n := len(l.queue); n > 0 {
			w := l.queue[n-1]
			l.queue = l.queue[:n-1]
			l.active[w] = struct{}{}
			return w, nil
		}
		if len(l.active) == 0 {
			return nil, nil
		}
		if w := l.widest(); w != nil {
			if err := l.part(ctx, w); err != nil {
				return nil, err
			}
			continue
		}
		wake := l.wake
		l.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// widest is the walk that goes on for longest. mu is held.
func (l *lister) widest() (best *walk) {
	for w := range l.active {
		if !w.cutting && w.pages > w.waits && (best == nil || w.pages > best.pages) {
			best = w
		}
	}
	return best
}

// part cuts w in two, and queues the part behind. mu is held, but not while the store is asked.
func (l *lister) part(ctx context.Context, w *walk) error {
	w.cutting = true
	whole := w.to
	s := w.span
	if w.last != "" {
		s.to = w.last
	}
	l.mu.Unlock()
	s.after = max(s.after, l.prefix)
	mid, to, err := split(s, func(after string) (string, bool, error) {
		p, err := l.store.List(ctx, objstore.Query{Prefix: l.prefix, After: after, Max: 1})
		if err != nil || len(p.Entries) == 0 {
			return "", false, err
		}
		return p.Entries[0].Key, true, nil
	})
	l.mu.Lock()
	w.cutting = false
	if err != nil {
		return err
	}
	if _, ok := l.active[w]; !ok || w.to != whole {
		return nil // it has ended meanwhile
	}
	w.last = to // its end stays: who looks what is missing looks there too
	if mid == "" || mid <= w.after {
		w.waits = 2*w.pages + 1
		return nil
	}
	l.nextID++
	right := &walk{id: l.nextID, span: span{mid, whole}, last: to}
	if err := l.cut(w.id, right.id, right.span); err != nil {
		return err
	}
	w.to, w.last, w.pages, w.waits = mid, "", 0, 0
	l.queue = append(l.queue, right)
	l.stir()
	return nil
}

// stir wakes who waits for a walk. mu is held.
func (l *lister) stir() {
	close(l.wake)
	l.wake = make(chan struct{})
}

// list lists w to its end.
func (l *lister) list(ctx context.Context, w *walk) error {
	for {
		l.mu.Lock()
		after := w.after
		l.mu.Unlock()
		p, err := l.store.List(ctx, objstore.Query{Prefix: l.prefix, After: after})
		if err == nil {
			err = l.check(p, after)
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		out := listed{walk: w.id, entries: p.Entries, now: p.Now, end: !p.More}
		if w.to != "" { // it may have been cut since the store was asked
			n := sort.Search(len(out.entries), func(i int) bool { return out.entries[i].Key > w.to })
			out.end = out.end || n < len(out.entries) || n > 0 && out.entries[n-1].Key == w.to
			out.entries = out.entries[:n]
		}
		out.span = span{after, w.to}
		if !out.end {
			out.to = out.entries[len(out.entries)-1].Key
			w.after = out.to
		} else {
			delete(l.active, w)
		}
		w.pages++
		l.stir()
		l.mu.Unlock()
		if err := l.page(ctx, out); err != nil || out.end {
			return err
		}
	}
}

// check holds a page against what the contract promises: what is listed wrongly would be lost.
func (l *lister) check(p objstore.Page, after string) error {
	for _, e := range p.Entries {
		switch {
		case e.Key <= after:
			return fmt.Errorf("%s lists %q behind %q: %w", l.store, e.Key, after, sentinel.ErrProtocol)
		case !strings.HasPrefix(e.Key, l.prefix):
			return fmt.Errorf("%s lists %q, which does not begin with %q: %w", l.store, e.Key, l.prefix, sentinel.ErrProtocol)
		case e.ETag == "" || e.Size < 0:
			return fmt.Errorf("%s lists %q without an ETag or a size: %w", l.store, e.Key, sentinel.ErrProtocol)
		}
		after = e.Key
	}
	if p.More && len(p.Entries) == 0 {
		return fmt.Errorf("%s says that more lies behind %q, and lists nothing: %w", l.store, after, sentinel.ErrProtocol)
	}
	return nil
}
