package sender

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

// occasion is what a pass is made for.
type occasion uint8

const (
	onSchedule occasion = iota
	inRound             // of a cutover: both ends are settled after it
	inFreeze            // the same, and the writers stand still; what the commit allows to forget is kept until thawed
	inMoment            // the writers stand still until all is read; nothing is settled (moment.go)
)

// pass runs one pass to its commit, over as many links as it takes, and returns it. A pass that was interrupted is taken up.
func (f *Flow) pass(ctx context.Context, on occasion) (*pass, error) {
	frozen := on == inFreeze
	for {
		p := f.currentPass()
		if p != nil && p.frozen != frozen { // what was read then and what is read now are not of one moment
			f.drop(p)
			p = nil
		}
		if p == nil {
			var err error
			if p, err = f.begin(ctx, on); err != nil {
				return nil, err
			}
			f.setPass(p)
		}
		err := f.carry(ctx, p)
		switch {
		case err == nil:
			f.drop(p)
			if err := f.finish(p); err != nil {
				return nil, err
			}
			f.answerSync(nil)
			return p, nil
		case ctx.Err() != nil: // the pass stays, to be taken up
			return nil, context.Cause(ctx)
		case errors.Is(err, errDown):
			continue
		}
		f.drop(p)
		f.note(p.event(f.link.view().Out-p.wireAt, err))
		if errors.Is(err, sentinel.ErrFenced) && p.kind == mover.Delta && f.link.view().Fatal == nil {
			f.force = "the gateway cannot build on epoch " + fmt.Sprint(p.epoch-1) + ": " + err.Error()
			continue
		}
		return nil, &mover.OpError{Op: p.kind.String() + " pass", Flow: f.cfg.Flow, Err: err}
	}
}

func (f *Flow) currentPass() *pass {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// drop ends p here. The gateway drops it when another one is opened.
func (f *Flow) drop(p *pass) {
	f.setPass(nil)
	p.close()
}

func (f *Flow) setPass(p *pass) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = p
}

