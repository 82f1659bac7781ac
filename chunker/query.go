package chunker

import (
	"iter"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// Group is the digest of a group, false when one of its leaves is unknown.
func (t *Table) Group(g int64) (digest.Digest, bool) {
	if g < 0 || g >= t.groups || t.bad() != nil {
		return digest.Unknown, false
	}
	s := t.part(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok, err := s.groupSum(g)
	if err != nil {
		s.fail(g, err)
	}
	return d, ok
}

// Root is the Merkle root, false when a leaf is unknown (or could not be read from the file: see Err). Only what has
// changed since the last call is computed.
func (t *Table) Root() (digest.Digest, bool) {
	if t.bad() != nil {
		return digest.Unknown, false
	}
	level := make([]digest.Digest, t.nodeCount)
	var wg sync.WaitGroup
	var unknown atomic.Bool
	var next atomic.Int64
	for range min(int64(runtime.GOMAXPROCS(0)), shards, t.nodeCount) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < shards && !unknown.Load(); i = next.Add(1) - 1 {
				for no := i; no < t.nodeCount && !unknown.Load(); no += shards {
					s := &t.parts[i]
					s.mu.Lock()
					d, ok := s.nodeSum(no)
					s.mu.Unlock()
					level[no] = d
					if !ok {
						unknown.Store(true)
					}
				}
			}
		})
	}
	wg.Wait()
	if unknown.Load() {
		return digest.Unknown, false
	}
	if t.groups == 1 {
		level[0], _ = t.Group(0)
	}
	return rootDigest(t.size, level), true
}

// Counts are the leaves of the volume, those whose digest is known (free ones too), and those that are free.
func (t *Table) Counts() (leaves, known, free int64) {
	for no := range t.nodeCount {
		s := &t.parts[no%shards]
		s.mu.Lock()
		if err := s.countNode(no); err != nil {
			t.note(err)
		} else {
			known += int64(t.nodes[no].known)
			free += int64(t.nodes[no].free)
		}
		s.mu.Unlock()
	}
	return t.leaves, known, free
}

// Unknown yields what of the volume has no digest, in bytes, ascending and merged. Changes made meanwhile may or may not be seen.
func (t *Table) Unknown() iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		var run extent.Extent
		for no := range t.nodeCount {
			for x := range t.unknownUnder(no) {
				if x.Off == run.End() && !run.Empty() {
					run.Len += x.Len
					continue
				}
				if !run.Empty() && !yield(run) {
					return
				}
				run = x
			}
		}
		if !run.Empty() {
			yield(run)
		}
	}
}

// unknownUnder yields the unknown leaves below node no, merged within groups.
func (t *Table) unknownUnder(no int64) iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		s, n := &t.parts[no%shards], &t.nodes[no]
		for i := range t.groupsOf(no) {
			g := no*fanOut + int64(i)
			count := t.leavesOf(g)
			s.mu.Lock()
			if n.each == nil && n.all != partial {
				none := n.all == allUnknown
				s.mu.Unlock()
				if none {
					off := g * GroupSize
					yield(extent.Extent{Off: off, Len: min(t.size, (no+1)*fanOut*GroupSize) - off})
				}
				return
			}
			r := uniformRecord(n.state(i), count)
			if n.state(i) == partial {
				var err error
				if r, err = s.readRecord(g); err != nil { // all of it, then
					s.fail(g, err)
					r = uniformRecord(allUnknown, count)
				}
			}
			s.mu.Unlock()
			for from := 0; from < count; from++ {
				to := from
				for to < count && r.unknown.has(to) {
					to++
				}
				if to == from {
					continue
				}
				off := g*GroupSize + int64(from)*LeafSize
				end := min(t.size, g*GroupSize+int64(to)*LeafSize)
				if !yield(extent.Extent{Off: off, Len: end - off}) {
					return
				}
				from = to
			}
		}
	}
}
