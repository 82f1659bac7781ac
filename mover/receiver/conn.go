package receiver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// conn is one connection of a link: a reader, a handler, and a keepalive beside them.
type conn struct {
	s      *Server
	wc     *wire.Conn
	f      *flow
	link   *link
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once // of drop and fail
	host   string    // TENANT/HOST that it counts for; empty: not admitted
	member *Member   // of the line that it comes over; may be nil
	pages  bool      // the source knows PRINTS

	// offers are what NEED asked for and DATA has to bring. Used by the handler only.
	offers     map[uint32]*offer
	offerBytes int
}

// inFrame is a frame on its way from the reader to the handler. buf goes back to the pool when it is handled.
type inFrame struct {
	seq uint32
	msg wire.Message
	buf []byte
}

const (
	// readAhead is how many frames of a connection wait for its handler: one is decrypted while another is written.
	readAhead = 1
	// bulkShift puts the payload of DATA, which follows 5 bytes, on a page boundary, so that plain bytes are written from where
	// they were received.
	bulkShift = 4096 - 5
	// maxOffers is the memory of open offers of one connection; beyond it the peer ignores its window.
	maxOffers = 4 << 20
)

// serve is the life of a connection. The handler runs in the caller's goroutine.
func (s *Server) serve(nc net.Conn) {
	wc := wire.NewConn(nc)
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Handshake)
	hello, err := wc.ReadHello(ctx)
	cancel()
	if err != nil {
		if s.ctx.Err() == nil {
			s.refuse(wc, nil, err)
		}
		if errors.Is(err, sentinel.ErrProtocol) {
			_ = wc.Fail(wire.ErrorOf(err))
		}
		_ = wc.Close()
		return
	}
	if hello.Capabilities&wire.CapObjects != 0 {
		s.serveObjects(wc, hello)
		return
	}
	if hello.Capabilities&wire.CapLease != 0 {
		s.serveLease(wc, hello)
		return
	}
	c := &conn{s: s, wc: wc, offers: map[uint32]*offer{}}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	defer c.cancel()
	defer func() {
		if c.host != "" {
			s.left(c.host)
		}
	}()
	// The reader is not running yet: a peer that has gone shows only when we write.
	if err := c.open(hello); err != nil {
		s.refuse(wc, hello, err)
		if c.f != nil {
			_ = wc.Fail(c.f.wireError(err))
		} else {
			_ = wc.Fail(wire.ErrorOf(err))
		}
		return
	}
	c.run() // closes, or leaves that to fail, which gives the peer time to read why
}

// introduce tells which version is to be spoken, and with whom.
func introduce(wc *wire.Conn, h *wire.Hello) (version uint16, name wire.Name, err error) {
	if version, err = h.Pick(); err != nil {
		return 0, name, err
	}
	state, ok := wc.TLS()
	if !ok {
		return 0, name, fmt.Errorf("connection is not TLS: %w", sentinel.ErrDenied)
	}
	name, err = wire.PeerName(state)
	return version, name, err
}

