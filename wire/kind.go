package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/moverd/mover/internal/sentinel"
)

// Kinds of refusals, for counting.
const (
	KindCrowded   = "crowded out"
	KindNoCert    = "no certificate"
	KindForeignCA = "foreign CA"
	KindExpired   = "expired certificate"
	KindRevoked   = "revoked certificate"
	KindWrongCert = "wrong certificate"
	KindOldTLS    = "old TLS"
	KindPlain     = "not TLS"
	KindALPN      = "other protocol"
	KindSilent    = "silent"
	KindClosed    = "closed early"
	KindProtocol  = "protocol"
	KindDenied    = "denied"
	KindOther     = "other"
)

// Kind says in a few words why a connection was refused before or at its HELLO.
func Kind(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	switch _, plain := errors.AsType[tls.RecordHeaderError](err); {
	case errors.Is(err, errCrowded):
		return KindCrowded
	case errors.Is(err, errRevoked):
		return KindRevoked
	case plain:
		return KindPlain
	case errors.As(err, &unknown):
		return KindForeignCA
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return KindExpired
	case errors.As(err, &invalid):
		return KindWrongCert
	case errors.Is(err, errALPN), strings.Contains(text, "application protocol"):
		return KindALPN
	case strings.Contains(text, "didn't provide a certificate"):
		return KindNoCert
	case strings.Contains(text, "unsupported versions"):
		return KindOldTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return KindSilent
	case errors.Is(err, sentinel.ErrDenied):
		return KindDenied
	case errors.Is(err, sentinel.ErrProtocol), errors.Is(err, sentinel.ErrNotSupported), strings.Contains(text, "tls: "):
		return KindProtocol
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return KindClosed
	}
	return KindOther
}

// Shown is the certificate that the peer has shown, and whether it passed the handshake; nil: none. err is what Handshake or ReadHello returned.
func (c *Conn) Shown(err error) (cert *x509.Certificate, passed bool) {
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(bad.UnverifiedCertificates) > 0 {
		return bad.UnverifiedCertificates[0], false
	}
	if s, ok := c.TLS(); ok && len(s.PeerCertificates) > 0 {
		return s.PeerCertificates[0], s.HandshakeComplete
	}
	return nil, false
}