// begin chooses the next pass and takes an epoch.
func (f *Flow) begin(ctx context.Context, on occasion) (*pass, error) {
	frozen := on == inFreeze || on == inMoment
	if err := f.deps.Volume.Check(); err != nil {
		return nil, errShape{fmt.Errorf("volume %s: %w", f.cfg.Device, err)}
	}
	if err := f.linkUp(ctx); err != nil {
		return nil, err
	}
	tr := f.deps.Tracker
	method, _ := tr.Method()
	for range 3 {
		state, err := f.askState(ctx)
		if err != nil {
			return nil, err
		}
		choice, err := mover.Next(mover.Facts{Scan: method == "scan", Lost: f.lost, History: tr.History(), Table: mover.ParseTag(f.table.Owner()),
			Force: f.force, Reclaim: f.reclaim, Size: f.deps.Volume.Size(), State: state})
		if err != nil {
			return nil, err
		}
		if frozen && choice.Kind != mover.Delta && method != "scan" {
			return nil, fmt.Errorf("the writers cannot be stopped for as long as a rescan takes, which is needed: %s", choice.Why)
		}
		if choice.Restart {
			if err := tr.Restart(); err != nil {
				return nil, fmt.Errorf("begin a new tracking history: %w", err)
			}
			f.lost = nil
		}
		f.beginSync()
		took := time.Now()
		epoch, dirty, err := tr.Take(ctx)
		if errors.Is(err, sentinel.ErrTrackLost) { // C2
			if f.lostTrack(err); frozen {
				return nil, fmt.Errorf("the writers cannot be stopped for as long as a rescan takes: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take what has changed: %w", err)
		}
		p := &pass{id: newID(), kind: choice.Kind, why: choice.Why, generation: tr.History().Generation, epoch: epoch,
			consistency: mover.Fuzzy, frozen: frozen, around: on == inRound || on == inFreeze, reclaim: f.reclaim, started: took, wireAt: f.link.view().Out}
		if frozen && f.deps.Freezer != nil && !f.link.view().keeps { // else KEEP tells, once that is certain (C13)
			p.consistency = mover.Crash
		}
		if err := f.prepare(ctx, p, dirty); err != nil {
			return nil, err
		}
		f.deps.Log.Info("pass begins", "flow", f.cfg.Flow, "kind", p.kind.String(), "epoch", epoch, "bytes", p.total, "why", p.why)
		f.show(mover.Passing, p.why, "")
		return p, nil
	}
	return nil, fmt.Errorf("%w: again and again", f.lost)
}

// askState asks the gateway where the flow stands, for as long as connections break.
func (f *Flow) askState(ctx context.Context) (mover.FlowState, error) {
	for {
		state, err := f.link.flowState(ctx)
		if !errors.Is(err, errDown) || ctx.Err() != nil {
			return state, err
		}
		if err := f.linkUp(ctx); err != nil {
			return state, err
		}
	}
}

func (f *Flow) lostTrack(err error) {
	f.lost = err
	f.deps.Log.Warn("change history lost, a rescan follows", "flow", f.cfg.Flow, "err", err)
	f.mu.Lock()
	f.view.gap = err.Error()
	f.mu.Unlock()
	f.note(mover.Event{Time: time.Now(), Kind: mover.GapEvent, Text: err.Error()})
}

// prepare brings the table to what the Take means, and makes the plan.
func (f *Flow) prepare(ctx context.Context, p *pass, dirty *extent.Set) error {
	size := f.deps.Volume.Size()
	if p.kind == mover.Delta {
		p.dirty, p.total = dirty, dirty.Bytes()
		if err := f.forget(p); err != nil {
			return err
		}
		p.plan(changes(dirty, p.whole, p.around))
		return nil
	}
	// All digests go: what is free and what is not is learnt anew. The tag counts once this pass is committed.
	// While frozen (scan mode) the tag cannot be written, nor is it needed: every pass is a rescan.
	var err error
	if p.frozen {
		err = f.table.Reset()
	} else {
		err = f.table.SetOwner(mover.Tag{Generation: p.generation, Epoch: p.epoch}.Bytes())
	}
	if err != nil {
		return fmt.Errorf("digest table: %w", err)
	}
	free, err := f.used(ctx)
	if err != nil {
		return err
	}
	p.total = size
	if free != nil {
		for e := range free.All() {
			if err := f.table.Fill(e.Off/chunker.LeafSize, chunker.Leaves(e.Len), digest.Free); err != nil {
				return fmt.Errorf("digest table: %w", err)
			}
			p.total -= e.Len
		}
	}
	p.free = free
	p.plan(everything(size, free, p.kind == mover.Rescan))
	return nil
}

// forget makes every leaf unknown that was taken, before anything is read (C11). Leaves that are free at the target stay marked until the
// commit: only the marker tells a later life of this flow that they have to be sent whole.
func (f *Flow) forget(p *pass) error {
	size := f.deps.Volume.Size()
	p.whole = extent.NewSet(size, chunker.LeafSize)
	for e := range p.dirty.All() {
		first, last := e.Off/chunker.LeafSize, (e.End()-1)/chunker.LeafSize
		for at := first; at <= last; at += chunker.GroupLeaves {
			n := min(chunker.GroupLeaves, last-at+1)
			start := at
			for i, d := range f.table.Digests(at, n) {
				if leaf := at + int64(i); d == digest.Free {
					p.whole.Add(chunker.LeafExtent(size, leaf))
					if err := f.unknow(start, leaf); err != nil {
						return err
					}
					start = leaf + 1
				}
			}
			if err := f.unknow(start, at+n); err != nil {
				return err
			}
		}
	}
	return nil
}

// unknow invalidates leaves [first, last).
func (f *Flow) unknow(first, last int64) error {
	if first >= last {
		return nil
	}
	e := extent.Extent{Off: first * chunker.LeafSize, Len: (last - first) * chunker.LeafSize}
	if err := f.table.Invalidate(e.Intersect(extent.Extent{Off: 0, Len: f.deps.Volume.Size()})); err != nil {
		return fmt.Errorf("digest table: %w", err)
	}
	return nil
}

// linkUp waits for a connection.
func (f *Flow) linkUp(ctx context.Context) error {
	var fatal error
	for {
		v := f.link.view()
		if v.Fatal == nil && v.Conns == 0 {
			f.show(mover.Connecting, connecting(f.cfg.Gateway, v), "")
		}
		up := false
		err := f.link.Until(ctx, func(s uplink.State) bool {
			fatal, up = s.Fatal, s.Conns > 0
			return fatal != nil || up || s.Why != v.Why || s.Next != v.Next
		})
		switch {
		case err != nil:
			return context.Cause(ctx)
		case fatal != nil:
			return fatal
		case up:
			return nil
		}
	}
}

// carry opens or resumes p, sends what is left and commits. errDown: again, when the link is up.
func (f *Flow) carry(ctx context.Context, p *pass) error {
	if err := f.bring(ctx, p); err != nil {
		return err
	}
	return f.commit(ctx, p)
}

// bring opens or resumes p and sends what is left. errDown: again, when the link is up.
func (f *Flow) bring(ctx context.Context, p *pass) error {
	if err := f.linkUp(ctx); err != nil {
		return err
	}
	f.show(mover.Passing, p.why, "") // or frozen, while the writers stand still
	// Connections may have outlived an earlier run. What it sent has to be read before the gateway says what it has, and the acks of that
	// before a batch is sent again, so that no batch meets its earlier self (C10).
	if p.begun() {
		if err := f.link.barrier(ctx); err != nil {
			return err
		}
	}
	if err := f.open(ctx, p); err != nil || p.committed {
		return err
	}
	if p.begun() {
		if err := f.link.barrier(ctx); err != nil {
			return err
		}
	}
	if err := f.pipe.send(ctx, p); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

// identity is the volume's without its size, which OPEN tells apart: a volume that has grown is still the same one.
func identity(v blockdev.Volume) string {
	return strings.TrimSuffix(v.Identity(), fmt.Sprintf("/%d", v.Size()))
}

// open opens or resumes p at the gateway, or hears that p is committed already and the answer was lost.
func (f *Flow) open(ctx context.Context, p *pass) error {
	m := &wire.Open{Pass: p.id, Kind: uint8(p.kind), Consistency: uint8(p.consistency), Generation: p.generation, Epoch: p.epoch,
		VolumeSize: uint64(f.deps.Volume.Size()), BlockSize: uint32(f.deps.Volume.BlockSize()), LeafSize: chunker.LeafSize,
		Estimate: uint64(p.total), Identity: identity(f.deps.Volume)}
	if p.frozen && f.frozenNow() {
		m.Flags |= wire.FlagFrozen
	}
	if p.reclaim {
		m.Flags |= wire.FlagReclaim
	}
	a, err := f.link.ask(ctx, m)
	if err != nil {
		return err
	}
	if done, ok := a.(*wire.Committed); ok && p.asked {
		return p.agree(done)
	}
	o, ok := a.(*wire.Opened)
	if !ok || o.Pass != p.id {
		return fmt.Errorf("%w: %T in answer to OPEN", sentinel.ErrProtocol, a)
	}
	if !p.resume(o) {
		return fmt.Errorf("%w: the gateway has lost batches of pass %v that it had acked; the pass begins anew", sentinel.ErrCorrupt, p.id)
	}
	return nil
}

// commit ends p at the gateway. A lost answer is asked for by OPEN: the gateway remembers its last commit.
func (f *Flow) commit(ctx context.Context, p *pass) error {
	if p.committed {
		return nil
	}
	p.mu.Lock()
	c := p.counts
	n := p.lastSeq
	p.mu.Unlock()
	m := &wire.Commit{Pass: p.id, Batches: n, Consistency: uint8(p.consistency), UnixNano: p.started.UnixNano(), Counts: wire.Counts(c)}
	if p.frozen && !p.sealed.Load() {
		var err error
		if p.proven, err = f.prove(ctx); err != nil {
			return err
		}
	}
	if p.proven {
		m.Flags |= wire.FlagProven
	}
	// Who offered again may not be overtaken by the commit on another connection: an answer on each says that all before it was read.
	if err := f.link.barrier(ctx); err != nil {
		return err
	}
	// From its commit on the table of a full pass is trusted, and no bitmap covers what it says: all of it has to outlive a kill by then.
	if p.kind != mover.Delta {
		if err := f.table.Flush(); err != nil {
			return fmt.Errorf("digest table: %w", err)
		}
	}
	p.asked = true
	a, err := f.link.ask(ctx, m)
	if err != nil {
		return err
	}
	got, ok := a.(*wire.Committed)
	if !ok {
		return fmt.Errorf("%w: %T in answer to COMMIT", sentinel.ErrProtocol, a)
	}
	return p.agree(got)
}

// agree compares what COMMITTED says with what was sent.
func (p *pass) agree(m *wire.Committed) error {
	if m.Pass != p.id || m.Generation != p.generation || m.Epoch != p.epoch {
		return fmt.Errorf("%w: COMMITTED of pass %v, epoch %d, instead of %v, epoch %d", sentinel.ErrProtocol, mover.ID(m.Pass), m.Epoch, p.id, p.epoch)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if mover.Counts(m.Counts) != p.counts {
		return fmt.Errorf("%w: counts of pass %v: source %+v, gateway %+v", sentinel.ErrCorrupt, p.id, p.counts, m.Counts)
	}
	p.committed = true
	return nil
}

// finish follows the commit.
func (f *Flow) finish(p *pass) error {
	if p.whole != nil {
		for e := range p.whole.All() {
			if err := f.table.Invalidate(e); err != nil {
				return fmt.Errorf("digest table: %w", err)
			}
		}
	}
	f.committed(p)
	if p.kind != mover.Delta {
		f.force, f.reclaim = "", false
	}
	if p.frozen && !p.sealed.Load() {
		f.deferred = p.epoch
		return nil
	}
	return f.retire(p.epoch)
}

// retire forgets what a committed pass has carried (C4). The table goes first: after a kill it must not be older than the bitmaps say.
func (f *Flow) retire(epoch uint64) error {
	if err := f.table.Flush(); err != nil {
		return fmt.Errorf("digest table: %w", err)
	}
	if err := f.deps.Tracker.Retire(epoch); err != nil {
		return fmt.Errorf("retire epoch %d: %w", epoch, err)
	}
	return nil
}

// prove asks the tracker's witness while the disk is quiet. A mismatch is ErrTrackLost.
func (f *Flow) prove(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, proveLimit)
	defer cancel()
	proof, err := f.deps.Tracker.Prove(ctx)
	if errors.Is(err, sentinel.ErrTrackLost) {
		f.lostTrack(err)
		return false, err
	}
	return err == nil && proof == blockdev.Proven, nil
}

// proveLimit bounds the wait for a quiet moment. A frozen disk is quiet at once, unless others share it.
const proveLimit = 500 * time.Millisecond