// open answers HELLO: who is it, may he, and then the link (C8).
func (c *conn) open(h *wire.Hello) error {
	version, name, err := introduce(c.wc, h)
	if err != nil {
		return err
	}
	f := c.s.flows[name.Tenant+"/"+name.Host+"/"+h.Flow]
	if f == nil {
		// Whether the flow exists for somebody else is nobody's business.
		return &kindError{KindForeign, fmt.Errorf("flow %q is not configured for %s at this gateway: %w", h.Flow, name, sentinel.ErrDenied)}
	}
	c.f = f
	conns, ok := c.s.admit(name.String())
	if !ok {
		return &kindError{KindFull, busyError(fmt.Sprintf("the gateway has %d connections already", c.s.cfg.Conns))}
	}
	c.host = name.String()
	line, err := c.s.lineOf(c.wc.RemoteAddr())
	if err != nil {
		return err
	}
	if err := c.s.may(f, 0, conns); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, joinLimit)
	defer cancel()
	l, fresh, err := f.join(ctx, h.Link, c)
	if err != nil {
		return err
	}
	c.link = l
	context.AfterFunc(l.ctx, c.cancel)
	if err = f.ready(ctx); err == nil {
		can := uint64(wire.CapZstd | wire.CapKeep | wire.CapPages)
		c.pages = h.Capabilities&wire.CapPages != 0
		if line != nil {
			can |= wire.CapShape
			if fresh && h.Capabilities&wire.CapShape == 0 {
				c.s.log.Warn("source does not know leases and keeps to none; upgrade it", "flow", f.key, "line", line.cfg.Name, "agent", h.Agent)
			}
			c.member = line.join(c.wc, f.key)
		}
		err = c.wc.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: version, Capabilities: can,
			KeepaliveMS: wire.KeepaliveMS, Window: c.s.cfg.Window, State: f.wireState()})
	}
	if err != nil {
		if c.member != nil {
			c.member.Leave()
		}
		l.remove(c)
		l.wg.Done()
		if errors.Is(err, context.DeadlineExceeded) {
			err = busyError("the flow is still finishing what came before")
		}
		return err
	}
	if fresh {
		e := event(Accepted, c.wc, nil)
		e.Flow, e.Agent = f.key, h.Agent
		c.s.tellDoor(e)
	}
	c.s.log.Debug("connected", "flow", f.key, "peer", c.wc.RemoteAddr().String(), "agent", h.Agent, "conn", h.Conn)
	return nil
}

// joinLimit is how long a HELLO waits for an older link's writes to end.
const joinLimit = 20 * time.Second

// run reads and handles frames until the connection ends.
func (c *conn) run() {
	frames := make(chan inFrame, readAhead)
	var beside sync.WaitGroup
	beside.Go(func() {
		defer close(frames)
		c.ended(c.read(frames))
	})
	beside.Go(func() {
		if err := c.wc.Keepalive(c.ctx); err != nil {
			c.drop()
		}
	})
	if c.member != nil {
		beside.Go(func() {
			if err := c.member.Grant(c.ctx); err != nil {
				c.drop()
			}
		})
		defer c.member.Leave()
	}
	err := c.handleAll(frames)
	c.link.remove(c)
	c.link.wg.Done() // nothing of this connection writes any more (C8)
	if err != nil {
		c.tell(err)
	}
	c.drop()
	for in := range frames {
		c.release(in.buf)
		c.link.busy.Add(-1)
	}
	beside.Wait()
}

func (c *conn) handleAll(frames <-chan inFrame) error {
	for {
		var in inFrame
		var more bool
		select {
		case in, more = <-frames:
		case <-c.ctx.Done(): // the reader may be kept by a peer that does not hang up
		}
		if !more {
			return nil
		}
		err := c.ctx.Err()
		if err == nil {
			err = c.handle(in)
		}
		c.release(in.buf)
		c.link.busy.Add(-1)
		if c.ctx.Err() != nil {
			return nil // fenced, cut or stopping: the peer was told, or is gone
		}
		if err != nil {
			return err
		}
	}
}

// tell ends the connection, or the whole flow's link, depending on what went wrong.
func (c *conn) tell(err error) {
	c.s.log.Warn("connection ended", "flow", c.f.key, "peer", c.wc.RemoteAddr().String(), "error", err)
	c.f.noteError(err)
	if errors.Is(err, sentinel.ErrProtocol) || errors.Is(err, sentinel.ErrCorrupt) || errors.As(err, new(*kindError)) {
		c.s.ended(c.wc, c.f.key, err)
	}
	we := c.f.wireError(err)
	c.fail(we)
	if we.Code == wire.CodeCorrupt {
		c.link.end(we) // C7
	}
}

// fail sends ERROR and closes; it does not wait.
func (c *conn) fail(e *wire.Error) {
	c.once.Do(func() {
		c.cancel()
		c.s.bg.Go(func() { _ = c.wc.Fail(e) })
	})
}

// drop closes without a word, unless its link was ended for a reason: whoever comes first says it.
func (c *conn) drop() {
	if c.link != nil {
		if why, ok := context.Cause(c.link.ctx).(*wire.Error); ok {
			c.fail(why)
			return
		}
	}
	c.once.Do(func() {
		c.cancel()
		_ = c.wc.Close()
	})
}

