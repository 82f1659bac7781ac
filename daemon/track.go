package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/sentinel"
)

// Track attaches trackers to the configured volumes and leaves them to the kernel: the source that starts later finds them pinned and goes
// on from there. It waits for at most wait for volumes that are not there yet. It needs no network and no certificate, writes to no disk, and starts no pass.
// A volume that never comes is told in the log and is no error: the source looks for it too.
func Track(ctx context.Context, c *config.Config, wait time.Duration, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("moverd track needs root: it opens disks and loads eBPF programs: %w", sentinel.ErrDenied)
	}
	s := c.Source
	if s == nil {
		return usagef("the config has no section %s", Source)
	}
	if err := machineOf(string(s.State)).check(); err != nil {
		return err
	}
	if err := os.MkdirAll(string(s.Run), 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	unlock, err := lock(filepath.Join(string(s.Run), Source+".lock"), Source)
	if errors.Is(err, sentinel.ErrRefused) {
		log.Info("a source runs, and tracks already")
		return nil
	} else if err != nil {
		return err
	}
	defer unlock()
	if s.Tracking.Method == "scan" {
		log.Info("nothing is tracked: tracking.method is scan")
		return nil
	}
	var errs []error
	left := slices.Clone(s.Flows)
	for end := time.Now().Add(wait); ; {
		left = slices.DeleteFunc(left, func(f config.SourceFlow) bool {
			err := trackFlow(s, f, log.With("flow", f.Name))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, sentinel.ErrNotFound) {
				return false
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("flow %s: %w", f.Name, err))
			}
			return true
		})
		if len(left) == 0 || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
			return errors.Join(append(errs, ctx.Err())...)
		case <-time.After(trackPoll):
		}
	}
	for _, f := range left {
		log.Warn("the volume is not there yet; the source will look for it", "flow", f.Name, "volume", f.Volume)
	}
	return errors.Join(errs...)
}

// trackPoll is how often a volume that is missing is looked for.
const trackPoll = 100 * time.Millisecond

func trackFlow(s *config.Source, f config.SourceFlow, log *slog.Logger) (err error) {
	if ended, err := readFinished(string(s.Run), string(s.State), f.Name); err != nil || !ended.IsZero() {
		return err // the way back was given up, and nobody would ever end the tracking
	}
	v, err := disk.OpenVolume(string(f.Volume))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	p := &slot{c: s, f: f, log: log}
	t, err := p.ebpf(v)
	if errors.Is(err, sentinel.ErrNotSupported) {
		log.Info("changes of this volume cannot be tracked; it will be scanned", "why", err)
		return nil
	} else if err != nil {
		return err
	}
	name, detail := t.Method()
	log.Info("tracked from now on", "method", name, "detail", detail)
	return t.Close() // the pins stay
}
