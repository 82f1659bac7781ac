package receiver

import (
	"fmt"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// ledger remembers every batch of a pass: how often it came, whether it is complete or durable, and what it counts. 10 bytes for a
// batch that was offered, so that 64 TiB cost 168 MB; puts with other counts cost more and are few. Not safe for concurrent use.
type ledger struct {
	pages map[uint32]*[ledgerPage]entry
	puts  map[uint32]mover.Counts
	most  uint32 // highest seq seen
	total mover.Counts
	n     uint32 // complete batches
}

type entry struct {
	attempt                       uint8 // modulo 256, 0: never seen
	flags                         uint8
	offered, same, copied, needed uint16
}

const (
	ledgerPage = 1024
	// seqAhead is how far a seq may be ahead of all others; more would be a peer that wants memory.
	seqAhead = 1 << 16

	isComplete = 1 << 0
	isDurable  = 1 << 1
	isPut      = 1 << 2
	isReoffer  = 1 << 3 // was left out of OPENED
)

func newLedger() *ledger {
	return &ledger{pages: map[uint32]*[ledgerPage]entry{}, puts: map[uint32]mover.Counts{}}
}

func (l *ledger) at(seq uint32) *entry {
	if p := l.pages[seq/ledgerPage]; p != nil {
		return &p[seq%ledgerPage]
	}
	return nil
}

func (l *ledger) make(seq uint32) *entry {
	p := l.pages[seq/ledgerPage]
	if p == nil {
		p = new([ledgerPage]entry)
		l.pages[seq/ledgerPage] = p
	}
	l.most = max(l.most, seq)
	return &p[seq%ledgerPage]
}

// begin starts an attempt at a batch: earlier ones no longer count (C10). seen tells whether there were any, durable whether one
// of them was durable.
func (l *ledger) begin(seq uint32) (attempt uint8, seen, durable bool, err error) {
	if seq > l.most && seq-l.most > seqAhead {
		return 0, false, false, fmt.Errorf("batch %d comes %d ahead of all others: %w", seq, seq-l.most, sentinel.ErrProtocol)
	}
	e := l.make(seq)
	seen, durable = e.attempt != 0 && e.flags&isReoffer == 0, e.flags&isDurable != 0
	l.forget(seq, e)
	if e.attempt++; e.attempt == 0 {
		e.attempt = 1
	}
	return e.attempt, seen, durable, nil
}

// forget takes a batch out of the counts.
func (l *ledger) forget(seq uint32, e *entry) {
	if e.flags&isComplete != 0 {
		c := l.counts(seq, e)
		l.total = sub(l.total, c)
		l.n--
	}
	delete(l.puts, seq)
	*e = entry{attempt: e.attempt}
}

// complete notes that all of an attempt has arrived.
func (l *ledger) complete(seq uint32, attempt uint8, c mover.Counts) {
	e := l.make(seq)
	l.forget(seq, e)
	*e = entry{attempt: attempt, flags: isComplete, offered: uint16(c.Offered), same: uint16(c.Same), copied: uint16(c.Copied), needed: uint16(c.Sent)}
	if c.Put|c.Zero|c.Free|c.Unreadable != 0 {
		l.puts[seq] = c
		e.flags |= isPut
	}
	l.total.Add(c)
	l.n++
}

func (l *ledger) counts(seq uint32, e *entry) mover.Counts {
	if e.flags&isPut != 0 {
		return l.puts[seq]
	}
	return mover.Counts{Offered: uint64(e.offered), Same: uint64(e.same), Copied: uint64(e.copied), Sent: uint64(e.needed)}
}

func (l *ledger) durable(seq uint32, attempt uint8) {
	if e := l.at(seq); e != nil && e.attempt == attempt && e.flags&isComplete != 0 {
		e.flags |= isDurable
	}
}

// done lists the durable batches for OPENED. Offers of which nothing was sent are left out and forgotten as if never seen: a
// source that lost our NEED could not count them, and offering them again costs no data.
func (l *ledger) done(most int) []wire.Range {
	var out []wire.Range
	for seq := uint32(1); seq <= l.most && seq != 0; seq++ {
		e := l.at(seq)
		if e == nil {
			seq |= ledgerPage - 1 // to the next page
			continue
		}
		if e.flags&isDurable == 0 {
			continue
		}
		fits := len(out) < most || len(out) > 0 && out[len(out)-1].Last == seq-1
		if e.offered > 0 && e.needed == 0 {
			e.flags |= isReoffer
			continue
		}
		if !fits {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Last == seq-1 {
			out[n-1].Last = seq
		} else {
			out = append(out, wire.Range{First: seq, Last: seq})
		}
	}
	return out
}

func sub(a, b mover.Counts) mover.Counts {
	return mover.Counts{Offered: a.Offered - b.Offered, Same: a.Same - b.Same, Copied: a.Copied - b.Copied, Sent: a.Sent - b.Sent,
		Put: a.Put - b.Put, Zero: a.Zero - b.Zero, Free: a.Free - b.Free, Unreadable: a.Unreadable - b.Unreadable}
}
