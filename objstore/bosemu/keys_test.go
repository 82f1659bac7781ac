package bosemu

import (
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"math/rand/v2"
	"slices"
	"testing"
)

// Keys come and go; their order is always that of a sorted list.
func TestKeys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var set keySet
	model := map[string]bool{}
	for range 20_000 {
		k := fmt.Sprint(rnd.IntN(5000))
		if rnd.IntN(3) == 0 {
			set.remove(k)
			delete(model, k)
		} else {
			set.add(k)
			model[k] = true
		}
	}
	var want []string
	for k := range model {
		want = append(want, k)
	}
	slices.Sort(want)
	for _, first := range []string{"", "2", "25", "4999", "5", "zz"} {
		i, _ := slices.BinarySearch(want, first)
		if have := slices.Collect(set.from(first)); !slices.Equal(have, want[i:]) {
			t.Errorf("from %q: %d keys, want %d", first, len(have), len(want)-i)
		}
	}
}

func TestJoin(t *testing.T) {
	b := []byte("the quick brown fox jumps over the lazy dog")
	for i := range b {
		c64 := join(crc64.ECMA, crc64.Checksum(b[:i], ecma), crc64.Checksum(b[i:], ecma), int64(len(b)-i), 64)
		c32 := join(crc32.IEEE, uint64(crc32.ChecksumIEEE(b[:i])), uint64(crc32.ChecksumIEEE(b[i:])), int64(len(b)-i), 32)
		if c64 != crc64.Checksum(b, ecma) || uint32(c32) != crc32.ChecksumIEEE(b) {
			t.Fatalf("split at %d", i)
		}
	}
}
