package sender

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// verify compares a source that is in use. A leaf that was written between the delta and its reading differs for a good reason; so a
// leaf is called different only when it differed and the next Take says that nobody has touched it since the one before. Those that were
// touched are sent and compared again.
type verify struct {
	f        *Flow
	o        VerifyOptions
	progress teller
	report   *mover.Report
}

// maxVerifyRounds bounds how often leaves that are written all the time are compared.
const maxVerifyRounds = 10

func (v *verify) run(ctx context.Context) error {
	f := v.f
	v.report = f.newReport("verify")
	wireAt := f.link.view().Out
	err := v.rounds(ctx)
	f.closeReport(v.report, wireAt, err)
	if errors.Is(err, sentinel.ErrDiffer) {
		f.force = "a verification found differences"
		f.due = time.Now().Add(f.cfg.Interval)
	}
	return err
}

func (v *verify) rounds(ctx context.Context) error {
	f, r := v.f, v.report
	size := f.deps.Volume.Size()
	method, _ := f.deps.Tracker.Method()
	different := extent.NewSet(size, chunker.LeafSize) // for sure
	var open *extent.Set                               // differed in the round before
	var before int64                                   // bytes of open a round ago: what does not become less is written all the time
	scope := uint8(wire.ScopeTouched)
	if v.o.All {
		scope = wire.ScopeAll
	}
	for round := 1; ; round++ {
		v.progress.say("delta", fmt.Sprintf("round %d: sending what has changed", round), 0, 0)
		p, err := f.follow(ctx, v.progress, inRound)
		if err != nil {
			return err
		}
		r.Rounds = round
		r.Generation, r.Epoch = fmt.Sprintf("%x", p.generation[:]), p.epoch
		if open != nil {
			v.judge(p, open, different)
		}
		if open != nil && (open.Empty() || round > maxVerifyRounds || round > 3 && open.Bytes() >= before) {
			return v.conclude(open, different)
		}
		if open != nil {
			before = open.Bytes()
		}
		f.show(mover.Settling, "reading both ends", "")
		if round == 1 && v.o.All && method != "scan" {
			if err := v.forget(); err != nil {
				return err
			}
		}
		v.progress.say("read-back", "reading both ends", 0, size)
		target, err := f.settle(ctx, scope, v.progress)
		if err != nil {
			return err
		}
		scope = wire.ScopeTouched
		source, err := f.sourceRoot()
		if err != nil {
			return err
		}
		f.compared(r, source, target)
		if source.Digest == target.Digest {
			return v.conclude(nil, different)
		}
		if open, err = f.walk(ctx); err != nil {
			return err
		}
		if method == "scan" {
			// The source's digests are those of what this very pass has read: the target does not hold what it was sent.
			return v.conclude(nil, open)
		}
		for e := range different.All() {
			open.Remove(e)
		}
		if open.Empty() {
			return v.conclude(nil, different)
		}
	}
}

// judge moves leaves that differed before and were not touched up to the Take of p from open to different. What was touched stays open and
// is compared again; after a rescan that is everything.
func (v *verify) judge(p *pass, open, different *extent.Set) {
	if p.kind != mover.Delta {
		return
	}
	touched := open.Clone()
	for e := range open.All() {
		for at := e.Off; at < e.End(); at += chunker.LeafSize {
			leaf := extent.Extent{Off: at, Len: min(chunker.LeafSize, e.End()-at)}
			if !p.dirty.Intersects(leaf) {
				different.Add(leaf)
				touched.Remove(leaf)
			}
		}
	}
	open.Clear()
	open.Union(touched)
}

// forget has the source read every leaf again that is not free.
func (v *verify) forget() error {
	t, size := v.f.table, v.f.deps.Volume.Size()
	for first := int64(0); first < chunker.Leaves(size); first += chunker.GroupLeaves {
		n := min(chunker.GroupLeaves, chunker.Leaves(size)-first)
		ds := t.Digests(first, n)
		start := int64(0)
		for i := int64(0); i <= n; i++ {
			if i < n && ds[i] != digest.Free {
				continue
			}
			if err := v.f.unknow(first+start, first+i); err != nil {
				return err
			}
			start = i + 1
		}
	}
	return nil
}

func (v *verify) conclude(busy, different *extent.Set) error {
	r := v.report
	if busy != nil && !busy.Empty() {
		r.Compared -= busy.Bytes()
		v.progress.say("compare", fmt.Sprintf("%s are written all the time and were not compared", units.Size(busy.Bytes())), 0, 0)
	}
	if different.Empty() {
		return nil
	}
	r.Differ = named(different)
	return fmt.Errorf("%w: %s in %d places, the first at bytes %v", sentinel.ErrDiffer, units.Size(different.Bytes()), len(r.Differ), first(r))
}
