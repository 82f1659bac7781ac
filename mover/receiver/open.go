package receiver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/room"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// handleOpen begins or resumes a pass.
func (c *conn) handleOpen(seq uint32, m *wire.Open) error {
	f := c.f
	if err := checkOpen(m); err != nil {
		return err
	}
	if err := c.s.may(f, int64(m.VolumeSize), 1); err != nil {
		return err
	}
	tell := func(done, total int64, text string) { c.notice(seq, done, total, text) }
	if err := f.exclusive(c.ctx, tell); err != nil {
		return err
	}
	defer f.gate.unwhole()
	if answer := f.committedAlready(m); answer != nil {
		f.log.Info("source asks for a pass that is committed", "pass", blockdev.ID(m.Pass).String(), "epoch", m.Epoch)
		return c.wc.Write(wire.TypeCommitted, seq, answer)
	}
	if err := f.prepare(m); err != nil {
		return f.serious(err)
	}
	p := f.openPass()
	if p != nil && p.Pass == m.Pass && p.Kind == mover.PassKind(m.Kind) && p.Generation == m.Generation && p.Epoch == m.Epoch {
		if err := p.round(); err != nil { // so that every ack of before is out
			return f.serious(err)
		}
		p.mu.Lock()
		done := p.ledger.done(wire.MaxOpened)
		p.estimate = int64(min(m.Estimate, 1<<62))
		p.mu.Unlock()
		f.log.Info("pass resumed", "pass", p.Pass.String(), "epoch", p.Epoch, "mode", p.mode().String(), "durable_ranges", len(done))
		return c.wc.Write(wire.TypeOpened, seq, &wire.Opened{Pass: m.Pass, Mode: uint8(p.mode()), Done: done})
	}
	if p != nil {
		if err := f.abort(p); err != nil {
			return f.serious(err)
		}
	}
	p, err := f.begin(m)
	if err != nil {
		return f.serious(err)
	}
	return c.wc.Write(wire.TypeOpened, seq, &wire.Opened{Pass: m.Pass, Mode: uint8(p.mode())})
}

// committedAlready answers an OPEN whose pass is the target's point: of its COMMIT the source has heard nothing. A COMMIT may be carried out
// long after its connection has ended, so the source cannot know by asking for the state. The caller holds the whole gate.
func (f *flow) committedAlready(m *wire.Open) *wire.Committed {
	r := f.record()
	if r.Phase != mover.Point || r.Point.Pass != catalog.ID(m.Pass) || r.Generation != catalog.ID(m.Generation) || r.Epoch != m.Epoch {
		return nil
	}
	return &wire.Committed{Pass: m.Pass, Generation: m.Generation, Epoch: m.Epoch, Mode: uint8(r.Point.Mode), Counts: wire.Counts(r.Point.Counts)}
}

func (f *flow) openPass() *pass {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pass
}

func checkOpen(m *wire.Open) error {
	bad := ""
	switch {
	case m.Kind < uint8(mover.Full) || m.Kind > uint8(mover.Rescan):
		bad = fmt.Sprintf("kind %d", m.Kind)
	case m.Pass == [16]byte{} || m.Generation == [16]byte{} || m.Epoch == 0:
		bad = "no pass id, generation or epoch"
	case m.VolumeSize == 0 || m.VolumeSize > wire.MaxSize:
		bad = fmt.Sprintf("volume of %d bytes", m.VolumeSize)
	case m.Identity == "":
		bad = "volume without identity"
	}
	if bad != "" {
		return fmt.Errorf("open a pass: %s: %w", bad, sentinel.ErrProtocol)
	}
	if m.LeafSize != leafSize {
		return fmt.Errorf("source uses leaves of %d bytes, this gateway %d: %w", m.LeafSize, leafSize, sentinel.ErrRefused)
	}
	return nil
}

