package receiver

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// offer is a batch that waits for its DATA.
type offer struct {
	pass    *pass
	attempt uint8
	items   []wire.Item // what was resolved without data, then what is needed
	need    int         // items[need:] are needed
	leaves  []digest.Digest
	plain   int         // bytes of the needed leaves
	asked   bool        // PRINTS may come
	found   []foundPage // pages of the needed leaves that DATA does not bring, ascending
	counts  mover.Counts
	size    int // memory, about
}

// inPass runs fn with a share of the gate. When the redo log is full the pass goes direct and fn runs again.
func (c *conn) inPass(fn func(p *pass) error) error {
	for {
		p, err := c.f.enter(c.ctx)
		if err != nil {
			return err
		}
		staged := !p.direct.Load()
		err = fn(p)
		c.f.gate.unshare()
		if !errors.Is(err, catalog.ErrLogFull) || !staged {
			return c.f.serious(err)
		}
		if err := c.f.goDirect(c.ctx, p, err); err != nil {
			return c.f.serious(err)
		}
	}
}

// serious marks the flow broken when err leaves it unclear what is durable, or comes from the target.
func (f *flow) serious(err error) error {
	if err == nil {
		return nil
	}
	for _, harmless := range []error{sentinel.ErrProtocol, sentinel.ErrRefused, sentinel.ErrFenced, catalog.ErrLogFull, errStateFull,
		context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, harmless) {
			return err
		}
	}
	if !errors.As(err, new(*wire.Error)) && !errors.As(err, new(*lineError)) {
		f.fail(err)
	}
	return err
}

// errStateFull: the state disk has no room for digest tables or records.
var errStateFull = errors.New("state disk is full; make room below the state directory")

func diskFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", errStateFull, err)
	}
	return err
}

func (c *conn) handleOffer(seq uint32, m *wire.Offer) error {
	c.forget(seq)
	tried, seenBefore := false, false
	return c.inPass(func(p *pass) error {
		if last := m.Runs[len(m.Runs)-1]; int64(last.First)+int64(last.N) > chunker.Leaves(c.f.table.Size()) {
			return fmt.Errorf("offer of leaf %d on a volume of %d: %w", last.First, chunker.Leaves(c.f.table.Size()), sentinel.ErrProtocol)
		}
		attempt, seen, release, err := p.begin(c.ctx, seq)
		if err != nil {
			return err
		}
		defer release()
		if !tried {
			tried, seenBefore = true, seen
		}
		r, err := c.f.resolve(c.ctx, p, m, seenBefore)
		if err != nil {
			return err
		}
		defer r.release()
		o := r.offer(p, attempt)
		if err := p.putResolved(c.ctx, seq, o, r); err != nil {
			return err
		}
		if o.plain > 0 {
			if err := c.remember(seq, o); err != nil {
				return err
			}
			// Of a batch that was seen before the leaves come whole: what was found for it may have been the trouble.
			if o.asked = c.pages && c.offerBytes < maxOffers/4 && !seenBefore && !c.s.cfg.NoDedup && c.f.paying.ask(); o.asked {
				r.need.Flags = wire.FlagPrints
			}
		}
		if err := c.wc.Write(wire.TypeNeed, seq, &r.need); err != nil {
			return &lineError{err}
		}
		if o.plain == 0 { // after NEED, so that the ack follows it
			p.complete(doneBatch{conn: c, seq: seq, attempt: attempt, counts: o.counts, items: o.items, bytes: o.bytes()})
		}
		return nil
	})
}

// lineError is that of a connection: the flow has nothing to do with it.
type lineError struct{ error }

func (e *lineError) Unwrap() error { return e.error }

// bytes is what the batch stands for, logically.
func (o *offer) bytes() int64 { return int64(o.counts.Offered) * leafSize }

func (c *conn) remember(seq uint32, o *offer) error {
	o.size = 160 + len(o.items)*24 + len(o.leaves)*digest.Size + len(o.found)*24
	if c.offerBytes+o.size > maxOffers {
		return fmt.Errorf("source has %d offers open on one connection and ignores its window: %w", len(c.offers), sentinel.ErrProtocol)
	}
	c.offers[seq] = o
	c.offerBytes += o.size
	return nil
}

func (c *conn) forget(seq uint32) {
	if o := c.offers[seq]; o != nil {
		c.offerBytes -= o.size
		delete(c.offers, seq)
	}
}

// putResolved logs or writes what an offer needs no data for. When nothing is needed the record is the batch's last.
func (p *pass) putResolved(ctx ctxt, seq uint32, o *offer, r *resolved) error {
	final := o.plain == 0
	if p.direct.Load() {
		return p.putDirect(ctx, o.items[:o.need], r.copied(), r.copiedLeaves)
	}
	if o.need == 0 && !final {
		return nil
	}
	b := catalog.Batch{Counts: o.counts, Items: o.items[:o.need], Leaves: r.copiedLeaves}
	if len(r.copied()) > 0 {
		b.Parts = []catalog.Part{plainPart(r.copied())}
	}
	return p.stage(seq, o.attempt, final, &b, r.copied())
}

func plainPart(b []byte) catalog.Part {
	return catalog.Part{Codec: wire.CodecPlain, Plain: uint32(len(b)), Size: uint32(len(b))}
}

// stage appends a part of a batch to the log.
func (p *pass) stage(seq uint32, attempt uint8, final bool, b *catalog.Batch, payload []byte) error {
	rec := catalog.Rec{Kind: catalog.RecBatch, Final: final, Attempt: uint16(attempt), Seq: seq, Meta: b.Append(nil)}
	ref, err := p.redo.Append(rec, payload)
	if err != nil {
		return err
	}
	if len(b.Items) > 0 {
		p.mu.Lock()
		p.refs = append(p.refs, partRef{b.Items[0].Off, seq, attempt, ref})
		p.mu.Unlock()
	}
	return nil
}

