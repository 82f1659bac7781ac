package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/sentinel"
)

// EnrolScheme is that of the URI in the certificate of an authority's own server, which is neither a host nor a gateway.
const EnrolScheme = "mover-enrol"

const enrolURI = EnrolScheme + "://ca"

func days(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

// newRequest makes a key and a request for a certificate of uri; both are DER.
func newRequest(uri string, like *x509.Certificate) (key *ecdsa.PrivateKey, request []byte, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, nil, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "mover"}, URIs: []*url.URL{u}}
	if like != nil {
		tmpl.DNSNames, tmpl.IPAddresses = like.DNSNames, like.IPAddresses
	}
	request, err = x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	return key, request, err
}

// checkRequest checks that a request proves its key, that the key is of the one kind in use here, and that it names uri and nothing else.
func checkRequest(r *x509.CertificateRequest, uri string) error {
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || key.Curve != elliptic.P256():
		return fmt.Errorf("the request has a key of another kind than ECDSA on P-256: %w", sentinel.ErrProtocol)
	case r.CheckSignature() != nil:
		return fmt.Errorf("the request does not prove that its sender has the key: %w", sentinel.ErrDenied)
	case len(r.URIs) != 1 || r.URIs[0].String() != uri:
		return fmt.Errorf("the request is for %v, not for %s alone: %w", r.URIs, uri, sentinel.ErrDenied)
	case len(r.EmailAddresses) > 0:
		return fmt.Errorf("the request has names besides %s: %w", uri, sentinel.ErrDenied)
	}
	return nil
}

// sign signs a certificate of key after it stands in issued.jsonl and in the trail. A life that is longer than the authority's is cut
// short. The caller holds the lock. It returns PEM.
func (s *signer) sign(dir string, tmpl *x509.Certificate, key crypto.PublicKey, life time.Duration, r audit.Record) (text []byte, serial string, err error) {
	now := time.Now()
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-skew), now.Add(life)
	if tmpl.NotAfter.After(s.cert.NotAfter) {
		tmpl.NotAfter = s.cert.NotAfter
	}
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.cert, key, s.key)
	if err != nil {
		return nil, "", fmt.Errorf("sign the certificate: %w", err)
	}
	if err := record(dir, tmpl, r); err != nil {
		return nil, "", fmt.Errorf("record the certificate: %w", err)
	}
	return block("CERTIFICATE", der), serialText(tmpl.SerialNumber), nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// RenewFor signs a request of the holder of old, which has proven that it has old's key, for the same names and use. from is the peer's
// address.
func RenewFor(dir string, old *x509.Certificate, request *x509.CertificateRequest, life time.Duration, from string) (cert, ca []byte, serial string, err error) {
	if err := Renewable(dir, old); err != nil {
		return nil, nil, "", err
	}
	name := old.URIs[0].String()
	if err := checkRequest(request, name); err != nil {
		return nil, nil, "", err
	}
	if !slices.Equal(request.DNSNames, old.DNSNames) || !slices.EqualFunc(request.IPAddresses, old.IPAddresses, net.IP.Equal) {
		return nil, nil, "", fmt.Errorf("the request has other addresses than the certificate of %s: a renewal keeps all names: %w", name, sentinel.ErrDenied)
	}
	err = locked(dir, func() error {
		signer, text, err := load(dir)
		if err != nil {
			return err
		}
		tmpl := leaf(old.Subject.CommonName, name, old.ExtKeyUsage[0])
		tmpl.DNSNames, tmpl.IPAddresses = old.DNSNames, old.IPAddresses
		cert, serial, err = signer.sign(dir, tmpl, request.PublicKey, life,
			audit.Record{Actor: name, Event: "pki.renew", Details: map[string]any{"address": from, "serial_before": serialText(old.SerialNumber)}})
		ca = text
		return err
	})
	return cert, ca, serial, err
}

