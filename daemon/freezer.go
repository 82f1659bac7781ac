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

// freezer looks at each freeze which filesystems are mounted on its volumes then: what was mounted since the start counts too. Around the
// filesystems it runs the operator's hooks. However many volumes it has, one freeze stops their writers: one guardian, one deadline, one record.
type freezer struct {
	o    freezerOptions
	log  *slog.Logger
	raw  strangers           // of the last freeze
	told sync.Map            // paths of swap that have been warned of
	app  *freeze.Application // nil without hooks

	leaving sync.Mutex // one leave at a time; taken before mu

	mu    sync.Mutex      // guards all below
	fs    *freeze.Freezer // of the last freeze; before the first, what an earlier process left frozen
	hook  *freeze.Hook    // nil when there is none
	mine  bool            // this process has frozen since its start
	stays bool            // what the stop hook stopped stays so when the filesystems are thawed
	left  string          // what leave has made of the source and not taken back
}

// freezerOptions say whose writers are stopped. All but Cutover's hooks is needed.
type freezerOptions struct {
	Name    string                         // of the flow or the group: of the records in Run, and for people
	Volumes func() ([]*disk.Volume, error) // asked at each look, since a flow may open its volume anew; an error refuses the freeze
	Cutover config.Cutover                 // its hooks
	Hooks   config.Hooks                   // of applications, around each moment; may be empty
	Run     string                         // folder of the records
	Log     *slog.Logger
}

// holder is what the freezers of blockdev/freeze can do beyond the contract.
type holder interface {
	blockdev.Freezer
	Held() bool
	Thawed() <-chan struct{}
}

// newFreezer makes the freezer of one flow.
func newFreezer(v *disk.Volume, flow config.SourceFlow, run string, log *slog.Logger) *freezer {
	return newGroupFreezer(freezerOptions{Name: flow.Name, Cutover: flow.Cutover, Run: run, Log: log,
		Volumes: func() ([]*disk.Volume, error) { return []*disk.Volume{v}, nil }})
}

// newGroupFreezer makes a freezer of several volumes at one moment. Its name must differ from those of all flows, which have records of
// their own.
func newGroupFreezer(o freezerOptions) *freezer {
	f := &freezer{o: o, log: o.Log}
	f.fs = freeze.New(nil, f.options())
	if h := o.Hooks; len(h.Pre)+len(h.Post) > 0 {
		f.app = freeze.NewApplication(freeze.ApplicationOptions{Group: o.Name, Pre: h.Pre, Post: h.Post,
			Limit: time.Duration(h.Timeout), RunDir: o.Run, Log: o.Log})
	}
	if c := o.Cutover; len(c.StopHook) > 0 {
		f.hook = freeze.NewHook(c.StopHook, c.StartHook, f.hookOptions())
	}
	return f
}

func (f *freezer) options() freeze.Options {
	return freeze.Options{RunDir: f.o.Run, Name: f.o.Name, Log: f.log}
}

func (f *freezer) hookOptions() freeze.HookOptions {
	return freeze.HookOptions{Flow: f.o.Name, RunDir: f.o.Run, Log: f.log}
}

// current is the freezer of the last freeze.
func (f *freezer) current() holder {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hook == nil {
		return f.fs
	}
	return f.pair(f.fs, nil)
}

func (f *freezer) pair(fs *freeze.Freezer, between func()) *freeze.Pair {
	p := freeze.Both(f.hook, fs)
	p.Between = between
	return p
}

func (f *freezer) stack() (disk.Stack, error) {
	vs, err := f.o.Volumes()
	if err != nil {
		return disk.Stack{}, err
	}
	return disk.StackOn(extents(vs...))
}

// dirs lists what has to be frozen now, the uppermost first.
func (f *freezer) dirs() ([]string, error) {
	stack, err := f.stack()
	if err != nil {
		return nil, err
	}
	return f.mounted(stack)
}

func (f *freezer) mounted(stack disk.Stack) ([]string, error) {
	var out []string
	for _, m := range stack.Mounts {
		switch {
		case m.Stopped():
		case m.Dir == "":
			where := "is mounted on it"
			if m.Pid != 0 {
				where = fmt.Sprintf("is mounted on it in the mount namespace of pid %d,", m.Pid)
			}
			return nil, fmt.Errorf("freeze %s: %s (%s) %s where nobody can reach it; unmount what hides it, or unmount it: %w",
				f.o.Name, m.Source, m.Type, where, sentinel.ErrRefused)
		default:
			out = append(out, m.Dir)
		}
	}
	return out, nil
}

// extents are the volumes on their leaf disks; those without a map are their own leaf, and image files have none.
func extents(vs ...*disk.Volume) (all extent.Map) {
	for _, v := range vs {
		m := v.Map()
		if m == nil && v.Device() != 0 {
			m = extent.Map{{Off: 0, Len: v.Size(), Dev: v.Device(), DevOff: 0}}
		}
		all = append(all, m...)
	}
	return all
}

// mountsOf lists the filesystems on volumes, each once.
func mountsOf(vs ...*disk.Volume) ([]disk.Mount, error) { return disk.Mounts(extents(vs...)) }

