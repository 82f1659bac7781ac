package objstore

import (
	"github.com/zeebo/blake3"

	"github.com/moverd/mover/internal/digest"
)

// BlockSize is the bytes of an object that have a digest of their own, so that parts can be read side by side and in any order.
const BlockSize = 8 << 20

// The digest of an object of up to BlockSize bytes is the BLAKE3 of its bytes; that of a longer one the BLAKE3 of the digests of its blocks, one behind the other.

// ObjectDigest is the digest of an object whose blocks have these digests. None: it is empty.
func ObjectDigest(blocks []digest.Digest) digest.Digest {
	switch len(blocks) {
	case 0:
		return digest.Sum(nil)
	case 1:
		return blocks[0]
	}
	h := blake3.New()
	for _, b := range blocks {
		_, _ = h.Write(b[:])
	}
	return sum(h)
}

// Digester takes in an object, or a part of one that begins at a block, as a stream. The zero value is ready.
type Digester struct {
	h      *blake3.Hasher
	n      int // bytes in h
	blocks []digest.Digest
}

// Write never fails.
func (d *Digester) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if d.h == nil {
			d.h = blake3.New()
		}
		n := min(len(p), BlockSize-d.n)
		_, _ = d.h.Write(p[:n])
		d.n, p = d.n+n, p[n:]
		if d.n == BlockSize {
			d.cut()
		}
	}
	return all, nil
}

func (d *Digester) cut() {
	d.blocks = append(d.blocks, sum(d.h))
	d.h.Reset()
	d.n = 0
}

// Blocks ends the stream and gives the digests of its blocks.
func (d *Digester) Blocks() []digest.Digest {
	if d.n > 0 {
		d.cut()
	}
	return d.blocks
}

func sum(h *blake3.Hasher) (d digest.Digest) {
	h.Sum(d[:0])
	return d
}