// ended is called with what ended the reader.
func (c *conn) ended(err error) {
	var peer *wire.Error
	switch {
	case c.ctx.Err() != nil || err == nil:
	case err == io.EOF:
		c.s.log.Debug("source closed its connection", "flow", c.f.key)
	case errors.As(err, &peer):
		c.s.log.Warn("source ended the connection", "flow", c.f.key, "error", err)
	case errors.Is(err, sentinel.ErrProtocol) || errors.Is(err, sentinel.ErrCorrupt):
		c.tell(err)
	default:
		c.s.log.Info("connection lost", "flow", c.f.key, "error", err)
	}
	c.drop()
}

// read turns frames into messages. It stops reading, and so the peer, when the budget is spent.
func (c *conn) read(frames chan<- inFrame) error {
	for {
		var buf []byte
		busy := false
		f, err := c.wc.ReadFrame(func(n int) []byte {
			c.link.busy.Add(1)
			busy = true
			if buf = c.acquire(); buf == nil || n > len(buf)-bulkShift {
				return nil
			}
			return buf[bulkShift : bulkShift+n]
		})
		if err == nil && !busy {
			c.link.busy.Add(1)
			busy = true
		}
		in := inFrame{seq: f.Seq, buf: buf}
		if err == nil {
			if in.msg = wire.New(f.Type); in.msg == nil {
				err = fmt.Errorf("frame %v: %w", f.Type, sentinel.ErrProtocol)
			} else {
				err = in.msg.Decode(f.Payload)
			}
		}
		if m, ok := in.msg.(*wire.Demand); ok && err == nil && c.member != nil {
			c.member.Demand(m)
			c.link.busy.Add(-1)
			continue
		}
		if err == nil {
			select {
			case frames <- in:
				continue
			case <-c.ctx.Done():
				err = c.ctx.Err()
			}
		}
		c.release(buf)
		if busy {
			c.link.busy.Add(-1)
		}
		return err
	}
}

// acquire takes a payload buffer, within what the link may hold; nil: the connection is ending.
func (c *conn) acquire() []byte {
	select {
	case c.link.slots <- struct{}{}:
	case <-c.ctx.Done():
		return nil
	}
	b, err := c.s.in.Get(c.ctx)
	if err != nil {
		<-c.link.slots
		return nil
	}
	return b
}

func (c *conn) release(buf []byte) {
	if buf != nil {
		c.s.in.Put(buf)
		<-c.link.slots
	}
}

// handle does what one frame asks for.
func (c *conn) handle(in inFrame) error {
	switch m := in.msg.(type) {
	case *wire.Offer:
		return c.handleOffer(in.seq, m)
	case *wire.Data:
		return c.handleData(in.seq, m)
	case *wire.Prints:
		return c.handlePrints(in.seq, m)
	case *wire.Put:
		return c.handlePut(in.seq, m)
	case *wire.Check:
		return c.handleCheck(in.seq, m)
	case *wire.Leaves:
		return c.handleLeaves(in.seq, m)
	case *wire.Open:
		return c.handleOpen(in.seq, m)
	case *wire.Commit:
		return c.handleCommit(in.seq, m)
	case *wire.Abort:
		return c.handleAbort(in.seq, m)
	case *wire.ReadBack:
		return c.handleReadBack(in.seq, m)
	case *wire.Release:
		return c.handleRelease(in.seq, m)
	case *wire.Keep:
		return c.handleKeep(in.seq, m)
	case *wire.State:
		s := c.f.wireState()
		return c.wc.Write(wire.TypeFlowState, in.seq, &s)
	}
	return fmt.Errorf("a source does not send %T: %w", in.msg, sentinel.ErrProtocol)
}

func (f *flow) wireState() wire.FlowState {
	s := f.state()
	return wire.FlowState{Phase: uint8(s.Phase), Generation: s.Generation, Epoch: s.Epoch, VolumeSize: uint64(s.VolumeSize),
		TargetSize: uint64(s.TargetSize), Pass: s.Pass, Mode: uint8(s.Mode), Known: f.known(), Identity: s.Identity}
}

// notice tells the source why something takes time; whether it arrives does not matter.
func (c *conn) notice(seq uint32, done, total int64, text string) {
	_ = c.wc.Write(wire.TypeNotice, seq, &wire.Notice{Done: uint64(done), Total: uint64(total), Text: text})
}