// check refuses what nothing here would stop, and warns of what the comparison will tell.
func (f *freezer) check() error {
	vs, err := f.o.Volumes()
	if err != nil {
		return err
	}
	for _, v := range vs {
		if v.Device() == 0 && f.hook == nil {
			// Who writes an image file through a loop device is not stopped by anything here.
			if found, err := disk.Inspect(v.Path()); err != nil || len(found.Users) > 0 {
				return errors.Join(err, fmt.Errorf("freeze %s: %s is in use, which nothing here stops: %v; name the loop device as the volume, or give a stop hook: %w",
					f.o.Name, v.Path(), found.Users, sentinel.ErrRefused))
			}
		}
		if m := v.Map(); m != nil {
			swaps, err := disk.Swaps(m)
			if err != nil {
				return err
			}
			for _, a := range swaps {
				if _, told := f.told.LoadOrStore(a.Path, true); !told {
					f.log.Warn("active swap lies on the volume; no freeze stops it, and a point or cutover within which it is written is not consistent",
						"volume", v.Path(), "swap", a.Path)
				}
			}
		}
	}
	return nil
}

// pre makes the applications ready for a moment. Then post is owed, whatever happens; when pre fails it has run already.
func (f *freezer) pre(ctx context.Context, moment string) error {
	if f.app == nil {
		return nil
	}
	return f.app.Pre(ctx, moment)
}

// post lets the applications go on after the thaw. It may be called without a pre, and again.
func (f *freezer) post() error {
	f.raw.after() // a raw database may come back now
	if f.app == nil {
		return nil
	}
	return f.app.Post()
}

// users names who may have written the volumes past the last freeze; then what was read is fuzzy. To be asked after the thaw, or while frozen
// where no thaw follows.
func (f *freezer) users() []string { return f.raw.names() }

// Freeze freezes what lies on the volumes now.
func (f *freezer) Freeze(ctx context.Context, deadline time.Duration) error {
	stack, err := f.stack()
	if err != nil {
		return err
	}
	dirs, err := f.mounted(stack)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	f.mu.Lock()
	fs := freeze.New(dirs, f.options())
	f.fs, f.mine, f.stays, f.left = fs, true, false, ""
	f.mu.Unlock()
	if f.hook == nil {
		f.raw.before(stack)
		err = fs.Freeze(ctx, deadline)
	} else {
		err = f.pair(fs, func() { f.raw.before(stack) }).Freeze(ctx, deadline)
	}
	if err != nil {
		return err
	}
	f.raw.frozen()
	// A filesystem that was mounted between the look and the freeze has not been frozen.
	now, err := f.dirs()
	if err == nil && !slices.Equal(now, dirs) {
		err = fmt.Errorf("freeze %s: mounts changed from %v to %v meanwhile; try again: %w", f.o.Name, dirs, now, sentinel.ErrRefused)
	}
	if err != nil {
		return errors.Join(err, f.Thaw())
	}
	return nil
}

// Thaw thaws the filesystems, and starts what the stop hook stopped unless it was asked to stay so.
func (f *freezer) Thaw() error {
	f.mu.Lock()
	fs, hook, mine, stays := f.fs, f.hook, f.mine, f.stays
	f.mu.Unlock()
	f.raw.thawing()
	switch {
	case hook == nil || stays:
		return fs.Thaw()
	case mine:
		return f.pair(fs, f.raw.after).Thaw()
	}
	return errors.Join(fs.Thaw(), f.start())
}

// start runs the start hook for what an earlier process stopped and left so.
func (f *freezer) start() error {
	if f.hook == nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(f.o.Run, "stopped-"+f.o.Name+".json")); err != nil {
		return nil
	}
	h := freeze.NewHook(nil, f.o.Cutover.StartHook, f.hookOptions()) // its stop does nothing: it has been done
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

// leave does what a cutover was asked to leave the source as, while it is still frozen; a thaw follows. undo takes it back. Either may be
// called again, by each flow of a group.
func (f *freezer) leave(_ context.Context, as string, undo bool) error {
	f.leaving.Lock()
	defer f.leaving.Unlock()
	f.mu.Lock()
	done := !undo && f.left == as
	f.mu.Unlock()
	if done {
		return nil
	}
	if as == "read-only" {
		if err := f.readOnly(undo); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.stays, f.left = !undo, as
	if undo {
		f.left = ""
	}
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

// readOnly makes every mount of the volumes' filesystems read-only, or as it was; a volume without any is protected as a device.
func (f *freezer) readOnly(undo bool) error {
	record := filepath.Join(f.o.Run, "readonly-"+f.o.Name+".json")
	vs, err := f.o.Volumes()
	if err != nil {
		return err
	}
	if undo {
		return errors.Join(freeze.Writable(record), protect(vs, false))
	}
	dirs, err := f.dirs()
	if err != nil {
		return err
	}
	var bare []*disk.Volume
	for _, v := range vs {
		on, err := mountsOf(v)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(on, func(m disk.Mount) bool { return !m.ReadOnly }) {
			bare = append(bare, v)
		}
	}
	if err := protect(bare, true); err != nil || len(dirs) == 0 {
		return errors.Join(err, undone(err, bare))
	}
	err = freeze.ReadOnly(dirs, record)
	return errors.Join(err, undone(err, bare))
}

// undone takes back the protection of vs when there is an error.
func undone(err error, vs []*disk.Volume) error {
	if err == nil {
		return nil
	}
	return protect(vs, false)
}

// protect keeps devices without filesystems from being opened for writing. Of an image file there is nothing between its writers and it.
func protect(vs []*disk.Volume, ro bool) error {
	var errs []error
	for _, v := range vs {
		if v.Device() != 0 {
			errs = append(errs, disk.SetReadOnly(v.Path(), ro))
		}
	}
	return errors.Join(errs...)
}
