package chunker

import (
	"math/rand/v2"
	"testing"

	"github.com/moverd/mover/internal/digest"
)

func cuts(b []byte) (all map[digest.Digest]int, n int) {
	all = map[digest.Digest]int{}
	for len(b) > 0 {
		c := Cut(b)
		all[digest.Sum(b[:c])] = c
		b, n = b[c:], n+1
	}
	return all, n
}

// TestCut: all bytes are in a chunk, lengths keep their bounds and their mean, and what is put in or taken out changes the chunks around it only.
func TestCut(t *testing.T) {
	b := make([]byte, 32<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	short := 0
	for rest := b; len(rest) > 0; {
		n := Cut(rest)
		if n > CutMost || n < CutLeast && n < len(rest) {
			t.Fatalf("chunk of %d bytes", n)
		}
		if n < CutMean/2 {
			short++
		}
		rest = rest[n:]
	}
	before, n := cuts(b)
	if mean := len(b) / n; mean < CutMean*3/4 || mean > CutMean*5/4 {
		t.Errorf("mean of %d bytes, want about %d", mean, CutMean)
	}
	if short > n/4 {
		t.Errorf("%d of %d chunks are short", short, n)
	}
	for name, changed := range map[string][]byte{
		"a byte in":  append([]byte{7}, b...),
		"bytes out":  b[777:],
		"in between": append(append(append([]byte{}, b[:10<<20]...), "inserted"...), b[10<<20:]...),
	} {
		after, _ := cuts(changed)
		fresh := 0
		for d, n := range after {
			if _, known := before[d]; !known {
				fresh += n
			}
		}
		if fresh > 4*CutMost {
			t.Errorf("%s: %d bytes are in new chunks", name, fresh)
		}
	}
	for _, n := range []int{0, 1, CutLeast, CutLeast + 1} {
		if got := Cut(make([]byte, n)); got > n || n <= CutLeast && got != n {
			t.Errorf("chunk of %d of %d bytes", got, n)
		}
	}
	if got := Cut(make([]byte, 1<<20)); got > CutMost {
		t.Errorf("zeros: %d bytes", got)
	}
}

func BenchmarkCut(b *testing.B) {
	p := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{2}).Read(p)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		for rest := p; len(rest) > 0; {
			rest = rest[Cut(rest):]
		}
	}
}