func (c *conn) handleData(seq uint32, m *wire.Data) error {
	o := c.offers[seq]
	if o == nil {
		return fmt.Errorf("data of batch %d, for which nothing was needed: %w", seq, sentinel.ErrProtocol)
	}
	c.forget(seq)
	if want := o.data(); int(m.Plain) != want {
		return fmt.Errorf("data of batch %d has %d bytes, %d were needed: %w", seq, m.Plain, want, sentinel.ErrProtocol)
	}
	plain, release, err := c.assemble(o, m)
	if err != nil {
		return err
	}
	defer release()
	if again, err := o.check(plain); err != nil { // C7
		return fmt.Errorf("batch %d: %w", seq, err)
	} else if again {
		c.s.metrics.pageMismatches.Add(1)
		if err := c.wc.Write(wire.TypeAgain, seq, &wire.Again{}); err != nil {
			return &lineError{err}
		}
		return nil
	}
	return c.inPass(func(p *pass) error {
		if p != o.pass {
			return fmt.Errorf("data of batch %d belongs to an earlier pass: %w", seq, sentinel.ErrProtocol)
		}
		hold, err := p.hold(c.ctx, seq)
		if err != nil {
			return err
		}
		defer hold()
		if !p.current(seq, o.attempt) {
			return nil // sent again on another connection meanwhile
		}
		if p.direct.Load() {
			err = p.putDirect(c.ctx, o.items[o.need:], plain, o.leaves)
		} else {
			b := catalog.Batch{Counts: o.counts, Items: o.items[o.need:], Leaves: o.leaves,
				Parts: []catalog.Part{{Codec: m.Codec, Plain: m.Plain, Size: uint32(len(m.Payload))}}}
			payload := m.Payload
			if len(o.found) > 0 { // where they were found may be written to before the log is applied
				b.Parts[0], payload = plainPart(plain), plain
			}
			err = p.stage(seq, o.attempt, true, &b, payload)
		}
		if err == nil {
			p.complete(doneBatch{conn: c, seq: seq, attempt: o.attempt, counts: o.counts, items: o.items, bytes: o.bytes()})
		}
		return err
	})
}

func (c *conn) handlePut(seq uint32, m *wire.Put) error {
	c.forget(seq)
	counts := mover.Counts(wire.CountItems(m.Items))
	plain, release, err := c.s.decode(c.ctx, m.Codec, m.Plain, m.Payload)
	if err != nil {
		return err
	}
	defer release()
	if len(plain) > 0 {
		if d := digest.Sum(plain); d != m.Digest { // C7
			return fmt.Errorf("batch %d: plain bytes have digest %s, not %s: %w", seq, d.Short(), m.Digest.Short(), sentinel.ErrCorrupt)
		}
	}
	return c.inPass(func(p *pass) error {
		size := c.f.table.Size()
		for _, it := range m.Items {
			end := int64(it.Off + it.Len)
			if end > size || it.Off%512 != 0 || end%512 != 0 && end != size {
				return fmt.Errorf("item %v of batch %d on a volume of %d bytes: %w", extentOf(it), seq, size, sentinel.ErrProtocol)
			}
		}
		attempt, _, hold, err := p.begin(c.ctx, seq)
		if err != nil {
			return err
		}
		defer hold()
		if p.direct.Load() {
			err = p.putDirect(c.ctx, m.Items, plain, nil)
		} else {
			b := catalog.Batch{Counts: counts, Items: m.Items, Digest: m.Digest}
			if m.Plain > 0 {
				b.Parts = []catalog.Part{{Codec: m.Codec, Plain: m.Plain, Size: uint32(len(m.Payload))}}
			}
			err = p.stage(seq, attempt, true, &b, m.Payload)
		}
		if err == nil {
			p.complete(doneBatch{conn: c, seq: seq, attempt: attempt, counts: counts, items: m.Items,
				bytes: int64(counts.Put + counts.Zero + counts.Free + counts.Unreadable)})
		}
		return err
	})
}

// decode returns the plain bytes of a payload: itself, or in a buffer that release gives back.
func (s *Server) decode(ctx ctxt, codec uint8, plain uint32, payload []byte) (b []byte, release func(), err error) {
	if codec == wire.CodecPlain {
		return payload, func() {}, nil
	}
	buf, err := s.plain.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, err = s.codec.Decompress(buf[:0], payload, int(plain))
	if err != nil {
		s.plain.Put(buf)
		return nil, nil, err
	}
	return b, func() { s.plain.Put(buf) }, nil
}

// checkLeaves compares each leaf of plain with what was announced. Only the last leaf may be short.
func checkLeaves(plain []byte, want []digest.Digest) error {
	var got [wire.MaxLeaves]digest.Digest
	ds := chunker.Digests(plain, got[:0])
	if len(ds) != len(want) {
		return fmt.Errorf("%d leaves of data, not %d: %w", len(ds), len(want), sentinel.ErrCorrupt)
	}
	for i := range ds {
		if ds[i] != want[i] {
			return fmt.Errorf("leaf %d of %d has digest %s, announced was %s: %w", i+1, len(ds), ds[i].Short(), want[i].Short(), sentinel.ErrCorrupt)
		}
	}
	return nil
}

func extentOf(it wire.Item) extent.Extent {
	return extent.Extent{Off: int64(it.Off), Len: int64(it.Len)}
}
