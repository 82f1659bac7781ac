package receiver

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// handleKeep takes the source's word for what the target's point is worth, and keeps a copy of it (C13).
func (c *conn) handleKeep(seq uint32, m *wire.Keep) error {
	f := c.f
	if err := f.exclusive(c.ctx, func(done, total int64, text string) { c.notice(seq, done, total, text) }); err != nil {
		return err
	}
	defer f.gate.unwhole()
	answer, err := f.keep(m)
	if err != nil {
		return f.serious(err)
	}
	if err := c.wc.Write(wire.TypeKept, seq, answer); err != nil || answer.Point == "" {
		return err
	}
	if err := f.rootPoint(c.ctx, answer.Point); err != nil { // nobody waits for it, and the flow can do without
		f.log.Warn("root of the recovery point is not known", "point", answer.Point, "error", err)
	}
	return nil
}

// rootRead is how many bytes of leaves of unknown content are read to complete a point's root: the next pass waits for it.
var rootRead int64 = 256 << 20

// rootPoint completes what the kept point can be verified by, if the target is at it still. The caller holds the whole gate.
func (f *flow) rootPoint(ctx ctxt, id string) error {
	kp, ok := f.hasPoint(id)
	r := f.record()
	if !ok || kp.Image != "" || r.Phase != mover.Point || r.Generation != kp.Generation || r.Epoch != kp.Epoch {
		return nil
	}
	leaves, known, _ := f.table.Counts()
	if unknown := (leaves - known) * leafSize; unknown > rootRead {
		why := fmt.Sprintf("%s of the target had not been read back, more than the %s that a point waits for", units.Size(unknown), units.Size(rootRead))
		return f.updatePoint(id, func(p *catalog.KeptPoint) { p.NoRoot = why })
	}
	var done atomic.Int64
	if err := f.readLeaves(ctx, f.table.Unknown(), &done); err != nil {
		return err
	}
	image := f.imageRoot()
	root, ok := f.table.Root()
	if image == "" || !ok {
		return f.table.Err()
	}
	return f.updatePoint(id, func(p *catalog.KeptPoint) { p.Root, p.Image = root.String(), image })
}

// updatePoint changes what is recorded of a kept point.
func (f *flow) updatePoint(id string, change func(*catalog.KeptPoint)) error {
	return f.update(func(r *catalog.Record) {
		for i := range r.Points {
			if r.Points[i].ID == id {
				change(&r.Points[i])
			}
		}
	})
}

// imageRoot is what the target's bytes amount to; empty when not all of it is known.
func (f *flow) imageRoot() string {
	if d, ok := f.table.ImageRoot(); ok {
		return d.String()
	}
	return ""
}

// keep may be asked again with the same moment: what is recorded and kept already stays as it is. The caller holds the whole gate. An error
// means that nobody knows what is recorded.
func (f *flow) keep(m *wire.Keep) (*wire.Kept, error) {
	r := f.record()
	moment, gen := catalog.ID(m.Moment), catalog.ID(m.Generation)
	if i := slices.IndexFunc(r.Points, func(p catalog.KeptPoint) bool { return p.Moment == moment }); i >= 0 {
		p := r.Points[i]
		if p.Generation != gen || p.Epoch != m.Epoch {
			return f.keepNot("moment %v is the point of epoch %d", m.Moment, p.Epoch)
		}
		return &wire.Kept{Consistency: uint8(p.Consistency), Point: p.ID}, nil
	}
	switch {
	case r.Phase == mover.Released && r.Point.Moment == moment && r.Generation == gen && r.Epoch == m.Epoch:
		return &wire.Kept{Consistency: uint8(r.Point.Consistency)}, nil // confirmed before, and the target is closed
	case r.Phase != mover.Point || r.Generation != gen || r.Epoch != m.Epoch:
		return f.keepNot("it is %s at epoch %d of generation %v, not at epoch %d of %v", r.Phase, r.Epoch, blockdev.ID(r.Generation), m.Epoch, blockdev.ID(gen))
	case r.Point.Moment != (catalog.ID{}) && r.Point.Moment != moment:
		return f.keepNot("its point was confirmed as moment %v before", blockdev.ID(r.Point.Moment))
	}
	if err := f.update(func(r *catalog.Record) {
		r.Group = m.Group
		r.Point.Moment, r.Point.Consistency, r.Point.Time = moment, mover.Consistency(m.Consistency), time.Unix(0, m.UnixNano).UTC()
	}); err != nil {
		return nil, err
	}
	f.log.Info("recovery point confirmed", "epoch", m.Epoch, "moment", blockdev.ID(moment), "consistency", mover.Consistency(m.Consistency).String(), "group", m.Group)
	p := f.presentPoint()
	p.ID = mover.PointID(p.Time, blockdev.ID(moment).String())
	p.Group, p.Members = m.Group, m.Members
	p.Rehearsed, p.Cutover = m.Flags&wire.FlagRehearse != 0, m.Flags&wire.FlagCutover != 0
	return f.keepConfirmed(p)
}

// keepNot answers that nothing was done.
func (f *flow) keepNot(format string, args ...any) (*wire.Kept, error) {
	text := fmt.Sprintf("target %s of flow %s: ", f.cfg.Target, f.key) + fmt.Sprintf(format, args...)
	f.log.Warn("recovery point not confirmed", "error", text)
	return &wire.Kept{Text: text}, nil
}

// keepConfirmed takes the copy, if the flow keeps any. A copy that was taken of the fuzzy commit becomes that of the moment.
func (f *flow) keepConfirmed(p catalog.KeptPoint) (*wire.Kept, error) {
	answer := &wire.Kept{Consistency: uint8(p.Consistency)}
	same := func(o catalog.KeptPoint) bool { return o.Pass == p.Pass }
	if slices.ContainsFunc(f.record().Points, same) {
		err := f.update(func(r *catalog.Record) {
			if i := slices.IndexFunc(r.Points, same); i >= 0 {
				p.ID, p.Method, p.Pinned = r.Points[i].ID, r.Points[i].Method, r.Points[i].Pinned
				r.Points[i] = p
			}
		})
		answer.Point = p.ID
		return answer, err
	}
	if !f.worthKeeping(p.Consistency) {
		return answer, nil
	}
	ctx, cancel := f.pointContext()
	defer cancel()
	err := f.takePoint(ctx, &p)
	if f.s.ctx.Err() != nil {
		return nil, context.Canceled // the source asks again
	}
	f.notePoint(ctx, p, err)
	if err != nil {
		answer.Text = err.Error()
	} else {
		answer.Point = p.ID
	}
	return answer, nil
}
