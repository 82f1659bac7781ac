package receiver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
)

// tryPoints refuses a method that a target cannot have. One that is not there now is asked again at its first point.
func tryPoints(cfg Config) error {
	for _, fc := range cfg.Flows {
		if cfg.OpenPoints == nil || fc.Points.Method == "" {
			continue
		}
		_, err := cfg.OpenPoints(fc.Points.Method, fc.Target, "", fc.Key())
		if errors.Is(err, sentinel.ErrNotSupported) || errors.Is(err, sentinel.ErrUsage) {
			return fmt.Errorf("flow %s: %w", fc.Key(), err)
		}
	}
	return nil
}

// points opens the store of the flow's points; nil: it keeps none.
func (f *flow) points() (blockdev.Points, error) {
	if f.s.cfg.OpenPoints == nil || f.cfg.Points.Method == "" {
		return nil, nil
	}
	owner := f.record().PointOwner
	if owner == (catalog.ID{}) {
		return f.s.cfg.OpenPoints(f.cfg.Points.Method, f.cfg.Target, "", f.key)
	}
	return f.s.cfg.OpenPoints(f.cfg.Points.Method, f.cfg.Target, hex.EncodeToString(owner[:8]), f.key)
}

// ownPoints gives the flow's claim an owner's name of its own, so that points of an earlier claim are never taken for its own.
func (f *flow) ownPoints() error {
	if f.record().PointOwner != (catalog.ID{}) {
		return nil
	}
	var owner catalog.ID
	_, _ = rand.Read(owner[:]) // never fails
	return f.update(func(r *catalog.Record) { r.PointOwner = owner })
}

// worthKeeping tells whether copies of points of this consistency are kept.
func (f *flow) worthKeeping(c mover.Consistency) bool {
	keeps := f.s.cfg.OpenPoints != nil && f.cfg.Points.Method != ""
	return keeps && (c >= mover.Crash || f.cfg.Points.Fuzzy)
}

func (f *flow) pointContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(f.s.ctx, orElse(f.cfg.Points.Limit, 30*time.Second))
}

// presentPoint describes the point that the target is at. The caller holds the whole gate, or is what finishes the pass.
func (f *flow) presentPoint() catalog.KeptPoint {
	r := f.record()
	kp := catalog.KeptPoint{Generation: r.Generation, Epoch: r.Epoch, Time: r.Point.Time, Consistency: r.Point.Consistency, Proven: r.Point.Proven,
		Size: f.table.Size(), Pass: r.Point.Pass, Moment: r.Point.Moment}
	if root, ok := f.table.Root(); ok {
		kp.Root = root.String()
	}
	return kp
}

// keepPoint keeps the target as the commit of p has left it, before its source confirms what that is worth. Nothing else happens to the flow
// meanwhile. An error costs the point, never the flow; only a gateway that stops ends in one.
func (f *flow) keepPoint(p *pass) error {
	kp := f.presentPoint()
	if !f.worthKeeping(kp.Consistency) || slices.ContainsFunc(f.record().Points, func(o catalog.KeptPoint) bool { return o.Pass == kp.Pass }) {
		return nil // taken before a crash; the log was applied once more since, which changed nothing (C5)
	}
	kp.ID = mover.PointID(kp.Time, p.Pass.String())
	kp.Image = f.imageRoot()
	ctx, cancel := f.pointContext()
	defer cancel()
	err := f.takePoint(ctx, &kp)
	if f.s.ctx.Err() != nil {
		return f.s.ctx.Err() // the next start applies the log again and takes the point then
	}
	f.notePoint(ctx, kp, err)
	return nil
}

// notePoint tells how taking kp has ended, and removes what is too old now.
func (f *flow) notePoint(ctx context.Context, kp catalog.KeptPoint, err error) {
	text := ""
	if err != nil {
		text = err.Error()
		f.s.metrics.pointsLost.Add(1)
		f.log.Error("no copy is kept of the recovery point; replication goes on", "epoch", kp.Epoch, "error", err)
	}
	if kp.ID != "" || err != nil {
		e := mover.Event{Time: time.Now(), Began: kp.Time, Kind: mover.PointEvent, Group: kp.Group, Text: kp.ID, Consistency: kp.Consistency.String(), Error: text}
		if kp.Moment != (catalog.ID{}) {
			e.Moment = hex.EncodeToString(kp.Moment[:])
		}
		f.note(e)
	}
	f.mu.Lock()
	f.pointError = text
	f.mu.Unlock()
	if err := f.prunePoints(ctx); err != nil {
		f.log.Warn("old recovery points could not be removed", "error", err)
	}
	f.pruneNeighbours()
}

