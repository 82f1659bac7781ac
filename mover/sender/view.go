package sender

// A moment whose reading would hold the writers up for long is read from a view of the volume (blockdev.Snapshotter), after the thaw:
//
//	rounds   the first one shows that the pause would be long: the view is laid out; no more rounds are needed
//	freeze   Take, then Snap; the witness looks as ever
//	thaw     the writers go on
//	view     read, send, until everything is acked; Check of the view: only then is it one moment (C13)
//	drop     then commit and keep as ever
//
// What the writers change meanwhile set its marks after the Take: it is dirty in the next epoch (C9).

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/mover"
)

const dropLimit = time.Minute

// viewing is a member's snapshotter in a moment; the zero value has none.
type viewing struct {
	s     blockdev.Snapshotter
	tried bool
	ready bool // prepared; after Snap: made
}

// prepareView lays a view out where the pause would be long without one. A volume that can have none is read within the freeze.
func (m *moment) prepareView(ctx context.Context, pause time.Duration) {
	f := m.f
	if m.view.tried || m.o.NoSnapshot || f.deps.Snapshot == nil || pause < min(f.cfg.SnapshotFrom, m.o.Limit) {
		return
	}
	m.view.tried = true
	began := time.Now()
	s, err := f.deps.Snapshot()
	if err == nil {
		m.progress.say("snapshot", "preparing a snapshot to read from", 0, 0)
		m.view.s = s
		err = s.Prepare(ctx)
	}
	if err != nil {
		f.deps.Log.Info("the moment is read within the freeze", "flow", f.cfg.Flow, "why", err)
		m.report.Unviewed = err.Error()
		return
	}
	m.view.ready = true
	m.report.Steps = append(m.report.Steps, mover.Step{Name: "snapshot", Seconds: time.Since(began).Seconds()})
}

// snap makes the view within the freeze. One that fails leaves the volume as it was, and the moment is read before the thaw.
func (m *moment) snap(ctx context.Context) {
	if !m.view.ready {
		return
	}
	if err := m.view.s.Snap(ctx); err != nil {
		m.view.ready = false
		m.f.deps.Log.Warn("the snapshot failed; the moment is read within the freeze", "flow", m.f.cfg.Flow, "error", err)
		m.report.Unviewed = err.Error()
	}
}

// readView sends what p has taken, as the view holds it, and gives the view back.
func (m *moment) readView(ctx context.Context, p *pass) error {
	f := m.f
	defer f.deps.Priority.raise(fair)()
	m.timed("view")
	v, err := m.view.s.Volume()
	if err == nil {
		f.reader.from(v)
		for {
			if err = f.bring(ctx, p); !errors.Is(err, errDown) || ctx.Err() != nil {
				break
			}
		}
		f.reader.from(f.deps.Volume)
		if err == nil {
			err = v.Check()
		}
	}
	m.dropView(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return &mover.OpError{Op: "read the moment from a snapshot", Flow: f.cfg.Flow, Err: err}
	}
	p.sealed.Store(true)
	m.report.Viewed = true
	m.ended("view")
	return nil
}

// dropView is idempotent. It comes after the thaw: what removes a view may write to a disk.
func (m *moment) dropView(ctx context.Context) {
	if m.view.s == nil {
		return
	}
	s := m.view.s
	m.view = viewing{tried: true}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropLimit)
	defer cancel()
	if err := s.Drop(ctx); err != nil {
		err = fmt.Errorf("remove the snapshot of flow %s: %w", m.f.cfg.Flow, err)
		m.f.noteError(err)
		m.f.deps.Log.Error("a snapshot is left; the volume works, and the next moment or start tries again", "error", err)
	}
}
