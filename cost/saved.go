package cost

import "time"

// Move is what became of the bytes that a pass, or several as one, looked at: each of them is in one of Free, Zero, Same, Copied, Unreadable
// and Sent. Sent was carried by Payload bytes; the line carried Wire.
type Move struct {
	From, Until                                                       time.Time
	Looked, Free, Zero, Same, Copied, Unreadable, Sent, Payload, Wire int64
}

// Saved is what the line did not have to carry, against plain copies of all that the passes looked at. The bytes are measured; the money
// is an estimate: what the bytes would have cost on the line, or the time that they would have taken it.
type Saved struct {
	Plain     int64    `json:"plain_bytes"`
	Rows      []Saving `json:"rows"`
	Net       Saving   `json:"net"`
	Deltas    int      `json:"deltas"`
	Unchanged int64    `json:"unchanged_bytes"` // what full copies in place of the deltas would have carried beside
}

// Saving is one way of it. Negative: what it costs.
type Saving struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	Cost  *Money `json:"cost"` // null: not known
}

// ways are what keeps bytes off the line.
var ways = []struct {
	name string
	wire bool // known only where the line is
	of   func(*Move) int64
}{
	{"free space", false, func(m *Move) int64 { return m.Free }},
	{"zeros", false, func(m *Move) int64 { return m.Zero }},
	{"equal at the target", false, func(m *Move) int64 { return m.Same }},
	{"dedup", false, func(m *Move) int64 { return m.Copied }},
	{"compression", true, func(m *Move) int64 { return m.Sent - m.Payload }},
	{"digests, frames, TLS", true, func(m *Move) int64 { return m.Payload - m.Wire }},
}

// saved tells what each way has saved.
func (b *bill) saved() {
	out := &b.out.Saved
	out.Rows = []Saving{}
	zone := b.Location()
	wire := true
	for i := range b.ask.Flows {
		f := &b.ask.Flows[i]
		out.Deltas, out.Unchanged = out.Deltas+f.Deltas, out.Unchanged+f.Unchanged
		wire = wire && f.Compression
		for k := range f.Moves {
			out.Plain += f.Moves[k].Looked - f.Moves[k].Unreadable
		}
	}
	net := b.tally(b.Use.Line)
	for _, w := range ways {
		if w.wire && !wire {
			continue
		}
		row := Saving{Name: w.name}
		var all []Bytes
		for i := range b.ask.Flows {
			for k := range b.ask.Flows[i].Moves {
				m := &b.ask.Flows[i].Moves[k]
				n := w.of(m)
				row.Bytes += n
				all = append(all, Bytes{m.From, m.Until, n})
			}
		}
		t := b.tally(b.Use.Line)
		for d, n := range daily(zone, all) {
			if n == 0 {
				continue
			}
			if x := t.on(d); x != nil {
				t.add(x, n*x.perByte(d))
			}
		}
		row.Cost = b.worth(t)
		out.Net.Bytes += row.Bytes
		net.sum, net.gaps = net.sum+t.sum, append(net.gaps, t.gaps...)
		if t.currency != "" {
			net.currency = t.currency
		}
		out.Rows = append(out.Rows, row)
	}
	out.Net.Name, out.Net.Cost = "in all", b.worth(net)
}

// worth is what bytes are worth on the line; unknown when it is not said what the line is.
func (b *bill) worth(t *tally) *Money {
	switch b.Use.Line {
	case "":
		return nil
	case None:
		return &Money{}
	}
	return t.money()
}
