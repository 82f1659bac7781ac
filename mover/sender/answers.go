package sender

import (
	"github.com/moverd/mover/wire"
)

// need is NEED: the batch goes to the packers, or waits for its ack when nothing is needed.
func (r *run) need(c *conn, seq uint32, m *wire.Need) {
	fits := func(b *batch) bool { return b.ask == 0 && len(b.prints) == 0 && int(m.N) == len(b.digests) }
	r.answered(c, seq, fits, func(b *batch) (left bool) {
		b.counts.Same, b.counts.Copied = uint64(m.Same), uint64(m.Copied)
		b.need, b.asks = append(b.need[:0], m.Bitmap...), m.Flags&wire.FlagPrints != 0
		return ones(b.need) > 0
	})
}

// pages is PAGES: what is left goes to the packers.
func (r *run) pages(c *conn, seq uint32, m *wire.Pages) {
	fits := func(b *batch) bool { return int(m.N) == len(b.prints) }
	r.answered(c, seq, fits, func(b *batch) (left bool) { return b.takePages(m.Bitmap) })
}

// answered has take note the answer to a batch that waits for one on c, and sends what is left to do to the packers. An answer that does not fit ends the connection.
func (r *run) answered(c *conn, seq uint32, fits, take func(b *batch) bool) {
	r.mu.Lock()
	b := r.open(seq)
	if b == nil || b.stage != asked || b.conn != c || !fits(b) {
		r.mu.Unlock()
		if b != nil && b.conn == c {
			c.Close()
		}
		return
	}
	left := take(b)
	if left {
		b.stage = sending
	} else {
		b.stage, b.final = sent, true
		r.release(b)
	}
	r.mu.Unlock()
	if left {
		r.queue <- b // has room for every buffer there is
	}
}

// open finds a batch that is not acked; nil: there is none with that seq. mu is held.
func (r *run) open(seq uint32) *batch {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	return r.p.open[seq]
}

// again is AGAIN: what was found did not fit, the batch begins anew. The gateway then needs its leaves whole.
func (r *run) again(c *conn, seq uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.open(seq)
	switch {
	case b == nil || b.conn != c:
	case b.stage == sent:
		r.redoLocked(b)
	case b.stage == sending && b.final && b.writing > 0:
		b.retry = true // faster than the writer came back
	}
}

// differ is DIFFER about a group.
func (r *run) differ(c *conn, seq uint32, m *wire.Differ) bool {
	r.mu.Lock()
	b := r.checks[seq]
	if b == nil || b.conn != c {
		r.mu.Unlock()
		return false
	}
	r.detach(b)
	if m.N != 1 {
		r.redoLocked(b)
		r.mu.Unlock()
		return true
	}
	if !wire.Bit(m.Bitmap, 0) {
		delete(r.flight, b)
		r.room.Give(b.bytes)
		r.release(b)
		r.mu.Unlock()
		r.p.equal(b.bytes)
		r.nudge()
		return true
	}
	if len(b.free) > 0 {
		f := newBatch(bare)
		f.items = append(f.items, b.free...)
		r.p.mu.Lock()
		r.p.again = append(r.p.again, f)
		r.p.mu.Unlock()
	}
	b.shape, b.stage = offered, sending
	r.mu.Unlock()
	r.queue <- b // a packer offers it: readers never write
	r.nudge()
	return true
}

// ack is ACK: batches are durable.
func (r *run) ack(m *wire.Ack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	for _, x := range m.Ranges {
		for seq := x.First; seq <= x.Last && seq <= r.p.lastSeq && seq != 0; seq++ {
			// The ack of an earlier self of a batch that is on its way again says nothing: the later self will have its own.
			switch b := r.p.open[seq]; {
			case b == nil:
			case b.stage == sent:
				r.acked(b)
			case b.stage == sending && b.final && b.writing > 0:
				b.early = true // faster than the writer came back
			}
		}
	}
	r.nudge()
}

// acked ends b. r.mu and p.mu are held.
func (r *run) acked(b *batch) {
	r.p.settle(b)
	if _, ok := r.flight[b]; ok {
		r.detach(b)
		delete(r.flight, b)
		r.room.Give(b.bytes)
		r.p.again = append(r.p.again, r.twins.arrived(b)...)
	}
}

// lost gives back what was on a connection. What is just being written is left to its writer.
func (r *run) lost(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := range r.flight {
		if b.conn == c && (b.stage == asked || b.stage == sent) && b.writing == 0 {
			r.release(b)
			r.redoLocked(b)
		}
	}
}
