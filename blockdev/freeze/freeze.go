// Package freeze stops the writers of mounted filesystems for a bounded time.
//
// A frozen filesystem stays frozen when the process that froze it dies, and everyone who writes to it hangs. So the freezing is done by a
// guardian: a process of its own, made ready before anything is frozen. It thaws when it is told to, when the deadline passes, and when
// its socket to the daemon closes, that is when the daemon dies. The daemon in turn watches the guardian: when that dies, or
// does not act at its deadline, the daemon kills it and thaws. Only when both are killed in the same instant is
// anything left frozen; then the record in RunDir tells what (ThawStale, ThawRecorded).
//
// The deadline bounds the time from the beginning of the first freeze to the beginning of the thaw. A freeze that is still writing dirty
// data back when it passes cannot be called off in the kernel: the others are thawed at once, it as soon as it returns.
//
// While frozen, the daemon itself must not write to what it froze: no log file, no state, no journal on a frozen disk (internal/logbuf).
// The package logs only before a freeze and after the thaw.
package freeze

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

var (
	_ blockdev.Freezer = (*Freezer)(nil)
	_ blockdev.Freezer = (*Hook)(nil)
	_ blockdev.Freezer = (*Pair)(nil)
)

// Options of a Freezer. RunDir is needed, the rest has defaults.
type Options struct {
	RunDir string       // folder of the records of what is frozen: a tmpfs, never on what is frozen
	Name   string       // of the record: the flow; default: the process id
	Exec   []string     // command of the guardian; default: this program with the argument "guardian"
	Log    *slog.Logger // default: slog.Default()

	dry bool   // tests: do not flush before the freeze
	how string // tests: other than what fits the filesystem
}

// Freezer freezes mounted filesystems. Its methods are safe for concurrent use.
type Freezer struct {
	dirs []string
	o    Options

	freezing sync.Mutex // one Freeze at a time; taken before mu

	mu  sync.Mutex // guards all below
	cur *session   // the last freeze, nil before the first
}

// New makes a freezer of the filesystems mounted on dirs, in the order of freezing: of two stacked ones (a loop image on another
// filesystem) the upper comes first. A filesystem that is mounted twice is frozen once. No dirs: nothing to freeze, which always holds.
func New(dirs []string, o Options) *Freezer {
	if o.Name == "" {
		o.Name = fmt.Sprint(os.Getpid())
	}
	if len(o.Exec) == 0 {
		o.Exec = []string{"/proc/self/exe", "guardian"} // not os.Executable: an upgrade may have replaced the file
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	clean := make([]string, len(dirs))
	for i, d := range dirs {
		clean[i] = filepath.Clean(d)
	}
	return &Freezer{dirs: clean, o: o}
}

// Names lists the mount points in the order of freezing.
func (f *Freezer) Names() []string { return append([]string(nil), f.dirs...) }

func (f *Freezer) path() string { return recordPath(f.o.RunDir, recordPrefix, f.o.Name) }

func (f *Freezer) session() *session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur
}

// Freeze freezes all filesystems or none. They are flushed first, as long as ctx allows and without stopping anyone; the deadline
// counts from there. Cancelling ctx thaws. An error means that nothing stays frozen; a filesystem whose freeze the kernel is still
// working on is named in it and thawed as soon as it can be.
func (f *Freezer) Freeze(ctx context.Context, deadline time.Duration) error {
	if deadline <= 0 {
		return fmt.Errorf("freeze with a deadline of %s: %w", deadline, sentinel.ErrUsage)
	}
	f.freezing.Lock()
	defer f.freezing.Unlock()
	if s := f.session(); s != nil && !closed(s.ended) {
		return fmt.Errorf("freeze %v: an earlier freeze has not been thawed: %w", f.dirs, sentinel.ErrRefused)
	}
	ms, err := openMounts(f.dirs)
	if err != nil {
		return err
	}
	for i := range ms {
		ms[i].How = cmp.Or(f.o.how, ms[i].How)
	}
	if len(ms) == 0 {
		f.begin(emptySession())
		return nil
	}
	err = f.checkRecord(ms)
	var s *session
	if err == nil {
		s, err = startSession(f.o, f.path(), ms)
	}
	if err != nil {
		closeMounts(ms)
		return err
	}
	f.begin(s)
	return s.freeze(ctx, deadline)
}

func (f *Freezer) begin(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur = s
}

// checkRecord makes sure that what is about to be frozen can be recorded. The record of another freeze is not overwritten.
func (f *Freezer) checkRecord(ms []mount) error {
	if err := checkRunDir(f.o.RunDir, ms); err != nil {
		return err
	}
	if _, err := os.Stat(f.path()); err == nil {
		return fmt.Errorf("freeze %v: %s tells of an earlier freeze; thaw it first (moverctl thaw): %w", f.dirs, f.path(), sentinel.ErrRefused)
	}
	return nil
}

// Thaw thaws. It may be called again and returns the same. An error tells that the freeze was void: the deadline, a death of the guardian or
// somebody else had thawed before, so writers may have run; or that something could not be thawed, and what.
//
// A freezer that has frozen nothing itself thaws what an earlier process kept frozen under the same name.
func (f *Freezer) Thaw() error {
	if s := f.session(); s != nil {
		return s.thaw()
	}
	if _, err := os.Stat(f.path()); err != nil {
		return nil
	}
	names, err := thawRecord(f.path(), true)
	f.o.Log.Info("thawed what an earlier process had frozen", "flow", f.o.Name, "mounts", names)
	return err
}

// Keep lets the freeze outlive the deadline and this process. It fails when the freeze has not held until now.
func (f *Freezer) Keep() error {
	s := f.session()
	if s == nil {
		return fmt.Errorf("keep %v frozen: nothing was frozen: %w", f.dirs, sentinel.ErrRefused)
	}
	return s.keep()
}

// Held tells whether everything has been frozen without a break since Freeze returned. It asks the kernel: it sees
// also what another program has thawed.
func (f *Freezer) Held() bool {
	s := f.session()
	return s != nil && s.verify()
}

// Thawed is closed as soon as the freeze is void or over; it is closed when nothing was frozen.
func (f *Freezer) Thawed() <-chan struct{} {
	if s := f.session(); s != nil {
		return s.voided
	}
	c := make(chan struct{})
	close(c)
	return c
}