// prepare checks target and volume (C12) and the base (C8), and opens what is missing. The caller holds the whole gate.
func (f *flow) prepare(m *wire.Open) error {
	r := f.record()
	size := int64(m.VolumeSize)
	if r.Volume.Identity != "" && catalog.Who(r.Volume.Identity) != catalog.Who(m.Identity) {
		return fmt.Errorf("flow %s carries volume %s, the source now has %s: move that one under another flow name, or drop this flow's claim: %w",
			f.key, r.Volume.Identity, m.Identity, sentinel.ErrRefused)
	}
	if !r.Finished.IsZero() {
		return fmt.Errorf("flow %s was finished at %s after its cutover: the way back was given up and target %s is no longer its own; to replicate anew drop its claim first (moverctl claim --drop %s): %w",
			f.key, r.Finished.Format(time.RFC3339), f.cfg.Target, f.key, sentinel.ErrRefused)
	}
	if r.Phase == mover.Released && m.Flags&wire.FlagReclaim == 0 {
		return fmt.Errorf("target %s of flow %s was released at the cutover of %s; `moverctl rollback` at the source takes it back: %w",
			f.cfg.Target, f.key, r.Released.Format(time.RFC3339), sentinel.ErrRefused)
	}
	if err := f.checkBase(r, m); err != nil {
		return err
	}
	if r.Volume.Size != 0 && r.Volume.Size != size {
		if err := f.checkResize(r, m); err != nil {
			return err
		}
	}
	if r.Phase == mover.Released {
		return f.reclaim(size)
	}
	if f.target == nil {
		if err := f.createTarget(size); err != nil {
			return err
		}
	}
	if f.target.Size() < size && r.Volume.Size == 0 {
		return fmt.Errorf("target %s of flow %s has %d bytes, the volume has %d: give the flow a target that is large enough: %w",
			f.cfg.Target, f.key, f.target.Size(), size, sentinel.ErrRefused)
	}
	if f.table == nil || f.table.Size() != size {
		return f.takeVolume(m)
	}
	return nil
}

// checkBase refuses passes that do not build on what the target holds (C8).
func (f *flow) checkBase(r catalog.Record, m *wire.Open) error {
	gen := catalog.ID(m.Generation)
	if r.Generation == gen && r.Epoch >= m.Epoch {
		return fmt.Errorf("flow %s is at epoch %d, epoch %d is older: %w", f.key, r.Epoch, m.Epoch, sentinel.ErrFenced)
	}
	if m.Kind != uint8(mover.Delta) {
		return nil
	}
	builds := r.Phase == mover.Point || r.Phase == mover.Incomplete && deltaContinues(r)
	if !builds || r.Generation != gen || r.Epoch == 0 {
		return fmt.Errorf("flow %s is %s at epoch %d of generation %v; a delta of generation %v cannot build on that: %w",
			f.key, r.Phase, r.Epoch, blockdev.ID(r.Generation), blockdev.ID(m.Generation), sentinel.ErrFenced)
	}
	return nil
}

// checkResize lets a volume grow, by a pass that covers all of it.
func (f *flow) checkResize(r catalog.Record, m *wire.Open) error {
	size := int64(m.VolumeSize)
	switch {
	case m.Kind == uint8(mover.Delta):
		return fmt.Errorf("volume of flow %s had %d bytes and now has %d: a delta cannot cover that, rescan: %w", f.key, r.Volume.Size, size, sentinel.ErrFenced)
	case size < r.Volume.Size:
		return fmt.Errorf("volume of flow %s had %d bytes and now has %d: a shrunk volume is not moved on; drop the claim and begin anew: %w",
			f.key, r.Volume.Size, size, sentinel.ErrRefused)
	case size > r.Target.Size && !r.Target.Created:
		return fmt.Errorf("volume of flow %s has grown to %d bytes, its target %s has %d: enlarge the target: %w",
			f.key, size, f.cfg.Target, r.Target.Size, sentinel.ErrRefused)
	}
	return nil
}

// createTarget makes the image file of a flow without one and claims it. That this is about to happen is recorded first, so that a
// crash does not leave a file that nobody dares to touch.
func (f *flow) createTarget(size int64) error {
	if err := f.unclaimed(f.record()); err != nil {
		return err
	}
	if f.record().Target.Identity != "" {
		return f.openTarget(size) // made before a crash
	}
	err := f.update(func(r *catalog.Record) { r.Target = catalog.Target{Path: f.cfg.Target, Created: true} })
	if err != nil {
		return err
	}
	t, err := f.s.cfg.OpenTarget(f.cfg.Target, size, true)
	if err != nil {
		err = f.opError("make", extent.Extent{}, err)
		return errors.Join(err, f.update(func(r *catalog.Record) { r.Target = catalog.Target{} }))
	}
	err = f.update(func(r *catalog.Record) {
		r.Target.Identity, r.Target.Size, r.Target.Claimed = t.Identity(), t.Size(), time.Now().UTC()
	})
	if err != nil {
		return errors.Join(err, t.Close())
	}
	f.log.Info("image file made and claimed", "target", f.cfg.Target, "size", t.Size())
	f.setTarget(t)
	return nil
}