// Renewable tells why the holder of a certificate may not renew it at the authority in dir, or nil.
func Renewable(dir string, old *x509.Certificate) error {
	ca, _, err := load(dir)
	if err != nil {
		return err
	}
	if err := signedByAny(filepath.Join(dir, "ca.pem"), old); err != nil {
		return fmt.Errorf("%w: %w", err, sentinel.ErrDenied)
	}
	who := "certificate of " + nameOf(old)
	switch revoked, err := onList(dir, ca.cert, old); {
	case err != nil:
		return err
	case revoked:
		return fmt.Errorf("%s with serial %s is revoked: it cannot be renewed; ask for a token: %w", who, serialText(old.SerialNumber), sentinel.ErrDenied)
	case time.Now().After(old.NotAfter):
		return fmt.Errorf("%s expired on %s: it cannot be renewed from afar; ask for a token: %w", who, old.NotAfter.Format(time.RFC3339), sentinel.ErrDenied)
	case time.Now().Before(old.NotBefore):
		return fmt.Errorf("%s is not good before %s: compare the clocks: %w", who, old.NotBefore.Format(time.RFC3339), sentinel.ErrDenied)
	}
	_, _, herr := HostOf(old)
	_, gerr := GatewayOf(old)
	if herr != nil && gerr != nil || len(old.URIs) != 1 || len(old.ExtKeyUsage) != 1 {
		return fmt.Errorf("%s is not one of a host or a gateway: %w", who, sentinel.ErrDenied)
	}
	return nil
}

func nameOf(c *x509.Certificate) string {
	if len(c.URIs) > 0 {
		return c.URIs[0].String()
	}
	return fmt.Sprintf("%q", c.Subject.CommonName)
}

// ServerPair makes the certificate with which the authority in dir answers enrolments, good for life. Its key is in memory only.
func ServerPair(dir string, life time.Duration) (pair tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, err
	}
	ca, _, err := load(dir)
	if err != nil {
		return pair, err
	}
	err = locked(dir, func() error {
		text, _, err := ca.sign(dir, leaf("enrolment", enrolURI, x509.ExtKeyUsageServerAuth), key.Public(), life, audit.Record{Actor: Self(), Event: "pki.serve"})
		if err != nil {
			return err
		}
		b, _ := pem.Decode(text)
		pair = tls.Certificate{Certificate: [][]byte{b.Bytes, ca.cert.Raw}, PrivateKey: key}
		pair.Leaf, err = x509.ParseCertificate(b.Bytes)
		return err
	})
	return pair, err
}

// CheckServer checks that chain is that of an enrolment server of the authority whose certificate has the SHA-256 pin, or of one of roots.
func CheckServer(chain []*x509.Certificate, pin *[sha256.Size]byte, roots *x509.CertPool) error {
	if len(chain) < 2 {
		return fmt.Errorf("the server does not show its authority: it is no `moverctl pki serve`: %w", sentinel.ErrDenied)
	}
	if pin != nil {
		if sha256.Sum256(chain[1].Raw) != *pin {
			return fmt.Errorf("the server is of another authority than the one that made the token: wrong address, or somebody is in between: %w", sentinel.ErrDenied)
		}
		roots = x509.NewCertPool()
		roots.AddCert(chain[1])
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fmt.Errorf("the server's certificate is not good: %w: %w", err, sentinel.ErrDenied)
	}
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != enrolURI {
		return fmt.Errorf("the server is %s, not an authority's `moverctl pki serve`: %w", nameOf(chain[0]), sentinel.ErrDenied)
	}
	return nil
}

// record is remember with an event for the trail, which is written first; the caller holds the lock.
func record(dir string, cert *x509.Certificate, r audit.Record) error {
	d := map[string]any{"name": cert.URIs[0].String(), "serial": serialText(cert.SerialNumber), "not_after": cert.NotAfter.UTC().Format(time.RFC3339)}
	maps.Copy(d, r.Details)
	r.Details = d
	if err := note(dir, r); err != nil {
		return err
	}
	return remember(dir, cert)
}
