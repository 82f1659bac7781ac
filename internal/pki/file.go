package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// create writes a new file durably, with exactly this mode, and leaves nothing behind when that does not succeed.
func create(path string, mode os.FileMode, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			os.Remove(path)
			return
		}
		err = syncDir(filepath.Dir(path))
	}()
	if err := f.Chmod(mode); err != nil { // whatever the umask
		return err
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// load reads the authority in dir and checks that it can sign.
func load(dir string) (*signer, []byte, error) {
	certPath, keyPath := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	text, err := os.ReadFile(certPath)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (`moverctl pki init` makes an authority)", err)
	}
	cert, err := parse(text, "CERTIFICATE", certPath, x509.ParseCertificate)
	if err != nil {
		return nil, nil, err
	}
	keyText, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, nil, err
	}
	any, err := parse(keyText, "PRIVATE KEY", keyPath, x509.ParsePKCS8PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	key, ok := any.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("%s holds a %T, not an ECDSA key", keyPath, any)
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, nil, fmt.Errorf("%s is not the key of %s", keyPath, certPath)
	case !cert.IsCA:
		return nil, nil, fmt.Errorf("%s is not the certificate of an authority", certPath)
	case time.Now().After(cert.NotAfter):
		return nil, nil, fmt.Errorf("the authority in %s expired on %s", dir, cert.NotAfter.Format(time.DateOnly))
	}
	return &signer{cert, key}, text, nil
}

func parse[T any](text []byte, kind, path string, f func([]byte) (T, error)) (v T, err error) {
	b, _ := pem.Decode(text)
	if b == nil || b.Type != kind {
		return v, fmt.Errorf("%s holds no PEM block %q", path, kind)
	}
	if v, err = f(b.Bytes); err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}
