package receiver

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// finishing is the rest of a pass after its commit record, or what a restart interrupted: a switch to direct mode, zeroing. While it runs,
// nothing else happens to the flow.
type finishing struct {
	pass  *pass
	zero  []extent.Extent // free leaves to be zeroed, of a direct pass that was cut off
	ended chan struct{}
	done  atomic.Int64 // bytes of log applied
	total int64
}

// applyWriters is how many records of a log are applied at once.
const applyWriters = 4

// finish begins to finish p in the background. The caller holds the whole gate, or nobody else knows the flow.
func (f *flow) finish(p *pass, zero []extent.Extent) {
	fin := &finishing{pass: p, zero: zero, ended: make(chan struct{}), total: p.redo.Bytes()}
	f.mu.Lock()
	f.finishing, f.since = fin, time.Now()
	f.mu.Unlock()
	f.s.bg.Go(func() {
		defer close(fin.ended)
		err := f.finishPass(fin)
		if err != nil && p.commit != nil && errors.Is(err, sentinel.ErrCorrupt) {
			f.log.Error("redo log is damaged: the target is no recovery point until a rescan", "epoch", p.Epoch, "error", err)
			err = f.giveUp(p)
		}
		goesOn := err == nil && p.commit == nil
		if goesOn {
			p.start()
		} else {
			p.cancel()
		}
		if err != nil {
			_ = p.redo.Close()
			f.fail(err) // also when the gateway stops: nobody may begin a pass over a log that is not applied
		}
		f.mu.Lock()
		if f.finishing = nil; goesOn {
			f.pass = p
		}
		f.since = time.Now()
		f.mu.Unlock()
	})
}

func (f *flow) finishPass(fin *finishing) error {
	p := fin.pass
	if p.commit == nil && p.direct.Load() {
		for _, e := range fin.zero {
			if err := f.target.Zero(f.padded(e)); err != nil {
				return f.opError("zero", e, err)
			}
		}
		return f.timedSync()
	}
	if p.commit == nil {
		return f.replaceLog(f.s.ctx, p, &fin.done)
	}
	if !p.direct.Load() {
		// While the log is applied the target is between points; the log is what makes it whole (C5, C6).
		if err := f.markIncomplete(p); err != nil {
			return err
		}
		began := time.Now()
		if _, err := f.applyLog(f.s.ctx, p, true, &fin.done); err != nil {
			return err
		}
		if err := f.syncTarget(); err != nil {
			return err
		}
		f.s.metrics.applied(began)
	}
	if f.rebuilt {
		f.log.Error("digest table was lost: the target needs a rescan", "epoch", p.Epoch)
		return errors.Join(f.forgetPoint(p), p.redo.Discard())
	}
	err := f.update(func(r *catalog.Record) {
		r.Phase, r.Open = mover.Point, nil
		r.Generation, r.Epoch = catalog.ID(p.Generation), p.Epoch
		r.Unreadable = f.unreadableList()
		if r.Point.Pass == catalog.ID(p.Pass) {
			return // a crash brought the log back, and the point may be confirmed since (C13)
		}
		r.Point = catalog.RecoveryPoint{Time: p.commit.Time, Consistency: p.commit.Consistency, Proven: p.commit.Proven, Pass: catalog.ID(p.Pass),
			Mode: p.mode(), Counts: p.commit.Counts}
	})
	if err != nil {
		return err
	}
	f.log.Info("recovery point", "epoch", p.Epoch, "kind", p.Kind.String(), "mode", p.mode().String(), "consistency", p.commit.Consistency.String(),
		"seconds", time.Since(p.began).Seconds())
	f.note(p.event())
	// Before the log goes: a point that a crash prevents is taken when the log is applied again.
	if err := f.keepPoint(p); err != nil {
		return err
	}
	return p.redo.Discard()
}

// giveUp leaves a target whose committed log cannot be read: no delta may build on it, and nothing about it is known.
func (f *flow) giveUp(p *pass) error {
	if err := f.table.Reset(); err != nil {
		return err
	}
	if err := f.table.Sync(); err != nil {
		return err
	}
	if err := f.forgetPoint(p); err != nil {
		return err
	}
	return p.redo.Discard()
}

// settled waits until nothing of an earlier pass is under way, and returns what keeps the flow from going on. tell, if given, is
// called every second.
func (f *flow) settled(ctx ctxt, tell func(done, total int64, text string)) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		f.mu.Lock()
		fin, broken := f.finishing, f.broken
		f.mu.Unlock()
		if fin == nil {
			return broken
		}
		select {
		case <-fin.ended:
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if tell != nil {
				tell(fin.done.Load(), fin.total, fmt.Sprintf("applying epoch %d", fin.pass.Epoch))
			}
		}
	}
}

// exclusive waits until the flow is settled and holds the whole gate then.
func (f *flow) exclusive(ctx ctxt, tell func(done, total int64, text string)) error {
	if err := f.exclusiveBroken(ctx, tell); err != nil {
		return err
	}
	f.mu.Lock()
	broken := f.broken
	f.mu.Unlock()
	if broken != nil {
		f.gate.unwhole()
	}
	return broken
}

// exclusiveBroken is exclusive for those who can do with a broken flow.
func (f *flow) exclusiveBroken(ctx ctxt, tell func(done, total int64, text string)) error {
	for {
		if err := f.settled(ctx, tell); err != nil && ctx.Err() != nil {
			return err
		}
		if err := f.gate.whole(ctx); err != nil {
			return err
		}
		f.mu.Lock()
		busy := f.finishing != nil
		f.mu.Unlock()
		if !busy {
			return nil
		}
		f.gate.unwhole()
	}
}

