// Package churn writes to disks and filesystems in every way that applications do, with content that describes itself: each
// sector says which writer wrote it, where it belongs, and as what, so that a lost or misplaced write is found and named.
package churn

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// SectorSize is the unit of self-description in bytes.
const SectorSize = 512

// sector layout: magic u32, crc32 of all that follows u32, writer u64, sequence u64, position u64, filler.
const magic = 0x6d6f7653

// Fill makes p (whole sectors) describe itself as the seq-th write of writer at byte position pos. The filler is half
// repetitive, half random, as a database page might be.
func Fill(p []byte, writer, seq uint64, pos int64) {
	for i := 0; i+SectorSize <= len(p); i += SectorSize {
		s := p[i : i+SectorSize]
		binary.LittleEndian.PutUint32(s, magic)
		binary.LittleEndian.PutUint64(s[8:], writer)
		binary.LittleEndian.PutUint64(s[16:], seq)
		binary.LittleEndian.PutUint64(s[24:], uint64(pos)+uint64(i))
		x := seq*0x9e3779b97f4a7c15 ^ writer<<32 ^ uint64(pos+int64(i))
		for j := 32; j < SectorSize; j += 8 {
			if j < SectorSize/2 {
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
			}
			binary.LittleEndian.PutUint64(s[j:], x)
		}
		binary.LittleEndian.PutUint32(s[4:], crc32.ChecksumIEEE(s[8:]))
	}
}

// Sector is what a sector says of itself.
type Sector struct {
	Writer, Seq uint64
	Pos         int64
}

func (s Sector) String() string {
	return fmt.Sprintf("writer %d, write %d, position %d", s.Writer, s.Seq, s.Pos)
}

// Parse reads one sector; ok is false when it is none of ours or torn.
func Parse(s []byte) (d Sector, ok bool) {
	if len(s) < SectorSize || binary.LittleEndian.Uint32(s) != magic ||
		binary.LittleEndian.Uint32(s[4:]) != crc32.ChecksumIEEE(s[8:SectorSize]) {
		return d, false
	}
	return Sector{binary.LittleEndian.Uint64(s[8:]), binary.LittleEndian.Uint64(s[16:]), int64(binary.LittleEndian.Uint64(s[24:]))}, true
}
