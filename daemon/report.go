package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moverd/mover/mover"
)

// reportPath is below the run folder: a tmpfs, which is not frozen, and is gone after a reboot together with the freeze.
func reportPath(run, flow string) string { return filepath.Join(run, "cutover-"+flow+".json") }

// recorder keeps the report of a flow's cutover; nil forgets it.
func recorder(run, flow string) func(*mover.Report) error {
	path := reportPath(run, flow)
	return func(r *mover.Report) error {
		if r == nil {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			return fmt.Errorf("record the cutover: %w", err)
		}
		return os.Rename(path+".new", path)
	}
}

func recorded(run, flow string) (*mover.Report, error) {
	b, err := os.ReadFile(reportPath(run, flow))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	r := &mover.Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", reportPath(run, flow), err)
	}
	return r, nil
}
