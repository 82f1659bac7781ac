package chunker

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// naive is what a Table is, said plainly.
type naive struct {
	size int64
	ds   []digest.Digest
}

func newNaive(size int64) *naive {
	return &naive{size, make([]digest.Digest, (size+LeafSize-1)/LeafSize)}
}

func sum(context string, parts ...[]byte) (d digest.Digest) {
	h := blake3.NewDeriveKey(context)
	for _, p := range parts {
		_, _ = h.Write(p)
	}
	copy(d[:], h.Sum(nil))
	return d
}

// fold digests each 256 of ds.
func fold(context string, ds []digest.Digest) (up []digest.Digest) {
	for part := range slices.Chunk(ds, 256) {
		var b []byte
		for _, d := range part {
			b = append(b, d[:]...)
		}
		up = append(up, sum(context, b))
	}
	return up
}

func (n *naive) root() (digest.Digest, bool) {
	if slices.Contains(n.ds, digest.Unknown) {
		return digest.Unknown, false
	}
	level := fold("mover table 1 group", n.ds)
	for len(level) > 1 {
		level = fold("mover table 1 node", level)
	}
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(n.size))
	b = binary.BigEndian.AppendUint32(b, 16384)
	return sum("mover table 1 root", b, level[0][:]), true
}

func (n *naive) group(g int64) (digest.Digest, bool) {
	ds := n.ds[g*256 : min(int64(len(n.ds)), g*256+256)]
	if slices.Contains(ds, digest.Unknown) {
		return digest.Unknown, false
	}
	return fold("mover table 1 group", ds)[0], true
}

func (n *naive) unknown() (out []extent.Extent) {
	s := extent.NewSet(n.size, LeafSize)
	for i, d := range n.ds {
		if d == digest.Unknown {
			s.Add(LeafExtent(n.size, int64(i)))
		}
	}
	return slices.Collect(s.All())
}

func (n *naive) counts() (leaves, known, free int64) {
	for _, d := range n.ds {
		if d != digest.Unknown {
			known++
		}
		if d == digest.Free {
			free++
		}
	}
	return int64(len(n.ds)), known, free
}

func (n *naive) fill(first, count int64, d digest.Digest) {
	for i := first; i < first+count; i++ {
		n.ds[i] = d
		if d == ZeroLeaf {
			n.ds[i] = ZeroDigest(int(LeafExtent(n.size, i).Len))
		}
	}
}

func (n *naive) invalidate(e extent.Extent) {
	for i := range n.ds {
		if !LeafExtent(n.size, int64(i)).Intersect(e).Empty() {
			n.ds[i] = digest.Unknown
		}
	}
}

// agree compares everything that a table tells.
func agree(t *testing.T, tab *Table, n *naive) {
	t.Helper()
	if err := tab.Err(); err != nil {
		t.Fatal(err)
	}
	if got := tab.Digests(0, int64(len(n.ds))); !slices.Equal(got, n.ds) {
		for i := range got {
			if got[i] != n.ds[i] {
				t.Fatalf("leaf %d is %v, want %v", i, got[i].Short(), n.ds[i].Short())
			}
		}
	}
	for i := range n.ds {
		if d := tab.Get(int64(i)); d != n.ds[i] {
			t.Fatalf("Get(%d) is %v, want %v", i, d.Short(), n.ds[i].Short())
		}
	}
	for g := range Groups(n.size) {
		d, ok := tab.Group(g)
		if wd, wok := n.group(g); d != wd || ok != wok {
			t.Fatalf("group %d is %v %v, want %v %v", g, d.Short(), ok, wd.Short(), wok)
		}
	}
	leaves, known, free := tab.Counts()
	if wl, wk, wf := n.counts(); leaves != wl || known != wk || free != wf {
		t.Fatalf("counts are %d %d %d, want %d %d %d", leaves, known, free, wl, wk, wf)
	}
	if got, want := slices.Collect(tab.Unknown()), n.unknown(); !slices.Equal(got, want) {
		t.Fatalf("unknown is %v, want %v", got, want)
	}
	d, ok := tab.Root()
	if wd, wok := n.root(); d != wd || ok != wok {
		t.Fatalf("root is %v %v, want %v %v", d.Short(), ok, wd.Short(), wok)
	}
}

