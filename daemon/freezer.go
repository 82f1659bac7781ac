package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// freezer looks at each freeze which filesystems are mounted on the volume then: what was mounted since the start counts too. Around the
// filesystems it runs the operator's hooks.
type freezer struct {
	v    *disk.Volume
	flow config.SourceFlow
	run  string
	log  *slog.Logger

	mu    sync.Mutex      // guards all below
	fs    *freeze.Freezer // of the last freeze; before the first, what an earlier process left frozen
	hook  *freeze.Hook    // nil when the flow has none
	mine  bool            // this process has frozen since its start
	stays bool            // what the stop hook stopped stays so when the filesystems are thawed
}

// holder is what the freezers of blockdev/freeze can do beyond the contract.
type holder interface {
	blockdev.Freezer
	Held() bool
	Thawed() <-chan struct{}
}

func newFreezer(v *disk.Volume, flow config.SourceFlow, run string, log *slog.Logger) *freezer {
	f := &freezer{v: v, flow: flow, run: run, log: log}
	f.fs = freeze.New(nil, f.options())
	if c := flow.Cutover; len(c.StopHook) > 0 {
		f.hook = freeze.NewHook(c.StopHook, c.StartHook, f.hookOptions())
	}
	return f
}

func (f *freezer) options() freeze.Options {
	return freeze.Options{RunDir: f.run, Name: f.flow.Name, Log: f.log}
}

func (f *freezer) hookOptions() freeze.HookOptions {
	return freeze.HookOptions{Flow: f.flow.Name, RunDir: f.run, Log: f.log}
}

// current is the freezer of the last freeze.
func (f *freezer) current() holder {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hook == nil {
		return f.fs
	}
	return freeze.Both(f.hook, f.fs)
}

// dirs lists what has to be frozen now, the uppermost first.
func (f *freezer) dirs() ([]string, error) {
	mounts, err := mountsOf(f.v)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mounts {
		switch {
		case m.ReadOnly:
		case m.Dir == "":
			return nil, fmt.Errorf("freeze %s: %s (%s) is mounted on it where nobody can reach it; unmount what hides it, or unmount it: %w",
				f.flow.Name, m.Source, m.Type, sentinel.ErrRefused)
		default:
			out = append(out, m.Dir)
		}
	}
	slices.Reverse(out) // what was mounted last may lie on what was mounted first
	return out, nil
}

// mountsOf lists the filesystems on a volume, also on one without a map to leaf disks.
func mountsOf(v *disk.Volume) ([]disk.Mount, error) {
	m := v.Map()
	if m == nil && v.Device() == 0 {
		return nil, nil // an image file
	}
	if m == nil {
		m = extent.Map{{Off: 0, Len: v.Size(), Dev: v.Device(), DevOff: 0}}
	}
	return disk.Mounts(m)
}

func (f *freezer) Freeze(ctx context.Context, deadline time.Duration) error {
	dirs, err := f.dirs()
	if err != nil {
		return err
	}
	if f.v.Device() == 0 && f.hook == nil {
		// Who writes an image file through a loop device is not stopped by anything here.
		if found, err := disk.Inspect(f.v.Path()); err != nil || len(found.Users) > 0 {
			return errors.Join(err, fmt.Errorf("freeze %s: %s is in use, which nothing here stops: %v; name the loop device as the volume, or give a stop hook: %w",
				f.flow.Name, f.v.Path(), found.Users, sentinel.ErrRefused))
		}
	}
	if m := f.v.Map(); m != nil {
		swaps, err := disk.Swaps(m)
		if err != nil {
			return err
		}
		for _, a := range swaps {
			f.log.Warn("active swap lies on the volume; no freeze stops it, and the comparison will tell if it was written", "swap", a.Path)
		}
	}
	f.mu.Lock()
	f.fs, f.mine, f.stays = freeze.New(dirs, f.options()), true, false
	f.mu.Unlock()
	h := f.current()
	if err := h.Freeze(ctx, deadline); err != nil {
		return err
	}
	// A filesystem that was mounted between the look and the freeze has not been frozen.
	now, err := f.dirs()
	if err == nil && !slices.Equal(now, dirs) {
		err = fmt.Errorf("freeze %s: mounts changed from %v to %v meanwhile; try again: %w", f.flow.Name, dirs, now, sentinel.ErrRefused)
	}
	if err != nil {
		return errors.Join(err, h.Thaw())
	}
	return nil
}

// Thaw thaws the filesystems, and starts what the stop hook stopped unless it was asked to stay so.
func (f *freezer) Thaw() error {
	f.mu.Lock()
	fs, hook, mine, stays := f.fs, f.hook, f.mine, f.stays
	f.mu.Unlock()
	switch {
	case hook == nil || stays:
		return fs.Thaw()
	case mine:
		return freeze.Both(hook, fs).Thaw()
	}
	return errors.Join(fs.Thaw(), f.start())
}

// start runs the start hook for what an earlier process stopped and left so.
func (f *freezer) start() error {
	if f.hook == nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(f.run, "stopped-"+f.flow.Name+".json")); err != nil {
		return nil
	}
	h := freeze.NewHook(nil, f.flow.Cutover.StartHook, f.hookOptions()) // its stop does nothing: it has been done
	if err := h.Freeze(context.Background(), time.Hour); err != nil {
		return err
	}
	return h.Thaw()
}

func (f *freezer) Keep() error             { return f.current().Keep() }
func (f *freezer) Held() bool              { return f.current().Held() }
func (f *freezer) Thawed() <-chan struct{} { return f.current().Thawed() }

// Names lists what a freeze would stop now.
func (f *freezer) Names() []string {
	dirs, err := f.dirs()
	if err != nil {
		return []string{err.Error()}
	}
	if f.hook != nil {
		dirs = append(f.hook.Names(), dirs...)
	}
	return dirs
}

// leave does what a cutover was asked to leave the source as, while it is still frozen; a thaw follows. undo takes it back.
func (f *freezer) leave(_ context.Context, as string, undo bool) error {
	if as == "read-only" {
		if err := f.readOnly(undo); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.stays = !undo
	mine, hook := f.mine, f.hook
	f.mu.Unlock()
	switch {
	case !undo || hook == nil:
		return nil
	case mine:
		return hook.Thaw()
	}
	return f.start()
}

// readOnly makes every mount of the volume's filesystems read-only, or as it was.
func (f *freezer) readOnly(undo bool) error {
	record := filepath.Join(f.run, "readonly-"+f.flow.Name+".json")
	if undo {
		return errors.Join(freeze.Writable(record), f.protect(false))
	}
	dirs, err := f.dirs()
	if err != nil {
		return err
	}
	if len(dirs) == 0 {
		return f.protect(true)
	}
	return freeze.ReadOnly(dirs, record)
}

// protect keeps a device without filesystems from being opened for writing.
func (f *freezer) protect(ro bool) error {
	if f.v.Device() == 0 {
		return nil // an image file: there is nothing between its writers and it
	}
	return disk.SetReadOnly(f.v.Path(), ro)
}
