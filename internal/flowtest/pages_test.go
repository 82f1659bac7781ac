package flowtest

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/sender"
)

// moved has the flow note what its passes move; the function tells it of those that have ended.
func (r *rig) moved() func() []mover.Moved {
	var mu sync.Mutex
	var all []mover.Moved
	r.deps = func(d *sender.Deps) {
		d.Note = func(e mover.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Pass != nil {
				all = append(all, e.Pass.Moved)
			}
		}
	}
	return func() []mover.Moved {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// TestPages: what lies at the gateway on other multiples of 4 KiB is not sent, and each byte is counted once: in a full pass after another, in a delta and in
// a rescan; with pages of zeros in the middle, leaves made of both, and a short page at the end.
func TestPages(t *testing.T) {
	const size = 24<<20 + 4096*3 + 512
	r := newRig(t, size, 0)
	r.config.Compression = "fastest"
	moved := r.moved()
	check := func(what string, copied, sent int64) {
		t.Helper()
		all := moved()
		m := all[len(all)-1]
		if sum := m.Free + m.Zero + m.Same + m.Copied + m.Unreadable + m.Sent; sum != m.Looked {
			t.Errorf("%s: %d of %d bytes are told: %+v", what, sum, m.Looked, m)
		}
		if m.Copied < copied || m.Sent > sent || m.Payload > m.Sent {
			t.Errorf("%s: %+v", what, m)
		}
	}
	r.vol.write(0, 8<<20)
	r.vol.zero(1<<20, 4096)
	r.vol.zero(2<<20, 12<<10)
	r.vol.write(size-4608, 4608)
	r.start()
	r.sync()
	old := read(t, r.vol.Mem, 8<<20)
	for by := int64(1); by <= 3; by++ {
		to := 8<<20 + by*5<<20 - 5<<20 + by*4096
		r.vol.writeBytes(old[:4<<20], to)
		for at := to; at < to+1<<20; at += 40 << 10 { // pages that nobody has
			r.vol.write(at, 4096)
		}
		if by == 3 {
			r.vol.write(size-512, 512)
			r.vol.lose()
		}
		r.sync()
		check("pass", 3<<20, 1<<20)
	}
	r.same()
	if m := r.gw.Metrics(); m.PagesFound < 2000 || m.PageMismatches != 0 {
		t.Errorf("%+v", m)
	}
}

// TestTwins: content that lies on a disk several times is sent once, although nothing of it has arrived when the others are read; also when connections break, and
// with a short leaf at the end. What is counted adds up.
func TestTwins(t *testing.T) {
	const part = 9<<20 + 16<<10 // more than a batch: twins within one are left to zstd
	const size = 5*part + 512
	r := newRig(t, size, 0)
	r.config.Compression = "fastest"
	moved := r.moved()
	r.vol.write(0, part)
	once := read(t, r.vol.Mem, part)
	for to := int64(part); to < 5*part; to += part {
		r.vol.writeBytes(once, to)
	}
	r.vol.write(size-512, 512)
	r.start()
	r.sync()
	r.same()
	if m := moved()[0]; m.Sent != part+512 || m.Copied != 4*part || m.Looked != size {
		t.Errorf("%+v", m)
	}
	for round := range 6 { // now with connections that break
		r.vol.write(0, part)
		once = read(t, r.vol.Mem, part)
		for to := int64(part); to < 5*part; to += part {
			r.vol.writeBytes(once, to)
		}
		if round%2 == 0 {
			r.vol.lose()
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 4 {
				time.Sleep(15 * time.Millisecond)
				r.proxy.cutAll()
			}
		}()
		r.sync()
		<-done
		r.same()
	}
}

// TestSecondHost: a host whose files lie on other offsets than those of a host before it sends little, over real connections.
func TestSecondHost(t *testing.T) {
	const size = 12 << 20
	first := newRig(t, size, 0)
	first.config.Compression = "fastest"
	second := newRig(t, size, 0)
	second.config.Compression, second.config.Flow = "fastest", "disk2"
	first.gwConf = func(c *receiver.Config) {
		open, inspect := c.OpenTarget, c.Inspect
		c.Flows = append(c.Flows, receiver.FlowConfig{Tenant: "acme", Host: "db1", Name: "disk2", Target: "/mem2"})
		c.OpenTarget = func(path string, size int64, create bool) (blockdev.Target, error) {
			if path == "/mem2" {
				return second.openTarget(path, size, create)
			}
			return open(path, size, create)
		}
		c.Inspect = func(path string) (receiver.Found, error) {
			if path == "/mem2" {
				return second.inspect(path)
			}
			return inspect(path)
		}
	}
	second.identity = "target2"
	first.vol.write(0, size)
	second.vol.writeBytes(bytes.Clone(read(t, first.vol.Mem, size))[:size-4096], 4096)
	second.vol.write(0, 4096)
	first.start()
	first.sync()
	second.mu.Lock()
	second.addr = first.addr
	second.mu.Unlock()
	second.gw = first.gw
	second.startSource()
	second.sync()
	if c := second.flow.Status().Totals; c.Copied < 700 || c.Copied+c.Sent+c.Same != uint64(size/chunker.LeafSize) {
		t.Errorf("%+v", c)
	}
	second.same()
	second.stopSource()
}
