package fsmap

import (
	"encoding/binary"

	"github.com/moverd/mover/extent"
)

// Features of XFS (version 5) that this reader knows not to change what is free.
const (
	xfsROCompat = 0xf  // free inode tree, reverse map, reflink, inode tree counters
	xfsIncompat = 0xef // file types, sparse inodes, metadata uuid, big time, large extent counts, exchange, parents; not: needs repair
)

func isXFS(b []byte) bool { return len(b) >= 4096 && string(b[:4]) == "XFSB" }

// xfs is a clean XFS.
type xfs struct {
	d, trees                  *disk
	bs, sector                int64 // bytes
	blocks, agBlocks, agCount int64
	agLog                     uint
	logStart, logBlocks       int64  // block number as in the superblock; blocks
	next                      int64  // byte where the log's next record will be written
	behind                    []byte // what is there
}

func xfsFree(d *disk, sb []byte, free func(extent.Extent) error) error {
	x := &xfs{d: d, trees: d.near()}
	if err := x.open(sb); err != nil {
		return err
	}
	if err := x.checkLog(); err != nil {
		return err
	}
	for ag := range x.agCount {
		if err := x.group(ag, free); err != nil {
			return err
		}
	}
	return x.recheckLog()
}

func (x *xfs) open(sb []byte) error {
	u16 := func(off int) uint16 { return binary.BigEndian.Uint16(sb[off:]) }
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(sb[off:]) }
	x.bs, x.sector = int64(u32(4)), int64(u16(102))
	x.blocks, x.agBlocks, x.agCount = int64(binary.BigEndian.Uint64(sb[8:])), int64(u32(84)), int64(u32(88))
	x.agLog = uint(sb[124])
	x.logStart, x.logBlocks = int64(binary.BigEndian.Uint64(sb[48:])), int64(u32(96))
	switch {
	case u16(100)&0xf != 5:
		return unsure("version %d", u16(100)&0xf)
	case u32(212)&^xfsROCompat != 0, u32(216)&^xfsIncompat != 0, u32(220) != 0:
		return unsure("features %#x, %#x, %#x", u32(212), u32(216), u32(220))
	case sb[126] != 0:
		return unsure("mkfs has not ended")
	case x.sector < 512 || x.sector > 32<<10 || x.sector&(x.sector-1) != 0, x.bs < 1024 || x.bs > 64<<10 || x.bs&(x.bs-1) != 0 || x.bs < x.sector:
		return unsure("blocks of %d, sectors of %d", x.bs, x.sector)
	case !xfsSum(sb[:x.sector], 224):
		return unsure("the superblock's checksum is wrong")
	case x.agBlocks < 16 || x.agBlocks > 1<<31 || x.agLog > 31 || x.agBlocks > 1<<x.agLog || x.agBlocks <= 1<<x.agLog/2:
		return unsure("groups of %d blocks", x.agBlocks)
	case x.blocks <= 0 || x.blocks > x.d.size/x.bs, x.agCount != (x.blocks+x.agBlocks-1)/x.agBlocks:
		return unsure("%d blocks of %d in %d groups on %d bytes", x.blocks, x.bs, x.agCount, x.d.size)
	}
	return nil
}

// xfsSum checks the checksum at off of the structure b. It is stored little endian, unlike all else.
func xfsSum(b []byte, off int) bool {
	c := crc(crc(^uint32(0), b[:off]), []byte{0, 0, 0, 0})
	return ^crc(c, b[off+4:]) == binary.LittleEndian.Uint32(b[off:])
}

// group walks the by-block free space tree of one allocation group.
func (x *xfs) group(ag int64, free func(extent.Extent) error) error {
	begin := ag * x.agBlocks
	agf, err := x.trees.copy(begin*x.bs+x.sector, x.sector)
	if err != nil {
		return err
	}
	u32 := func(off int) int64 { return int64(binary.BigEndian.Uint32(agf[off:])) }
	length := min(x.agBlocks, x.blocks-begin)
	if string(agf[:4]) != "XAGF" || !xfsSum(agf, 216) || u32(8) != ag || u32(12) != length {
		return unsure("the header of group %d is wrong", ag)
	}
	block, levels, total := u32(16), u32(28), int64(0)
	if levels < 1 || levels > 16 {
		return unsure("a free space tree of %d levels", levels)
	}
	for level := levels - 1; level > 0; level-- {
		b, n, err := x.tree(ag, block, level)
		if err != nil {
			return err
		}
		if n < 1 {
			return unsure("an empty node of the free space tree of group %d", ag)
		}
		block = int64(binary.BigEndian.Uint32(b[xfsTree+(x.bs-xfsTree)/12*8:])) // behind room for as many keys: the first child
	}
	end := int64(0)
	for seen := int64(0); block != xfsNull; seen++ {
		b, n, err := x.tree(ag, block, 0)
		if err != nil {
			return err
		}
		for i := range n {
			from := int64(binary.BigEndian.Uint32(b[xfsTree+8*i:]))
			count := int64(binary.BigEndian.Uint32(b[xfsTree+8*i+4:]))
			if from < end || count < 1 || from+count > length || seen > length {
				return unsure("group %d has free blocks %v after %d", ag, extent.Extent{Off: from, Len: count}, end)
			}
			end, total = from+count, total+count
			if err := free(extent.Extent{Off: (begin + from) * x.bs, Len: count * x.bs}); err != nil {
				return err
			}
		}
		block = int64(binary.BigEndian.Uint32(b[12:]))
	}
	if total != u32(52) {
		return unsure("group %d has %d free blocks, its header says %d", ag, total, u32(52))
	}
	return nil
}

const (
	xfsTree = 56 // bytes of a tree block's header
	xfsNull = 0xffffffff
)

// tree reads one block of the by-block free space tree and returns how many records it has.
func (x *xfs) tree(ag, block, level int64) ([]byte, int64, error) {
	if block < 1 || block >= x.agBlocks {
		return nil, 0, unsure("the free space tree of group %d points to block %d", ag, block)
	}
	b, err := x.trees.copy((ag*x.agBlocks+block)*x.bs, x.bs)
	if err != nil {
		return nil, 0, err
	}
	n := int64(binary.BigEndian.Uint16(b[6:]))
	if string(b[:4]) != "AB3B" || !xfsSum(b, 52) || int64(binary.BigEndian.Uint16(b[4:])) != level ||
		int64(binary.BigEndian.Uint32(b[48:])) != ag || n > (x.bs-xfsTree)/8 {
		return nil, 0, unsure("block %d of the free space tree of group %d is wrong", block, ag)
	}
	return b, n, nil
}
