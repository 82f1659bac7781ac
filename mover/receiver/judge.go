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
			state, ok := c.wc.TLS()
			if !ok || len(state.PeerCertificates) == 0 {
				continue
			}
			if err := verdict(state.PeerCertificates[0]); err != nil {
				s.log.Warn("live connection is refused", "flow", f.key, "peer", c.wc.RemoteAddr().String(), "error", err)
				s.ended(c, err)
				c.fail(wire.ErrorOf(err))
				ended++
			}
		}
	}
	return ended
}
