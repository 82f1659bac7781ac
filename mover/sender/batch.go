package sender

import (
	"iter"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// form is how a batch travels.
type form uint8

const (
	offered form = iota // whole leaves, offered by digest
	checked             // one group of a rescan: its digest first, offered only if it differs
	put                 // parts of leaves, sent at once
	bare                // zeros and free space: nothing is read
)

// stage is where a batch is; it says who owns it.
type stage uint8

const (
	queued  stage = iota // in a queue, or with the worker that took it from there
	asked                // CHECK or OFFER is out: with the link
	sending              // with a packer
	sent                 // waits for its ack, holds no buffer
)

// batch is the unit that is read, offered, compressed and acked. Its extents never change, so that it can be sent again under its seq;
// what is read may differ then, which the next pass makes good (C9).
type batch struct {
	seq   uint32 // 0 until it is first sent
	shape form
	ext   []extent.Extent // to read, ascending, together at most chunker.BatchSize
	items []wire.Item     // shape bare: all; shape put: made when read
	bytes int64           // of ext, in the window
	group int64           // shape checked
	free  []wire.Item     // shape checked: free space of the group, sent when it differs

	late bool // holds what was postponed

	stage   stage  // guarded by run.mu, as the next three
	writing int    // writes of its frames that have not returned
	early   bool   // acked before its write returned
	final   bool   // counts are complete
	conn    *conn  // set while asked, sending or sent
	ask     uint32 // seq of its CHECK
	buf     []byte // lease; its owner releases it
	n       int    // bytes read
	bad     []extent.Extent
	digests []digest.Digest
	runs    []wire.Run
	need    []byte
	asks    bool         // NEED asks for prints
	prints  []uint64     // of the needed pages; told, until PAGES answers or the batch is offered again
	pages   []byte       // answer to the prints, for the leaves that are still needed; empty: whole leaves
	found   found        // what pages leave out
	retry   bool         // AGAIN came before its write returned
	counts  mover.Counts // of the last time it was sent
	payload int64        // bytes that its data was that time
	times   int          // it was sent
}

func newBatch(s form) *batch { return &batch{shape: s} }

// found is what the gateway has found of leaves that it needed, page by page, in bytes.
type found struct {
	part  int64 // in leaves of which something is sent
	zeros int64 // pages of zeros, in those and in leaves that were found as a whole
}

// moved tells what became of the bytes of a batch that is durable. A short last leaf of a volume counts with the bytes it has.
func (b *batch) moved() (m mover.Moved) {
	c := b.counts
	if b.shape == bare {
		return m // of free space only; the pass knows it as a whole
	}
	zero := c.Offered - c.Same - c.Copied - c.Sent // leaves that told by their digest that they are
	m = mover.Moved{Looked: b.bytes, Zero: int64(c.Zero + zero*chunker.LeafSize), Unreadable: int64(c.Unreadable), Same: int64(c.Same) * chunker.LeafSize,
		Copied: int64(c.Copied) * chunker.LeafSize, Sent: int64(c.Sent)*chunker.LeafSize + int64(c.Put), Payload: b.payload}
	m.Sent, m.Copied, m.Zero = m.Sent-b.found.part, m.Copied+b.found.part-b.found.zeros, m.Zero+b.found.zeros
	over := m.Same + m.Copied + m.Sent + m.Zero + m.Unreadable - m.Looked
	switch last := len(b.digests) - 1; {
	case over <= 0:
	case last/8 < len(b.need) && wire.Bit(b.need, last):
		m.Sent -= over
	case zero > 0:
		m.Zero -= over
	case c.Same > 0:
		m.Same -= over
	default:
		m.Copied -= over
	}
	return m
}

// split takes the second half of the extents out of b, into a batch of its own that has no seq yet.
func (b *batch) split() *batch {
	rest := newBatch(b.shape)
	if b.shape == checked {
		rest.shape, b.shape = offered, offered
	}
	all := append([]extent.Extent(nil), b.ext...)
	half := b.bytes / 2 / chunker.LeafSize * chunker.LeafSize
	if half == 0 {
		half = b.ext[0].Len
	}
	b.ext, b.bytes = b.ext[:0], 0
	for _, e := range all {
		n := min(e.Len, max(0, half-b.bytes))
		if n > 0 {
			b.add(extent.Extent{Off: e.Off, Len: n})
		}
		if e.Len > n {
			rest.add(extent.Extent{Off: e.Off + n, Len: e.Len - n})
		}
	}
	return rest
}

// add appends an extent, growing the last one where they touch.
func (b *batch) add(e extent.Extent) {
	b.bytes += e.Len
	if n := len(b.ext); n > 0 && b.ext[n-1].End() == e.Off {
		b.ext[n-1].Len += e.Len
		return
	}
	b.ext = append(b.ext, e)
}

// around is the leaves that the extents touch, as extents.
func (b *batch) around(size int64) []extent.Extent {
	var w batch
	end := int64(0)
	for _, e := range b.ext {
		e = e.Align(chunker.LeafSize).Intersect(extent.Extent{Off: 0, Len: size})
		if e.Off < end { // two parts of one leaf
			e = extent.Extent{Off: end, Len: e.End() - end}
		}
		if e.Len > 0 {
			w.add(e)
			end = e.End()
		}
	}
	return w.ext
}

// trim leaves of a buffer with the bytes of around only those of the extents, and of bad only what lies in them.
func (b *batch) trim(around []extent.Extent) {
	from, to := int64(0), int64(0)
	bad := b.bad
	b.bad = nil
	for _, e := range b.ext {
		for around[0].End() <= e.Off {
			from += around[0].Len
			around = around[1:]
		}
		at := from + e.Off - around[0].Off
		copy(b.buf[to:], b.buf[at:at+e.Len])
		to += e.Len
		for _, x := range bad {
			if x = x.Intersect(e); !x.Empty() {
				b.bad = append(b.bad, x)
			}
		}
	}
	b.n = int(to)
}

// leafRuns writes the extents, which are whole leaves, as runs.
func (b *batch) leafRuns() []wire.Run {
	b.runs = b.runs[:0]
	for _, e := range b.ext {
		b.runs = append(b.runs, wire.Run{First: uint64(e.Off / chunker.LeafSize), N: uint16(chunker.Leaves(e.Len))})
	}
	return b.runs
}

// needed yields the bytes of the needed leaves.
func (b *batch) needed() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for i := range b.digests {
			from := i * chunker.LeafSize
			if wire.Bit(b.need, i) && !yield(i, b.buf[from:min(from+chunker.LeafSize, b.n)]) {
				return
			}
		}
	}
}

