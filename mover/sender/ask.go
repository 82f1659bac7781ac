package sender

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
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

// requestBit is set in the seqs of requests, so that they never meet those of batches.
const requestBit = 1 << 31

func (l *link) nextSeq() uint32 { return requestBit | l.seq.Add(1)&(requestBit-1) }

// ask sends a request and waits for its answer. errDown: the connection ended first; whether it was carried out is not known.
func (l *link) ask(ctx context.Context, m wire.Message) (wire.Message, error) {
	c, err := l.Pick()
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
	case <-c.Gone:
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
		if e, ok := errors.AsType[*wire.Error](c.Err); ok {
			return nil, e
		}
		return nil, fmt.Errorf("%w: %v", errDown, c.Err)
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
	change(&l.state)
	l.mu.Unlock()
	l.Wake()
}

// linkView is what Status shows of the link.
type linkView struct {
	uplink.View
	state    mover.FlowState
	window   int64
	keeps    bool
	notice   string
	noticed  time.Time
	progress [2]uint64
}

func (l *link) view() linkView {
	v := linkView{View: l.View()}
	l.mu.Lock()
	defer l.mu.Unlock()
	v.state, v.window, v.keeps = l.state, l.window, l.keeps
	v.notice, v.noticed, v.progress = l.notice.Text, l.noticed, [2]uint64{l.notice.Done, l.notice.Total}
	return v
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
	conns, _ := l.Conns()
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range conns {
		g.Go(func() error {
			_, err := l.askOn(ctx, c, &wire.State{})
			return err
		})
	}
	return g.Wait()
}
