package receiver

import (
	"errors"
	"fmt"
	"os"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// restore takes up the log after a start: a committed pass is finished, an open one waits for its source.
func (f *flow) restore() error {
	_ = os.Remove(f.logPath() + ".next")
	r := restorer{f: f, p: f.newPass(catalog.Head{VolumeSize: f.table.Size()}, nil), done: map[uint32][]wire.Item{}}
	log, err := catalog.OpenLog(f.logPath(), f.logOptions(), r.visit)
	if err != nil {
		return err
	}
	p := r.p
	if log == nil {
		p.cancel()
		return nil
	}
	if log.VolumeSize != f.table.Size() || log.Flow != f.key {
		p.cancel()
		f.log.Warn("redo log is not of this volume; it is discarded and every leaf counts as unknown", "log_flow", log.Flow, "log_size", log.VolumeSize)
		if err := errors.Join(f.table.Reset(), f.table.Sync(), f.forgetPoint(nil)); err != nil {
			return err
		}
		return log.Discard()
	}
	p.Head, p.redo, p.began = log.Head, log, log.Began
	var zero []extent.Extent
	if log.Mode == mover.Direct {
		p.direct.Store(true)
		// A commit record means that all of the pass is durable, and the table with it.
		if p.commit == nil {
			if zero, err = r.distrust(); err != nil {
				return err
			}
		}
	}
	switch {
	case p.commit != nil || len(zero) > 0 || r.switched && !p.direct.Load():
		f.finish(p, zero)
	default:
		f.mu.Lock()
		f.pass = p
		f.mu.Unlock()
		p.start()
	}
	f.log.Info("redo log taken up", "pass", p.Pass.String(), "epoch", p.Epoch, "mode", p.mode().String(), "batches", p.ledger.n,
		"committed", p.commit != nil)
	return nil
}

// restorer builds a pass from its records.
type restorer struct {
	f        *flow
	p        *pass
	done     map[uint32][]wire.Item // direct mode: durable batches
	intents  []extent.Extent
	switched bool
	batch    catalog.Batch
}

func (r *restorer) visit(rec catalog.Rec, ref catalog.Ref) error {
	p := r.p
	switch rec.Kind {
	case catalog.RecBatch, catalog.RecDone:
		if err := r.batch.Decode(rec.Meta); err != nil {
			return err
		}
		r.noteBatch(rec, ref)
	case catalog.RecAgain:
		delete(r.done, rec.Seq)
		e := p.ledger.make(rec.Seq)
		p.ledger.forget(rec.Seq, e)
		e.attempt = uint8(rec.Attempt)
	case catalog.RecIntent:
		first, n, err := catalog.DecodeIntent(rec.Meta)
		if err != nil {
			return err
		}
		r.intents = append(r.intents, extent.Extent{Off: first * stretch, Len: n * stretch})
	case catalog.RecSwitch:
		r.switched = true
	case catalog.RecCommit:
		p.commit = new(catalog.Commit)
		return p.commit.Decode(rec.Meta)
	default:
		return fmt.Errorf("record of kind %d: %w", rec.Kind, sentinel.ErrNotSupported)
	}
	return nil
}

func (r *restorer) noteBatch(rec catalog.Rec, ref catalog.Ref) {
	l, attempt := r.p.ledger, uint8(rec.Attempt)
	if e := l.make(rec.Seq); e.attempt != attempt {
		l.forget(rec.Seq, e)
		e.attempt = attempt
	}
	if rec.Final {
		l.complete(rec.Seq, attempt, r.batch.Counts)
		l.durable(rec.Seq, attempt)
	}
	if rec.Kind == catalog.RecDone {
		r.done[rec.Seq] = append([]wire.Item(nil), r.batch.Items...)
		return
	}
	if len(r.batch.Items) > 0 {
		r.p.refs = append(r.p.refs, partRef{r.batch.Items[0].Off, rec.Seq, attempt, ref})
	}
}

// distrust makes every leaf unknown that a direct pass may have been writing when it was cut off: those of its stretches that no
// durable batch has. What durable batches could not read, or read at last, is noted as well.
//
// Free leaves keep their marker, which could not be found again by reading, but nobody knows whether they are zeros: they may have been
// about to be zeroed, or to be filled by a batch that will come again. They are returned, to be zeroed.
func (r *restorer) distrust() (zero []extent.Extent, err error) {
	f := r.f
	sure := extent.NewSet(f.table.Size(), leafSize)
	for _, items := range r.done {
		for _, it := range items {
			e := extentOf(it)
			if first, n := f.wholeLeaves(e); n > 0 {
				sure.Add(extent.Extent{Off: first * leafSize, Len: n * leafSize})
			}
			if it.Kind == wire.ItemUnreadable {
				f.noteUnreadable(e)
			} else {
				f.noteRead(e)
			}
		}
	}
	for _, in := range r.intents {
		r.p.intents.set.Add(in)
	}
	for in := range r.p.intents.set.All() {
		for e := range sure.Gaps(in) {
			if zero, err = f.distrust(e, zero); err != nil {
				return nil, err
			}
		}
	}
	return zero, f.table.Sync()
}

// distrust makes the leaves of e unknown, but for free ones, which it appends to zero.
func (f *flow) distrust(e extent.Extent, zero []extent.Extent) ([]extent.Extent, error) {
	for first := e.Off / leafSize; first*leafSize < e.End(); first += chunker.GroupLeaves {
		n := min(chunker.GroupLeaves, chunker.Leaves(e.End())-first)
		ds := f.table.Digests(first, n)
		for i := range ds {
			if ds[i] != digest.Free {
				ds[i] = digest.Unknown
				continue
			}
			x := chunker.LeafExtent(f.table.Size(), first+int64(i))
			if k := len(zero) - 1; k >= 0 && zero[k].End() == x.Off {
				zero[k].Len += x.Len
			} else {
				zero = append(zero, x)
			}
		}
		if err := f.table.Set(first, ds); err != nil {
			return nil, err
		}
	}
	return zero, nil
}

// forgetPoint records that no delta may build on the target any more: free markers are lost with the table, and only a rescan
// brings them back. p, if given, is the pass that it happened in.
func (f *flow) forgetPoint(p *pass) error {
	return f.update(func(r *catalog.Record) {
		r.Phase, r.Generation, r.Epoch, r.Point, r.Open = mover.Incomplete, catalog.ID{}, 0, catalog.RecoveryPoint{}, nil
		if p != nil {
			r.Open = &catalog.OpenPass{ID: catalog.ID(p.Pass), Kind: p.Kind, Generation: catalog.ID(p.Generation), Epoch: p.Epoch, Began: p.began}
		}
	})
}
