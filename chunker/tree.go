package chunker

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/internal/digest"
)

// Tree computes the root of a volume whose leaves come in order, a group at a time.
type Tree struct {
	size  int64
	group []digest.Digest // of the node that is not full yet
	nodes []digest.Digest
}

// NewTree begins the tree of a volume of size bytes.
func NewTree(size int64) *Tree { return &Tree{size: size} }

// Add takes the digests of the next group's leaves. They must all be known.
func (t *Tree) Add(leaves []digest.Digest) {
	d, _ := groupDigest(leaves)
	if t.group = append(t.group, d); len(t.group) == fanOut {
		t.fold()
	}
}

func (t *Tree) fold() {
	t.nodes = append(t.nodes, nodeDigest(t.group))
	t.group = t.group[:0]
}

// Root is the root once every group has been added.
func (t *Tree) Root() digest.Digest {
	if len(t.nodes) == 0 && len(t.group) == 1 { // a single group has no node above it
		return rootDigest(t.size, t.group[:1:1])
	}
	if len(t.group) > 0 {
		t.fold()
	}
	return rootDigest(t.size, append([]digest.Digest(nil), t.nodes...))
}

// ImageRoot is the root that the volume's image has when every leaf is read, the free ones as the zeros that they were made. Unlike Root it
// can be computed from the bytes alone. False when a leaf is unknown. It reads the digests of every group that is free in part.
func (t *Table) ImageRoot() (digest.Digest, bool) {
	if t.bad() != nil {
		return digest.Unknown, false
	}
	if t.groups == 1 {
		s := t.part(0)
		s.mu.Lock()
		defer s.mu.Unlock()
		d, ok := s.imageSum(0)
		return rootDigest(t.size, []digest.Digest{d}), ok
	}
	level := make([]digest.Digest, t.nodeCount)
	var wg sync.WaitGroup
	var unknown atomic.Bool
	var next atomic.Int64
	for range min(int64(runtime.GOMAXPROCS(0)), t.nodeCount) {
		wg.Go(func() {
			for no := next.Add(1) - 1; no < t.nodeCount && !unknown.Load(); no = next.Add(1) - 1 {
				d, ok := t.imageNode(no)
				level[no] = d
				if !ok {
					unknown.Store(true)
				}
			}
		})
	}
	wg.Wait()
	if unknown.Load() {
		return digest.Unknown, false
	}
	return rootDigest(t.size, level), true
}

func (t *Table) imageNode(no int64) (digest.Digest, bool) {
	s, n, count := &t.parts[no%shards], &t.nodes[no], t.groupsOf(no)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.each == nil && count == fanOut && no != t.nodeCount-1 && (n.all == allFree || n.all == allZero) {
		return t.uniformNodes[allZero], true
	}
	var ds [fanOut]digest.Digest
	for i := range count {
		d, ok := s.imageSum(no*fanOut + int64(i))
		if !ok {
			return digest.Unknown, false
		}
		ds[i] = d
	}
	return nodeDigest(ds[:count]), true
}

// imageSum is the digest of group g with its free leaves as zeros.
func (s *shard) imageSum(g int64) (digest.Digest, bool) {
	st := s.state(g)
	if st == allFree {
		return s.t.uniformSum(g, allZero), true
	}
	if st.mixed() {
		r, err := s.readRecord(g)
		if err != nil {
			s.fail(g, err)
			return digest.Unknown, false
		}
		if r.free.count() > 0 {
			return s.imageMixed(g)
		}
	}
	d, ok, err := s.groupSum(g)
	if err != nil {
		s.fail(g, err)
	}
	return d, ok
}

func (s *shard) imageMixed(g int64) (digest.Digest, bool) {
	var buf [GroupLeaves]digest.Digest
	ds, err := s.append(buf[:0], g, 0, s.t.leavesOf(g))
	if err != nil {
		s.fail(g, err)
		return digest.Unknown, false
	}
	for i := range ds {
		if ds[i] == digest.Free {
			ds[i] = s.t.special(g, i, allZero)
		}
	}
	return groupDigest(ds)
}