// compact moves the needed leaves, or the needed pages of them, to the front of buf and returns how many leaves these are and their bytes.
func (b *batch) compact() (leaves int, plain []byte) {
	at, page := 0, 0
	for _, leaf := range b.needed() {
		leaves++
		if len(b.pages) == 0 {
			at += copy(b.buf[at:], leaf)
			continue
		}
		for ; len(leaf) > 0; page++ {
			n := min(chunker.PageSize, len(leaf))
			if wire.Bit(b.pages, page) {
				at += copy(b.buf[at:], leaf[:n])
			}
			leaf = leaf[n:]
		}
	}
	return leaves, b.buf[:at]
}

// takePages notes which pages the gateway needs: a leaf of which it needs none was found, and is needed no longer. false: it needs nothing any more.
func (b *batch) takePages(bitmap []byte) bool {
	page, kept, copied := 0, 0, uint64(0)
	b.pages, b.found = make([]byte, len(bitmap)), found{}
	for i, leaf := range b.needed() {
		n := (len(leaf) + chunker.PageSize - 1) / chunker.PageSize
		whole := true
		for k := range n {
			whole = whole && !wire.Bit(bitmap, page+k)
		}
		for k := range n {
			switch {
			case wire.Bit(bitmap, page+k):
				wire.SetBit(b.pages, kept+k)
				continue
			case b.prints[page+k] == chunker.ZeroPrint:
				b.found.zeros += chunker.PageSize
			}
			if !whole {
				b.found.part += int64(min(chunker.PageSize, len(leaf)-k*chunker.PageSize))
			}
		}
		page += n
		if whole {
			copied++
			b.need[i/8] &^= 1 << (i % 8)
		} else {
			kept += n
		}
	}
	b.counts.Copied += copied
	b.prints = b.prints[:0]
	return kept > 0
}

// itemize turns what was read into items of a PUT: data compacted to the front of buf, zeros and unreadable blocks without bytes.
func (b *batch) itemize() (plain []byte) {
	b.items = b.items[:0]
	from, at := int64(0), int64(0)
	bad := b.bad
	add := func(kind wire.ItemKind, off, n int64) {
		if kind == wire.ItemData {
			copy(b.buf[at:], b.buf[from:from+n])
			at += n
		}
		from += n
		if k := len(b.items) - 1; k >= 0 && b.items[k].Kind == kind && int64(b.items[k].Off+b.items[k].Len) == off && kind != wire.ItemData {
			b.items[k].Len += uint64(n)
			return
		}
		b.items = append(b.items, wire.Item{Kind: kind, Off: uint64(off), Len: uint64(n)})
	}
	plainOrZero := func(off, n int64) {
		if chunker.IsZero(b.buf[from : from+n]) {
			add(wire.ItemZero, off, n)
		} else {
			add(wire.ItemData, off, n)
		}
	}
	for _, e := range b.ext {
		for len(bad) > 0 && bad[0].Off < e.End() {
			x := bad[0]
			if x.Off > e.Off {
				plainOrZero(e.Off, x.Off-e.Off)
			}
			add(wire.ItemUnreadable, x.Off, x.Len)
			e = extent.Extent{Off: x.End(), Len: e.End() - x.End()}
			bad = bad[1:]
		}
		if e.Len > 0 {
			plainOrZero(e.Off, e.Len)
		}
	}
	return b.buf[:at]
}
