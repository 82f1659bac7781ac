package chunker

import (
	"encoding/binary"
	"math/bits"

	"github.com/moverd/mover/internal/digest"
)

// state of a group. The first three need no page in the file.
type state uint8

const (
	allUnknown state = iota // as in a hole of the file
	allFree
	allZero
	known   // mixed, every digest known, and the group's digest is stored
	stale   // the same, but the group's digest has to be computed
	partial // mixed, the record says which leaves are unknown
	states
)

func (s state) mixed() bool { return s >= known }

// fills are the digests that all leaves of a uniform group have.
var fills = [...]digest.Digest{allUnknown: digest.Unknown, allFree: digest.Free, allZero: ZeroLeaf}

// uniform is the state of a group whose leaves all have digest d, if there is one.
func uniform(d digest.Digest) (state, bool) {
	switch d {
	case digest.Unknown:
		return allUnknown, true
	case digest.Free:
		return allFree, true
	case ZeroLeaf:
		return allZero, true
	}
	return 0, false
}

// node is a node of the tree over up to 256 groups (1 GiB of volume). It is guarded by its shard's mu.
type node struct {
	all     state // of every group, when each is nil
	changed bool  // the row in the file differs
	stale   bool  // digest has to be computed
	counted bool  // known and free are right
	punch   bool  // pages in the file are not needed any more
	known   int32 // leaves, free ones too
	free    int32
	each    *groups
	digest  digest.Digest
}

// groups is the state of each group of a node, the one that its row in the file claims, and which groups have changes in cached pages
// since the last write (risky).
type groups struct {
	state, file [fanOut]state
	risky       [fanOut / 64]uint64
}

func (g *groups) anyRisky() bool { return g.risky != [fanOut / 64]uint64{} }

func (n *node) state(i int) state {
	if n.each != nil {
		return n.each.state[i]
	}
	return n.all
}

// risky tells whether group i has changes that the file lacks.
func (n *node) risky(i int) bool { return n.each != nil && n.each.risky[i/64]>>(i%64)&1 != 0 }

// own makes the states of n's groups independent of each other.
func (n *node) own() *groups {
	if n.each == nil {
		n.each = new(groups)
		claimed := n.all
		if n.changed { // it may claim anything
			claimed = partial
		}
		for i := range n.each.state {
			n.each.state[i], n.each.file[i] = n.all, claimed
		}
	}
	return n.each
}

// compact is own's opposite, when all of n's groups agree and no page of theirs waits to be written.
func (n *node) compact(count int) {
	if n.each == nil || n.each.anyRisky() {
		return
	}
	for _, s := range n.each.state[1:count] {
		if s != n.each.state[0] {
			return
		}
	}
	n.all, n.each = n.each.state[0], nil
}

// row encodes the states of count groups.
func (n *node) row(b *[rowSize]byte, count int) {
	clear(b[:])
	for i := range count {
		b[i] = byte(n.state(i))
	}
}

// doubt returns what the file may claim while pages are being written: not the digest of a group whose leaves change. changed tells
// whether the file claims more.
func (e *groups) doubt() (claims [fanOut]state, changed bool) {
	claims = e.file
	for i, s := range claims {
		if s == known && e.risky[i/64]>>(i%64)&1 != 0 {
			claims[i], changed = stale, true
		}
	}
	return claims, changed
}

// born tells whether a group that the file claims to be uniform has got pages.
func (n *node) born() bool {
	if n.each == nil {
		return false
	}
	for i, s := range n.each.state {
		if s.mixed() && !n.each.file[i].mixed() {
			return true
		}
	}
	return false
}

// record tells of each leaf of a mixed group whether it is unknown or free.
type record struct{ unknown, free leafBits }

type leafBits [GroupLeaves / 64]uint64

func (b *leafBits) put(i int, v bool) {
	if v {
		b[i/64] |= 1 << (i % 64)
	} else {
		b[i/64] &^= 1 << (i % 64)
	}
}

func (b *leafBits) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }

func (b *leafBits) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// span sets or clears bits [from, to).
func (b *leafBits) span(from, to int, v bool) {
	for i := from; i < to; {
		w, at := i/64, i%64
		n := min(64-at, to-i)
		mask := ^uint64(0) >> (64 - n) << at
		if v {
			b[w] |= mask
		} else {
			b[w] &^= mask
		}
		i += n
	}
}

// uniformRecord is what a record of a uniform group of n leaves would be.
func uniformRecord(s state, n int) (r record) {
	switch s {
	case allUnknown:
		r.unknown.span(0, n, true)
	case allFree:
		r.free.span(0, n, true)
	}
	return r
}

func (r *record) decode(b []byte) {
	for i := range r.unknown {
		r.unknown[i] = binary.LittleEndian.Uint64(b[i*8:])
		r.free[i] = binary.LittleEndian.Uint64(b[32+i*8:])
	}
}

func (r *record) encode(b []byte) {
	for i := range r.unknown {
		binary.LittleEndian.PutUint64(b[i*8:], r.unknown[i])
		binary.LittleEndian.PutUint64(b[32+i*8:], r.free[i])
	}
}
