package s3

import (
	"crypto/md5"
	"hash"
	"sync"

	md5simd "github.com/minio/md5-simd"
)

// lanes makes MD5s of large bodies that are sent side by side: a core sums many in the time of one, of which it cannot sum any faster. A wrong sum would be
// another than the store's, and so an error.
type lanes struct {
	mu     sync.Mutex
	server md5simd.Server // which never forgets a sum that was begun, so they are used again
	free   []md5simd.Hasher
	out    int
	shut   bool
}

const (
	lanesFrom = 1 << 20 // bytes of a body that is worth it
	lanesMost = 32      // bodies; others are summed one by one
)

// begin gives a sum of nothing yet. It has to be given back.
func (l *lanes) begin() hash.Hash {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || l.out == lanesMost {
		return md5.New()
	}
	l.out++
	if n := len(l.free); n > 0 {
		h := l.free[n-1]
		l.free = l.free[:n-1]
		h.Reset()
		return h
	}
	if l.server == nil {
		l.server = md5simd.NewServer()
	}
	return l.server.NewHash()
}

func (l *lanes) end(h hash.Hash) {
	own, ok := h.(md5simd.Hasher)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out--
	l.free = append(l.free, own)
	l.over()
}

// close ends the server when no sum is under way any more.
func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	l.over()
}

// over is called with mu held.
func (l *lanes) over() {
	if l.shut && l.out == 0 && l.server != nil {
		l.server.Close()
		l.server = nil
	}
}