// takePoint takes and records the copy. A flow that can keep none gives no error, and kp no method.
func (f *flow) takePoint(ctx context.Context, kp *catalog.KeptPoint) error {
	if store, err := f.points(); err != nil || store == nil {
		kp.ID = ""
		return err
	}
	if err := f.ownPoints(); err != nil {
		return err
	}
	store, err := f.points()
	if err != nil || store == nil {
		return err
	}
	kp.Method = store.Method()
	if err := store.Take(ctx, kp.ID); err != nil {
		return err
	}
	if err := f.update(func(r *catalog.Record) { r.Points = append(r.Points, *kp) }); err != nil {
		return errors.Join(err, store.Remove(ctx, kp.ID))
	}
	f.s.metrics.points.Add(1)
	f.log.Info("recovery point kept", "point", kp.ID, "epoch", kp.Epoch, "method", kp.Method)
	return nil
}

// prunePoints removes what is no longer to be kept, but for what is being read and what another disk of the group holds on to.
func (f *flow) prunePoints(ctx context.Context) error {
	var errs []error
	for _, id := range f.expired() {
		if err := f.removePoint(ctx, id); err != nil && !errors.Is(err, errPointInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// expired lists the points of f that go.
func (f *flow) expired() []string {
	all := []mover.FlowPoints{f.flowPoints()}
	for _, o := range f.neighbours() {
		all = append(all, o.flowPoints())
	}
	return mover.ExpiredTogether(all)[0]
}

// neighbours are the other flows of the same host: only they can share a moment with f.
func (f *flow) neighbours() (out []*flow) {
	for _, key := range f.s.order {
		if o := f.s.flows[key]; o != f && o.cfg.Tenant == f.cfg.Tenant && o.cfg.Host == f.cfg.Host {
			out = append(out, o)
		}
	}
	return out
}

func (f *flow) flowPoints() mover.FlowPoints {
	p := mover.FlowPoints{Flow: f.key, Keep: f.cfg.Points.Keep, Points: f.pointList()}
	if g := f.record().Group; g != "" {
		p.Group = f.cfg.Tenant + "/" + f.cfg.Host + "/" + g
	}
	return p
}

// pruneNeighbours removes in the background what only f's older points have held: of a moment that goes, the last member's points go last.
func (f *flow) pruneNeighbours() {
	for _, o := range f.neighbours() {
		if len(o.expired()) == 0 {
			continue
		}
		f.s.start(func() {
			ctx, cancel := o.pointContext()
			defer cancel()
			if o.exclusiveBroken(ctx, nil) != nil {
				return // its own next point does it
			}
			defer o.gate.unwhole()
			if err := o.prunePoints(ctx); err != nil && ctx.Err() == nil {
				o.log.Warn("old recovery points could not be removed", "error", err)
			}
		})
	}
}

// removePoint: the record goes first; what a crash leaves then is an orphan, which the next start removes.
func (f *flow) removePoint(ctx context.Context, id string) error {
	f.mu.Lock()
	busy := f.inUse[id] > 0
	f.mu.Unlock()
	if busy {
		return fmt.Errorf("recovery point %s of flow %s: %w", id, f.key, errPointInUse)
	}
	store, err := f.points()
	if err != nil {
		return err
	}
	err = f.update(func(r *catalog.Record) {
		r.Points = slices.DeleteFunc(r.Points, func(p catalog.KeptPoint) bool { return p.ID == id })
	})
	if err != nil || store == nil {
		return err
	}
	return store.Remove(ctx, id)
}

var errPointInUse = fmt.Errorf("is being read; try again when that has ended: %w", sentinel.ErrRefused)

// sweepPoints removes copies that no record knows: of a crash between the two. Only what carries this claim's tag is looked at. The caller
// holds the whole gate, or nobody else knows the flow.
func (f *flow) sweepPoints() {
	rec := f.record()
	store, err := f.points()
	if err == nil && store == nil || rec.PointOwner == (catalog.ID{}) {
		return
	}
	ctx, cancel := context.WithTimeout(f.s.ctx, 30*time.Second)
	defer cancel()
	var all []blockdev.Snapshot
	if err == nil {
		all, err = store.List(ctx)
	}
	for _, s := range all {
		if !slices.ContainsFunc(rec.Points, func(p catalog.KeptPoint) bool { return p.ID == s.Name }) {
			f.log.Info("copy without a record is removed", "point", s.Name)
			err = errors.Join(err, store.Remove(ctx, s.Name))
		}
	}
	if err != nil {
		f.log.Warn("recovery points could not be looked through", "error", err)
	}
}

// pointList is what the record knows, the oldest first.
func (f *flow) pointList() []mover.RecoveryPoint {
	var out []mover.RecoveryPoint
	for _, p := range f.record().Points {
		rp := mover.RecoveryPoint{ID: p.ID, Time: p.Time, Consistency: p.Consistency, Worth: p.Consistency.String(), Proven: p.Proven,
			Generation: blockdev.ID(p.Generation).String(), Epoch: p.Epoch, Pass: blockdev.ID(p.Pass).String(), Size: p.Size, Root: p.Root, Image: p.Image, NoRoot: p.NoRoot,
			Pinned: p.Pinned, Rehearsed: p.Rehearsed, Cutover: p.Cutover, Group: p.Group, Members: int(p.Members), Method: p.Method}
		if p.Moment != (catalog.ID{}) {
			rp.Moment = blockdev.ID(p.Moment).String()
		}
		out = append(out, rp)
	}
	return out
}
