package chunker

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"github.com/zeebo/blake3"

	"github.com/moverd/mover/internal/digest"
)

// TableVersion is the version of the table file and of the Merkle tree.
const TableVersion = 1

// Contexts of BLAKE3's key derivation, one for each kind of node, so that no node can be taken for another kind.
const (
	groupContext = "mover table 1 group"
	nodeContext  = "mover table 1 node"
	rootContext  = "mover table 1 root"
)

var (
	groupHashers = sync.Pool{New: func() any { return blake3.NewDeriveKey(groupContext) }}
	nodeHashers  = sync.Pool{New: func() any { return blake3.NewDeriveKey(nodeContext) }}
)

// groupDigest is the digest of a group, false when a leaf is unknown.
func groupDigest(leaves []digest.Digest) (digest.Digest, bool) {
	for i := range leaves {
		if leaves[i] == digest.Unknown {
			return digest.Unknown, false
		}
	}
	return derive(&groupHashers, raw(leaves)), true
}

// nodeDigest is the digest of a node above the groups.
func nodeDigest(children []digest.Digest) digest.Digest { return derive(&nodeHashers, raw(children)) }

// rootDigest folds the digests of all groups, 256 to a node, and binds the shape. It overwrites level.
func rootDigest(size int64, level []digest.Digest) digest.Digest {
	for len(level) > 1 {
		up := level[:0]
		for i := 0; i < len(level); i += fanOut {
			d := nodeDigest(level[i:min(len(level), i+fanOut)])
			up = append(up, d)
		}
		level = up
	}
	var b [16 + digest.Size]byte
	binary.BigEndian.PutUint32(b[0:], TableVersion)
	binary.BigEndian.PutUint64(b[4:], uint64(size))
	binary.BigEndian.PutUint32(b[12:], LeafSize)
	copy(b[16:], level[0][:])
	h := blake3.NewDeriveKey(rootContext)
	_, _ = h.Write(b[:])
	var d digest.Digest
	h.Sum(d[:0])
	return d
}

func derive(pool *sync.Pool, b []byte) (d digest.Digest) {
	h := pool.Get().(*blake3.Hasher)
	h.Reset()
	_, _ = h.Write(b)
	h.Sum(d[:0])
	pool.Put(h)
	return d
}

// raw views digests as the bytes that they are.
func raw(ds []digest.Digest) []byte {
	if len(ds) == 0 {
		return nil
	}
	return unsafe.Slice(&ds[0][0], len(ds)*digest.Size)
}
