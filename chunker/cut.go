package chunker

import "math/rand/v2"

// Bounds of chunks that content cuts, in bytes. They are for objects, whose content may move; a volume's stays where it is, and has leaves.
const (
	CutLeast = 16 << 10
	CutMean  = 64 << 10
	CutMost  = 256 << 10
)

// Cut is the length of the first chunk of b, at most CutMost; all of b where that is CutLeast or less. What b begins with decides: the same bytes are cut at the
// same places wherever they are, but for the first and the last. It is a gear hash with two masks (FastCDC): few chunks are much shorter or longer than the mean.
func Cut(b []byte) int {
	n := min(len(b), CutMost)
	if n <= CutLeast {
		return n
	}
	var h uint64
	i := CutLeast
	for ; i < min(n, CutMean); i++ {
		if h = h<<1 + gear[b[i]]; h&strict == 0 {
			return i + 1
		}
	}
	for ; i < n; i++ {
		if h = h<<1 + gear[b[i]]; h&loose == 0 {
			return i + 1
		}
	}
	return n
}

// The high bits of a gear hash depend on the last 64 bytes. Before the mean a cut is four times as rare as behind it.
const (
	strict = (1<<17 - 1) << (64 - 17)
	loose  = (1<<15 - 1) << (64 - 15)
)

var gear = func() (t [256]uint64) {
	r := rand.New(rand.NewPCG(0x6d6f766572, 0x63686e6b)) // any: only this end cuts
	for i := range t {
		t[i] = r.Uint64()
	}
	return t
}()
