package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// Enrol makes a key in dir and gets a certificate for it from the authority at addr: host.key, host.pem and ca.pem, all or none. It returns
// when the certificate ends. What an enrolment that was cut off has left complete is taken into use without asking again.
func Enrol(ctx context.Context, addr string, t pki.Token, dir string) (until time.Time, err error) {
	name := pki.HostURI(t.Tenant, t.Host)
	if cert, err := pki.FinishHost(dir, t.CA); err != nil {
		return until, err
	} else if cert != nil {
		if cert.URIs[0].String() != name {
			return until, fmt.Errorf("%s has a certificate of %s already: %w", dir, cert.URIs[0], sentinel.ErrRefused)
		}
		return cert.NotAfter, nil
	}
	key, request, err := pki.HostRequest(t.Tenant, t.Host)
	if err != nil {
		return until, err
	}
	cfg := config()
	cfg.InsecureSkipVerify = true // for VerifyConnection checks more: the authority has to be the token's
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return pki.CheckServer(s.PeerCertificates, &t.CA, nil) }
	a, err := ask(ctx, addr, cfg, question{Do: "enrol", Token: t.String(), Request: request})
	if err != nil {
		return until, err
	}
	cert, err := checkAnswer(a, key, name)
	if err != nil {
		return until, err
	}
	if err := pki.CheckPin(a.CA, cert, t.CA); err != nil {
		return until, err
	}
	return cert.NotAfter, pki.InstallHost(dir, key, a.Cert, a.CA)
}

// Renew replaces the certificate at path and its key by new ones for the same names, which the authority at addr signs; the old pair stays
// as .old. caPath holds the authorities that are trusted.
func Renew(ctx context.Context, addr, path, caPath string) (until time.Time, err error) {
	own, err := pki.LoadPair(path)
	if err != nil {
		return until, err
	}
	roots, err := pki.LoadRoots(caPath)
	if err != nil {
		return until, err
	}
	key, request, err := pki.RenewalRequest(own.Leaf)
	if err != nil {
		return until, err
	}
	cfg := config()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	cfg.InsecureSkipVerify = true // for VerifyConnection checks more
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return pki.CheckServer(s.PeerCertificates, nil, roots) }
	a, err := ask(ctx, addr, cfg, question{Do: "renew", Request: request})
	if err != nil {
		return until, err
	}
	cert, err := checkAnswer(a, key, own.Leaf.URIs[0].String())
	if err != nil {
		return until, err
	}
	// Only what the present ca.pem trusts: a new authority is brought in by the operator.
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return until, fmt.Errorf("the new certificate is not of an authority in %s: %w", caPath, err)
	}
	return cert.NotAfter, pki.Replace(path, key, a.Cert)
}

// checkAnswer checks that a certificate is for the key and the name that were asked for.
func checkAnswer(a answer, key *ecdsa.PrivateKey, name string) (*x509.Certificate, error) {
	cert, err := pki.ParseCert(a.Cert)
	if err != nil {
		return nil, fmt.Errorf("the answer: %w: %w", err, sentinel.ErrProtocol)
	}
	now := time.Now()
	switch {
	case !key.PublicKey.Equal(cert.PublicKey):
		err = errors.New("is for another key")
	case len(cert.URIs) != 1 || cert.URIs[0].String() != name || cert.IsCA:
		err = fmt.Errorf("is for %v, not for %s", cert.URIs, name)
	case now.Before(cert.NotBefore) || now.After(cert.NotAfter):
		err = fmt.Errorf("is good from %s to %s, and it is %s here: compare the clocks", cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	default:
		return cert, nil
	}
	return nil, fmt.Errorf("the certificate that came back %w: %w", err, sentinel.ErrProtocol)
}

// ask is one exchange.
func ask(ctx context.Context, addr string, cfg *tls.Config, q question) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w: is `moverctl pki serve` running there?", err)
		}
		return a, fmt.Errorf("reach the authority: %w", err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(limit))
	t := tls.Client(nc, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		if errors.Is(err, sentinel.ErrDenied) {
			return a, err
		}
		return a, fmt.Errorf("handshake with %s: %w; is that the address of `moverctl pki serve`?", addr, err)
	}
	if t.ConnectionState().NegotiatedProtocol != alpn {
		return a, fmt.Errorf("%s does not speak %s: is that the address of `moverctl pki serve`?: %w", addr, alpn, sentinel.ErrProtocol)
	}
	if err := write(t, q); err != nil {
		return a, fmt.Errorf("ask the authority: %w", err)
	}
	if err := read(t, maxAnswer, &a); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it closed without an answer")
		}
		return a, fmt.Errorf("read the authority's answer: %w", err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("the authority refuses: %s: %w", a.Error, sentinel.ErrRefused)
	}
	return a, nil
}
