package chunker

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// ErrHeld: the table is held, nothing may be written to its file now.
var ErrHeld = errors.New("digest table is held")

// TableConfig bounds a table's memory. Zero values are defaults.
type TableConfig struct {
	Cache int64 // bytes of pages kept in memory; default 16 MiB, at least 1 MiB. Exceeded only while held
	// PowerCut keeps leaves that did not change right through a loss of power: flushing waits for the disk now and then.
	PowerCut bool
}

// Table keeps the digest of every leaf of one volume in a sparse file, and the Merkle tree above them (docs/formats.md).
//
// A kill of the process at any moment, and with PowerCut a loss of power, leaves a file that is right for every leaf that did not
// change since the last Flush (power: Sync). A leaf that did change claims what it had, or what was set, or nothing: the caller has
// to set or invalidate it again. Without PowerCut the table has to be reset (SetOwner) after a loss of power.
//
// Safe for concurrent use. An error from Set, Fill or Invalidate leaves each group either changed or as it was.
type Table struct {
	layout
	file     store
	path     string
	powerCut bool
	nodes    []node // node i is guarded by the mu of shard i % shards
	parts    [shards]shard

	zeroLast     digest.Digest              // of the last leaf when it is zeros
	uniformNodes [allZero + 1]digest.Digest // digest of a full node of uniform groups
	uniformFull  [allZero + 1]digest.Digest // of a full group
	uniformLast  [allZero + 1]digest.Digest // of the last group
	failed       atomic.Pointer[error]      // sticky: the file can't be trusted any more
	noted        atomic.Pointer[error]      // first error of a method without an error result

	mu     sync.Mutex // guards all below; taken before a shard's
	owner  [32]byte
	held   bool
	marked bool // the file says that it is held
	closed bool
}

// Size is the volume's size in bytes.
func (t *Table) Size() int64 { return t.size }

func (t *Table) part(g int64) *shard { return &t.parts[g/fanOut%shards] }

// special is the digest of leaf i of group g when the group is uniform.
func (t *Table) special(g int64, i int, st state) digest.Digest {
	if st == allZero && g*GroupLeaves+int64(i) == t.leaves-1 {
		return t.zeroLast
	}
	return fills[st]
}

// uniformly tells which uniform state the digests of all leaves of group g amount to.
func (t *Table) uniformly(g int64, ds []digest.Digest) (state, bool) {
	st, ok := uniform(ds[0])
	if g == t.groups-1 && len(ds) == 1 && ds[0] == t.zeroLast {
		st, ok = allZero, true
	}
	for i := 0; ok && i < len(ds); i++ {
		ok = ds[i] == t.special(g, i, st)
	}
	return st, ok
}

// uniformSum is the digest of group g when it is uniform.
func (t *Table) uniformSum(g int64, st state) digest.Digest {
	if g == t.groups-1 {
		return t.uniformLast[st]
	}
	return t.uniformFull[st]
}

func (t *Table) prepareSums() {
	var ds [GroupLeaves]digest.Digest
	t.zeroLast = ZeroDigest(int(LeafExtent(t.size, t.leaves-1).Len))
	for st := allFree; st <= allZero; st++ {
		for i := range ds {
			ds[i] = fills[st]
		}
		t.uniformFull[st], _ = groupDigest(ds[:])
		last := ds[:t.leavesOf(t.groups-1)]
		last[len(last)-1] = t.special(t.groups-1, len(last)-1, st)
		t.uniformLast[st], _ = groupDigest(last)
		for i := range ds {
			ds[i] = t.uniformFull[st]
		}
		t.uniformNodes[st] = nodeDigest(ds[:])
	}
}

// note keeps the first error of methods that return none.
func (t *Table) note(err error) { t.noted.CompareAndSwap(nil, &err) }

