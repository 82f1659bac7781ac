package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// conn is one connection to the gateway. Its reader never writes.
type conn struct {
	s    *Store
	wc   *wire.Conn
	out  *outbox
	seq  atomic.Uint32
	load atomic.Int32  // calls under way
	gone chan struct{} // closed when it has ended
	err  error         // why; set before gone is closed
	over bool          // it has been forgotten; guarded by s.mu

	mu      sync.Mutex // guards all below
	waiting map[uint32]chan *wire.Result
	asked   map[uint32]chan *wire.Need
}

func newConn(s *Store, wc *wire.Conn) *conn {
	c := &conn{s: s, wc: wc, gone: make(chan struct{}), waiting: map[uint32]chan *wire.Result{}, asked: map[uint32]chan *wire.Need{}}
	c.out = newOutbox(c)
	return c
}

// spent tells whether one key has carried as much as it should.
func (c *conn) spent() bool { return c.wc.WireOut() > wire.MaxConnBytes }

func (c *conn) hello() error {
	err := c.wc.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Capabilities: wire.CapZstd | wire.CapObjects,
		Link: c.s.link, Flow: c.s.cfg.Flow, Agent: c.s.cfg.Agent})
	if err != nil {
		return err
	}
	for {
		f, err := c.wc.ReadFrame(nil)
		if err != nil {
			return err
		}
		if f.Type == wire.TypeNotice {
			continue
		}
		if f.Type != wire.TypeWelcome {
			return fmt.Errorf("%w: %v instead of WELCOME", sentinel.ErrProtocol, f.Type)
		}
		var w wire.Welcome
		if err := w.Decode(f.Payload); err != nil {
			return err
		}
		if w.Version != wire.Version || w.Capabilities&wire.CapObjects == 0 {
			return fmt.Errorf("%w: the gateway speaks version %d with capabilities %#x, which is without objects; upgrade it", sentinel.ErrNotSupported, w.Version, w.Capabilities)
		}
		c.wc.SetKeepalive(w.KeepaliveMS)
		if c.s.cfg.Pace != nil {
			c.wc.SetPace(c.s.cfg.Pace(c.wc))
		}
		return nil
	}
}

// run serves the connection until it ends.
func (c *conn) run() {
	ctx, cancel := context.WithCancel(c.s.ctx)
	stop := context.AfterFunc(ctx, func() { c.wc.Close() })
	defer stop()
	var beside sync.WaitGroup
	beside.Go(func() {
		if err := c.wc.Keepalive(ctx); err != nil {
			c.wc.Close()
		}
	})
	for range outboxWorkers {
		beside.Go(c.out.work)
	}
	err := c.read()
	if err == io.EOF {
		err = errors.New("the gateway has closed the connection")
	}
	c.err = c.s.broken(err)
	cancel()
	c.wc.Close()
	c.s.forget(c)
	close(c.gone)
	c.mu.Lock()
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
	c.mu.Unlock()
	beside.Wait()
	c.out.fail(c.err)
	if c.s.ctx.Err() == nil {
		c.s.log.Debug("connection to the gateway lost", "flow", c.s.cfg.Flow, "error", err)
	}
}

// read hands answers to those who wait for them. Each has a channel with room for the one that it gets.
func (c *conn) read() error {
	for {
		f, err := c.wc.ReadFrame(nil)
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeResult:
			r := new(wire.Result)
			if err := r.Decode(f.Payload); err != nil {
				return err
			}
			c.mu.Lock()
			ch := c.waiting[f.Seq]
			delete(c.waiting, f.Seq)
			c.mu.Unlock()
			if ch != nil { // else nobody waits for it any more
				ch <- r
			}
		case wire.TypeNeed:
			n := new(wire.Need)
			if err := n.Decode(f.Payload); err != nil {
				return err
			}
			c.mu.Lock()
			ch := c.asked[f.Seq]
			delete(c.asked, f.Seq)
			c.mu.Unlock()
			if ch == nil {
				return fmt.Errorf("%w: NEED for what was not offered", sentinel.ErrProtocol)
			}
			ch <- n
		case wire.TypeNotice, wire.TypeGrant:
		default:
			return fmt.Errorf("%w: %v is not for a source of objects", sentinel.ErrProtocol, f.Type)
		}
	}
}

// call asks for something and waits for the answer. When ctx ends before, the gateway is told that nobody waits.
func (c *conn) call(ctx context.Context, m *wire.Call) (*wire.Result, error) {
	r, _, err := c.ask(ctx, m)
	return r, err
}

func (c *conn) ask(ctx context.Context, m *wire.Call) (*wire.Result, uint32, error) {
	c.load.Add(1)
	defer c.rest()
	c.s.counts.calls.Add(1)
	seq, ch := c.seq.Add(1), make(chan *wire.Result, 1)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		<-c.gone
		return nil, seq, c.err
	}
	c.waiting[seq] = ch
	c.mu.Unlock()
	err := c.wc.Write(wire.TypeCall, seq, m)
	switch {
	case errors.Is(err, sentinel.ErrProtocol): // it was not sent
		c.mu.Lock()
		delete(c.waiting, seq)
		c.mu.Unlock()
		return nil, seq, fmt.Errorf("it does not fit into a call to the gateway: %w: %w", err, objstore.ErrNotSupported)
	case err != nil:
		c.wc.Close()
	}
	select {
	case r := <-ch:
		if r == nil {
			<-c.gone
			return nil, seq, c.err
		}
		if r.Op != m.Op {
			c.wc.Close()
			return nil, seq, c.s.broken(fmt.Errorf("%w: RESULT of %v for a CALL of %v", sentinel.ErrProtocol, r.Op, m.Op))
		}
		return r, seq, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, seq)
		c.mu.Unlock()
		c.drop(seq)
		return nil, seq, ctx.Err()
	}
}

// rest ends a call. The last one of a connection that has carried enough ends it.
func (c *conn) rest() {
	if c.load.Add(-1) == 0 && c.spent() {
		c.wc.Close()
	}
}

// drop tells the gateway to end a call, or to close what it has opened. Nobody waits for that.
func (c *conn) drop(of uint32) {
	go func() { // a line that is full holds up nobody else; it ends with the connection
		if err := c.wc.Write(wire.TypeCall, c.seq.Add(1), &wire.Call{Op: wire.OpDrop, Values: wire.Values{Of: of}}); err != nil && !errors.Is(err, net.ErrClosed) {
			c.wc.Close()
		}
	}()
}
