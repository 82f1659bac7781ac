package wire

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// Name is whom a source's certificate names.
type Name struct{ Tenant, Host string }

func (n Name) String() string { return n.Tenant + "/" + n.Host }

// PeerName is the source at the other end of a connection that the gateway accepted.
func PeerName(s tls.ConnectionState) (Name, error) {
	if len(s.PeerCertificates) == 0 {
		return Name{}, fmt.Errorf("peer has no certificate: %w", sentinel.ErrDenied)
	}
	tenant, host, err := pki.HostOf(s.PeerCertificates[0])
	if err != nil {
		return Name{}, fmt.Errorf("%w: %w", err, sentinel.ErrDenied)
	}
	return Name{tenant, host}, nil
}

// GatewayName is the gateway at the other end of a connection that the source dialled.
func GatewayName(s tls.ConnectionState) (string, error) {
	if len(s.PeerCertificates) == 0 {
		return "", fmt.Errorf("peer has no certificate: %w", sentinel.ErrDenied)
	}
	name, err := pki.GatewayOf(s.PeerCertificates[0])
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, sentinel.ErrDenied)
	}
	return name, nil
}

func config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{ALPN},
		SessionTicketsDisabled: true,
		// Streams are long: small first records would only cost bytes.
		DynamicRecordSizingDisabled: true,
	}
}

// ServerTLS is the gateway's end: TLS 1.3 only, client certificates of the CA that name a tenant and a host. Files are read again
// when they change.
func ServerTLS(f Files) (*tls.Config, error) {
	c, _, err := ServerJudge(f)
	return c, err
}

// ServerJudge is ServerTLS with the verdict on a source's certificate that passed its handshake: an error once it is revoked.
func ServerJudge(f Files) (*tls.Config, func(*x509.Certificate) error, error) {
	k, err := keep(f, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, nil, err
	}
	crl, err := keepCRL(f)
	if err != nil {
		return nil, nil, err
	}
	c := config()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		l := k.get()
		c := config()
		c.Certificates = []tls.Certificate{l.cert}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = l.roots
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if err := checkALPN(s); err != nil {
				return err
			}
			if _, err := PeerName(s); err != nil {
				return err
			}
			err := crl.check(s.PeerCertificates[0])
			if count, ok := hello.Conn.(*CountConn); ok && err != nil {
				count.denied = err // Conn.Handshake refuses with the reason, for which TLS has only a number
				return nil
			}
			return err
		}
		return c, nil
	}
	return c, crl.check, nil
}

// ClientTLS is the source's end. serverName is the DNS name or IP that the gateway's certificate has to have, beside a
// mover-gateway:// name. Files are read again when they change.
func ClientTLS(f Files, serverName string) (*tls.Config, error) {
	if serverName == "" {
		return nil, fmt.Errorf("gateway has no name to check: %w", sentinel.ErrUsage)
	}
	k, err := keep(f, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	crl, err := keepCRL(f)
	if err != nil {
		return nil, err
	}
	c := config()
	c.ServerName = serverName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &k.get().cert, nil // even if the gateway names other CAs: its refusal is the clearer text
	}
	// crypto/tls would check against roots that are fixed for good. VerifyConnection below makes the same checks, and those of
	// Mover, against the CA as it is now; it runs in every handshake.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := checkALPN(s); err != nil {
			return err
		}
		between := x509.NewCertPool()
		for _, x := range s.PeerCertificates[1:] {
			between.AddCert(x)
		}
		if err := verify(s.PeerCertificates[0], between, k.get().roots, x509.ExtKeyUsageServerAuth, serverName); err != nil {
			return err
		}
		return crl.check(s.PeerCertificates[0])
	}
	return c, nil
}

func checkALPN(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != ALPN {
		return fmt.Errorf("%w: peer speaks %q", errALPN, s.NegotiatedProtocol)
	}
	return nil
}

// errALPN: the peer is some other TLS program.
var errALPN = errors.New("peer does not speak " + ALPN)

// verify checks a certificate: chain, time, use, name if one is asked for, and the URI that belongs to the use.
func verify(cert *x509.Certificate, between, roots *x509.CertPool, use x509.ExtKeyUsage, name string) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: name, KeyUsages: []x509.ExtKeyUsage{use},
	})
	if err != nil {
		return explainCert(cert, err)
	}
	if use == x509.ExtKeyUsageServerAuth {
		_, err = pki.GatewayOf(cert)
	} else {
		_, _, err = pki.HostOf(cert)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, sentinel.ErrDenied)
	}
	return nil
}

func pemBlock(b []byte) (der, rest []byte) {
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, nil
	}
	return block.Bytes, rest
}

func inode(fi fs.FileInfo) uint64 {
	if s, ok := fi.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
