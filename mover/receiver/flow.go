package receiver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// flow is one configured flow: its target, table, log and open pass.
type flow struct {
	s    *Server
	cfg  FlowConfig
	key  string
	log  *slog.Logger
	gate gate
	// attach is held (a token taken) while a link is being replaced by another (C8).
	attaching chan struct{}

	// Changed by holders of the whole gate only, used by those of a share.
	target  blockdev.Target // nil: not claimed yet, or released
	table   *chunker.Table  // nil: volume not known yet; also written under mu, so that either suffices to read it
	touched *extent.Set     // leaves written since they were last read back
	rebuilt bool            // the table was lost while a point or a pass stood on it; until a pass that covers everything begins
	// allTouched: after a start everything that is known counts as touched.
	allTouched atomic.Bool

	recMu   sync.Mutex   // held while the record is changed, so that no change is lost
	granted atomic.Int64 // bytes of the volume that the policy has let pass

	prints   atomic.Pointer[catalog.Prints] // of the target's pages; nil: none
	paying   paying
	targetMu sync.RWMutex // other flows read candidates under a read lock; closing takes the write lock

	mu         sync.Mutex // guards all below
	rec        catalog.Record
	pass       *pass
	last       *wire.Committed // answer to the last COMMIT, should it be asked for again
	finishing  *finishing      // what the last pass needs before anything else may happen
	loaded     bool
	broken     error // why nothing goes on until the next HELLO tries again
	link       *link
	fenced     [][16]byte // links that newer ones replaced
	unreadable *extent.Set
	settling   bool
	since      time.Time
	rates      rates
	totals     mover.Counts
	passes     int64
	rescans    int64
	lastError  string
	pointError string         // why the last commit has no point
	inUse      map[string]int // points that are being read
}

// errUnclaimed: somebody has to look before bytes are overwritten (C12).
func (f *flow) errUnclaimed(found Found) error {
	what := "its content is not known to be worthless"
	if len(found.Signatures) > 0 {
		what = fmt.Sprintf("it holds: %v", found.Signatures)
	} else if found.Blank {
		what = "it looks blank"
	}
	return fmt.Errorf("target %s of flow %s has not been claimed (%s): run `moverctl claim %s` at the gateway: %w",
		f.cfg.Target, f.key, what, f.key, sentinel.ErrRefused)
}

func (f *flow) dir() string     { return f.s.cat.FlowDir(f.key) }
func (f *flow) logPath() string { return filepath.Join(f.dir(), "redo.log") }
func (f *flow) logLimit() int64 { return orElse(f.cfg.LogLimit, f.s.cfg.LogLimit) }

func (f *flow) logOptions() catalog.LogOptions {
	return catalog.LogOptions{Limit: f.logLimit(), Stats: &f.s.metrics.log}
}

func (f *flow) record() catalog.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rec
}

// update changes the record durably; on an error it is as before.
func (f *flow) update(change func(*catalog.Record)) error {
	f.recMu.Lock()
	defer f.recMu.Unlock()
	r := f.record().Clone() // others may be reading
	change(&r)
	r, err := f.s.cat.Put(r)
	if err != nil {
		return diskFull(err)
	}
	f.mu.Lock()
	f.rec = r
	f.mu.Unlock()
	return nil
}

// fail marks the flow broken: nothing goes on from what is in memory, which may be ahead of what is durable. The link ends, and
// the next HELLO loads the flow from disk as after a restart.
func (f *flow) fail(err error) {
	f.mu.Lock()
	first := f.broken == nil
	if first {
		f.broken, f.since, f.lastError = err, time.Now(), err.Error()
	}
	l := f.link
	f.mu.Unlock()
	if first && f.s.ctx.Err() == nil {
		f.log.Error("flow stands still until its source connects again", "error", err)
	}
	if l != nil {
		l.end(f.wireError(err))
	}
}

// wireError is what the source is told about err.
func (f *flow) wireError(err error) *wire.Error {
	var op *mover.OpError
	switch {
	case errors.As(err, new(*wire.Error)):
		return wire.ErrorOf(err)
	case errors.Is(err, catalog.ErrLogFull) || errors.Is(err, errStateFull):
		return &wire.Error{Code: wire.CodeBusy, RetryMS: 10_000, Text: err.Error()}
	case errors.As(err, &op) && !errors.Is(err, sentinel.ErrCorrupt) && !errors.Is(err, sentinel.ErrRefused):
		return &wire.Error{Code: wire.CodeTargetIO, RetryMS: 10_000, Text: err.Error()}
	case errors.Is(err, context.Canceled) && f.s.ctx.Err() != nil:
		return &wire.Error{Code: wire.CodeStopping, RetryMS: 2_000, Text: "the gateway is stopping"}
	}
	return wire.ErrorOf(err)
}

