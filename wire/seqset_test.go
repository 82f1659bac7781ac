package wire

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestSeqSet compares with a map, over random histories that are mostly in order.
func TestSeqSet(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var s SeqSet
		model := map[uint32]bool{}
		base := uint32(rng.IntN(2)) * (math.MaxUint32 - 400) // the upper end, too
		for range 300 {
			first := base + uint32(rng.IntN(400))
			r := Range{first, first}
			if rng.IntN(4) == 0 {
				r.Last += min(uint32(rng.IntN(20)), math.MaxUint32-first)
			}
			fresh := 0
			for v := uint64(r.First); v <= uint64(r.Last); v++ {
				if !model[uint32(v)] {
					model[uint32(v)] = true
					fresh++
				}
			}
			if got := s.AddRange(r); got != fresh {
				t.Fatalf("seed %d: AddRange(%v) says %d new, want %d", seed, r, got, fresh)
			}
		}
		if s.Len() != len(model) {
			t.Fatalf("seed %d: %d seqs, want %d", seed, s.Len(), len(model))
		}
		rs, n := s.Ranges(math.MaxInt), 0
		for i, r := range rs {
			n += r.len()
			if i > 0 && uint64(r.First) <= uint64(rs[i-1].Last)+1 {
				t.Fatalf("seed %d: ranges %v and %v touch", seed, rs[i-1], r)
			}
		}
		if n != len(model) {
			t.Fatalf("seed %d: ranges hold %d, want %d", seed, n, len(model))
		}
		for v := uint64(base); v <= min(uint64(base)+430, math.MaxUint32); v++ {
			if s.Has(uint32(v)) != model[uint32(v)] {
				t.Fatalf("seed %d: Has(%d) is %v", seed, v, !model[uint32(v)])
			}
		}
		if got := s.Ranges(2); len(got) > 2 || len(got) > 0 && got[0] != rs[0] {
			t.Fatalf("Ranges(2) is %v", got)
		}
		s.Clear()
		if s.Len() != 0 || s.Has(base) || len(s.Ranges(9)) != 0 {
			t.Fatal("not empty after Clear")
		}
	}
}

func TestSeqSetEdges(t *testing.T) {
	var s SeqSet
	if s.AddRange(Range{5, 4}) != 0 || s.Len() != 0 {
		t.Error("a range that goes backwards is empty")
	}
	if !s.Add(0) || s.Add(0) || !s.Add(math.MaxUint32) || s.Add(math.MaxUint32) || s.Has(1) || s.Len() != 2 {
		t.Error("the ends of the range")
	}
	if s.AddRange(Range{0, math.MaxUint32}) != math.MaxUint32-1 || len(s.Ranges(9)) != 1 {
		t.Error("everything is one range")
	}
}

// BenchmarkSeqSet adds seqs as 16 connections end them: in order but for a small shuffle.
func BenchmarkSeqSet(b *testing.B) {
	b.ReportAllocs()
	var s SeqSet
	for i := 0; b.Loop(); i++ {
		s.Add(uint32(i ^ 15))
	}
	b.ReportMetric(float64(len(s.ranges)), "ranges")
}
