package receiver

import (
	"crypto/x509"
	"slices"

	"github.com/moverd/mover/wire"
)

// Judge asks about the certificate of every live connection and ends those that are not good any more, telling the source why. What they
// had not got acked is dropped as after a broken line; connections with another certificate go on. It returns how many it ended.
func (s *Server) Judge(verdict func(*x509.Certificate) error) (ended int) {
	ended = s.judgeObjects(verdict)
	for _, f := range s.flows {
		l := f.currentLink()
		if l == nil {
			continue
		}
		l.mu.Lock()
		conns := slices.Clone(l.conns)
		l.mu.Unlock()
		for _, c := range conns {
			if s.convict(c.wc, f.key, verdict, c.fail) {
				ended++
			}
		}
	}
	for _, e := range s.leasing() {
		if s.convict(e.wc, e.key, verdict, e.fail) {
			ended++
		}
	}
	return ended
}

// convict ends a connection whose certificate is not good any more.
func (s *Server) convict(wc *wire.Conn, flow string, verdict func(*x509.Certificate) error, fail func(*wire.Error)) bool {
	state, ok := wc.TLS()
	if !ok || len(state.PeerCertificates) == 0 {
		return false
	}
	err := verdict(state.PeerCertificates[0])
	if err == nil {
		return false
	}
	s.log.Warn("live connection is refused", "flow", flow, "peer", wc.RemoteAddr().String(), "error", err)
	s.ended(wc, flow, err)
	fail(wire.ErrorOf(err))
	return true
}
