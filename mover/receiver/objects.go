package receiver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// Objects serves the bucket flows of a gateway. Who comes in, and by which line, is decided here, as for volumes.
type Objects interface {
	// Target names what a bucket flow writes, as a policy does; false: there is no such flow.
	Target(key string) (string, bool)
	// Serve answers a connection that has got its WELCOME, until the peer or ctx ends it, or the peer does wrong: that is the error. It does not close it.
	Serve(ctx context.Context, key string, wc *wire.Conn) error
}

// objectConn is a connection of a bucket flow. There may be several links about one flow: nobody fences anybody.
type objectConn struct {
	s      *Server
	wc     *wire.Conn
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once // of end
	link   [16]byte
	ask    Ask
	key    string
	member *Member // of the line that it comes over; may be nil. Its flow's lease is on a connection of its own
}

// serveObjects is the life of a connection whose HELLO says that it moves objects.
func (s *Server) serveObjects(wc *wire.Conn, h *wire.Hello) {
	c := &objectConn{s: s, wc: wc, link: h.Link}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	defer c.cancel()
	host, err := c.open(h)
	if host != "" {
		defer s.left(host)
	}
	if err != nil {
		s.refuse(wc, h, err)
		_ = wc.Fail(wire.ErrorOf(err))
		return
	}
	err = s.cfg.Objects.Serve(c.ctx, c.key, wc)
	if c.member != nil {
		c.member.Leave()
	}
	s.mu.Lock()
	delete(s.moving, c)
	s.mu.Unlock()
	c.over(err)
}

// open answers HELLO. host is counted, if it is not empty.
func (c *objectConn) open(h *wire.Hello) (host string, err error) {
	s := c.s
	version, name, err := introduce(c.wc, h)
	if err != nil {
		return "", err
	}
	c.key = name.Tenant + "/" + name.Host + "/" + h.Flow
	c.ask = Ask{Tenant: name.Tenant, Host: name.Host, Flow: h.Flow, Flows: 1}
	known := false
	if s.cfg.Objects != nil {
		c.ask.Target, known = s.cfg.Objects.Target(c.key)
	}
	if !known {
		// Whether the flow exists for somebody else, or as one of a volume, is nobody's business.
		return "", &kindError{KindForeign, fmt.Errorf("bucket flow %q is not configured for %s at this gateway: %w", h.Flow, name, sentinel.ErrDenied)}
	}
	conns, ok := s.admit(name.String())
	if !ok {
		return "", &kindError{KindFull, busyError(fmt.Sprintf("the gateway has %d connections already", s.cfg.Conns))}
	}
	host = name.String()
	line, err := s.lineOf(c.wc.RemoteAddr())
	if err != nil {
		return host, err
	}
	if err := c.may(conns); err != nil {
		return host, err
	}
	fresh, ok := c.enter()
	if !ok {
		return host, &wire.Error{Code: wire.CodeStopping, RetryMS: 2_000, Text: "the gateway is stopping"}
	}
	err = c.wc.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: version, Capabilities: wire.CapZstd | wire.CapObjects, KeepaliveMS: wire.KeepaliveMS,
		Window: s.cfg.Window, State: wire.FlowState{Phase: 1}})
	if err != nil {
		s.mu.Lock()
		delete(s.moving, c)
		s.mu.Unlock()
		return host, err
	}
	if line != nil {
		c.member = line.join(c.wc, c.key)
	}
	if fresh {
		e := event(Accepted, c.wc, nil)
		e.Flow, e.Agent = c.key, h.Agent
		s.tellDoor(e)
	}
	s.log.Debug("connected", "flow", c.key, "peer", c.wc.RemoteAddr().String(), "agent", h.Agent)
	return host, nil
}

// enter counts the connection as live; fresh: it is the first one of its link. false: the gateway stops.
func (c *objectConn) enter() (fresh, ok bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.closed {
		return false, false
	}
	fresh = true
	for o := range c.s.moving {
		fresh = fresh && (o.link != c.link || o.key != c.key)
	}
	c.s.moving[c] = true
	return fresh, true
}

// may asks the policy.
func (c *objectConn) may(conns int) error {
	if c.s.cfg.Policy == nil {
		return nil
	}
	a := c.ask
	a.Conns = conns
	c.s.policyMu.Lock()
	defer c.s.policyMu.Unlock()
	if err := c.s.cfg.Policy(a); err != nil {
		return &kindError{KindPolicy, err}
	}
	return nil
}

// end tells the peer why its connection ends; it does not wait.
func (c *objectConn) end(why *wire.Error) {
	c.once.Do(func() {
		c.cancel()
		c.s.bg.Go(func() { _ = c.wc.Fail(why) })
	})
}

// over closes a connection that nobody serves any more.
func (c *objectConn) over(err error) {
	c.once.Do(func() {
		var peer *wire.Error
		switch {
		case err == nil || c.ctx.Err() != nil:
		case errors.As(err, &peer):
			c.s.log.Warn("source ended the connection", "flow", c.key, "error", err)
		case errors.Is(err, sentinel.ErrProtocol) || errors.Is(err, sentinel.ErrCorrupt):
			c.told(err)
			_ = c.wc.Fail(wire.ErrorOf(err))
			return
		default:
			c.s.log.Info("connection lost", "flow", c.key, "error", err)
			_ = c.wc.Fail(wire.ErrorOf(err)) // where it is this end that cannot go on
			return
		}
		_ = c.wc.Close()
	})
}

// told tells log and trail that a live connection is ended for what its peer is or did.
func (c *objectConn) told(err error) {
	c.s.log.Warn("connection ended", "flow", c.key, "peer", c.wc.RemoteAddr().String(), "error", err)
	e := event(Ended, c.wc, err)
	e.Flow = c.key
	c.s.tellDoor(e)
}

func (s *Server) objectConns() []*objectConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.moving))
}

// judgeObjects is Judge for connections of bucket flows.
func (s *Server) judgeObjects(verdict func(*x509.Certificate) error) (ended int) {
	for _, c := range s.objectConns() {
		state, ok := c.wc.TLS()
		if !ok || len(state.PeerCertificates) == 0 {
			continue
		}
		if err := verdict(state.PeerCertificates[0]); err != nil {
			c.told(err)
			c.end(wire.ErrorOf(err))
			ended++
		}
	}
	return ended
}

// enforceObjects is Enforce for connections of bucket flows.
func (s *Server) enforceObjects() (ended int) {
	for _, c := range s.objectConns() {
		s.mu.Lock()
		conns := s.hosts[c.ask.Tenant+"/"+c.ask.Host]
		s.mu.Unlock()
		if err := c.may(conns); err != nil {
			c.told(err)
			c.end(wire.ErrorOf(err))
			ended++
		}
	}
	return ended
}
