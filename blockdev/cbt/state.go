package cbt

import (
	"unsafe"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/digest"
)

const (
	stateMagic = 0x4d6f766572434254 // "MoverCBT"
	// stateVersion grows when the maps or the program change in a way that an older or newer moverd would misread.
	stateVersion = 2
	stateSize    = 4096
	maxLeaves    = 32
	causeSize    = 240
)

// state is the value of the pinned state map, a page that is mapped into memory. Only user space reads and writes it, under the lock of
// the tracker's folder. Stores keep program order, which is all that a kill can see.
type state struct {
	Magic      uint64
	Version    uint32
	Ready      uint32 // 0 while a generation is being set up
	Generation blockdev.ID
	Taken      uint64 // stored before the first bit of that epoch is cleared (C9)
	Retired    uint64
	Granule    int64
	Size       int64
	Map        digest.Digest
	Identity   digest.Digest
	PerWord    int64
	Based      uint32 // the witness has its base: set before the first Take of a generation clears anything
	Leaves     uint32
	Leaf       [maxLeaves]leafState
	Gap        uint32 // 1: the history is broken until Restart; Cause says how
	CauseLen   uint32
	Cause      [causeSize]byte
}

// leafState is what is recorded about one leaf disk.
type leafState struct {
	Dev      uint64
	Start    int64
	Granules int64
	Sectors  int64
	Seq      uint64
	// The base of the witness: the kernel's account minus the tracker's, modulo 2^64, in bytes.
	Written, Discarded uint64
	// The tracker's count of these events at the base.
	Passed, Overflow uint64
}

var _ [stateSize - unsafe.Sizeof(state{})]byte // state fits its page

func (s *state) setGap(cause string) {
	s.CauseLen = uint32(copy(s.Cause[:], cause))
	s.Gap = 1
}

// cause of the gap, "" when there is none.
func (s *state) cause() string {
	if s.Gap == 0 {
		return ""
	}
	return string(s.Cause[:min(s.CauseLen, causeSize)])
}

// fill records a plan in a new state that is not ready yet.
func (s *state) fill(p *plan) {
	*s = state{Magic: stateMagic, Version: stateVersion, Granule: p.granule, Size: p.size, Map: p.digest,
		Identity: digest.Sum([]byte(p.identity)), PerWord: perWord(p.variant), Leaves: uint32(len(p.leaves))}
	for i, l := range p.leaves {
		s.Leaf[i] = leafState{Dev: l.disk.dev, Start: l.start, Granules: l.granules, Sectors: l.sectors, Seq: l.seq}
	}
}

// unlike says in what a pinned state differs from a plan; "" means in nothing.
func (s *state) unlike(p *plan) string {
	switch {
	case s.Magic != stateMagic || s.Version != stateVersion:
		return "what is pinned is of another version"
	case s.Ready != 1:
		return "what is pinned was not set up to its end"
	case s.Map != p.digest || s.Size != p.size:
		return "the volume's map changed"
	case s.Granule != p.granule || s.PerWord != perWord(p.variant):
		return "the granule changed"
	case s.Identity != digest.Sum([]byte(p.identity)):
		return "the volume's identity changed"
	case int(s.Leaves) != len(p.leaves):
		return "the volume's disks changed"
	}
	for i, l := range p.leaves {
		ls := s.Leaf[i]
		if ls.Dev != l.disk.dev || ls.Seq != l.seq {
			return l.disk.String() + " is another disk than before"
		}
		if ls.Sectors != l.sectors {
			return l.disk.String() + " was resized"
		}
		if ls.Start != l.start || ls.Granules != l.granules {
			return "the volume's map changed"
		}
	}
	return ""
}