func (f *flow) opError(op string, e extent.Extent, err error) error {
	return &mover.OpError{Op: op + " target " + f.cfg.Target, Flow: f.key, Extent: e, Err: err}
}

// load opens what the record names and takes up the log. The caller holds the whole gate, or nobody else knows the flow.
func (f *flow) load() error {
	f.teardown()
	err := f.open()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded, f.broken, f.since = err == nil, err, time.Now()
	if err != nil {
		f.lastError = err.Error()
	}
	return err
}

func (f *flow) open() error {
	rec, known := f.s.cat.Get(f.key)
	if !known {
		rec = catalog.Record{Tenant: f.cfg.Tenant, Host: f.cfg.Host, Name: f.cfg.Name, Flow: f.key, Phase: mover.Fresh}
	}
	f.mu.Lock()
	f.rec = rec
	f.mu.Unlock()
	if rec.Target.Identity == "" {
		return f.unclaimed(rec)
	}
	if rec.Target.Path != f.cfg.Target {
		return fmt.Errorf("flow %s is configured for target %s but its claim is on %s; configure that one, or drop the claim: %w",
			f.key, f.cfg.Target, rec.Target.Path, sentinel.ErrRefused)
	}
	if rec.Phase == mover.Released {
		return nil
	}
	if err := f.openTarget(rec.Volume.Size); err != nil {
		return err
	}
	if rec.Volume.Size == 0 {
		return nil
	}
	if err := f.openTable(rec.Volume.Size); err != nil {
		return err
	}
	f.sweepPoints()
	return f.restore()
}

// unclaimed allows only a target that does not exist yet, or an image file that this gateway was about to make when it crashed.
func (f *flow) unclaimed(rec catalog.Record) error {
	found, err := f.s.cfg.Inspect(f.cfg.Target)
	switch {
	case errors.Is(err, sentinel.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at target %s of flow %s: %w", f.cfg.Target, f.key, err)
	case rec.Target.Created && found.Blank:
		return f.update(func(r *catalog.Record) {
			r.Target.Identity, r.Target.Size, r.Target.Claimed = found.Identity, found.Size, time.Now().UTC()
		})
	}
	return f.errUnclaimed(found)
}

// openTarget opens the claimed target and checks that it is the claimed one (C12).
func (f *flow) openTarget(size int64) error {
	t, err := f.s.cfg.OpenTarget(f.cfg.Target, size, false)
	if err != nil {
		return f.opError("open", extent.Extent{}, err)
	}
	rec := f.record()
	if id := t.Identity(); catalog.Who(id) != catalog.Who(rec.Target.Identity) {
		return errors.Join(fmt.Errorf("target %s of flow %s is not the one that was claimed: it is %s, claimed was %s; attach the right one, or drop the claim and claim anew: %w",
			f.cfg.Target, f.key, id, rec.Target.Identity, sentinel.ErrRefused), t.Close())
	}
	if t.Size() < size {
		return errors.Join(fmt.Errorf("target %s of flow %s has %d bytes, its volume has %d: %w",
			f.cfg.Target, f.key, t.Size(), size, sentinel.ErrRefused), t.Close())
	}
	f.setTarget(t)
	return nil
}

func (f *flow) setTarget(t blockdev.Target) {
	f.targetMu.Lock()
	f.target = t
	f.targetMu.Unlock()
}

// openTable opens the digest table; one that cannot be read is replaced by an empty one, which costs reading the target.
func (f *flow) openTable(size int64) error {
	path := filepath.Join(f.dir(), "table")
	cfg := chunker.TableConfig{Cache: f.s.cfg.TableMemory, PowerCut: true} // free markers cannot be read back
	_, missing := os.Stat(path)
	t, err := chunker.OpenTableWith(path, size, cfg)
	rebuilt := err != nil || missing != nil
	useless := errors.Is(err, sentinel.ErrCorrupt) || errors.Is(err, sentinel.ErrNotSupported) || errors.Is(err, sentinel.ErrRefused) && !errors.Is(err, unix.EWOULDBLOCK)
	if err != nil && !useless { // it may be good: another try finds out
		return fmt.Errorf("open the digest table: %w", err)
	}
	if err != nil {
		f.log.Warn("digest table cannot be read; every leaf counts as unknown", "error", err)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the unreadable digest table: %w", err)
		}
		if t, err = chunker.OpenTableWith(path, size, cfg); err != nil {
			return fmt.Errorf("make the digest table: %w", err)
		}
	}
	rec := f.record()
	f.mu.Lock()
	f.table, f.unreadable = t, nil
	f.mu.Unlock()
	if f.rebuilt = rebuilt && rec.Phase != mover.Fresh && rec.Volume.Size == size; f.rebuilt {
		if err := f.forgetPoint(nil); err != nil {
			return err
		}
	}
	f.openPrints()
	f.touched = extent.NewSet(size, touchGranule(size))
	f.allTouched.Store(true)
	for _, e := range rec.Unreadable {
		f.noteUnreadable(e)
	}
	return nil
}

