package wire

import (
	"math"
	"slices"
	"sort"
)

// SeqSet is a set of seqs, kept as ranges: small for millions that mostly follow each other. Not safe for concurrent use.
type SeqSet struct {
	ranges []Range // ascending, a gap between any two
	n      int
}

// Add adds seq and tells whether it is new.
func (s *SeqSet) Add(seq uint32) bool { return s.AddRange(Range{seq, seq}) > 0 }

// AddRange adds r, inclusive, and returns how many seqs of it are new.
func (s *SeqSet) AddRange(r Range) int {
	if r.Last < r.First {
		return 0
	}
	before := s.n
	// [i, j) are the ranges that touch or overlap r.
	i := len(s.ranges)
	if i > 0 && r.First <= above(s.ranges[i-1].Last) {
		i = sort.Search(i, func(k int) bool { return above(s.ranges[k].Last) >= r.First })
	}
	j := i
	for ; j < len(s.ranges) && s.ranges[j].First <= above(r.Last); j++ {
		r.First = min(r.First, s.ranges[j].First)
		r.Last = max(r.Last, s.ranges[j].Last)
		s.n -= s.ranges[j].len()
	}
	s.n += r.len()
	if j == i+1 {
		s.ranges[i] = r
	} else {
		s.ranges = slices.Replace(s.ranges, i, j, r)
	}
	return s.n - before
}

func (r Range) len() int { return int(r.Last-r.First) + 1 }

// above is seq+1, or the largest.
func above(seq uint32) uint32 {
	if seq == math.MaxUint32 {
		return seq
	}
	return seq + 1
}

// Has tells whether seq is in the set.
func (s *SeqSet) Has(seq uint32) bool {
	i := sort.Search(len(s.ranges), func(k int) bool { return s.ranges[k].Last >= seq })
	return i < len(s.ranges) && s.ranges[i].First <= seq
}

// Len is the number of seqs.
func (s *SeqSet) Len() int { return s.n }

// Ranges returns a copy of the first most ranges, ascending and apart, as OPENED and ACK want them.
func (s *SeqSet) Ranges(most int) []Range {
	return slices.Clone(s.ranges[:min(most, len(s.ranges))])
}

// Clear empties the set and keeps its memory.
func (s *SeqSet) Clear() { s.ranges, s.n = s.ranges[:0], 0 }
