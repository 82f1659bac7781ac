package chunker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	fanOut     = 256                       // children of a node of the tree
	pageSize   = GroupLeaves * digest.Size // bytes of a cached page: the digests of one group
	recordSize = 64                        // of a mixed group: which leaves are unknown, which are free
	rowSize    = fanOut                    // states of the groups of one node, a byte each
	headerSize = 160                       // bytes in use; the region is a page
	flagHeld   = 1 << 0
)

var tableMagic = [8]byte{'M', 'O', 'V', 'R', 'T', 'A', 'B', '\n'}

// layout says where the regions of a table file begin, in bytes; each is a multiple of a page.
type layout struct {
	size                          int64 // of the volume
	leaves, groups, nodeCount     int64
	rows, records, digests, pages int64
	end                           int64
}

func newLayout(size int64) layout {
	l := layout{size: size, leaves: Leaves(size), groups: Groups(size)}
	l.nodeCount = (l.groups + fanOut - 1) / fanOut
	l.rows = pageSize
	l.records = l.rows + (l.nodeCount*rowSize+pageSize-1)/pageSize*pageSize
	l.digests = l.records + l.nodeCount*fanOut*recordSize
	l.pages = l.digests + l.nodeCount*fanOut*digest.Size
	l.end = l.pages + l.groups*pageSize
	return l
}

// leavesOf is how many leaves group g has.
func (l *layout) leavesOf(g int64) int { return int(min(GroupLeaves, l.leaves-g*GroupLeaves)) }

// groupsOf is how many groups node n has.
func (l *layout) groupsOf(n int64) int { return int(min(fanOut, l.groups-n*fanOut)) }

// leavesUnder is how many leaves lie below node n.
func (l *layout) leavesUnder(n int64) int64 {
	const full = fanOut * GroupLeaves
	return min(full, l.leaves-n*full)
}

// Numbers of pages, counted in the whole file.
func (l *layout) recordPage(g int64) int64 { return (l.records + g*recordSize) / pageSize }
func (l *layout) digestPage(g int64) int64 { return (l.digests + g*digest.Size) / pageSize }
func (l *layout) leafPage(g int64) int64   { return l.pages/pageSize + g }

// header is the first page of a table file.
type header struct {
	held  bool
	owner [32]byte
}

func (h header) encode(size int64) []byte {
	b := make([]byte, headerSize)
	copy(b, tableMagic[:])
	binary.BigEndian.PutUint32(b[8:], TableVersion)
	binary.BigEndian.PutUint32(b[12:], LeafSize)
	binary.BigEndian.PutUint32(b[16:], GroupLeaves)
	if h.held {
		binary.BigEndian.PutUint32(b[20:], flagHeld)
	}
	binary.BigEndian.PutUint64(b[24:], uint64(size))
	copy(b[32:], h.owner[:])
	binary.BigEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decodeHeader checks b, the header of a table for a volume of size bytes.
func decodeHeader(b []byte, size int64) (h header, err error) {
	if !bytes.Equal(b[:8], tableMagic[:]) {
		return h, fmt.Errorf("not a digest table: %w", sentinel.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != TableVersion {
		return h, fmt.Errorf("digest table of version %d, this program reads version %d; remove it to start anew: %w",
			v, TableVersion, sentinel.ErrNotSupported)
	}
	if binary.BigEndian.Uint32(b[headerSize-4:]) != crc32.Checksum(b[:headerSize-4], castagnoli) {
		return h, fmt.Errorf("header of the digest table does not match its checksum; remove it to start anew: %w", sentinel.ErrCorrupt)
	}
	leaf, group := binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
	if leaf != LeafSize || group != GroupLeaves {
		return h, fmt.Errorf("digest table with leaves of %d bytes in groups of %d; remove it to start anew: %w", leaf, group,
			sentinel.ErrNotSupported)
	}
	if have := int64(binary.BigEndian.Uint64(b[24:])); have != size {
		return h, fmt.Errorf("digest table is for a volume of %d bytes, not %d; remove it to start anew: %w", have, size,
			sentinel.ErrRefused)
	}
	h.held = binary.BigEndian.Uint32(b[20:])&flagHeld != 0
	copy(h.owner[:], b[32:])
	return h, nil
}
