package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Renew replaces BASE.pem and BASE.key by a new key and a certificate for the same names, signed by the authority in dir; the old ones
// stay as BASE.pem.old and BASE.key.old. A life that is longer than the authority's is cut short. It returns when the new one ends.
func Renew(dir, path string, life time.Duration) (until time.Time, cut bool, err error) {
	base, ok := strings.CutSuffix(path, ".pem")
	if !ok {
		return until, false, fmt.Errorf("%s does not end in .pem: name the certificate, its key lies beside it as .key", path)
	}
	if err := finishSwap(base); err != nil {
		return until, false, err
	}
	old, err := LoadCert(path)
	if err != nil {
		return until, false, err
	}
	ca, _, err := load(dir)
	if err != nil {
		return until, false, err
	}
	// Otherwise a forged file would be turned into a good certificate. An older authority in ca.pem has a say too: that is a rollover.
	if err := signedByAny(filepath.Join(dir, "ca.pem"), old); err != nil {
		return until, false, err
	}
	if revoked, err := onList(dir, ca.cert, old); err != nil {
		return until, false, err
	} else if revoked {
		return until, false, fmt.Errorf("certificate %s is revoked; issue another one with moverctl pki host or gateway", path)
	}
	if len(old.URIs) != 1 || len(old.ExtKeyUsage) != 1 {
		return until, false, fmt.Errorf("certificate %s is not one of a host or a gateway", path)
	}
	tmpl := leaf(old.Subject.CommonName, old.URIs[0].String(), old.ExtKeyUsage[0])
	tmpl.DNSNames, tmpl.IPAddresses = old.DNSNames, old.IPAddresses
	now := time.Now()
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-skew), now.Add(life)
	if cut = tmpl.NotAfter.After(ca.cert.NotAfter); cut {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	for _, p := range []string{base + ".new.key", base + ".new.pem"} { // of a renewal that was cut off
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return until, false, err
		}
	}
	if err := issue(tmpl, ca, base+".new", dir); err != nil {
		return until, false, err
	}
	return tmpl.NotAfter, cut, swap(base)
}

// swap puts the new pair in the old one's place. Between the two renames the pair does not fit; a running daemon keeps the old one then, and
// finishSwap completes what is cut off there.
func swap(base string) error {
	for _, ext := range []string{".key", ".pem"} {
		if err := os.Remove(base + ext + ".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Link(base+ext, base+ext+".old"); err != nil {
			return err
		}
	}
	return errors.Join(os.Rename(base+".new.key", base+".key"), os.Rename(base+".new.pem", base+".pem"), syncDir(filepath.Dir(base)))
}

// finishSwap completes a swap that was cut off between its two renames: the key is the new one, its certificate waits beside it.
func finishSwap(base string) error {
	if _, err := tls.LoadX509KeyPair(base+".new.pem", base+".key"); err != nil {
		return nil
	}
	return errors.Join(os.Rename(base+".new.pem", base+".pem"), syncDir(filepath.Dir(base)))
}

func signedByAny(caPath string, cert *x509.Certificate) error {
	text, err := os.ReadFile(caPath)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	// An expired certificate may be renewed: judge it as of its own last moment.
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: cert.NotAfter.Add(-time.Second)}); err != nil {
		return fmt.Errorf("certificate of %q was not signed by an authority in %s: %w", cert.Subject.CommonName, caPath, err)
	}
	return nil
}

func onList(dir string, ca, cert *x509.Certificate) (bool, error) {
	path := filepath.Join(dir, CRLFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	list, err := parse(text, "X509 CRL", path, x509.ParseRevocationList)
	if err != nil {
		return false, err
	}
	if err := list.CheckSignatureFrom(ca); err != nil {
		return false, fmt.Errorf("%s is not of this authority: %w", path, err)
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return true, nil
		}
	}
	return false, nil
}
