package sender

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
	"golang.org/x/sync/errgroup"
)

// waiter waits for the answer to a request.
type waiter struct {
	conn *conn
	ch   chan wire.Message // capacity 1; closed without a message when the connection ends
}

// answer hands a frame to who asked. An answer that nobody waits for any more is dropped.
func (l *link) answer(f wire.Frame) error {
	m := wire.New(f.Type)
	if err := m.Decode(f.Payload); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.waiting[f.Seq]; w != nil {
		delete(l.waiting, f.Seq)
		w.ch <- m
	}
	return nil
}

// pick is the live connection with the least to do. One whose key is spent gets nothing more and is closed when nothing is on its way
// on it; its slot dials anew.
func (l *link) pick() (*conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal != nil {
		return nil, l.fatal
	}
	var best *conn
	for _, c := range l.conns {
		if c.moving && len(l.conns) > 1 {
			continue // rehome closes it
		}
		if l.spent(c) {
			if len(l.conns) == 1 || c.load.Load() == 0 && !l.asked(c) {
				go c.Close()
			}
			continue
		}
		if best == nil || c.load.Load() < best.load.Load() {
			best = c
		}
	}
	if best == nil {
		return nil, errDown
	}
	return best, nil
}

// spent tells whether enough was sent on c. The slots, which share the bytes evenly, come to that one after the other.
func (l *link) spent(c *conn) bool {
	return !c.quiet && c.WireOut() > l.cfg.ConnBytes-l.cfg.ConnBytes*int64(c.slot)/int64(2*l.cfg.Conns)
}

// asked tells whether somebody waits for an answer on c. mu is held.
func (l *link) asked(c *conn) bool {
	for _, w := range l.waiting {
		if w.conn == c {
			return true
		}
	}
	return false
}

// requestBit is set in the seqs of requests, so that they never meet those of batches.
const requestBit = 1 << 31

func (l *link) nextSeq() uint32 { return requestBit | l.seq.Add(1)&(requestBit-1) }

// ask sends a request and waits for its answer. errDown: the connection ended first; whether it was carried out is not known.
func (l *link) ask(ctx context.Context, m wire.Message) (wire.Message, error) {
	c, err := l.pick()
	if err != nil {
		return nil, err
	}
	return l.askOn(ctx, c, m)
}

func (l *link) askOn(ctx context.Context, c *conn, m wire.Message) (wire.Message, error) {
	seq := l.nextSeq()
	w := &waiter{c, make(chan wire.Message, 1)}
	l.mu.Lock()
	select {
	case <-c.gone:
		l.mu.Unlock()
		return nil, errDown
	default:
	}
	l.waiting[seq] = w
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, seq)
		l.mu.Unlock()
	}()
	if err := c.Write(wire.TypeOf(m), seq, m); err != nil {
		if errors.Is(err, sentinel.ErrProtocol) {
			return nil, err
		}
		c.Close()
	}
	select {
	case a, ok := <-w.ch:
		if ok {
			return a, nil
		}
		if e, ok := errors.AsType[*wire.Error](c.err); ok {
			return nil, e
		}
		return nil, fmt.Errorf("%w: %v", errDown, c.err)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// flowState asks the gateway where the flow stands.
func (l *link) flowState(ctx context.Context) (mover.FlowState, error) {
	m, err := l.ask(ctx, &wire.State{})
	if err != nil {
		return mover.FlowState{}, err
	}
	s, ok := m.(*wire.FlowState)
	if !ok {
		return mover.FlowState{}, fmt.Errorf("%w: %T in answer to STATE", sentinel.ErrProtocol, m)
	}
	st := flowState(s)
	l.mu.Lock()
	l.state = st
	l.mu.Unlock()
	return st, nil
}

// setState notes what the gateway has said about the flow in another way.
func (l *link) setState(change func(*mover.FlowState)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.state)
	l.change()
}

// linkView is what Status shows of the link.
type linkView struct {
	conns    int
	in, out  int64
	rtt      time.Duration
	losses   int64
	why      string
	next     time.Time
	fatal    error
	state    mover.FlowState
	window   int64
	keeps    bool
	notice   string
	noticed  time.Time
	progress [2]uint64
	links    []mover.LinkStatus
}

func (l *link) view() linkView {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := linkView{conns: len(l.conns), in: l.in.Load(), out: l.out.Load(), losses: l.losses.Load(), why: l.why, next: l.next, fatal: l.fatal, state: l.state,
		window: l.window, keeps: l.keeps, notice: l.notice.Text, noticed: l.noticed, progress: [2]uint64{l.notice.Done, l.notice.Total}}
	for i, p := range l.paths {
		if len(l.paths) > 1 || p.shaped {
			v.links = append(v.links, l.pathView(i))
		}
		if p.quiet != nil {
			v.in += p.quiet.WireIn()
			v.out += p.quiet.WireOut()
		}
	}
	for _, c := range l.conns {
		v.in += c.WireIn()
		v.out += c.WireOut()
		if r := c.RTT(); r > 0 && (v.rtt == 0 || r < v.rtt) {
			v.rtt = r
		}
	}
	return v
}

// carrying is the connections that carry batches, and whether a lease holds their writers back now.
func (l *link) carrying() (conns []*conn, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.paths {
		held = held || p.held.Load() > 0
	}
	return slices.Clone(l.conns), held
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ones counts the set bits of a bitmap.
func ones(b []byte) (n int) {
	for _, v := range b {
		n += bits.OnesCount8(v)
	}
	return n
}

// barrier waits until the gateway has read everything that was written before on every connection, and until what it had written before
// that was read here.
func (l *link) barrier(ctx context.Context) error {
	l.mu.Lock()
	conns := append([]*conn(nil), l.conns...)
	l.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range conns {
		g.Go(func() error {
			_, err := l.askOn(ctx, c, &wire.State{})
			return err
		})
	}
	return g.Wait()
}
