package enrol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/strangers"
)

const (
	// most connections at once, and of one address.
	most, share = 64, 16
	// renewals of one name within an hour: a host that asks for more is broken, or not the host.
	renewals = 6
	// pairLife is how long the server's own certificate is good; it is made anew when half of that is over.
	pairLife = 30 * 24 * time.Hour
)

// Server answers enrolments for the authority in Dir.
type Server struct {
	Dir  string
	Life time.Duration // of renewed certificates; those by token have the life that the token says
	Log  *slog.Logger

	flood audit.Flood

	mu      sync.Mutex // guards all below
	pair    *tls.Certificate
	renewed map[string][]time.Time
}

// Ready makes the server's certificate: what keeps it from serving is told before anybody connects.
func (s *Server) Ready() error {
	_, err := s.own()
	return err
}

// Serve answers until ctx ends; it closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.Ready(); err != nil {
		return errors.Join(err, l.Close())
	}
	var all sync.WaitGroup
	defer func() {
		all.Wait()
		s.due(true)
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	all.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				s.due(false)
			}
		}
	})
	gate := strangers.New(most, share)
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			s.Log.Warn("accept a connection", "error", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of descriptors: that passes
			case <-ctx.Done():
			}
			continue
		}
		var cut atomic.Bool
		leave := gate.Enter(nc.RemoteAddr(), func() { cut.Store(true); nc.Close() })
		all.Go(func() {
			defer leave()
			defer nc.Close()
			defer context.AfterFunc(ctx, func() { nc.Close() })()
			err := s.answer(ctx, nc)
			if cut.Load() {
				err = fmt.Errorf("cut off to make room for others: %w", sentinel.ErrDenied)
			}
			if k, ok := errors.AsType[*kindError](err); err != nil && (ctx.Err() == nil || ok && k.judged) {
				s.refused(nc.RemoteAddr(), err)
			}
		})
	}
}

// own is the server's certificate.
func (s *Server) own() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pair != nil && time.Until(s.pair.Leaf.NotAfter) > pairLife/2 {
		return s.pair, nil
	}
	pair, err := pki.ServerPair(s.Dir, pairLife)
	if err != nil {
		if s.pair != nil && time.Now().Before(s.pair.Leaf.NotAfter) {
			return s.pair, nil
		}
		return nil, err
	}
	s.pair = &pair
	return s.pair, nil
}

// answer is one exchange. The error is why the peer got nothing.
func (s *Server) answer(ctx context.Context, nc net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc.SetDeadline(time.Now().Add(limit))
	cfg := config()
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.own() }
	cfg.ClientAuth = tls.RequestClientCert // who renews is judged below: gateways have certificates of servers
	cfg.VerifyConnection = func(t tls.ConnectionState) error {
		if t.NegotiatedProtocol != alpn {
			return fmt.Errorf("peer does not speak %s", alpn)
		}
		return nil
	}
	t := tls.Server(nc, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return &kindError{kind: "handshake", err: err}
	}
	var q question
	if err := read(t, maxQuestion, &q); err != nil {
		return &kindError{kind: "question", err: err}
	}
	a, err := s.give(q, t.ConnectionState().PeerCertificates, nc.RemoteAddr())
	if err != nil {
		a = answer{Error: err.Error()}
		if !errors.Is(err, sentinel.ErrDenied) && !errors.Is(err, sentinel.ErrUsage) && !errors.Is(err, sentinel.ErrProtocol) {
			s.Log.Error("enrolment", "peer", nc.RemoteAddr().String(), "error", err)
			a.Error = "the authority cannot sign now; its log says why"
		}
	}
	if werr := write(t, a); werr != nil && err == nil {
		s.Log.Error("a certificate was signed, but its host did not get it", "peer", nc.RemoteAddr().String(), "error", werr)
	}
	if t.CloseWrite() == nil {
		io.Copy(io.Discard, io.LimitReader(nc, maxQuestion)) // the answer has to arrive
	}
	return err
}

