package fsmap

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"github.com/moverd/mover/extent"
)

// Features of ext4 that this reader knows not to change what is free. Others make everything in use.
const (
	extIncompat = 0x2 | // file types in folders
		extMetaBG | 0x40 | // extents
		ext64 | 0x200 | // flex_bg: bitmaps and inode tables of several groups lie together
		0x400 | extCsumSeed | 0x4000 | 0x8000 | 0x10000 | 0x20000 // EA inodes, large folders, inline data, encryption, casefold
	extMetaBG   = 0x10
	ext64       = 0x80
	extCsumSeed = 0x2000

	extROCompat = extSparse | 0x2 | 0x4 | 0x8 | extGDTCsum | 0x20 | 0x40 | // large and huge files, many links, large inodes
		0x100 | extBigalloc | extMetaCsum | 0x1000 | 0x2000 | 0x8000 // quota, read-only, project, verity
	extSparse   = 0x1
	extGDTCsum  = 0x10
	extBigalloc = 0x200
	extMetaCsum = 0x400

	extSparse2 = 0x200 // compatible feature

	extBlockUninit = 0x2 // flag of a group: its block bitmap was never written
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc continues a raw CRC-32C, as ext4 and XFS use it: not inverted at the ends.
func crc(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

func isExt(b []byte) bool {
	return len(b) >= 2048 && binary.LittleEndian.Uint16(b[1024+0x38:]) == 0xef53
}

// ext is a clean ext2, ext3 or ext4.
type ext struct {
	d, bitmaps                 *disk
	sb                         []byte
	bs, cluster                int64 // bytes
	blocks, first              int64
	perGroup                   int64 // blocks
	groups                     int64
	descSize, tableBlocks      int64 // bytes; blocks of one group's inode table
	reserved                   int64 // blocks behind the group descriptors
	incompat, roCompat, compat uint32
	seed                       uint32 // of checksums
	uninit                     bool   // groups may say that their bitmap was never written
}

func (x *ext) u16(off int) uint16 { return binary.LittleEndian.Uint16(x.sb[off:]) }
func (x *ext) u32(off int) uint32 { return binary.LittleEndian.Uint32(x.sb[off:]) }

func extFree(d *disk, first []byte, free func(extent.Extent) error) error {
	x := &ext{d: d, bitmaps: d.near(), sb: first[1024:2048]}
	if err := x.open(); err != nil {
		return err
	}
	meta, err := x.metadata()
	if err != nil {
		return err
	}
	for g := range x.groups {
		if err := x.group(g, &meta, free); err != nil {
			return err
		}
	}
	return nil
}

// open checks the superblock.
func (x *ext) open() error {
	le := x.u32
	x.compat, x.incompat, x.roCompat = le(0x5c), le(0x60), le(0x64)
	switch {
	case le(0x4c) != 1:
		return unsure("revision %d", le(0x4c))
	case x.u16(0x3a) != 1: // EXT4_VALID_FS and neither errors nor orphans
		return unsure("it was not unmounted cleanly or has errors (state %#x); run e2fsck", x.u16(0x3a))
	case x.incompat&^extIncompat != 0:
		return unsure("incompatible features %#x", x.incompat&^extIncompat)
	case x.roCompat&^extROCompat != 0:
		return unsure("read-only features %#x", x.roCompat&^extROCompat)
	case le(0xe8) != 0:
		return unsure("it has orphans")
	case x.roCompat&extMetaCsum != 0 && (x.sb[0x175] != 1 || crc(^uint32(0), x.sb[:0x3fc]) != le(0x3fc)):
		return unsure("the superblock's checksum is wrong")
	case le(0x18) > 6 || le(0x1c) < le(0x18) || le(0x1c) > 16:
		return unsure("block size 2^%d, cluster 2^%d", le(0x18)+10, le(0x1c)+10)
	}
	x.bs, x.cluster = 1024<<le(0x18), 1024<<le(0x1c)
	bigalloc := x.roCompat&extBigalloc != 0
	x.blocks, x.first = int64(le(0x4)), int64(le(0x14))
	x.perGroup = int64(le(0x20))
	x.descSize = 32
	if x.incompat&ext64 != 0 {
		x.blocks |= int64(le(0x150)) << 32
		x.descSize = int64(x.u16(0xfe))
	}
	inodeSize := int64(x.u16(0x58))
	x.tableBlocks = (int64(le(0x28))*inodeSize + x.bs - 1) / x.bs
	x.reserved = int64(x.u16(0xce))
	switch {
	case !bigalloc && x.cluster != x.bs, bigalloc && x.bs == 1024:
		return unsure("clusters of %d bytes", x.cluster)
	case x.first != 0 && (x.bs != 1024 || x.first != 1), x.bs == 1024 && x.first != 1:
		return unsure("first block %d", x.first)
	case x.blocks <= x.first || x.blocks > x.d.size/x.bs:
		return unsure("%d blocks of %d on %d bytes", x.blocks, x.bs, x.d.size)
	case x.descSize < 32 || x.descSize > 1024 || bits.OnesCount64(uint64(x.descSize)) != 1 || x.incompat&ext64 != 0 && x.descSize < 64:
		return unsure("group descriptors of %d bytes", x.descSize)
	case x.perGroup == 0 || x.perGroup*x.bs%x.cluster != 0 || x.perGroup*x.bs/x.cluster > 8*x.bs:
		return unsure("%d blocks a group", x.perGroup)
	case int64(le(0x24)) != x.perGroup*x.bs/x.cluster:
		return unsure("%d clusters a group", le(0x24))
	}
	x.groups = (x.blocks - x.first + x.perGroup - 1) / x.perGroup
	x.uninit = x.roCompat&(extGDTCsum|extMetaCsum) != 0
	x.seed = crc(^uint32(0), x.sb[0x68:0x78])
	if x.incompat&extCsumSeed != 0 {
		x.seed = le(0x270)
	}
	return nil
}

// hasSuper tells whether group g begins with a copy of the superblock.
func (x *ext) hasSuper(g int64) bool {
	switch {
	case g == 0:
		return true
	case x.compat&extSparse2 != 0:
		return g == int64(x.u32(0x24c)) || g == int64(x.u32(0x250))
	case g == 1 || x.roCompat&extSparse == 0:
		return true
	}
	for _, p := range []int64{3, 5, 7} {
		n := p
		for n < g {
			n *= p
		}
		if n == g {
			return true
		}
	}
	return false
}

// desc reads the descriptor of group g and checks it.
func (x *ext) desc(g int64) ([]byte, error) {
	per := x.bs / x.descSize
	no := g / per
	block := x.first + 1 + no
	if x.incompat&extMetaBG != 0 && no >= int64(x.u32(0x104)) {
		lead := no * per // the first group of its metagroup
		block = x.first + lead*x.perGroup
		if x.hasSuper(lead) {
			block++
		}
	}
	b, err := x.d.copy(block*x.bs+g%per*x.descSize, x.descSize)
	if err != nil {
		return nil, err
	}
	if want, ok := x.descSum(g, b); ok && want != binary.LittleEndian.Uint16(b[0x1e:]) {
		return nil, unsure("the checksum of group %d is wrong", g)
	}
	return b, nil
}

// descSum is the checksum that descriptor b of group g should have, if it has one.
func (x *ext) descSum(g int64, b []byte) (uint16, bool) {
	no := binary.LittleEndian.AppendUint32(nil, uint32(g))
	switch {
	case x.roCompat&extMetaCsum != 0:
		c := crc(crc(crc(x.seed, no), b[:0x1e]), []byte{0, 0})
		return uint16(crc(c, b[0x20:])), true
	case x.roCompat&extGDTCsum != 0:
		c := crc16(crc16(crc16(0xffff, x.sb[0x68:0x78]), no), b[:0x1e])
		if x.incompat&ext64 != 0 {
			c = crc16(c, b[0x20:])
		}
		return c, true
	}
	return 0, false
}

// crc16 is the CRC-16 with polynomial 0x8005, reflected.
func crc16(c uint16, b []byte) uint16 {
	for _, v := range b {
		c ^= uint16(v)
		for range 8 {
			c = c>>1 ^ 0xa001*(c&1)
		}
	}
	return c
}

// block is a block number of a descriptor, split in two halves.
func (x *ext) block(desc []byte, lo, hi int) int64 {
	n := int64(binary.LittleEndian.Uint32(desc[lo:]))
	if x.incompat&ext64 != 0 {
		n |= int64(binary.LittleEndian.Uint32(desc[hi:])) << 32
	}
	return n
}
