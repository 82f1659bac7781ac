package flowtest

import (
	"testing"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/mover"
)

// Connections differ: what the gateway says on one is read long after what it says on another. No batch waits for ever for an ack that came
// before its NEED.
func TestAnswersOfSlowConnections(t *testing.T) {
	r := newRig(t, 16<<20, 0)
	r.vol.write(0, 16<<20)
	r.proxy.back = func(n int) time.Duration { return []time.Duration{40, 15, 0}[n%3] * time.Millisecond }
	r.start()
	r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
	for range 5 {
		for at := int64(0); at < 16<<20; at += 3 * chunker.GroupSize / 8 { // the same again: nothing is needed
			b := make([]byte, min(chunker.GroupSize/4, 16<<20-at))
			_, err := r.vol.ReadAt(b, at)
			must(t, err)
			r.vol.writeBytes(b, at)
		}
		r.sync()
	}
	r.same()
}

// A connection that is cut takes along what the gateway said on it, and nothing that another connection's batches wait for.
func TestAcksOfLostConnection(t *testing.T) {
	for seed := range 3 {
		r := newRig(t, 24<<20, 0)
		r.config.Compression = "off"
		r.config.Window = 8 << 20
		// The slow connection's answers pile up on the line, and are lost with it.
		r.proxy.back = func(n int) time.Duration {
			if n == 2 {
				return 150 * time.Millisecond
			}
			return time.Millisecond
		}
		r.start()
		r.wait("all connections", func(s mover.Status) bool { return s.Passes == 1 && s.Conns == 3 })
		r.vol.write(0, 24<<20)
		ended := make(chan error, 1)
		go func() { ended <- r.flow.Sync(t.Context()) }()
		r.wait("some of the pass", func(s mover.Status) bool { return s.Pass != nil && s.Pass.Read >= int64(seed+1)*5<<20 })
		r.proxy.cut(2)
		r.wait("the pass", func(s mover.Status) bool { return s.Passes == 2 })
		must(t, <-ended)
		r.same()
		r.stop()
	}
}
