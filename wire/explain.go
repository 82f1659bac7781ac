package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// explained is an error with an operator's words in front of the technical ones.
type explained struct {
	text string
	is   error // sentinel, or nil
	err  error
}

func (e *explained) Error() string { return fmt.Sprintf("%s (%v)", e.text, e.err) }

func (e *explained) Unwrap() []error {
	if e.is == nil {
		return []error{e.err}
	}
	return []error{e.is, e.err}
}

// Explain says in an operator's words why a connection did not come about, or ended. What it does not know it returns as it is.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*explained](err); ok {
		return err
	}
	if text, is := explain(err); text != "" {
		return &explained{text, is, err}
	}
	return err
}

func explain(err error) (text string, is error) {
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return explainPlain(e.RecordHeader[:]), sentinel.ErrProtocol
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(e.UnverifiedCertificates) > 0 {
		return explainX509(e.UnverifiedCertificates[0], e.Err)
	}
	if n, ok := alert(err); ok {
		return explainAlert(n)
	}
	switch {
	case errors.Is(err, errALPN):
		return "peer speaks TLS, but is no Mover: is this the gateway's port?", sentinel.ErrProtocol
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: is the gateway running, is the port right?", nil
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no way to the gateway: is the VPN or line up?", nil
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "peer or line broke the connection", nil
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
		return "", nil
	}
	// crypto/tls has no values for these.
	for _, w := range words {
		if strings.Contains(err.Error(), w.part) {
			return w.text, w.is
		}
	}
	return "", nil
}

var words = []struct {
	part, text string
	is         error
}{
	{"tls: client offered only unsupported versions", "peer speaks TLS 1.2 or older, Mover needs 1.3", sentinel.ErrProtocol},
	{"tls: server selected unsupported protocol version", "peer speaks TLS 1.2 or older, Mover needs 1.3: is this the gateway's port?", sentinel.ErrProtocol},
	{"tls: client requested unsupported application protocols", "peer speaks TLS, but is no Mover", sentinel.ErrProtocol},
	{"tls: client didn't provide a certificate", "peer has no client certificate: a source needs one of this gateway's CA", sentinel.ErrDenied},
	{"tls: bad record MAC", "bytes were changed on the way", sentinel.ErrCorrupt},
}

// explainPlain guesses who speaks without TLS.
func explainPlain(head []byte) string {
	for _, p := range []string{"GET ", "HEAD ", "POST ", "PUT ", "OPTI", "CONN", "PRI ", "DELE", "HTTP/"} {
		if bytes.HasPrefix(head, []byte(p)) {
			return "peer speaks plain HTTP, not TLS: the gateway's port is for moverd sources only"
		}
	}
	if bytes.HasPrefix(head, []byte("SSH-")) {
		return "peer speaks SSH, not TLS: is the port right?"
	}
	return "peer does not speak TLS: is this the gateway's port, and the peer a moverd?"
}

// alert is the number of the TLS alert with which the peer ended the connection (RFC 8446, 6).
func alert(err error) (n uint8, ok bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0, false
	}
	v := reflect.ValueOf(op.Err) // crypto/tls keeps the type to itself
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return uint8(v.Uint()), true
}

func explainAlert(n uint8) (string, error) {
	const log = "; the peer's log says more"
	switch n {
	case 20:
		return "bytes were changed on the way", sentinel.ErrCorrupt
	case 42, 43, 46:
		return "peer does not accept our certificate" + log, sentinel.ErrDenied
	case 44:
		return "peer says that our certificate was revoked", sentinel.ErrDenied
	case 45:
		return "peer says that our certificate has expired or is not valid yet: compare the clocks, or issue a new one with moverctl pki", sentinel.ErrDenied
	case 48:
		return "peer does not know the CA of our certificate: both ends need certificates of one CA", sentinel.ErrDenied
	case 70:
		return "peer does not accept this version of TLS: both ends need TLS 1.3", sentinel.ErrProtocol
	case 80:
		return "peer has an internal error" + log, nil
	case 116:
		return "peer wants a client certificate, and got none", sentinel.ErrDenied
	case 120:
		return "peer speaks TLS, but is no Mover: is this the gateway's port?", sentinel.ErrProtocol
	}
	return "peer ended the handshake" + log, sentinel.ErrProtocol
}

// explainCert is the error about a certificate that did not pass.
func explainCert(cert *x509.Certificate, err error) error {
	text, is := explainX509(cert, err)
	return &explained{text, is, err}
}

func explainX509(cert *x509.Certificate, err error) (string, error) {
	who := fmt.Sprintf("certificate of %q", cert.Subject.CommonName)
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
	)
	switch {
	case errors.As(err, &unknown):
		who += " is not signed by the configured CA: both ends need certificates of one CA"
	case errors.As(err, &host):
		who += fmt.Sprintf(" is for %s, not for %q that was dialled: issue one with that address, or dial one of these", names(cert), host.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(cert.NotBefore):
		who += fmt.Sprintf(" is not valid before %s: compare the clocks", cert.NotBefore.Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		who += fmt.Sprintf(" expired on %s: issue a new one with moverctl pki", cert.NotAfter.Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		who += " is for the other role: sources and gateways have certificates of different kinds"
	default:
		who += " is not valid"
	}
	return who, sentinel.ErrDenied
}

func names(cert *x509.Certificate) string {
	all := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no address at all"
	}
	return strings.Join(all, ", ")
}

// explainHandshake is Explain for what goes wrong before the first frame.
func explainHandshake(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = &explained{"peer closed before the handshake was done: a port scan, a health check, or a firewall", nil, err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		err = &explained{fmt.Sprintf("peer did not finish the handshake within %v", handshakeLimit), nil, err}
	}
	return Explain(err)
}