// takeVolume records the volume and makes its table: at the first OPEN, and when the volume has grown.
func (f *flow) takeVolume(m *wire.Open) error {
	r := f.record()
	size := int64(m.VolumeSize)
	first := r.Volume.Size == 0
	if p := f.openPass(); p != nil {
		if err := f.abort(p); err != nil {
			return err
		}
	}
	if f.table != nil {
		if err := f.table.Close(); err != nil {
			return err
		}
		f.mu.Lock()
		f.table = nil
		f.mu.Unlock()
	}
	if f.target.Size() < size {
		if err := f.closeTarget(); err != nil {
			return f.opError("close", extent.Extent{}, err)
		}
		t, err := f.s.cfg.OpenTarget(f.cfg.Target, size, r.Target.Created)
		if err != nil {
			return f.opError("enlarge", extent.Extent{}, err)
		}
		if t.Size() < size {
			return errors.Join(f.opError("enlarge", extent.Extent{}, sentinel.ErrRefused), t.Close())
		}
		f.setTarget(t)
	}
	err := f.update(func(r *catalog.Record) {
		r.Volume = catalog.Volume{Identity: m.Identity, Size: size, BlockSize: m.BlockSize}
		r.Target.Size = f.target.Size()
		if !first {
			// No delta may build on a table that knows nothing of the new size.
			r.Phase, r.Epoch, r.Generation, r.Open, r.Point = mover.Incomplete, 0, catalog.ID{}, nil, catalog.RecoveryPoint{}
		}
	})
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(f.dir(), "table")); err != nil {
		return err
	}
	if err := f.openTable(size); err != nil {
		return diskFull(err)
	}
	if first && r.Target.Created {
		// A new file reads as zeros.
		return diskFull(f.table.Fill(0, chunker.Leaves(size), chunker.ZeroLeaf))
	}
	return nil
}

// reclaim takes a released target back: what others did with it since is not known.
func (f *flow) reclaim(size int64) error {
	if err := f.openTarget(size); err != nil {
		return err
	}
	if f.table == nil {
		if err := f.openTable(size); err != nil {
			return err
		}
	}
	f.allTouched.Store(true)
	if err := f.table.Reset(); err != nil {
		return err
	}
	if err := f.table.Sync(); err != nil {
		return err
	}
	f.log.Info("released target taken back; every leaf counts as unknown", "target", f.cfg.Target)
	return f.update(func(r *catalog.Record) {
		r.Phase, r.Generation, r.Epoch, r.Open, r.Point = mover.Incomplete, catalog.ID{}, 0, nil, catalog.RecoveryPoint{}
		r.Report, r.Released = "", time.Time{}
	})
}

// begin makes the new pass with its log.
func (f *flow) begin(m *wire.Open) (*pass, error) {
	r := f.record()
	h := catalog.Head{Flow: f.key, Pass: m.Pass, Kind: mover.PassKind(m.Kind), Consistency: mover.Consistency(m.Consistency),
		Mode: f.chooseMode(r, m), Generation: m.Generation, Epoch: m.Epoch, BaseGeneration: blockdev.ID(r.Generation), BaseEpoch: r.Epoch,
		VolumeSize: int64(m.VolumeSize), Began: time.Now().UTC()}
	redo, err := catalog.CreateLog(f.logPath(), h, f.logOptions())
	if err != nil {
		return nil, diskFull(err)
	}
	f.rebuilt = false // no delta can begin upon it
	p := f.newPass(h, redo)
	p.estimate = int64(min(m.Estimate, 1<<62))
	p.start()
	f.mu.Lock()
	f.pass, f.since = p, time.Now()
	f.mu.Unlock()
	f.log.Info("pass opened", "pass", p.Pass.String(), "kind", p.Kind.String(), "mode", p.mode().String(), "epoch", p.Epoch, "estimate", m.Estimate)
	return p, nil
}

// chooseMode stages what has a point to keep and fits. Of a rescan nobody knows the size: it begins staged and goes direct when the
// log is full.
func (f *flow) chooseMode(r catalog.Record, m *wire.Open) mover.Mode {
	switch mover.PassKind(m.Kind) {
	case mover.Delta:
		need := int64(min(m.Estimate, 1<<60))
		if free, _, err := room.Of(f.dir()); err == nil && need+need/8+minLogLimit <= min(f.logLimit(), free) {
			return mover.Staged
		}
	case mover.Rescan:
		if r.Phase == mover.Point {
			return mover.Staged
		}
	}
	return mover.Direct
}
