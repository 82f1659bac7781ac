package cbt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

// DefaultPinDir is where trackers are pinned unless Options say otherwise.
const DefaultPinDir = "/sys/fs/bpf/mover"

const defaultMemory = 128 << 20

// Options of a Tracker.
type Options struct {
	Name   string     // of the flow; one tracker per name and PinDir
	Map    extent.Map // the volume as segments of whole leaf disks
	Size   int64      // of the volume, bytes
	PinDir string     // on a bpffs; "" is DefaultPinDir
	Memory int64      // bytes for the bitmaps of all leaf disks; 0 is 128 MiB. It decides the granule, from 4 KiB up
	// Identity names the volume (WWID, serial, size). It is asked at Open and at every Take; another answer is a gap. May be nil.
	Identity func() (string, error)
	// Remap gives the volume's map as it is now. Another map than Map is a gap, and what Restart goes on with. May be nil.
	Remap func() (extent.Map, error)

	variant string // tests choose one; "" takes the best that the kernel has
}

// Tracker implements blockdev.Tracker. Safe for concurrent use.
type Tracker struct {
	o    Options
	dir  string   // PinDir/NAME
	lock *os.File // of dir, held while open

	mu     sync.Mutex // guards all below
	plan   *plan      // what ought to be attached
	st     *state     // pinned, or in memory when nothing is attached
	stMem  []byte     // the mapping behind st; nil when st is in memory
	leaves []*leaf
	closed bool

	pending   int64 // bytes, as of pendingAt
	pendingAt time.Time
	pendingIn time.Duration // how long the count took
}

var _ blockdev.Tracker = (*Tracker)(nil)

// Open adopts what an earlier process left pinned under this name, if it is whole, alive and of this very volume, and otherwise attaches
// afresh with a new generation. Errors: ErrNotSupported (the text says why; use scan mode), ErrRefused (open elsewhere).
func Open(o Options) (*Tracker, error) {
	if o.PinDir == "" {
		o.PinDir = DefaultPinDir
	}
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.Name == "" || o.Size <= 0 || len(o.Map) == 0 {
		return nil, fmt.Errorf("%w: a tracker needs a name, a size and a map", sentinel.ErrUsage)
	}
	if o.variant == "" {
		s := Probe()
		if s.Method != MethodEBPF {
			return nil, fmt.Errorf("track %s: %w: %s", o.Name, sentinel.ErrNotSupported, s.Reason)
		}
		o.variant = s.Variant
	}
	p, err := makePlan(o)
	if err != nil {
		return nil, fmt.Errorf("track %s: %w", o.Name, err)
	}
	t := &Tracker{o: o, dir: filepath.Join(o.PinDir, pinName(o.Name)), plan: p}
	if err := t.open(); err != nil {
		t.unmap()
		if t.lock != nil {
			t.lock.Close()
		}
		return nil, fmt.Errorf("track %s: %w", o.Name, err)
	}
	return t, nil
}

func (t *Tracker) open() error {
	if err := makePinDir(t.o.PinDir, t.dir); err != nil {
		return err
	}
	lock, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	t.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: another process has the tracker pinned at %s open", sentinel.ErrRefused, t.dir)
	}
	why := t.adopt()
	if why == "" {
		return nil
	}
	slog.Info("tracking begins a new history", "flow", t.o.Name, "reason", why)
	t.unmap()
	return t.attach()
}

// Method names the tracker: "ebpf", and its variant, granule and leaf disks.
func (t *Tracker) Method() (name, detail string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	detail = fmt.Sprintf("%s, granule %d KiB", t.plan.variant, t.plan.granule>>10)
	for _, l := range t.plan.leaves {
		detail += ", " + l.disk.String()
	}
	return MethodEBPF, detail
}

// Granule is what one dirty bit covers, in bytes.
func (t *Tracker) Granule() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.plan.granule
}

// History is where the tracker stands.
func (t *Tracker) History() blockdev.History {
	t.mu.Lock()
	defer t.mu.Unlock()
	return blockdev.History{Generation: t.st.Generation, Taken: t.st.Taken, Retired: t.st.Retired}
}

// Close lets go of the maps; the kernel goes on marking.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.close()
}

func (t *Tracker) close() error {
	if t.closed {
		return nil
	}
	t.closed = true
	t.unmap()
	return t.lock.Close()
}

// Remove ends tracking and takes away what is pinned.
func (t *Tracker) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	err := removePins(t.dir)
	if err == nil {
		err = os.Remove(t.dir)
	}
	return errors.Join(err, t.close())
}

// unmap drops every mapping and descriptor; st stays readable as a copy.
func (t *Tracker) unmap() {
	for _, l := range t.leaves {
		l.close()
	}
	t.leaves = nil
	if t.stMem != nil {
		st := *t.st
		t.st = &st
		unix.Munmap(t.stMem)
		t.stMem = nil
	}
	if t.st == nil {
		t.st = &state{}
	}
}

var errClosed = fmt.Errorf("%w: the tracker is closed", os.ErrClosed)

func newID() (id blockdev.ID) {
	rand.Read(id[:])
	return id
}

// plan is what a tracker of some options has to look like; what is pinned is adopted only if it looks like that.
type plan struct {
	variant  string
	granule  int64 // bytes
	size     int64
	layout   extent.Map
	digest   digest.Digest // of layout and size
	identity string
	leaves   []leafPlan
}

type leafPlan struct {
	disk     disk
	start    int64 // bytes: where tracking begins on the disk
	length   int64 // bytes
	granules int64
	sectors  int64  // size of the disk, in 512 bytes
	seq      uint64 // diskseq, 0 where the kernel has none
	depth    int    // requests of one hardware queue; 0: writes underway are not noted
	queues   int    // hardware queues
}
