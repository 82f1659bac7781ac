package s3

import (
	"bytes"
	"crypto/md5"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestLanes: sums of many lengths side by side are those of crypto/md5, also when they are used again, and when the store is closed meanwhile.
func TestLanes(t *testing.T) {
	var l lanes
	var wg sync.WaitGroup
	rnd := rand.NewChaCha8([32]byte{1})
	all := make([]byte, 1<<20)
	_, _ = rnd.Read(all)
	for i := range 3 * lanesMost {
		wg.Go(func() {
			for n := range 6 {
				b := all[i*64 : i*64+(i*7919+n*n*n*97)%(len(all)-3*lanesMost*64)]
				h := l.begin()
				for rest := b; len(rest) > 0; {
					k := min(len(rest), 1+(i*1021+n*777)%(48<<10))
					_, _ = h.Write(rest[:k])
					rest = rest[k:]
				}
				want := md5.Sum(b)
				if got := h.Sum(nil); !bytes.Equal(got, want[:]) {
					t.Errorf("%d bytes: %x, want %x", len(b), got, want)
				}
				l.end(h)
				if i == lanesMost && n == 3 {
					l.close()
				}
			}
		})
	}
	wg.Wait()
	if l.out != 0 || l.server != nil || len(l.free) > lanesMost {
		t.Errorf("%d are out, %d free, the server runs: %v", l.out, len(l.free), l.server != nil)
	}
}