// teardown closes everything without finishing anything. The caller holds the whole gate.
func (f *flow) teardown() {
	f.mu.Lock()
	p := f.pass
	f.pass, f.loaded = nil, false
	f.mu.Unlock()
	var errs []error
	if p != nil {
		p.stop()
		errs = append(errs, p.redo.Close())
	}
	if f.table != nil {
		errs = append(errs, f.table.Close())
		f.mu.Lock()
		f.table = nil
		f.mu.Unlock()
	}
	errs = append(errs, f.prints.Swap(nil).Close(), f.closeTarget())
	if err := errors.Join(errs...); err != nil {
		f.log.Warn("closing the flow", "error", err)
	}
}

func (f *flow) closeTarget() error {
	f.targetMu.Lock()
	defer f.targetMu.Unlock()
	if f.target == nil {
		return nil
	}
	err := f.target.Close()
	f.target = nil
	return err
}

// ready makes sure that the flow is loaded, trying again what went wrong before.
func (f *flow) ready(ctx context.Context) error {
	f.mu.Lock()
	// Without a claim somebody may have put something in the target's place since.
	ok := f.loaded && f.broken == nil && f.rec.Target.Identity != ""
	f.mu.Unlock()
	if ok {
		return nil
	}
	if err := f.exclusiveBroken(ctx, nil); err != nil {
		return err
	}
	defer f.gate.unwhole()
	f.mu.Lock()
	ok = f.loaded && f.broken == nil && f.rec.Target.Identity != ""
	f.mu.Unlock()
	if ok {
		return nil
	}
	return f.load()
}

// state is what the source is told. A committed pass counts from its commit record on, for it will be applied whatever happens (C6).
func (f *flow) state() mover.FlowState {
	f.mu.Lock()
	r, p, fin := f.rec, f.pass, f.finishing
	f.mu.Unlock()
	s := mover.FlowState{Phase: r.Phase, Generation: mover.ID(r.Generation), Epoch: r.Epoch, VolumeSize: r.Volume.Size,
		TargetSize: r.Target.Size, Identity: r.Volume.Identity}
	if r.Phase == mover.Incomplete && !deltaContinues(r) {
		s.Epoch = 0 // no delta can build on it
	}
	if fin != nil && fin.pass.commit != nil {
		s.Phase, s.Generation, s.Epoch = mover.Point, fin.pass.Generation, fin.pass.Epoch
	}
	if p != nil {
		s.Pass, s.Mode = p.Pass, p.mode()
	}
	return s
}

// known is how many leaves the table knows.
func (f *flow) known() uint64 {
	f.mu.Lock()
	t := f.table
	f.mu.Unlock()
	if t == nil {
		return 0
	}
	_, known, _ := t.Counts()
	return uint64(known)
}

// deltaContinues tells whether an incomplete target became so by a delta upon a point, so that a later delta of the same
// generation covers all that the broken one has written.
func deltaContinues(r catalog.Record) bool {
	return r.Open != nil && r.Open.Kind == mover.Delta && r.Open.Generation == r.Generation && r.Epoch >= 1
}

// noteUnreadable and noteRead keep the list of extents for which zeros stand in.
func (f *flow) noteUnreadable(e extent.Extent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unreadable == nil {
		f.unreadable = extent.NewSet(f.table.Size(), 512)
	}
	f.unreadable.Add(e)
}

func (f *flow) noteRead(e extent.Extent) {
	f.mu.Lock()
	u := f.unreadable
	f.mu.Unlock()
	if u != nil {
		u.Remove(e)
	}
}

func (f *flow) unreadableList() []extent.Extent {
	f.mu.Lock()
	u := f.unreadable
	f.mu.Unlock()
	var out []extent.Extent
	if u != nil {
		for e := range u.All() {
			out = append(out, e)
		}
	}
	return out
}

// touch notes leaves that have to be read back before the next root (C11).
func (f *flow) touch(e extent.Extent) {
	if !f.allTouched.Load() {
		f.touched.Add(e)
	}
}

// touchGranule keeps the set of touched leaves within 32 MiB: one leaf up to 4 TiB, more beyond.
func touchGranule(size int64) int64 {
	g := int64(leafSize)
	for size/g > 256<<20 {
		g *= 2
	}
	return g
}
