package chunker

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/moverd/mover/internal/digest"
)

// TestTree: the roots of a table are those of its leaves in order; that of the image is the one with zeros for what is free.
func TestTree(t *testing.T) {
	for i, size := range []int64{512, LeafSize, 3*LeafSize + 512, GroupSize, GroupSize + 512, 5*GroupSize - LeafSize, fanOut * GroupSize, fanOut*GroupSize + 512, 2*fanOut*GroupSize + 3*GroupSize} {
		tab, err := OpenTable(filepath.Join(t.TempDir(), "table"), size)
		if err != nil {
			t.Fatal(err)
		}
		defer tab.Close()
		r := rand.New(rand.NewPCG(uint64(i), 1))
		check := func() {
			t.Helper()
			plain, image := NewTree(size), NewTree(size)
			known := true
			for g := range Groups(size) {
				ds := tab.Digests(g*GroupLeaves, GroupLeaves)
				for _, d := range ds {
					known = known && d != digest.Unknown
				}
				plain.Add(ds)
				for k := range ds {
					if ds[k] == digest.Free {
						ds[k] = ZeroDigest(int(LeafExtent(size, g*GroupLeaves+int64(k)).Len))
					}
				}
				image.Add(ds)
			}
			if d, ok := tab.Root(); ok != known || ok && d != plain.Root() {
				t.Fatalf("size %d: root %v %v, of the leaves %v", size, d.Short(), ok, plain.Root().Short())
			}
			if d, ok := tab.ImageRoot(); ok != known || ok && d != image.Root() {
				t.Fatalf("size %d: image root %v %v, of the leaves %v", size, d.Short(), ok, image.Root().Short())
			}
		}
		check() // nothing known
		for _, d := range []digest.Digest{digest.Free, ZeroLeaf, digest.Free} {
			if err := tab.Fill(0, Leaves(size), d); err != nil {
				t.Fatal(err)
			}
			check()
		}
		for range 40 {
			first := r.Int64N(Leaves(size))
			n := 1 + r.Int64N(min(Leaves(size)-first, 600))
			if r.IntN(3) > 0 {
				n = min(n, 9)
			}
			fill := []digest.Digest{digest.Free, ZeroLeaf, digest.Sum([]byte{byte(r.IntN(256))}), digest.Sum([]byte{1}), digest.Unknown}[r.IntN(5)]
			if err := tab.Fill(first, n, fill); err != nil {
				t.Fatal(err)
			}
		}
		check()
		for e := range tab.Unknown() {
			if err := tab.Fill(e.Off/LeafSize, Leaves(e.End())-e.Off/LeafSize, digest.Sum([]byte{7})); err != nil {
				t.Fatal(err)
			}
		}
		check()
	}
}
