// Package chunker cuts volumes into leaves, keeps their digests in a Merkle tree on disk, and packs batches of leaves with zstd.
package chunker

// LeafSize is the bytes that have one digest; the last leaf of a volume may be shorter.
const LeafSize = 16 << 10

// GroupLeaves is the leaves in a group, what has one node in the tree; GroupSize the bytes.
const (
	GroupLeaves = 256
	GroupSize   = GroupLeaves * LeafSize
)

// BatchLeaves is the most leaves that are offered and compressed together; BatchSize the bytes. Of two groups, for of /usr that saves 2 % of what 4 MiB at a
// time come to (zstd better), and 16 MiB would save as much again for twice the memory at both ends.
const (
	BatchLeaves = 2 * GroupLeaves
	BatchSize   = BatchLeaves * LeafSize
)
