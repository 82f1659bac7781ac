package chunker

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

func TestIsZero(t *testing.T) {
	buf := make([]byte, 3*LeafSize+100)
	for n := range 200 {
		if !IsZero(buf[:n]) {
			t.Fatalf("%d zeros are not zero", n)
		}
	}
	for _, n := range []int{1, 63, 64, 65, 4095, 4096, 4097, LeafSize - 1, LeafSize, LeafSize + 1, len(buf)} {
		for at := range 9 { // unaligned too
			b := buf[at:min(len(buf), at+n)]
			if !IsZero(b) {
				t.Fatalf("%d zeros at %d are not zero", n, at)
			}
			for _, i := range []int{0, len(b) / 2, len(b) - 1, rand.IntN(len(b))} {
				b[i] = 0x80
				if IsZero(b) {
					t.Fatalf("byte %d of %d at %d went unseen", i, n, at)
				}
				b[i] = 0
			}
		}
	}
}

func TestLeaves(t *testing.T) {
	for _, v := range []struct{ size, leaves, groups, last int64 }{
		{1, 1, 1, 1}, {512, 1, 1, 512}, {LeafSize, 1, 1, LeafSize}, {LeafSize + 1, 2, 1, 1}, {GroupSize, 256, 1, LeafSize},
		{GroupSize + 512, 257, 2, 512}, {64 * tib, 1 << 32, 1 << 24, LeafSize},
	} {
		if Leaves(v.size) != v.leaves || Groups(v.size) != v.groups {
			t.Errorf("%d bytes: %d leaves, %d groups", v.size, Leaves(v.size), Groups(v.size))
		}
		want := extent.Extent{Off: v.size - v.last, Len: v.last}
		if got := LeafExtent(v.size, v.leaves-1); got != want {
			t.Errorf("%d bytes: last leaf is %v, want %v", v.size, got, want)
		}
	}
}

func TestDigests(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 5*LeafSize+777)
	_, _ = r.Read(buf)
	clear(buf[LeafSize : 2*LeafSize])
	clear(buf[5*LeafSize:])
	var want []digest.Digest
	for leaf := range slices.Chunk(buf, LeafSize) {
		want = append(want, blake3.Sum256(leaf))
	}
	prefix := digest.Digest{9}
	got := Digests(buf, []digest.Digest{prefix})
	if !slices.Equal(got, append([]digest.Digest{prefix}, want...)) {
		t.Fatal("digests are not those of the leaves")
	}
	if want[1] != ZeroLeaf || ZeroDigest(LeafSize) != ZeroLeaf || want[5] != ZeroDigest(777) {
		t.Fatal("digests of zeros differ")
	}
	if len(Digests(nil, nil)) != 0 {
		t.Fatal("nothing has a digest")
	}
	out := make([]digest.Digest, 0, 6)
	if n := testing.AllocsPerRun(20, func() { Digests(buf, out) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
