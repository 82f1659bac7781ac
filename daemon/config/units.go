package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/wire"
)

// Spellings that all files share.
type (
	Size     = strict.Size
	Rate     = strict.Rate
	Duration = strict.Duration
	Zone     = strict.Zone
	Error    = strict.Error
)

// File is an absolute path, or credential:NAME, which systemd keeps for a unit with LoadCredential=NAME:PATH.
type File string

const credential = "credential:"

// Parse reads a path.
func (v *File) Parse(s string) error {
	if name, ok := strings.CutPrefix(s, credential); ok {
		if name == "" || name == "." || name == ".." || name != filepath.Base(name) {
			return fmt.Errorf("%q: a credential has a plain name", s)
		}
		*v = File(s)
		return nil
	}
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path", s)
	}
	*v = File(filepath.Clean(s))
	return nil
}

// Path is where the file is.
func (v File) Path() (string, error) { return v.path() }

// path is where the file is.
func (v File) path() (string, error) {
	name, ok := strings.CutPrefix(string(v), credential)
	if !ok {
		return string(v), nil
	}
	dir := os.Getenv(wire.CredentialsEnv)
	if dir == "" {
		return "", fmt.Errorf("%q: $%s is not set; only systemd sets it, for a unit with LoadCredential=%s:PATH", v, wire.CredentialsEnv, name)
	}
	return filepath.Join(dir, name), nil
}
