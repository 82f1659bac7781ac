package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/moverd/mover/internal/audit"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// skew is how far a new certificate reaches back, for hosts whose clocks are behind.
	skew = time.Hour
)

// Init makes a certificate authority in dir: ca.pem and ca.key. Keys here are ECDSA on P-256: every TLS 1.3 stack has it.
func Init(dir, name string) error {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("name of the authority %q: give 1 to 64 printable characters", name)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Mover"}},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	return issue(tmpl, nil, filepath.Join(dir, "ca"), "")
}

// IssueHost makes OUT/HOST.pem and OUT/HOST.key for a source, signed by the authority in dir, and puts its ca.pem beside them.
func IssueHost(dir, out, tenant, host string, life time.Duration) error {
	if err := CheckName("tenant", tenant); err != nil {
		return err
	}
	if err := CheckName("host", host); err != nil {
		return err
	}
	tmpl := leaf(tenant+"/"+host, HostURI(tenant, host), x509.ExtKeyUsageClientAuth)
	return issueLeaf(dir, out, host, life, tmpl)
}

// IssueGateway makes OUT/NAME.pem and OUT/NAME.key for a gateway that is dialled by addrs, DNS names or IP addresses.
func IssueGateway(dir, out, name string, addrs []string, life time.Duration) error {
	if err := CheckName("gateway", name); err != nil {
		return err
	}
	if len(addrs) == 0 {
		return errors.New("gateway has no address: sources check the DNS name or IP that they dial")
	}
	tmpl := leaf(name, GatewayURI(name), x509.ExtKeyUsageServerAuth)
	for _, a := range addrs {
		if ip := net.ParseIP(a); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if err := checkDNS(a); err != nil {
			return err
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, a)
		}
	}
	return issueLeaf(dir, out, name, life, tmpl)
}

func leaf(cn, uri string, use x509.ExtKeyUsage) *x509.Certificate {
	u, err := url.Parse(uri)
	if err != nil {
		panic(err) // names were checked
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: trimCN(cn), Organization: []string{"Mover"}},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{u},
	}
}

// trimCN keeps a common name within the 64 characters that X.509 allows; nothing is decided by it.
func trimCN(s string) string { return s[:min(64, len(s))] }

func checkDNS(s string) error {
	if s == "" || len(s) > 253 {
		return fmt.Errorf("address %q is neither an IP nor a DNS name", s)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.' && i > 0:
		default:
			return fmt.Errorf("address %q is neither an IP nor a DNS name (give no port)", s)
		}
	}
	return nil
}

type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issueLeaf(dir, out, name string, life time.Duration, tmpl *x509.Certificate) error {
	if name == "ca" {
		return errors.New("the name \"ca\" belongs to the authority's own files")
	}
	ca, pem, err := load(dir)
	if err != nil {
		return err
	}
	now := time.Now()
	if life < time.Minute {
		return fmt.Errorf("a life of %v is too short, least 1m", life)
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-skew), now.Add(life)
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		return fmt.Errorf("a life of %v ends after the authority itself, on %s: ask for less", life, ca.cert.NotAfter.Format(time.DateOnly))
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	if err := bringCA(filepath.Join(out, "ca.pem"), pem); err != nil {
		return err
	}
	return issue(tmpl, ca, filepath.Join(out, name), dir)
}

// bringCA puts the authority's certificate where the issued one goes, unless it is there.
func bringCA(path string, pem []byte) error {
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return create(path, 0o644, pem)
	case err != nil:
		return err
	case !bytes.Equal(have, pem):
		return fmt.Errorf("%s belongs to another authority: choose another directory", path)
	}
	return nil
}

// issue makes a key and a certificate, signed by ca or by itself, as BASE.pem and BASE.key. What an authority
// signs is recorded in its folder, dir, before it is written.
func issue(tmpl *x509.Certificate, ca *signer, base, dir string) error {
	for _, path := range []string{base + ".key", base + ".pem"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = fmt.Errorf("%s exists: keys and certificates are never overwritten, move it away first", path)
			}
			return err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return err
	}
	if ca == nil {
		ca = &signer{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("sign %s.pem: %w", base, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if dir != "" {
		err := locked(dir, func() error { return record(dir, tmpl, audit.Record{Actor: Self(), Event: "pki.issue"}) })
		if err != nil {
			return fmt.Errorf("record the certificate: %w", err)
		}
	}
	if err := create(base+".key", 0o600, block("PRIVATE KEY", keyDER)); err != nil {
		return err
	}
	if err := create(base+".pem", 0o644, block("CERTIFICATE", der)); err != nil {
		os.Remove(base + ".key") // made just now, worth nothing alone
		return err
	}
	return nil
}
