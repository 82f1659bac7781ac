package flowtest

import (
	"bytes"
	"sync"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// What a report calls saved adds up, whatever a pass met: free space, zeros, dedup, compression, a short last leaf, a rescan.
func TestMovedAddsUp(t *testing.T) {
	const size = 37<<20 + 512*3
	r := newRig(t, size, 0)
	r.config.Compression = "fastest" // auto sends plain where the line is no bottleneck, as here
	var mu sync.Mutex
	var passes []mover.Event
	r.deps = func(d *sender.Deps) {
		d.Note = func(e mover.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Pass != nil {
				passes = append(passes, e)
			}
		}
	}
	last := func() mover.Event {
		mu.Lock()
		defer mu.Unlock()
		return passes[len(passes)-1]
	}
	check := func(what, kind string) mover.Moved {
		t.Helper()
		e := last()
		m := e.Pass.Moved
		if e.Pass.Kind != kind || e.Error != "" || e.Flow != "disk" || e.Time.Before(e.Began) {
			t.Errorf("%s: %+v", what, e)
		}
		if sum := m.Free + m.Zero + m.Same + m.Copied + m.Unreadable + m.Sent; sum != m.Looked {
			t.Errorf("%s: %d of %d bytes are told: %+v", what, sum, m.Looked, m)
		}
		if m.Wire <= m.Payload || m.Payload > m.Sent {
			t.Errorf("%s: %+v", what, m)
		}
		return m
	}
	text := bytes.Repeat([]byte("compressible, and the same in every leaf or nearly so. "), chunker.GroupSize/50)
	r.vol.write(0, 5<<20)                                      // random
	r.vol.writeBytes(text[:4<<20], 8<<20)                      // compressible
	r.vol.writeBytes(text[:4<<20], 12<<20)                     // the same again: dedup
	r.vol.write(size-512, 512)                                 // in the short last leaf
	r.vol.setFree(extent.Extent{Off: 20 << 20, Len: 10 << 20}) // and zeros between all these
	r.start()
	r.sync()
	m := check("full", "full")
	if m.Looked != size || m.Free != 10<<20 || m.Sent < 5<<20 || m.Sent-m.Payload < 1<<20 || m.Same+m.Copied == 0 || m.Zero == 0 {
		t.Errorf("full: %+v", m)
	}
	for range 200 {
		r.vol.write(int64(randN(19<<8))*granule, granule)
	}
	r.vol.writeBytes(make([]byte, 64<<10), 1<<20)
	r.vol.write(size-512, 512)
	r.sync()
	if m = check("delta", "delta"); m.Looked < 64<<10 || m.Looked > 2<<20 || m.Zero < 64<<10 {
		t.Errorf("delta: %+v", m)
	}
	r.vol.write(3<<20, 1<<20)
	r.vol.write(size-512, 512)
	r.vol.lose()
	r.sync()
	if m = check("rescan", "rescan"); m.Looked != size || m.Same < 10<<20 || m.Sent < 1<<20 || m.Sent > 10<<20 {
		t.Errorf("rescan: %+v", m)
	}
	r.same()
}
