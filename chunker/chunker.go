// Package chunker cuts volumes into leaves, keeps their digests in a Merkle tree on disk, and packs batches of leaves with zstd.
package chunker

// LeafSize is the bytes that have one digest; the last leaf of a volume may be shorter.
const LeafSize = 16 << 10

// GroupLeaves is the leaves in a group; GroupSize the bytes, which is also the largest batch.
const (
	GroupLeaves = 256
	GroupSize   = GroupLeaves * LeafSize
)