// applied is what a batch did to the target, for the log that follows a switch.
type applied map[uint32][]wire.Item

// applyLog brings the staged batches of p to the target and the table. Doing it again changes nothing (C5). With wholeOnly parts of
// incomplete batches are left out.
func (f *flow) applyLog(ctx ctxt, p *pass, wholeOnly bool, done *atomic.Int64) (applied, error) {
	p.mu.Lock()
	var refs []partRef
	for _, r := range p.refs {
		// Of a batch that was sent again only its last self counts (C10).
		if e := p.ledger.at(r.seq); e != nil && e.attempt == r.attempt && (e.flags&isComplete != 0 || !wholeOnly) {
			refs = append(refs, r)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(refs, func(a, b partRef) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	var mu sync.Mutex // guards zeros and items
	var zeros []wire.Item
	items := applied{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(applyWriters)
	for _, r := range refs {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			b, err := f.applyPart(gctx, p, r)
			if err != nil {
				return err
			}
			done.Add(int64(r.ref.Payload))
			mu.Lock()
			defer mu.Unlock()
			for _, it := range b.Items {
				if it.Kind != wire.ItemData {
					zeros = append(zeros, it)
				}
			}
			if !wholeOnly {
				items[r.seq] = append(items[r.seq], b.Items...)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // then not all was begun
		return nil, err
	}
	return items, f.zeroAll(ctx, zeros)
}

// applyPart writes the data of one record.
func (f *flow) applyPart(ctx ctxt, p *pass, r partRef) (*catalog.Batch, error) {
	buf, err := f.s.replay.Get(ctx)
	if err != nil {
		return nil, err
	}
	defer f.s.replay.Put(buf)
	meta, payload, err := p.redo.Read(r.ref, buf)
	if err != nil {
		return nil, err
	}
	b := new(catalog.Batch)
	if err := b.Decode(meta); err != nil {
		return nil, err
	}
	if len(b.Parts) == 0 {
		return b, nil
	}
	part := b.Parts[0]
	if len(b.Parts) != 1 || int(part.Size) != len(payload) {
		return nil, fmt.Errorf("redo log: batch %d has other parts than its payload: %w", r.seq, sentinel.ErrCorrupt)
	}
	plain, release, err := f.s.decode(ctx, part.Codec, part.Plain, payload)
	if err != nil {
		return nil, err
	}
	defer release()
	// The log was read from a disk: what it says is checked as if it came over the line.
	if b.Leaves != nil {
		err = checkLeaves(plain, b.Leaves)
	} else if digest.Sum(plain) != b.Digest {
		err = fmt.Errorf("plain bytes do not have their digest: %w", sentinel.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("redo log: batch %d: %w", r.seq, err)
	}
	return b, f.putData(ctx, b.Items, plain, b.Leaves)
}

// goDirect makes a staged pass direct because its log is full. First the record says incomplete (C6), then the log says that it
// is being applied, then it is.
func (f *flow) goDirect(ctx ctxt, p *pass, why error) error {
	if err := f.gate.whole(ctx); err != nil {
		return err
	}
	defer f.gate.unwhole()
	f.mu.Lock()
	same := f.pass == p && f.broken == nil
	f.mu.Unlock()
	if !same || p.direct.Load() {
		return nil // the caller looks again
	}
	f.log.Info("pass goes on directly: the target is incomplete until it commits", "epoch", p.Epoch, "reason", why)
	if err := p.round(); err != nil {
		return err
	}
	if err := f.markIncomplete(p); err != nil {
		return err
	}
	if _, err := p.redo.Append(catalog.Rec{Kind: catalog.RecSwitch}); err != nil {
		return err
	}
	if err := p.redo.Sync(); err != nil {
		return err
	}
	var done atomic.Int64
	// Whoever asked for it may be gone before the end: that is no reason to stop half way.
	if err := f.replaceLog(f.s.ctx, p, &done); err != nil {
		// The log says that the switch has begun: only the way over the disk leads on.
		f.fail(err)
		return err
	}
	return nil
}

// replaceLog applies what p has staged and gives it a log of a direct pass in which the applied batches are done.
func (f *flow) replaceLog(ctx ctxt, p *pass, done *atomic.Int64) error {
	items, err := f.applyLog(ctx, p, false, done)
	if err != nil {
		return err
	}
	if err := f.syncTarget(); err != nil {
		return err
	}
	h := p.Head
	h.Mode = mover.Direct
	next, err := catalog.CreateLog(f.logPath()+".next", h, f.logOptions())
	if err != nil {
		return err
	}
	if err := p.copyDone(next, items); err != nil {
		return errors.Join(err, next.Close())
	}
	if err := next.Rename(f.logPath()); err != nil {
		return errors.Join(err, next.Close())
	}
	p.roundMu.Lock()
	defer p.roundMu.Unlock()
	p.mu.Lock()
	old := p.redo
	p.redo, p.refs = next, nil
	p.direct.Store(true)
	p.mu.Unlock()
	return old.Close()
}

func (p *pass) copyDone(next *catalog.Log, items applied) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for seq := uint32(1); seq <= p.ledger.most && seq != 0; seq++ {
		e := p.ledger.at(seq)
		if e == nil {
			seq |= ledgerPage - 1
			continue
		}
		if e.flags&isComplete == 0 {
			continue
		}
		e.flags |= isDurable
		b := catalog.Batch{Counts: p.ledger.counts(seq, e), Items: items[seq]}
		rec := catalog.Rec{Kind: catalog.RecDone, Final: true, Seq: seq, Attempt: uint16(e.attempt), Meta: b.Append(nil)}
		if _, err := next.Append(rec); err != nil {
			return err
		}
	}
	return next.Sync()
}