// bad is the sticky error.
func (t *Table) bad() error {
	if p := t.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// Err is the sticky error, or the first error that a method without an error result met. The leaves that a reading error
// concerns are Unknown from then on.
func (t *Table) Err() error {
	if err := t.bad(); err != nil {
		return err
	}
	if p := t.noted.Load(); p != nil {
		return *p
	}
	return nil
}

// fail deals with an error on the way to group g's digests: a page that could not be read makes the group unknown. Errors of
// writing (cache pressure) change nothing.
func (s *shard) fail(g int64, err error) {
	if errors.Is(err, errWrite) {
		s.t.note(err)
		return
	}
	s.lost(g, err)
}

// Get is the digest of a leaf, Unknown or Free.
func (t *Table) Get(leaf int64) digest.Digest {
	if leaf < 0 || leaf >= t.leaves || t.bad() != nil {
		return digest.Unknown
	}
	g := leaf / GroupLeaves
	s := t.part(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.get(g, int(leaf%GroupLeaves))
	if err != nil {
		s.fail(g, err)
		return digest.Unknown
	}
	return d
}

// Digests are those of leaves first to first+n-1, clipped to the volume.
func (t *Table) Digests(first, n int64) []digest.Digest {
	return t.AppendDigests(make([]digest.Digest, 0, max(0, min(n, t.leaves-first))), first, n)
}

// AppendDigests appends the digests of leaves first to first+n-1, clipped to the volume, to out.
func (t *Table) AppendDigests(out []digest.Digest, first, n int64) []digest.Digest {
	_ = t.ranges(max(0, first), min(first+n, t.leaves), func(s *shard, g int64, from, to int) error {
		was := len(out)
		var err error
		if err = t.bad(); err == nil {
			if out, err = s.append(out, g, from, to); err == nil {
				return nil
			}
			s.fail(g, err)
		}
		out = append(out[:was], make([]digest.Digest, to-from)...)
		return nil
	})
	return out
}

// ranges calls f for the part of each group that lies in leaves [first, last), holding the group's shard.
func (t *Table) ranges(first, last int64, f func(s *shard, g int64, from, to int) error) error {
	for first < last {
		g := first / GroupLeaves
		end := min(last, (g+1)*GroupLeaves)
		s := t.part(g)
		s.mu.Lock()
		err := f(s, g, int(first-g*GroupLeaves), int(end-g*GroupLeaves))
		s.mu.Unlock()
		if err != nil {
			return err
		}
		first = end
	}
	return nil
}

func (t *Table) check(first, n int64) error {
	if err := t.bad(); err != nil {
		return err
	}
	if first < 0 || n < 0 || first > t.leaves-n {
		return fmt.Errorf("digests of leaves %d to %d, the volume has %d", first, first+n-1, t.leaves)
	}
	return nil
}

// Set stores the digests of leaves from first on. They may be Free or Unknown.
func (t *Table) Set(first int64, ds []digest.Digest) error {
	if err := t.check(first, int64(len(ds))); err != nil {
		return err
	}
	for len(ds) > 0 {
		g, from := first/GroupLeaves, int(first%GroupLeaves)
		n := min(len(ds), t.leavesOf(g)-from)
		if err := t.setGroup(g, from, ds[:n]); err != nil {
			return err
		}
		first, ds = first+int64(n), ds[n:]
	}
	return nil
}

func (t *Table) setGroup(g int64, from int, ds []digest.Digest) error {
	s := t.part(g)
	if len(ds) == t.leavesOf(g) {
		st, ok := t.uniformly(g, ds)
		if ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.setUniform(g, st)
		}
		if sum, ok := groupDigest(ds); ok { // digested before the lock
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.setAll(g, ds, sum)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setSome(g, from, ds)
}

// Fill gives n leaves from first on the same digest. Filling with Unknown, Free or ZeroLeaf (the short last leaf then gets its own
// digest of zeros) costs almost nothing, however many they are.
func (t *Table) Fill(first, n int64, d digest.Digest) error {
	if err := t.check(first, n); err != nil {
		return err
	}
	st, special := uniform(d)
	const perNode = fanOut * GroupLeaves
	for last := first + n; first < last; {
		end := min(last, (first/perNode+1)*perNode)
		if no := first / perNode; special && first%perNode == 0 && end-first == t.leavesUnder(no) {
			s := &t.parts[no%shards]
			s.mu.Lock()
			s.fillNode(no, st)
			s.mu.Unlock()
		} else if err := t.fillGroups(first, end, d); err != nil {
			return err
		}
		first = end
	}
	return nil
}

// fillGroups fills leaves [first, last), less than a node.
func (t *Table) fillGroups(first, last int64, d digest.Digest) error {
	st, special := uniform(d)
	return t.ranges(first, last, func(s *shard, g int64, from, to int) error {
		if special && to-from == t.leavesOf(g) {
			return s.setUniform(g, st)
		}
		if d == digest.Unknown {
			return s.forget(g, from, to)
		}
		var buf [GroupLeaves]digest.Digest
		ds := buf[:to-from]
		for i := range ds {
			ds[i] = d
			if special {
				ds[i] = t.special(g, from+i, st)
			}
		}
		if to-from == t.leavesOf(g) {
			sum, _ := groupDigest(ds)
			return s.setAll(g, ds, sum)
		}
		return s.setSome(g, from, ds)
	})
}

// Invalidate makes every leaf that e touches unknown. It reads and writes 64 bytes a group, not the digests.
func (t *Table) Invalidate(e extent.Extent) error {
	e = e.Intersect(extent.Extent{Len: t.size})
	if e.Empty() {
		return nil
	}
	first := e.Off / LeafSize
	return t.Fill(first, Leaves(e.End())-first, digest.Unknown)
}

// InvalidateUsed is Invalidate for leaves that are not free: those stay marked, and free, if given, is told where they are, in bytes.
// It must not call the table.
func (t *Table) InvalidateUsed(e extent.Extent, free func(extent.Extent)) error {
	e = e.Intersect(extent.Extent{Len: t.size})
	if err := t.bad(); err != nil || e.Empty() {
		return err
	}
	return t.ranges(e.Off/LeafSize, Leaves(e.End()), func(s *shard, g int64, from, to int) error {
		r := uniformRecord(s.state(g), t.leavesOf(g))
		if s.state(g).mixed() {
			var err error
			if r, err = s.readRecord(g); err != nil {
				return err
			}
		}
		for end := from; from < to; from = end {
			is := r.free.has(from)
			for end < to && r.free.has(end) == is {
				end++
			}
			if !is {
				if err := s.forget(g, from, end); err != nil {
					return err
				}
			} else if free != nil {
				off := g*GroupSize + int64(from)*LeafSize
				free(extent.Extent{Off: off, Len: min(t.size, g*GroupSize+int64(end)*LeafSize) - off})
			}
		}
		return nil
	})
}

// Reset makes every leaf unknown.
func (t *Table) Reset() error { return t.Fill(0, t.leaves, digest.Unknown) }
