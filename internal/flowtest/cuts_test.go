package flowtest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// Nothing that was acked is sent again: a pass over a line that is cut all the time ends, and sends little more than once.
func TestCutsDoNotStartOver(t *testing.T) {
	r := newRig(t, 48<<20, 0)
	r.config.Compression = "off"
	r.config.Window = 8 << 20
	r.vol.write(0, 48<<20)
	r.proxy.cutEvery(rand.New(rand.NewPCG(5, 5)), 12<<20)
	r.start()
	s := r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
	r.same()
	if s.Reconnects == 0 || r.proxy.cuts == 0 {
		t.Fatalf("nothing was cut: %+v", s)
	}
	// A cut loses at most the window.
	if most := s.Reconnects * 8 << 20; s.Resent > most {
		t.Errorf("%d bytes sent again after %d cuts, at most %d were unacked", s.Resent, s.Reconnects, most)
	}
	t.Logf("%d cuts, %d bytes sent again of %d", s.Reconnects, s.Resent, 48<<20)
}

// Connections are replaced before their keys have sent too much, and nothing breaks or is sent twice for it.
func TestConnectionsAreReplaced(t *testing.T) {
	for _, conns := range []int{1, 3} {
		r := newRig(t, 48<<20, 0)
		r.config.Compression = "off"
		r.config.Window = 8 << 20
		r.config.Conns, r.config.ConnBytes = conns, 9<<20
		var dialled atomic.Int64
		r.deps = func(d *sender.Deps) {
			dial := d.Paths[0].Dial
			d.Paths[0].Dial = func(ctx context.Context) (net.Conn, error) {
				dialled.Add(1)
				return dial(ctx)
			}
		}
		r.vol.write(0, 48<<20)
		r.start()
		s := r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
		r.same()
		// What is in the window when a connection is spent may still go over it.
		if n := dialled.Load(); n <= int64(conns) || n*(9+8)<<20 < s.WireOut {
			t.Errorf("%d connections for %d bytes at 9 MiB each", n, s.WireOut)
		}
		if s.Reconnects != 0 || conns > 1 && s.Resent != 0 {
			t.Errorf("%d conns: %d losses, %d bytes sent again", conns, s.Reconnects, s.Resent)
		}
		r.stop()
	}
}

// On a thin line the level follows the line, without being told.
func TestThinLineIsCompressed(t *testing.T) {
	r := newRig(t, 24<<20, 0)
	r.config.Window = 8 << 20
	r.proxy.rate = 6 << 20
	r.vol.write(0, 24<<20)
	r.start()
	s := r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
	r.same()
	t.Logf("%d bytes on the wire of %d", s.WireOut, 24<<20)
	if s.WireOut > 24<<20*9/10 {
		t.Errorf("%d bytes on a thin line, half of it would do", s.WireOut)
	}
}

// A line of 100 ms round trip is filled: the pass takes a few round trips, not one for each batch.
func TestLongLine(t *testing.T) {
	r := newRig(t, 64<<20, 50*time.Millisecond)
	r.config.Compression = "off"
	r.gwConf = nil
	r.vol.write(0, 64<<20)
	began := time.Now()
	r.start()
	r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
	took := time.Since(began)
	t.Logf("64 MiB at 100 ms in %v: %.0f MB/s", took, 67/took.Seconds())
	if took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	for i := range 3000 {
		r.vol.write(int64(i)*20<<10, granule)
	}
	began = time.Now()
	r.sync()
	took = time.Since(began)
	t.Logf("delta of 3,000 blocks at 100 ms in %v", took)
	if took > 5*time.Second {
		t.Errorf("the delta took %v", took)
	}
	if s := r.flow.Status(); s.RTT < 0.1 || s.RTT > 3 {
		t.Errorf("round trip %v", s.RTT)
	}
	_, err := r.cutover(sender.CutoverOptions{Limit: 10 * time.Second})
	must(t, err)
	r.same()
}
