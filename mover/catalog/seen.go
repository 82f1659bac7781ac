package catalog

import (
	"encoding/binary"
	"hash/fnv"
	"sync/atomic"

	"github.com/moverd/mover/internal/digest"
)

// seen is a Bloom filter, blocked by cache line, of the keys of an index: most leaves of a first copy are new, and to learn that from the store costs more than to digest them.
// It may say yes to what was never added, and never says no to what was, once it is whole. Safe for concurrent use.
type seen struct {
	lines []cacheLine
	room  int64        // keys for which no more than one answer in fifty is a wrong yes
	keys  atomic.Int64 // that were added, each time they were
	whole atomic.Bool  // all keys of the store are in it
}

type cacheLine [8]atomic.Uint64

const (
	keyBits = 10 // of the filter for each key
	probes  = 6  // bits that a key sets, of one line
)

// newSeen makes a filter of memory bytes, at least one line.
func newSeen(memory int64) *seen {
	return &seen{lines: make([]cacheLine, max(1, memory/64)), room: memory * 8 / keyBits}
}

// scopeHash tells keys of different tenants apart.
func scopeHash(tenant string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(tenant))
	return h.Sum64()
}

// at finds the line of a key, and 9 bits of where in it for each probe. Digests are as good as random.
func (s *seen) at(scope uint64, key []byte) (line *cacheLine, where uint64) {
	h := binary.LittleEndian.Uint64(key) ^ scope
	return &s.lines[(h>>32)*uint64(len(s.lines))>>32], binary.LittleEndian.Uint64(key[8:keyDigest]) ^ h<<32
}

func (s *seen) add(scope uint64, key []byte) {
	s.keys.Add(1)
	line, where := s.at(scope, key)
	for range probes {
		if w, bit := &line[where&7], uint64(1)<<(where>>3&63); w.Load()&bit == 0 {
			w.Or(bit)
		}
		where >>= 9
	}
}

// may tells whether a key may have been added.
func (s *seen) may(scope uint64, d digest.Digest) bool {
	if !s.whole.Load() {
		return true
	}
	line, where := s.at(scope, d[:keyDigest])
	for range probes {
		if line[where&7].Load()&(1<<(where>>3&63)) == 0 {
			return false
		}
		where >>= 9
	}
	return true
}
