package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/internal/audit"
)

// CRLFile is the name of the list of revoked certificates beside ca.key.
const CRLFile = "ca.crl"

// LoadCert reads the first certificate of a PEM file.
func LoadCert(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(text, "CERTIFICATE", path, x509.ParseCertificate)
}

// SerialsOf are the serials of certificates that name uri and have not ended yet, from issued.jsonl.
func SerialsOf(dir, uri string) ([]*big.Int, error) {
	all, err := IssuedBy(dir)
	if err != nil {
		return nil, err
	}
	var out []*big.Int
	for _, i := range all {
		if i.Name == uri && time.Now().Before(i.NotAfter) {
			n, err := ParseSerial(i.Serial)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(dir, issuedFile), err)
			}
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no certificate for %s that is still good; name its file, or --serial", filepath.Join(dir, issuedFile), uri)
	}
	return out, nil
}

// SerialOf is the serial of cert, if the authority in dir signed it.
func SerialOf(dir string, cert *x509.Certificate) (*big.Int, error) {
	ca, _, err := load(dir)
	if err != nil {
		return nil, err
	}
	if err := cert.CheckSignatureFrom(ca.cert); err != nil {
		return nil, fmt.Errorf("certificate of %q was not signed by the authority in %s, which cannot revoke it: %w", cert.Subject.CommonName, dir, err)
	}
	return cert.SerialNumber, nil
}

// Revoke adds serials to the list of the authority in dir and signs it anew, good for life; without serials it is only signed anew.
// The list's number grows each time. It returns how many certificates were not on it before.
func Revoke(dir string, serials []*big.Int, life time.Duration) (added int, err error) {
	ca, _, err := load(dir)
	if err != nil {
		return 0, err
	}
	err = locked(dir, func() error {
		added, err = ca.revoke(dir, serials, life)
		return err
	})
	return added, err
}

// revoke is Revoke under the lock.
func (ca *signer) revoke(dir string, serials []*big.Int, life time.Duration) (added int, err error) {
	path := filepath.Join(dir, CRLFile)
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-skew), NextUpdate: time.Now().Add(life)}
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		// What is lost from the list would be good again: never begin anew over a list that cannot be read.
		last, err := parse(old, "X509 CRL", path, x509.ParseRevocationList)
		if err != nil {
			return 0, err
		}
		if err := last.CheckSignatureFrom(ca.cert); err != nil {
			return 0, fmt.Errorf("%s is not of the authority in %s: %w", path, dir, err)
		}
		tmpl.RevokedCertificateEntries = last.RevokedCertificateEntries
		tmpl.Number.Add(last.Number, tmpl.Number)
	}
	have := map[string]bool{}
	for _, e := range tmpl.RevokedCertificateEntries {
		have[e.SerialNumber.String()] = true
	}
	for _, n := range serials {
		if have[n.String()] {
			continue
		}
		have[n.String()] = true
		added++
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, ca.cert, ca.key)
	if err != nil {
		return 0, fmt.Errorf("sign %s: %w", path, err)
	}
	var texts []string
	for _, n := range serials {
		texts = append(texts, serialText(n))
	}
	if err := note(dir, audit.Record{Actor: Self(), Event: "pki.revoke", Details: map[string]any{"serials": texts, "number": tmpl.Number.String()}}); err != nil {
		return 0, err
	}
	return added, replace(path, 0o644, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// replace writes a file durably under another name and moves it into place: a reader finds the old or the new one.
func replace(path string, mode os.FileMode, b []byte) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := create(tmp, mode, b); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
