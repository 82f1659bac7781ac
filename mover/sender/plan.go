package sender

import (
	"iter"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/wire"
)

// freeItem is the longest item of free space: the gateway gives space back while the pass goes on, piece by piece.
const freeItem = 1 << 30

// everything plans a full pass or a rescan: leaves in use, packed over groups or, to be checked, each group's as one batch; free space as bare batches between
// them. free may be nil. The source's table has the free leaves already.
func everything(size int64, free *extent.Set, check bool) iter.Seq[*batch] {
	return func(yield func(*batch) bool) {
		rest, used := newBatch(bare), newBatch(offered)
		use := func(e extent.Extent) bool { return fill(&used, chunker.BatchSize, e, yield) }
		flush := func() bool { return hand(&rest, yield) }
		unused := func(e extent.Extent) bool {
			if n := len(rest.items); n > 0 && int64(rest.items[n-1].Off+rest.items[n-1].Len) == e.Off && rest.items[n-1].Len+uint64(e.Len) <= freeItem {
				rest.items[n-1].Len += uint64(e.Len)
				return true
			}
			rest.items = append(rest.items, freeItemOf(e))
			return len(rest.items) < wire.MaxItems || flush()
		}
		for off := int64(0); off < size; off += chunker.GroupSize {
			g := extent.Extent{Off: off, Len: min(chunker.GroupSize, size-off)}
			if check {
				used.shape, used.group = checked, off/chunker.GroupSize
			}
			at := g.Off
			if free != nil {
				for e := range free.Within(g) {
					if !use(extent.Extent{Off: at, Len: e.Off - at}) {
						return
					}
					at = e.End()
					if check && e != g {
						used.free = append(used.free, freeItemOf(e)) // equal as part of the group's digest, mostly
					} else if !unused(e) {
						return
					}
				}
			}
			if !use(extent.Extent{Off: at, Len: g.End() - at}) || check && !hand(&used, yield) {
				return
			}
		}
		if hand(&used, yield) {
			flush()
		}
	}
}

// fill adds e, cut into pieces where b is full: where another leaf would be more than most bytes. What is full goes to yield.
func fill(b **batch, most int64, e extent.Extent, yield func(*batch) bool) bool {
	for e.Len > 0 {
		n := min(e.Len, most-(*b).bytes)
		(*b).add(extent.Extent{Off: e.Off, Len: n})
		e.Off, e.Len = e.Off+n, e.Len-n
		if (*b).bytes > most-chunker.LeafSize && !hand(b, yield) { // a short last leaf counts as a whole one
			return false
		}
	}
	return true
}

// hand gives b to yield unless it holds nothing, and begins another.
func hand(b **batch, yield func(*batch) bool) bool {
	full := *b
	*b = newBatch(full.shape)
	return len(full.ext) == 0 && len(full.items) == 0 || yield(full)
}

func freeItemOf(e extent.Extent) wire.Item {
	return wire.Item{Kind: wire.ItemFree, Off: uint64(e.Off), Len: uint64(e.Len)}
}

// freeLeaves is the leaves that lie wholly in free, as a set of leaves.
func freeLeaves(size int64, free *extent.Set) *extent.Set {
	out := extent.NewSet(size, chunker.LeafSize)
	if free == nil {
		return out
	}
	for e := range free.All() {
		first := (e.Off + chunker.LeafSize - 1) / chunker.LeafSize * chunker.LeafSize
		last := e.End() / chunker.LeafSize * chunker.LeafSize
		if e.End() == size {
			last = size
		}
		if first < last {
			out.Add(extent.Extent{Off: first, Len: last - first})
		}
	}
	return out
}

// changes plans a delta: leaves that are dirty as a whole, and those in whole, are offered; parts of other leaves are put. Both are
// packed over groups. around: the leaves around the parts are read with them, so a batch takes no more parts than have their leaves in
// one buffer; and writers stand still or soon will, so batches are small, for all cores to have some and the last one to be done soon.
func changes(dirty, whole *extent.Set, around bool) iter.Seq[*batch] {
	size, most := dirty.Size(), int64(chunker.BatchSize)
	if around {
		most = chunker.GroupSize
	}
	return func(yield func(*batch) bool) {
		offer, parts := newBatch(offered), newBatch(put)
		addWhole := func(e extent.Extent) bool { return fill(&offer, most, e, yield) }
		leaves, lastPart := int64(0), int64(-1) // of parts
		addPart := func(e extent.Extent) bool {
			leaf := e.Off / chunker.LeafSize
			if parts.bytes+e.Len > most || len(parts.ext) >= maxParts || around && leaves == chunker.GroupLeaves && leaf != lastPart {
				if !hand(&parts, yield) {
					return false
				}
				leaves, lastPart = 0, -1
			}
			if leaf != lastPart {
				leaves, lastPart = leaves+1, leaf
			}
			parts.add(e)
			return true
		}
		last := int64(-1) // leaf in whole that was added for an earlier extent
		for e := range dirty.All() {
			for e.Len > 0 {
				leaf := e.Off / chunker.LeafSize
				le := chunker.LeafExtent(size, leaf)
				x := e.Intersect(le)
				switch {
				case x == le:
					// A run of whole leaves at once; the last leaf of the volume is whole when all that there is of it is dirty.
					x.Len = e.Len / chunker.LeafSize * chunker.LeafSize
					if e.End() == size {
						x.Len = e.Len
					}
					if !addWhole(x) {
						return
					}
				case whole != nil && whole.Intersects(le):
					if leaf != last && !addWhole(le) {
						return
					}
					last = leaf
				default:
					if !addPart(x) {
						return
					}
				}
				e = extent.Extent{Off: x.End(), Len: e.End() - x.End()}
			}
		}
		if hand(&offer, yield) {
			hand(&parts, yield)
		}
	}
}

// maxParts is an item each. Where unreadable blocks make more of them, the batch is split.
const maxParts = wire.MaxItems

// leavesOf packs the leaves that extents touch into batches that are only read.
func leavesOf(size int64, ext iter.Seq[extent.Extent]) iter.Seq[*batch] {
	return func(yield func(*batch) bool) {
		b := newBatch(offered)
		for e := range ext {
			e = e.Align(chunker.LeafSize).Intersect(extent.Extent{Off: 0, Len: size})
			if !fill(&b, chunker.BatchSize, e, yield) {
				return
			}
		}
		hand(&b, yield)
	}
}
