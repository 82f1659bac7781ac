package receiver

import (
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// handleCommit makes the pass durable as a whole and answers; applying it goes on behind the answer.
func (c *conn) handleCommit(seq uint32, m *wire.Commit) error {
	f := c.f
	if answer := f.committedBefore(m.Pass); answer != nil {
		return c.wc.Write(wire.TypeCommitted, seq, answer)
	}
	if err := f.gate.whole(c.ctx); err != nil {
		return err
	}
	answer, err := f.commit(m)
	f.gate.unwhole()
	if err != nil {
		return err
	}
	return c.wc.Write(wire.TypeCommitted, seq, answer)
}

// committedBefore answers a COMMIT whose answer was lost.
func (f *flow) committedBefore(id [16]byte) *wire.Committed {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last != nil && f.last.Pass == id && f.pass == nil {
		return f.last
	}
	return nil
}

func (f *flow) commit(m *wire.Commit) (*wire.Committed, error) {
	f.mu.Lock()
	p, broken := f.pass, f.broken
	f.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	if p == nil || p.Pass != m.Pass {
		return nil, fmt.Errorf("commit of a pass that is not open: %w", sentinel.ErrProtocol)
	}
	if err := p.round(); err != nil {
		return nil, f.serious(err)
	}
	p.mu.Lock()
	n, total := p.ledger.n, p.ledger.total
	p.mu.Unlock()
	if got := mover.Counts(m.Counts); got != total || n != m.Batches {
		err := fmt.Errorf("source counts %d batches %+v, gateway %d batches %+v; the pass is dropped: %w", m.Batches, got, n, total, sentinel.ErrCorrupt)
		return nil, errors.Join(err, f.abort(p))
	}
	// Whatever COMMIT says: the freeze may break still, and what the point is worth is told by KEEP (C13).
	commit := &catalog.Commit{Batches: n, Consistency: mover.Fuzzy, Proven: m.Flags&wire.FlagProven != 0,
		Time: time.Unix(0, m.UnixNano).UTC(), Counts: total}
	if _, err := p.redo.Append(catalog.Rec{Kind: catalog.RecCommit, Meta: commit.Append(nil)}); err != nil {
		return nil, f.serious(err)
	}
	if err := p.redo.Sync(); err != nil {
		return nil, f.serious(err)
	}
	p.stop()
	p.commit = commit
	answer := &wire.Committed{Pass: m.Pass, Generation: p.Generation, Epoch: p.Epoch, Mode: uint8(p.mode()), Counts: wire.Counts(total)}
	f.mu.Lock()
	f.pass, f.last = nil, answer
	f.passes++
	if p.Kind == mover.Rescan {
		f.rescans++
	}
	f.totals.Add(total)
	f.mu.Unlock()
	f.finish(p, nil)
	return answer, nil
}

// handleAbort drops the open pass.
func (c *conn) handleAbort(seq uint32, m *wire.Abort) error {
	f := c.f
	if err := f.exclusive(c.ctx, func(done, total int64, text string) { c.notice(seq, done, total, text) }); err != nil {
		return err
	}
	defer f.gate.unwhole()
	if p := f.openPass(); p != nil && p.Pass == m.Pass {
		if err := f.abort(p); err != nil {
			return f.serious(err)
		}
	}
	return c.wc.Write(wire.TypeAborted, seq, &wire.Aborted{Pass: m.Pass})
}

// abort drops p. A staged pass leaves no trace; after a direct one the target stays incomplete, and the table is made durable for
// what was written, since the log with its intents goes. After an error the flow is broken, for p takes no batch any more. The caller
// holds the whole gate.
func (f *flow) abort(p *pass) error {
	if err := f.drop(p); err != nil {
		f.fail(err)
		return err
	}
	f.mu.Lock()
	f.pass, f.since = nil, time.Now()
	f.mu.Unlock()
	f.log.Info("pass dropped", "pass", p.Pass.String(), "epoch", p.Epoch, "mode", p.mode().String())
	return nil
}

func (f *flow) drop(p *pass) error {
	p.stop()
	if p.direct.Load() {
		if err := f.syncTarget(); err != nil {
			return err
		}
	}
	if err := p.redo.Discard(); err != nil {
		return diskFull(err)
	}
	return nil
}

// handleRelease ends the hold of the target after a cutover, so that it can be attached elsewhere.
func (c *conn) handleRelease(seq uint32, m *wire.Release) error {
	f := c.f
	if err := f.exclusive(c.ctx, func(done, total int64, text string) { c.notice(seq, done, total, text) }); err != nil {
		return err
	}
	defer f.gate.unwhole()
	if err := f.release(m); err != nil {
		return f.serious(err)
	}
	return c.wc.Write(wire.TypeReleased, seq, &wire.Released{Generation: m.Generation, Epoch: m.Epoch})
}

func (f *flow) release(m *wire.Release) error {
	r := f.record()
	if r.Generation != catalog.ID(m.Generation) || r.Epoch != m.Epoch || r.Phase != mover.Point && r.Phase != mover.Released {
		return fmt.Errorf("release of epoch %d, but flow %s is %s at epoch %d: %w", m.Epoch, f.key, r.Phase, r.Epoch, sentinel.ErrRefused)
	}
	if r.Phase == mover.Released {
		return nil
	}
	if p := f.openPass(); p != nil {
		return fmt.Errorf("release while a pass is open: %w", sentinel.ErrProtocol)
	}
	if root, ok := f.table.Root(); !ok || root != m.Digest {
		return fmt.Errorf("release with root %s, the target's is %s: read back and compare again: %w", m.Digest.Short(), root.Short(), sentinel.ErrRefused)
	}
	if err := f.syncTarget(); err != nil {
		return err
	}
	err := f.update(func(r *catalog.Record) {
		r.Phase, r.Report, r.Released = mover.Released, m.Report, time.Now().UTC()
	})
	if err != nil {
		return err
	}
	f.log.Info("target released", "target", f.cfg.Target, "epoch", r.Epoch)
	if err := f.closeTarget(); err != nil { // all of it is durable, and the source must not hear that it was not released
		f.log.Warn("released target was not closed well", "target", f.cfg.Target, "error", err)
	}
	return nil
}
