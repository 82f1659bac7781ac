package wire

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// revoked is what a CRL file holds: the lists of one or more authorities.
type revoked struct {
	stamps  [2]stamp // of the CRL and the CA
	numbers map[string]*big.Int
	when    map[string]time.Time // of serials, each behind its authority's key id
	until   time.Time            // earliest end of a list
}

func revokedKey(authority []byte, serial *big.Int) string {
	return string(authority) + "/" + serial.String()
}

// loadCRL reads lists that authorities of the CA file signed. An end that has passed is not its business.
func (f Files) loadCRL() (*revoked, error) {
	text, s, err := read(f.CRL, false)
	if err != nil {
		return nil, fmt.Errorf("crl: %w", err)
	}
	ca, sca, err := read(f.CA, false)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	var authorities []*x509.Certificate
	for der, rest := pemBlock(ca); der != nil; der, rest = pemBlock(rest) {
		if x, err := x509.ParseCertificate(der); err == nil && x.IsCA {
			authorities = append(authorities, x)
		}
	}
	r := &revoked{stamps: [2]stamp{s, sca}, numbers: map[string]*big.Int{}, when: map[string]time.Time{}}
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != "X509 CRL" {
			return nil, fmt.Errorf("crl: %s holds a PEM block %q, want only \"X509 CRL\": %w", f.CRL, b.Type, sentinel.ErrUsage)
		}
		list, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("crl: %s: %w", f.CRL, err)
		}
		if err := r.add(list, authorities); err != nil {
			return nil, fmt.Errorf("crl: %s %w", f.CRL, err)
		}
	}
	if len(r.numbers) == 0 {
		return nil, fmt.Errorf("crl: %s holds no list of revoked certificates; moverctl pki crl makes one: %w", f.CRL, sentinel.ErrUsage)
	}
	return r, nil
}

func (r *revoked) add(list *x509.RevocationList, authorities []*x509.Certificate) error {
	var by *x509.Certificate
	for _, ca := range authorities {
		if bytes.Equal(list.RawIssuer, ca.RawSubject) && list.CheckSignatureFrom(ca) == nil {
			by = ca
			break
		}
	}
	switch {
	case by == nil:
		return fmt.Errorf("is not signed by the configured CA: copy it again from where the CA is: %w", sentinel.ErrDenied)
	case list.Number == nil || list.NextUpdate.IsZero():
		return fmt.Errorf("has no number or no end: make it with moverctl pki: %w", sentinel.ErrUsage)
	case r.numbers[string(by.SubjectKeyId)] != nil:
		return fmt.Errorf("holds two lists of one authority: %w", sentinel.ErrUsage)
	}
	r.numbers[string(by.SubjectKeyId)] = list.Number
	if r.until.IsZero() || list.NextUpdate.Before(r.until) {
		r.until = list.NextUpdate
	}
	for _, e := range list.RevokedCertificateEntries {
		r.when[revokedKey(by.SubjectKeyId, e.SerialNumber)] = e.RevocationTime
	}
	return nil
}

// older tells whether r would take back what last says: a replayed list makes revoked certificates good again.
func (r *revoked) older(last *revoked) error {
	for id, n := range last.numbers {
		if m := r.numbers[id]; m != nil && m.Cmp(n) < 0 {
			return fmt.Errorf("crl: the list has number %d, the one in use %d: an older list is never taken over: %w", m, n, sentinel.ErrRefused)
		}
	}
	return nil
}

// crlKeeper holds the lists that were read last, and reads again when a file has changed.
type crlKeeper struct {
	files Files

	mu     sync.Mutex // guards all below
	last   *revoked
	warned string    // about the change that could not be read
	lapsed time.Time // end that was warned about
}

func keepCRL(f Files) (*crlKeeper, error) {
	if f.CRL == "" {
		return nil, nil
	}
	r, err := f.loadCRL()
	if err != nil {
		return nil, err
	}
	if time.Now().After(r.until) {
		return nil, fmt.Errorf("crl: %s ended on %s: sign it again with moverctl pki crl and copy it here: %w", f.CRL, r.until.Format(time.RFC3339), sentinel.ErrDenied)
	}
	return &crlKeeper{files: f, last: r}, nil
}

// get returns the lists as the files have them now; what cannot be read, or is older, changes nothing.
func (k *crlKeeper) get() *revoked {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := [2]stamp{stampOf(k.files.CRL), stampOf(k.files.CA)}; s != k.last.stamps {
		r, err := k.files.loadCRL()
		if err == nil {
			err = r.older(k.last)
		}
		switch {
		case err == nil:
			slog.Info("list of revoked certificates was read again", "file", k.files.CRL, "revoked", len(r.when), "valid_until", r.until)
			k.last, k.warned = r, ""
		case err.Error() != k.warned:
			k.warned = err.Error()
			slog.Error("changed list of revoked certificates is not usable, the one before stays in use", "error", err)
		}
	}
	if k.last.until.Before(time.Now()) && !k.lapsed.Equal(k.last.until) {
		k.lapsed = k.last.until
		slog.Error("list of revoked certificates has ended: later revocations are not known here; sign it again with moverctl pki crl",
			"file", k.files.CRL, "ended", k.last.until, "connections_refused", k.files.CRLStrict)
	}
	return k.last
}

// check tells whether a certificate of a verified chain may be used. Without a list all may.
func (k *crlKeeper) check(cert *x509.Certificate) error {
	if k == nil {
		return nil
	}
	r := k.get()
	who := fmt.Sprintf("certificate of %q with serial %x", cert.Subject.CommonName, cert.SerialNumber)
	if at, bad := r.when[revokedKey(cert.AuthorityKeyId, cert.SerialNumber)]; bad {
		return &explained{fmt.Sprintf("%s was revoked on %s: issue another one with moverctl pki", who, at.UTC().Format(time.RFC3339)),
			sentinel.ErrDenied, errRevoked}
	}
	if k.files.CRLStrict && time.Now().After(r.until) {
		return &explained{fmt.Sprintf("%s cannot be judged: the list of revoked certificates ended on %s, and crl-strict is set: sign it again with moverctl pki crl",
			who, r.until.UTC().Format(time.RFC3339)), sentinel.ErrDenied, errRevoked}
	}
	return nil
}

var errRevoked = errors.New("refused by the list of revoked certificates")

func stampOf(path string) stamp {
	name, _, err := resolve(path)
	if err != nil {
		return stamp{}
	}
	fi, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	return stamp{fi.Size(), fi.ModTime().UnixNano(), inode(fi)}
}
