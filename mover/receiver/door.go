package receiver

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// Event is what the gateway did with a peer: let it in, refused it, or ended what was live. Config.Audit gets it.
type Event struct {
	Did    string // Accepted, Refused, Ended
	Kind   string // of what is refused: those of wire.Kind and below
	Peer   net.Addr
	Name   string // URI of the certificate that the peer has shown; empty: none
	Serial string // its serial, hexadecimal
	Proven bool   // the certificate passed the handshake: else Name is what somebody says
	Flow   string // as the peer names it
	Agent  string
	Err    error // why; nil when accepted
}

// What an Event tells.
const (
	Accepted = "accepted" // the first connection of a link
	Refused  = "refused"
	Ended    = "ended" // a live connection or link is not allowed any more, or broke the protocol
)

// Kinds of refusals behind the handshake.
const (
	KindForeign = "not its flow" // of another host or tenant, or of nobody
	KindPolicy  = "policy"
	KindFull    = "too many connections"
	KindFenced  = "fenced"
	KindBusy    = "busy"
	KindTarget  = "target" // not claimed, not there, in use
)

// Ask is what a source wants, and what its host has at the gateway already. Config.Policy answers.
type Ask struct {
	Tenant, Host, Flow, Target string
	Conns                      int   // connections of the host, with the one that asks
	Flows                      int   // flows of the host that have a volume, with the one that asks
	Volume                     int64 // bytes of the volume that a pass is to be opened for, or of the last one
	Total                      int64 // bytes of the volumes of all flows of the host, with Volume
	Lease                      bool  // it wants a lease for what goes past the gateway; of the rest, Conns counts
}

// kindError is an error whose kind is known where it is made.
type kindError struct {
	kind string
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

func kindOf(err error) string {
	k, known := errors.AsType[*kindError](err)
	we, coded := errors.AsType[*wire.Error](err)
	switch {
	case known:
		return k.kind
	case coded && we.Code == wire.CodeBusy:
		return KindBusy
	case errors.Is(err, sentinel.ErrFenced):
		return KindFenced
	case errors.Is(err, sentinel.ErrRefused):
		return KindTarget
	}
	return wire.Kind(err)
}

// tellDoor hands an event on; it reports whether the log should have it too.
func (s *Server) tellDoor(e Event) bool {
	if s.cfg.Audit == nil {
		return true
	}
	return s.cfg.Audit(e)
}

// event begins an Event about a connection.
func event(did string, wc *wire.Conn, err error) Event {
	e := Event{Did: did, Peer: wc.RemoteAddr(), Err: err}
	if err != nil {
		e.Kind = kindOf(err)
	}
	var cert *x509.Certificate
	if cert, e.Proven = wc.Shown(err); cert != nil {
		e.Serial = fmt.Sprintf("%x", cert.SerialNumber)
		e.Name = cert.Subject.CommonName
		for _, u := range cert.URIs {
			if u.Scheme == pki.HostScheme || u.Scheme == pki.GatewayScheme || e.Name == "" {
				e.Name = u.String()
			}
		}
	}
	return e
}

// refuse tells log and trail that a connection was not let in; hello may be nil.
func (s *Server) refuse(wc *wire.Conn, hello *wire.Hello, err error) {
	e := event(Refused, wc, err)
	if hello != nil {
		e.Flow, e.Agent = hello.Flow, hello.Agent
	}
	if s.tellDoor(e) {
		s.log.Info("connection refused", "peer", wc.RemoteAddr().String(), "kind", e.Kind, "name", e.Name, "flow", e.Flow, "error", err)
	}
}

// ended tells the trail that a live connection was ended for what its peer is or did.
func (s *Server) ended(wc *wire.Conn, flow string, err error) {
	e := event(Ended, wc, err)
	e.Flow = flow
	s.tellDoor(e)
}

// admit counts a connection of a host that is known now; false: there are too many in all. left undoes it.
func (s *Server) admit(host string) (ofHost int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.conns >= s.cfg.Conns {
		return 0, false
	}
	s.conns++
	s.hosts[host]++
	return s.hosts[host], true
}

func (s *Server) left(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
	if s.hosts[host]--; s.hosts[host] == 0 {
		delete(s.hosts, host)
	}
}

// may asks the policy about a flow. volume is what a pass is to be opened for; 0: as it is. What is granted counts from now on.
func (s *Server) may(f *flow, volume int64, conns int) error {
	if s.cfg.Policy == nil {
		return nil
	}
	s.policyMu.Lock()
	defer s.policyMu.Unlock()
	a := Ask{Tenant: f.cfg.Tenant, Host: f.cfg.Host, Flow: f.cfg.Name, Target: f.cfg.Target, Conns: conns, Flows: 1, Volume: volume}
	if volume == 0 {
		a.Volume = f.volume()
	}
	a.Total = a.Volume
	for _, o := range s.flows {
		if o == f || o.cfg.Tenant != f.cfg.Tenant || o.cfg.Host != f.cfg.Host {
			continue
		}
		if v := o.volume(); v > 0 {
			a.Flows++
			a.Total += v
		}
	}
	if err := s.cfg.Policy(a); err != nil {
		return &kindError{KindPolicy, err}
	}
	if volume > 0 {
		f.granted.Store(volume)
	}
	return nil
}

// volume is the bytes that the flow has, or was granted to have.
func (f *flow) volume() int64 { return max(f.record().Volume.Size, f.granted.Load()) }

// Enforce ends every link that the policy does not allow any more. It returns how many.
func (s *Server) Enforce() (ended int) {
	ended = s.enforceObjects()
	for _, key := range s.order {
		f := s.flows[key]
		l := f.currentLink()
		if l == nil || l.ctx.Err() != nil {
			continue
		}
		s.mu.Lock()
		conns := s.hosts[f.cfg.Tenant+"/"+f.cfg.Host]
		s.mu.Unlock()
		err := s.may(f, 0, conns)
		if err == nil {
			continue
		}
		l.mu.Lock()
		live := slices.Clone(l.conns)
		l.mu.Unlock()
		if len(live) == 0 {
			continue
		}
		s.log.Warn("live link is not allowed any more", "flow", key, "error", err)
		s.ended(live[0].wc, key, err)
		f.noteError(err)
		l.end(f.wireError(err))
		ended++
	}
	for _, e := range s.leasing() {
		s.mu.Lock()
		conns := s.hosts[e.name.String()]
		s.mu.Unlock()
		if err := s.mayLease(e.key, e.name, conns); err != nil {
			s.log.Warn("live connection is not allowed any more", "flow", e.key, "error", err)
			s.ended(e.wc, e.key, err)
			e.fail(wire.ErrorOf(err))
			ended++
		}
	}
	return ended
}
