package receiver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// StraightConfig names a flow that goes past the gateway, over one of its lines, and may have a lease of it.
type StraightConfig struct {
	Tenant, Host, Name string
}

// Key is TENANT/HOST/NAME.
func (c StraightConfig) Key() string { return c.Tenant + "/" + c.Host + "/" + c.Name }

// lessee is a connection that only has a lease: for what goes past the gateway, or for objects that come over connections of their own.
type lessee struct {
	s      *Server
	wc     *wire.Conn
	key    string
	name   wire.Name
	member *Member // nil: lines are not configured, so that nothing is held back
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once // of fail
}

// serveLease is the life of a connection that only has a lease.
func (s *Server) serveLease(wc *wire.Conn, h *wire.Hello) {
	e := &lessee{s: s, wc: wc}
	e.ctx, e.cancel = context.WithCancel(s.ctx)
	defer e.cancel()
	left, err := e.open(h)
	defer left()
	if err != nil {
		s.refuse(wc, h, err)
		_ = wc.Fail(wire.ErrorOf(err))
		return
	}
	e.run()
}

// open answers HELLO. left takes back what was admitted.
func (e *lessee) open(h *wire.Hello) (left func(), err error) {
	s := e.s
	left = func() {}
	version, name, err := introduce(e.wc, h)
	if err != nil {
		return left, err
	}
	e.name, e.key = name, name.Tenant+"/"+name.Host+"/"+h.Flow
	_, past := s.straight[e.key]
	through := false
	if s.cfg.Objects != nil {
		_, through = s.cfg.Objects.Target(e.key)
	}
	if !past && !through && len(s.lines) > 0 {
		return left, &kindError{KindForeign, fmt.Errorf("flow %q of %s may have no lease of this gateway's lines: gateway.straight does not name it: %w", h.Flow, name, sentinel.ErrDenied)}
	}
	conns, ok := s.admit(name.String())
	if !ok {
		return left, &kindError{KindFull, busyError(fmt.Sprintf("the gateway has %d connections already", s.cfg.Conns))}
	}
	left = func() { s.left(name.String()) }
	line, err := s.lineOf(e.wc.RemoteAddr())
	if err != nil {
		return left, err
	}
	if err := s.mayLease(e.key, name, conns); err != nil {
		return left, err
	}
	can := uint64(wire.CapZstd | wire.CapLease)
	if line != nil {
		can |= wire.CapShape
		if e.member = line.join(e.wc, e.key); past {
			e.member.goesPast()
		}
	}
	s.leaseMu.Lock()
	s.lessees[e] = struct{}{}
	s.leaseMu.Unlock()
	left = func() {
		s.leaseMu.Lock()
		delete(s.lessees, e)
		s.leaseMu.Unlock()
		if e.member != nil {
			e.member.Leave()
		}
		s.left(name.String())
	}
	if err := e.wc.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: version, Capabilities: can, KeepaliveMS: wire.KeepaliveMS, Window: wire.MaxPlain,
		State: wire.FlowState{Phase: 1}}); err != nil {
		return left, err
	}
	v := event(Accepted, e.wc, nil)
	v.Flow, v.Agent = e.key, h.Agent
	s.tellDoor(v)
	return left, nil
}

// mayLease asks the policy whether a host may have a lease.
func (s *Server) mayLease(key string, name wire.Name, conns int) error {
	if s.cfg.Policy == nil {
		return nil
	}
	if err := s.cfg.Policy(Ask{Tenant: name.Tenant, Host: name.Host, Flow: key, Conns: conns, Lease: true}); err != nil {
		return &kindError{KindPolicy, err}
	}
	return nil
}

// run serves the connection until it ends.
func (e *lessee) run() {
	var beside sync.WaitGroup
	beside.Go(func() {
		if e.wc.Keepalive(e.ctx) != nil {
			e.wc.Close()
		}
	})
	if e.member != nil {
		beside.Go(func() {
			if e.member.Grant(e.ctx) != nil {
				e.wc.Close()
			}
		})
	}
	stopped := context.AfterFunc(e.s.ctx, func() { e.fail(&wire.Error{Code: wire.CodeStopping, RetryMS: 2_000, Text: "the gateway is stopping"}) })
	err := e.read()
	stopped()
	if e.ctx.Err() == nil && errors.Is(err, sentinel.ErrProtocol) {
		e.s.log.Warn("connection ended", "flow", e.key, "peer", e.wc.RemoteAddr().String(), "error", err)
		e.s.ended(e.wc, e.key, err)
		e.fail(wire.ErrorOf(err))
	} else if e.ctx.Err() == nil && !errors.Is(err, io.EOF) {
		e.s.log.Info("connection lost", "flow", e.key, "error", err)
	}
	e.once.Do(func() { e.wc.Close() })
	e.cancel()
	beside.Wait()
}

func (e *lessee) read() error {
	var demand wire.Demand
	var spent wire.Spent
	for {
		f, err := e.wc.ReadFrame(func(int) []byte { return nil })
		if err != nil {
			return err
		}
		switch {
		case f.Type == wire.TypeDemand && e.member != nil:
			if err = demand.Decode(f.Payload); err == nil {
				e.member.Demand(&demand)
			}
		case f.Type == wire.TypeSpent && e.member != nil:
			if err = spent.Decode(f.Payload); err == nil {
				e.member.Spent(&spent)
			}
		default:
			err = fmt.Errorf("%v on a connection that only has a lease: %w", f.Type, sentinel.ErrProtocol)
		}
		if err != nil {
			return err
		}
	}
}

// fail sends ERROR and closes; it does not wait.
func (e *lessee) fail(why *wire.Error) {
	e.once.Do(func() {
		e.cancel()
		e.s.bg.Go(func() { _ = e.wc.Fail(why) })
	})
}

// leasing are the connections that only have a lease.
func (s *Server) leasing() (all []*lessee) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	for e := range s.lessees {
		all = append(all, e)
	}
	return all
}

// straights are the flows that may have a lease.
func straights(cfg Config) (map[string]struct{}, error) {
	out := map[string]struct{}{}
	for _, c := range cfg.Straight {
		_, twice := out[c.Key()]
		for _, f := range cfg.Flows {
			twice = twice || f.Key() == c.Key()
		}
		if twice {
			return nil, fmt.Errorf("gateway config: %s: is configured twice: %w", c.Key(), sentinel.ErrUsage)
		}
		out[c.Key()] = struct{}{}
	}
	return out, nil
}
