package receiver

import "github.com/moverd/mover/mover"

// Pulses tell a watchdog whether flows hang: at work is one with a frame that arrives or is worked on, with batches that are not durable
// yet, and while a log is applied or a target read back.
func (s *Server) Pulses() []mover.Pulse {
	out := make([]mover.Pulse, 0, len(s.order))
	for _, key := range s.order {
		out = append(out, s.flows[key].pulse())
	}
	return out
}

func (f *flow) pulse() mover.Pulse {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.s.metrics
	t := f.totals
	p := mover.Pulse{Flow: f.key, Done: f.passes + int64(t.Offered) + int64(t.Put+t.Zero+t.Free)}
	if l := f.link; l != nil {
		_, in, _, _ := l.figures()
		p.Done += in / stepBytes
		p.Working = l.busy.Load() > 0
	}
	if o := f.pass; o != nil {
		o.mu.Lock()
		p.Done += o.acked + o.redo.Bytes() + int64(o.ledger.n)
		p.Working = p.Working || len(o.pending) > 0
		o.mu.Unlock()
	}
	if fin := f.finishing; fin != nil {
		p.Working = true
		p.Done += fin.done.Load() + c.zeroed.Load() + c.written.Load() + c.syncs.Load()
	}
	if f.settling {
		p.Working = true
		p.Done += c.read.Load()
	}
	return p
}

// stepBytes is what counts as a step of an arriving frame: keep-alives of a link that hangs do not reach it in the time of a watchdog.
const stepBytes = 256 << 10
