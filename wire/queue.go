package wire

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/moverd/mover/internal/pki"
)

// Queue is the end of a host that dials the queue of bucket flows: a source that listens for workers, or a NATS server.
type Queue struct {
	// TLS wants TLS 1.3 and a certificate of one of Roots that is for servers and has the name that was dialled. The host's own is read again when its file changes.
	TLS   *tls.Config
	Roots func() *x509.CertPool
	Name  Name // in the host's certificate
}

// QueueTLS reads the files of a host.
func QueueTLS(f Files) (*Queue, error) {
	k, err := keep(f, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	crl, err := keepCRL(f)
	if err != nil {
		return nil, err
	}
	q := &Queue{TLS: config(), Roots: func() *x509.CertPool { return k.get().roots }}
	if q.Name.Tenant, q.Name.Host, err = pki.HostOf(k.get().cert.Leaf); err != nil {
		return nil, err
	}
	q.TLS.RootCAs = q.Roots()
	q.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &k.get().cert, nil }
	q.TLS.VerifyConnection = func(s tls.ConnectionState) error { return crl.check(s.PeerCertificates[0]) }
	return q, nil
}
