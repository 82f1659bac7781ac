package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// Files are the paths of the PEM files of one end. A path "credential:NAME" is a credential of the systemd unit.
type Files struct {
	CA   string // certificates of the authorities that are trusted
	Cert string // own certificate, then those between it and the CA
	Key  string // its private key, readable by the owner only

	CRL       string // lists of revoked certificates, signed by authorities of CA; empty: none
	CRLStrict bool   // a list that has ended refuses everybody
}

const credential = "credential:"

// CredentialsEnv is where systemd tells the directory of a unit's credentials.
const CredentialsEnv = "CREDENTIALS_DIRECTORY"

// resolve returns the path of a file, and whether systemd guards it.
func resolve(path string) (string, bool, error) {
	dir := os.Getenv(CredentialsEnv)
	name, ok := strings.CutPrefix(path, credential)
	switch {
	case !ok:
		return path, dir != "" && filepath.Dir(filepath.Clean(path)) == filepath.Clean(dir), nil
	case dir == "":
		return "", false, fmt.Errorf("%s: $%s is not set; this needs LoadCredential=%s:PATH in the systemd unit: %w", path, CredentialsEnv, name, sentinel.ErrUsage)
	case name == "" || name != filepath.Base(name) || name == ".." || name == ".":
		return "", false, fmt.Errorf("%s: a credential has a plain name: %w", path, sentinel.ErrUsage)
	}
	return filepath.Join(dir, name), true, nil
}

// read returns the content of a file and what tells that it has changed. A secret must be the owner's alone, unless systemd
// guards it: there an ACL shows as group bits, and the directory keeps others out.
func read(path string, secret bool) ([]byte, stamp, error) {
	name, guarded, err := resolve(path)
	if err != nil {
		return nil, stamp{}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	switch mode := fi.Mode().Perm(); {
	case !fi.Mode().IsRegular():
		return nil, stamp{}, fmt.Errorf("%s is not a regular file: %w", name, sentinel.ErrUsage)
	case fi.Size() > 1<<20:
		return nil, stamp{}, fmt.Errorf("%s has %d bytes, that is no PEM file: %w", name, fi.Size(), sentinel.ErrUsage)
	case secret && !guarded && mode&0o077 != 0:
		return nil, stamp{}, fmt.Errorf("key file %s is open to others (mode %04o): chmod 600 %s: %w", name, mode, name, sentinel.ErrRefused)
	}
	b := make([]byte, fi.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, stamp{}, fmt.Errorf("read %s: %w", name, err)
	}
	return b, stamp{fi.Size(), fi.ModTime().UnixNano(), inode(fi)}, nil
}

// stamp changes when a file does.
type stamp struct {
	size, mtime int64
	inode       uint64
}

// loaded is what the files held.
type loaded struct {
	stamps [3]stamp
	roots  *x509.CertPool
	cert   tls.Certificate
}

// load reads the files and checks that the pair fits, is valid now, belongs to the CA, and is for this use.
func (f Files) load(use x509.ExtKeyUsage) (*loaded, error) {
	l := &loaded{roots: x509.NewCertPool()}
	ca, s, err := read(f.CA, false)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	l.stamps[0] = s
	if !l.roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("ca: %s holds no certificate: %w", f.CA, sentinel.ErrUsage)
	}
	pem, s, err := read(f.Cert, false)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	l.stamps[1] = s
	key, s, err := read(f.Key, true)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	l.stamps[2] = s
	if l.cert, err = tls.X509KeyPair(pem, key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	if err := verify(l.cert.Leaf, chain(l.cert), l.roots, use, ""); err != nil {
		return nil, fmt.Errorf("own certificate %s: %w", f.Cert, err)
	}
	return l, nil
}

func chain(c tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range c.Certificate[1:] {
		if x, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(x)
		}
	}
	return pool
}

// NotAfter is when the certificate ends, for warnings in time.
func (f Files) NotAfter() (time.Time, error) {
	b, _, err := read(f.Cert, false)
	if err != nil {
		return time.Time{}, err
	}
	for block, rest := pemBlock(b); block != nil; block, rest = pemBlock(rest) {
		if c, err := x509.ParseCertificate(block); err == nil {
			return c.NotAfter, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s holds no certificate: %w", f.Cert, sentinel.ErrUsage)
}

// keeper holds what was loaded last, and loads again when a file has changed.
type keeper struct {
	files Files
	use   x509.ExtKeyUsage

	mu     sync.Mutex // guards all below
	last   *loaded
	warned string // about the change that could not be loaded
}

func keep(f Files, use x509.ExtKeyUsage) (*keeper, error) {
	l, err := f.load(use)
	if err != nil {
		return nil, err
	}
	return &keeper{files: f, use: use, last: l}, nil
}

// get returns what the files hold now. While a renewal is half done, or is not usable, what was good before stays.
func (k *keeper) get() *loaded {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stamps() == k.last.stamps {
		return k.last
	}
	l, err := k.files.load(k.use)
	if err != nil {
		if text := err.Error(); text != k.warned {
			k.warned = text
			slog.Warn("changed certificate is not usable, the one before stays in use", "error", err)
		}
		return k.last
	}
	slog.Info("certificate was read again", "file", k.files.Cert, "valid_until", l.cert.Leaf.NotAfter)
	k.last, k.warned = l, ""
	return l
}

func (k *keeper) stamps() (s [3]stamp) {
	for i, path := range []string{k.files.CA, k.files.Cert, k.files.Key} {
		name, _, err := resolve(path)
		if err != nil {
			continue
		}
		if fi, err := os.Stat(name); err == nil {
			s[i] = stamp{fi.Size(), fi.ModTime().UnixNano(), inode(fi)}
		} else if !errors.Is(err, os.ErrNotExist) {
			s[i].size = -1
		}
	}
	return s
}
