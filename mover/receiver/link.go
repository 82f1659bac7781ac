package receiver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// link is what one source has about one flow: connections with the same link id.
type link struct {
	id     [16]byte
	ctx    context.Context
	cancel context.CancelCauseFunc
	busy   atomic.Int64   // frames that are arriving or being worked on
	slots  chan struct{}  // payload buffers that it may hold, so that one link cannot take all
	wg     sync.WaitGroup // its connections' handlers

	mu    sync.Mutex // guards all below
	conns []*conn
	in    int64 // wire bytes of closed connections
	out   int64
}

// end closes every connection, telling the peer why. It does not wait.
func (l *link) end(why *wire.Error) {
	l.cancel(why)
	l.mu.Lock()
	conns := slices.Clone(l.conns)
	l.mu.Unlock()
	for _, c := range conns {
		c.fail(why)
	}
}

func (l *link) add(c *conn, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= most || l.ctx.Err() != nil {
		return false
	}
	l.conns = append(l.conns, c)
	l.wg.Add(1)
	return true
}

// remove takes a connection from the list; its handler may still be ending.
func (l *link) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.conns, c); i >= 0 {
		l.conns = slices.Delete(l.conns, i, i+1)
		l.in += c.wc.WireIn()
		l.out += c.wc.WireOut()
	}
}

const fencedKept = 64 // link ids that are remembered as fenced, for sources that dial again with an old one

// join puts a connection into the link with the id, replacing an older link after its writes have ended (C8). fresh: the link is new.
func (f *flow) join(ctx context.Context, id [16]byte, c *conn) (l *link, fresh bool, err error) {
	select {
	case f.attaching <- struct{}{}:
		defer func() { <-f.attaching }()
	case <-ctx.Done():
		return nil, false, busyError("another connection of the flow is waiting for an earlier one to end")
	}
	f.mu.Lock()
	old, fenced := f.link, slices.Contains(f.fenced, id)
	f.mu.Unlock()
	if fenced {
		return nil, false, fmt.Errorf("a newer link has taken over flow %s: %w", f.key, sentinel.ErrFenced)
	}
	if old != nil && old.id == id && old.ctx.Err() == nil {
		if !old.add(c, f.s.cfg.ConnsPerLink) {
			return nil, false, busyError(fmt.Sprintf("the link has %d connections already", f.s.cfg.ConnsPerLink))
		}
		return old, false, nil
	}
	if old != nil {
		if err := f.fence(ctx, old, id); err != nil {
			return nil, false, err
		}
	}
	l = &link{id: id, slots: make(chan struct{}, f.s.linkSlots)}
	l.ctx, l.cancel = context.WithCancelCause(f.s.ctx)
	l.add(c, 1)
	f.mu.Lock()
	f.link = l
	f.mu.Unlock()
	return l, true, nil
}

// fence ends a link and waits until nothing of it writes any more.
func (f *flow) fence(ctx context.Context, old *link, by [16]byte) error {
	old.end(&wire.Error{Code: wire.CodeFenced, Text: "a newer link has taken over flow " + f.key})
	ended := make(chan struct{})
	f.s.bg.Go(func() {
		old.wg.Wait()
		close(ended)
	})
	select {
	case <-ended:
	case <-ctx.Done():
		return busyError("writes of the link before are still under way")
	}
	if old.id != by {
		f.mu.Lock()
		f.fenced = append(f.fenced[max(0, len(f.fenced)+1-fencedKept):], old.id)
		f.mu.Unlock()
	}
	return nil
}

func busyError(text string) error {
	return &wire.Error{Code: wire.CodeBusy, RetryMS: 2_000, Text: text}
}

func (f *flow) currentLink() *link {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.link
}

// ack tells the source what is durable of what came on c, on c itself: whoever reads it there has read the NEEDs before it, and when c is
// lost, so that nobody reads it, then the source knows which batches to send again.
func (c *conn) ack(ranges []wire.Range) {
	for len(ranges) > 0 {
		n := min(len(ranges), wire.MaxRanges)
		if err := c.wc.Write(wire.TypeAck, 0, &wire.Ack{Ranges: ranges[:n]}); err != nil {
			c.drop()
			return
		}
		ranges = ranges[n:]
	}
}
