package pki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moverd/mover/internal/sentinel"
)

// Names of what an enrolled host has.
const (
	HostCert = "host.pem"
	HostKey  = "host.key"
	HostCA   = "ca.pem"
)

// HostRequest makes a key and a request (DER) for the certificate of a host.
func HostRequest(tenant, host string) (*ecdsa.PrivateKey, []byte, error) {
	return newRequest(HostURI(tenant, host), nil)
}

// RenewalRequest makes a new key and a request (DER) for the names of old.
func RenewalRequest(old *x509.Certificate) (*ecdsa.PrivateKey, []byte, error) {
	if len(old.URIs) != 1 {
		return nil, nil, fmt.Errorf("certificate of %q is not one of a host or a gateway: %w", old.Subject.CommonName, sentinel.ErrRefused)
	}
	return newRequest(old.URIs[0].String(), old)
}

// ParseCert reads the first certificate of PEM text.
func ParseCert(text []byte) (*x509.Certificate, error) {
	return parse(text, "CERTIFICATE", "the certificate", x509.ParseCertificate)
}

// LoadPair reads a certificate and the key beside it, after completing a renewal that was cut off.
func LoadPair(path string) (tls.Certificate, error) {
	base, ok := strings.CutSuffix(path, ".pem")
	if !ok {
		return tls.Certificate{}, fmt.Errorf("%s does not end in .pem: name the certificate, its key lies beside it as .key: %w", path, sentinel.ErrUsage)
	}
	if err := finishSwap(base); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(path, base+".key")
}

// LoadRoots reads the authorities of a PEM file.
func LoadRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return roots, nil
}

// CheckPin checks that the authorities of PEM text have the one with the SHA-256 pin, and that it signed cert unless that is nil.
func CheckPin(text []byte, cert *x509.Certificate, pin [sha256.Size]byte) error {
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(b.Bytes)
		switch {
		case err != nil:
			return fmt.Errorf("certificate of an authority: %w: %w", err, sentinel.ErrProtocol)
		case sha256.Sum256(ca.Raw) != pin:
		case cert == nil:
			return nil
		default:
			return cert.CheckSignatureFrom(ca)
		}
	}
	return fmt.Errorf("the authority that made the token is not among these: %w", sentinel.ErrRefused)
}

// parts are the files of a host, in the order in which they are put in place: without host.pem it has not enrolled.
var parts = []string{HostCA, HostKey, HostCert}

// InstallHost puts key, certificate and authorities (PEM) into dir: all of them or, whatever happens, none that FinishHost would not
// complete. Files that are there are not touched; a ca.pem stays as it is.
func InstallHost(dir string, key *ecdsa.PrivateKey, cert, ca []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		mode os.FileMode
		text []byte
	}{{HostCA, 0o644, ca}, {HostKey, 0o600, block("PRIVATE KEY", der)}, {HostCert, 0o644, cert}} {
		path := filepath.Join(dir, p.name)
		if _, err := os.Stat(path); err == nil && p.name == HostCA {
			continue // FinishHost has looked at it
		}
		if err := free(path); err != nil {
			return err
		}
		if err := create(path+".new", p.mode, p.text); err != nil {
			dropNew(dir)
			return err
		}
	}
	return place(dir)
}

// place moves what is new into its place. The certificate's file was made last, and is moved last.
func place(dir string) error {
	for _, name := range parts {
		path := filepath.Join(dir, name)
		if err := os.Rename(path+".new", path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(dir)
}

func dropNew(dir string) {
	for _, name := range []string{HostCert, HostKey, HostCA} {
		os.Remove(filepath.Join(dir, name+".new"))
	}
}

func free(path string) error {
	_, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s exists: keys and certificates are never overwritten, move it away first: %w", path, sentinel.ErrRefused)
}

// FinishHost makes dir ready for an enrolment. One that was cut off when everything was written is completed, and its certificate returned; what an
// earlier cut left is removed. It refuses where a host has enrolled, or where ca.pem lacks the authority with the SHA-256 pin, before a token is
// spent in vain.
func FinishHost(dir string, pin [sha256.Size]byte) (*x509.Certificate, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := free(filepath.Join(dir, HostCert)); err != nil {
		return nil, err
	}
	ca := filepath.Join(dir, HostCA)
	if text, err := os.ReadFile(ca); err == nil {
		if err := CheckPin(text, nil, pin); err != nil {
			return nil, fmt.Errorf("%s: %w", ca, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if cert, err := LoadCert(filepath.Join(dir, HostCert+".new")); err == nil {
		if err := place(dir); err != nil {
			return nil, err
		}
		if _, err := LoadPair(filepath.Join(dir, HostCert)); err != nil {
			return nil, err
		}
		return cert, nil
	}
	dropNew(dir)
	if err := free(filepath.Join(dir, HostKey)); err != nil {
		return nil, err
	}
	// A try: a folder that cannot be written is told before a token is spent.
	probe := filepath.Join(dir, HostKey+".new")
	if err := create(probe, 0o600, nil); err != nil {
		return nil, err
	}
	return nil, os.Remove(probe)
}

// Replace puts a new key and certificate (PEM) in the place of the pair at path; the old pair stays as .old.
func Replace(path string, key *ecdsa.PrivateKey, cert []byte) error {
	base := strings.TrimSuffix(path, ".pem")
	if _, err := LoadPair(path); err != nil {
		return err // the old one has to be whole: it stays as .old
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, p := range []string{base + ".new.key", base + ".new.pem"} { // of a renewal that was cut off
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := create(base+".new.key", 0o600, block("PRIVATE KEY", der)); err != nil {
		return err
	}
	if err := create(base+".new.pem", 0o644, cert); err != nil {
		return errors.Join(err, os.Remove(base+".new.key"))
	}
	return swap(base)
}

// RenewEnv is the file in which an enrolled host keeps where it renews, for the systemd unit.
const RenewEnv = "renew.env"

// RememberAddress writes RenewEnv.
func RememberAddress(dir, addr string) error {
	return replace(filepath.Join(dir, RenewEnv), 0o644, []byte("MOVER_CA_ADDRESS="+addr+"\n"))
}
