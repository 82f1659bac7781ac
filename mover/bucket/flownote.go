package bucket

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Phases of a flow.
const (
	phaseMoving   = ""
	phaseDone     = "done"
	phaseFinished = "finished"
)

// note is what a flow is at, beyond what its ledger knows.
type note struct {
	Phase    string    `json:"phase,omitempty"`
	Paused   bool      `json:"paused,omitempty"`
	Begun    time.Time `json:"begun,omitzero"` // both ends were found fit
	Done     time.Time `json:"done,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Objects  int64     `json:"objects,omitempty"` // at the cutover
	Bytes    int64     `json:"bytes,omitempty"`
	Manifest string    `json:"manifest,omitempty"`
	Root     string    `json:"root,omitempty"` // of the manifest
}

func (n note) moving() bool { return n.Phase == phaseMoving && !n.Paused }

func notePath(dir string) string { return filepath.Join(dir, "flow.json") }

func readNote(dir string) (n note, err error) {
	b, err := os.ReadFile(notePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		return n, fmt.Errorf("read %s: %w", notePath(dir), err)
	}
	return n, nil
}

func (n note) write(dir string) error {
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	return durably(notePath(dir), func(f *os.File) error { _, err := f.Write(append(b, '\n')); return err })
}

// durably writes a file whole or not at all.
func durably(path string, write func(f *os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // the file has its name
	}
	defer dir.Close()
	return dir.Sync()
}

func (f *Flow) ledgerDir() string { return filepath.Join(f.cfg.Dir, "ledger") }
