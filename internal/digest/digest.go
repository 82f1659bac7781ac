// Package digest names the 32-byte BLAKE3 digest of plain content, and the two values that stand for no content.
package digest

import (
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Size of a Digest in bytes.
const Size = 32

// Digest is the BLAKE3-256 of plain bytes, or Unknown, or Free.
type Digest [Size]byte

var (
	// Unknown stands for "has to be read first". It never crosses the wire.
	Unknown Digest
	// Free marks a leaf that the filesystem says holds nothing (C11).
	Free = func() (d Digest) {
		for i := range d {
			d[i] = 0xff
		}
		return
	}()
)

// Sum digests b.
func Sum(b []byte) Digest { return blake3.Sum256(b) }

// String is the digest in hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is the first 8 bytes in hex, for people.
func (d Digest) Short() string { return hex.EncodeToString(d[:8]) }