// give signs what q asks for.
func (s *Server) give(q question, peer []*x509.Certificate, addr net.Addr) (a answer, err error) {
	if len(q.Request) > maxQuestion {
		return a, fmt.Errorf("a request of %d bytes: %w", len(q.Request), sentinel.ErrProtocol)
	}
	request, err := x509.ParseCertificateRequest(q.Request)
	if err != nil {
		return a, fmt.Errorf("the request is not understood: %w: %w", err, sentinel.ErrProtocol)
	}
	var name, serial string
	switch q.Do {
	case "enrol":
		t, err := pki.ParseToken(q.Token)
		if err != nil {
			return a, &kindError{"token", err, true}
		}
		name = pki.HostURI(t.Tenant, t.Host)
		if a.Cert, a.CA, serial, err = pki.Enrol(s.Dir, t, request, addr.String()); err != nil {
			return a, &kindError{"token", err, true}
		}
	case "renew":
		if len(peer) == 0 {
			return a, &kindError{"renewal", fmt.Errorf("a renewal needs the present certificate: %w", sentinel.ErrDenied), true}
		}
		if err := pki.Renewable(s.Dir, peer[0]); err != nil {
			return a, &kindError{"renewal", err, true}
		}
		name = peer[0].URIs[0].String()
		if err := s.often(name); err != nil {
			return a, &kindError{"renewal", err, true}
		}
		if a.Cert, a.CA, serial, err = pki.RenewFor(s.Dir, peer[0], request, s.Life, addr.String()); err != nil {
			return a, &kindError{"renewal", err, true}
		}
	default:
		return a, fmt.Errorf("the question %.20q is not known: %w", q.Do, sentinel.ErrProtocol)
	}
	s.Log.Info("certificate given", "do", q.Do, "name", name, "serial", serial, "peer", addr.String())
	return a, nil
}

// often refuses a name that renews too often. Names here are those of good certificates.
func (s *Server) often(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.renewed == nil {
		s.renewed = map[string][]time.Time{}
	}
	for n, all := range s.renewed {
		for len(all) > 0 && now.Sub(all[0]) > time.Hour {
			all = all[1:]
		}
		if s.renewed[n] = all; len(all) == 0 {
			delete(s.renewed, n)
		}
	}
	if len(s.renewed[name]) >= renewals {
		return fmt.Errorf("%s has renewed %d times within an hour: wait: %w", name, renewals, sentinel.ErrDenied)
	}
	s.renewed[name] = append(s.renewed[name], now)
	return nil
}

// kindError says what was refused, for the trail.
type kindError struct {
	kind   string
	err    error
	judged bool // the question was understood: not just a connection that ended
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

const refusedEvent = "pki.refused"

func (s *Server) refused(addr net.Addr, err error) {
	a := audit.Attempt{Kind: "other", Address: addr.String()}
	if k, ok := errors.AsType[*kindError](err); ok {
		a.Kind = k.kind
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		a.Kind = "silent"
	}
	if host, _, err := net.SplitHostPort(a.Address); err == nil {
		a.Address = host
	}
	if !s.flood.Add(time.Now(), a) {
		return
	}
	text := err.Error()
	s.Log.Warn("refused", "peer", addr.String(), "kind", a.Kind, "error", text)
	s.note(audit.Record{Actor: addr.String(), Event: refusedEvent, Details: map[string]any{"kind": a.Kind, "why": text[:min(len(text), 512)]}})
}

func (s *Server) due(last bool) {
	if r, ok := s.flood.Due(time.Now(), last, refusedEvent+".more"); ok {
		s.note(r)
	}
}

func (s *Server) note(r audit.Record) {
	if err := pki.Note(s.Dir, r); err != nil {
		s.Log.Error("the audit trail cannot be written", "error", err)
	}
}
