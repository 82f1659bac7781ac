package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// keyFile is a file of keys. It prints as nothing.
type keyFile struct {
	Access string `yaml:"access-key"`
	Secret string `yaml:"secret-key"`
	Token  string `yaml:"token,omitempty"`
}

// Read gives the keys of now. Errors have no part of them.
func (c Credentials) Read() (objstore.Keys, error) {
	if c.Env != "" {
		return keysOf(keyFile{os.Getenv(c.Env + "_ACCESS_KEY"), os.Getenv(c.Env + "_SECRET_KEY"), os.Getenv(c.Env + "_TOKEN")},
			"$"+c.Env+"_ACCESS_KEY", "$"+c.Env+"_SECRET_KEY")
	}
	path, checked, err := c.path()
	if err != nil {
		return objstore.Keys{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return objstore.Keys{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return objstore.Keys{}, err
	}
	if mode := st.Mode().Perm(); checked && mode&0o077 != 0 {
		return objstore.Keys{}, fmt.Errorf("%s can be read or written by others than its owner (mode %04o); chmod 600", path, mode)
	}
	text := make([]byte, 16<<10)
	n, err := f.Read(text)
	if err != nil {
		return objstore.Keys{}, fmt.Errorf("%s: is empty; it needs the keys access-key and secret-key", path)
	}
	var k keyFile
	if _, err := strict.Decode(path, text[:n], &k, "is empty; it needs the keys access-key and secret-key"); err != nil {
		return objstore.Keys{}, secretless(path, err)
	}
	return keysOf(k, path+": access-key", path+": secret-key")
}

// secretless is an error of a file of keys without what stands there.
func secretless(path string, err error) error {
	var e *strict.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%s:%d: cannot be read as the keys access-key, secret-key and maybe token, each once", path, e.Line)
	}
	return fmt.Errorf("%s: cannot be read as the keys access-key, secret-key and maybe token", path)
}

func keysOf(k keyFile, access, secret string) (objstore.Keys, error) {
	for _, f := range []struct{ what, v string }{{access, k.Access}, {secret, k.Secret}} {
		if f.v == "" {
			return objstore.Keys{}, fmt.Errorf("%s is missing", f.what)
		}
		if strings.ContainsAny(f.v, " \t\r\n") {
			return objstore.Keys{}, fmt.Errorf("%s has white space in it", f.what)
		}
	}
	return objstore.Keys{ID: k.Access, Secret: k.Secret, Token: k.Token}, nil
}

// path is the file, and whether its mode is the operator's to set.
func (c Credentials) path() (string, bool, error) {
	name, ok := strings.CutPrefix(string(c.File), credential)
	if !ok && c.Systemd == "" {
		return string(c.File), true, nil
	}
	if !ok {
		name = c.Systemd
	}
	if name != filepath.Base(name) || name == "." || name == ".." {
		return "", false, fmt.Errorf("%q: a credential has a plain name", name)
	}
	dir := os.Getenv(wire.CredentialsEnv)
	if dir == "" {
		return "", false, fmt.Errorf("%q: $%s is not set; only systemd sets it, for a unit with LoadCredential=%s:PATH", name, wire.CredentialsEnv, name)
	}
	return filepath.Join(dir, name), false, nil
}

// readAgain is how long keys are used before their file is read again: somebody may renew them.
const readAgain = 30 * time.Second

// Keys gives keys to a driver.
func (c Credentials) Keys() objstore.Credentials { return &keeper{from: c} }

type keeper struct {
	from Credentials

	mu   sync.Mutex // guards all below
	keys objstore.Keys
	read time.Time
}

func (k *keeper) Keys(context.Context) (objstore.Keys, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.read) < readAgain {
		return k.keys, nil
	}
	keys, err := k.from.Read()
	if err != nil {
		return objstore.Keys{}, fmt.Errorf("credentials: %w: %w", err, objstore.ErrDenied)
	}
	k.keys, k.read = keys, time.Now()
	return keys, nil
}

func (k *keeper) String() string { return "credentials" }
