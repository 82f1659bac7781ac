package relay

import (
	"fmt"

	"github.com/moverd/mover/mover"
)

// Metrics are figures over all flows.
type Metrics struct {
	CacheBytes, CacheLimit int64
	CacheChunks            int64
	CacheDropped           int64 // segments
	Memory, MemoryLimit    int64
}

// Metrics tells what the Server holds.
func (s *Server) Metrics() Metrics {
	bytes, chunks, dropped := s.cache.figures()
	return Metrics{CacheBytes: bytes, CacheLimit: s.cache.most, CacheChunks: int64(chunks), CacheDropped: dropped,
		Memory: s.in.used.Load() + s.plain.used.Load() + s.bodies.used.Load(), MemoryLimit: s.in.most + s.plain.most + s.bodies.most}
}

// Status tells about every flow, in the order of their keys.
func (s *Server) Status() []mover.Status {
	out := make([]mover.Status, 0, len(s.order))
	for _, key := range s.order {
		out = append(out, s.flows[key].status())
	}
	return out
}

func (f *flow) status() mover.Status {
	k := &f.counts
	r := &mover.Relay{Bodies: k.bytes.Load(), Offered: k.offered.Load(), Needed: k.needed.Load(), Packed: k.packed.Load(), Resent: k.missing.Load(), Calls: k.calls.Load(),
		Failed: k.failures.Load(), Objects: k.objects.Load()}
	f.mu.Lock()
	defer f.mu.Unlock()
	st := mover.Status{Flow: f.cfg.Key(), Role: "gateway", Device: f.cfg.Store, Since: f.since, State: mover.Waiting, Reason: "no source is connected", WireIn: f.in, WireOut: f.out, Relay: r}
	for c := range f.conns {
		st.Conns++
		st.WireIn += c.wc.WireIn()
		st.WireOut += c.wc.WireOut()
		if rtt := c.wc.RTT().Seconds(); rtt > 0 && (st.RTT == 0 || rtt < st.RTT) {
			st.RTT = rtt
		}
	}
	if st.Conns > 0 {
		st.State, st.Reason = mover.Passing, fmt.Sprintf("%d calls, %d objects and parts stored since start", r.Calls, r.Objects)
	}
	if f.last != nil {
		st.LastError = f.last.Error()
	}
	if f.why != nil {
		st.State, st.Reason, st.Next = mover.Stopped, f.why.Error(), "mend it; it is tried again when the source asks"
	}
	return st
}