func openTable(t testing.TB, path string, size int64) *Table {
	t.Helper()
	tab, err := OpenTableWith(path, size, TableConfig{Cache: 1, PowerCut: size%2 == 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tab.Close() })
	return tab
}

func randomDigest(r *rand.Rand) (d digest.Digest) {
	switch r.IntN(8) {
	case 0:
		return digest.Free
	case 1:
		return ZeroLeaf
	case 2:
		if r.IntN(4) == 0 {
			return digest.Unknown
		}
	}
	binary.LittleEndian.PutUint64(d[:], r.Uint64()|1)
	return d
}

// step makes one random change to both.
func step(t *testing.T, r *rand.Rand, tab *Table, n *naive) {
	t.Helper()
	leaves := int64(len(n.ds))
	first := r.Int64N(leaves)
	count := 1 + r.Int64N(min(leaves-first, [...]int64{1, 7, 300, leaves}[r.IntN(4)]))
	if r.IntN(4) == 0 { // whole groups
		first = first / 256 * 256
		count = min(leaves-first, (count+255)/256*256)
	}
	var err error
	switch r.IntN(7) {
	case 6:
		e := extent.Extent{Off: first * LeafSize, Len: count * LeafSize}
		told := extent.NewSet(n.size, LeafSize)
		err = tab.InvalidateUsed(e, told.Add)
		for i := first; i < first+count; i++ {
			if x := LeafExtent(n.size, i); told.Intersects(x) != (n.ds[i] == digest.Free) {
				t.Fatalf("leaf %d is %v, told free: %v", i, n.ds[i].Short(), told.Intersects(x))
			} else if n.ds[i] != digest.Free {
				n.ds[i] = digest.Unknown
			}
		}
	case 0, 1:
		ds := make([]digest.Digest, count)
		same := r.IntN(3) == 0
		for i := range ds {
			if ds[i] = randomDigest(r); same {
				ds[i] = ds[0]
			}
		}
		copy(n.ds[first:], ds)
		err = tab.Set(first, ds)
	case 2, 3:
		d := randomDigest(r)
		n.fill(first, count, d)
		err = tab.Fill(first, count, d)
	case 4:
		e := extent.Extent{Off: first*LeafSize + r.Int64N(LeafSize) - 3, Len: r.Int64N(count*LeafSize) + 1}
		n.invalidate(e)
		err = tab.Invalidate(e)
	case 5:
		for range 50 {
			e := extent.Extent{Off: r.Int64N(n.size), Len: 4096}
			n.invalidate(e)
			if err = tab.Invalidate(e); err != nil {
				break
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

var sizes = []int64{1, LeafSize - 1, LeafSize, LeafSize + 512, GroupSize - 1, GroupSize, GroupSize + 1, 3*GroupSize + 5*LeafSize + 4096,
	256 * GroupSize, 257*GroupSize + 512, 40*GroupSize - LeafSize + 1}

func TestRandomHistories(t *testing.T) {
	for _, size := range sizes {
		rounds := 40
		if size > 100*GroupSize {
			rounds = 4
		}
		r := rand.New(rand.NewPCG(uint64(size), 1))
		path := filepath.Join(t.TempDir(), "table")
		tab, n := openTable(t, path, size), newNaive(size)
		agree(t, tab, n)
		for range rounds {
			for range 1 + r.IntN(12) {
				step(t, r, tab, n)
			}
			switch r.IntN(6) {
			case 0: // make it whole, so that there is a root
				for e := range tab.Unknown() {
					if err := tab.Fill(e.Off/LeafSize, Leaves(e.Len), ZeroLeaf); err != nil {
						t.Fatal(err)
					}
					n.fill(e.Off/LeafSize, Leaves(e.Len), ZeroLeaf)
				}
			case 1:
				if err := tab.Flush(); err != nil {
					t.Fatal(err)
				}
			case 2:
				held := tab.held
				if err := tab.Close(); err != nil {
					t.Fatal(err)
				}
				if tab = openTable(t, path, size); held { // nothing is known then
					n = newNaive(size)
				}
			case 3:
				if err := tab.Hold(); err != nil {
					t.Fatal(err)
				}
			case 4:
				if err := tab.Release(); err != nil {
					t.Fatal(err)
				}
			}
			agree(t, tab, n)
		}
	}
}
