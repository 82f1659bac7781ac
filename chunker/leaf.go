package chunker

import (
	"bytes"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// zeros is a leaf of zeros, to compare with and to digest.
var zeros [LeafSize]byte

// ZeroLeaf is the digest of a full leaf of zeros.
var ZeroLeaf = digest.Sum(zeros[:])

// ZeroDigest is the digest of n zeros, n at most LeafSize: for the last leaf of a volume, which may be short.
func ZeroDigest(n int) digest.Digest {
	if n == LeafSize {
		return ZeroLeaf
	}
	return digest.Sum(zeros[:n])
}

// IsZero tells whether b, of any length, holds nothing but zeros.
func IsZero(b []byte) bool {
	const step = 4096 // stays in the first-level cache beside b
	for len(b) > step {
		if !bytes.Equal(b[:step], zeros[:step]) {
			return false
		}
		b = b[step:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// Leaves is the number of leaves of a volume of size bytes.
func Leaves(size int64) int64 { return (size + LeafSize - 1) / LeafSize }

// Groups is the number of groups of a volume of size bytes.
func Groups(size int64) int64 { return (size + GroupSize - 1) / GroupSize }

// LeafExtent is where a leaf lies on a volume of size bytes.
func LeafExtent(size, leaf int64) extent.Extent {
	off := leaf * LeafSize
	return extent.Extent{Off: off, Len: min(LeafSize, size-off)}
}

// Digests appends the digest of each leaf of buf to out. buf begins at a leaf; only a volume's end may make its last leaf short.
// It does not allocate when out has room.
func Digests(buf []byte, out []digest.Digest) []digest.Digest {
	for len(buf) > 0 {
		n := min(LeafSize, len(buf))
		out = append(out, leafDigest(buf[:n]))
		buf = buf[n:]
	}
	return out
}

func leafDigest(b []byte) digest.Digest {
	if len(b) == LeafSize && IsZero(b) {
		return ZeroLeaf
	}
	return digest.Sum(b)
}
