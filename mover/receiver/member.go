package receiver

import (
	"context"
	"time"

	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// Member is a connection on a line: what comes over it is counted there, and it may hold a lease.
type Member struct {
	line   *line
	wc     *wire.Conn
	flow   string // key, for people
	grants chan *wire.Grant

	// What was counted, guarded by line.mu.
	bytes   int64  // of the stream
	packets uint32 // as the kernel counts them: they wrap around
	mss     int
	headers int64

	past *past // what its lease is used for goes past the gateway; else nil
}

// past is what a member has told, and what counts as sent because it was granted. Guarded by line.mu.
type past struct {
	assumed int64     // bytes that were counted, and of which was not told yet
	recent  int64     // of those, in the sample that runs
	border  time.Time // of that sample
}

// assume counts what was granted as sent.
func (m *Member) assume(from, now time.Time) {
	l, p := m.line, m.past
	held, until := l.ledger.Held(now, m)
	if held == 0 || held >= wire.MaxSize {
		return
	}
	if border := l.shape.Border(now); border != p.border {
		p.border, p.recent = border, 0
	}
	if until.Before(now) {
		now = until
	}
	n := int64(float64(held) * max(0, now.Sub(from).Seconds()))
	l.shape.Spread(from, now, n)
	p.assumed, p.recent, l.dirty = p.assumed+n, p.recent+n, true
}

// Spent takes in what went past the gateway since the last time, in place of what was assumed. Of a time that reaches over the border between two samples, the one
// before keeps what was assumed.
func (m *Member) Spent(s *wire.Spent) {
	l, p := m.line, m.past
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, in := l.members[m]; !in || p == nil { // of what comes to the gateway, the kernel tells
		return
	}
	now := time.Now()
	l.count(now)
	n := int64(s.Bytes)
	l.told += n
	if n > p.assumed {
		l.shape.Count(now, n-p.assumed)
	} else {
		l.shape.Return(now, p.assumed-n, max(0, p.recent-n))
	}
	p.assumed, p.recent, l.dirty = 0, 0, true
}

// forgo counts what a lease that cannot be taken back lets through until it ends.
func (m *Member) forgo(now time.Time) {
	if held, until := m.line.ledger.Held(now, m); held > 0 && held < wire.MaxSize {
		m.line.shape.Count(now, int64(float64(held)*max(0, until.Sub(now).Seconds())))
	}
}

// join begins to count a connection of a flow.
func (l *line) join(wc *wire.Conn, flow string) *Member {
	m := &Member{line: l, wc: wc, flow: flow, grants: make(chan *wire.Grant, 1), mss: wc.MSS(), headers: shape.Headers(wc.IPv6())}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members[m] = struct{}{}
	return m
}

// goesPast says that the lease is used past the gateway, before there is one.
func (m *Member) goesPast() {
	m.line.mu.Lock()
	defer m.line.mu.Unlock()
	m.past = &past{}
}

// Leave counts the connection for the last time, and takes its lease back. It may be called again.
func (m *Member) Leave() {
	l := m.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, in := l.members[m]; !in {
		return
	}
	now := time.Now()
	l.count(now)
	if m.past != nil {
		m.forgo(now)
	}
	delete(l.members, m)
	l.ledger.Leave(m)
}

// Demand is what the flow would send now. It is taken in by the reader, for the handler may be busy with data.
func (m *Member) Demand(d *wire.Demand) {
	want := int64(d.Want)
	if d.Want == wire.MaxSize {
		want = shape.Unlimited
	}
	m.line.mu.Lock()
	defer m.line.mu.Unlock()
	if _, in := m.line.members[m]; in {
		m.line.ledger.Ask(time.Now(), m, shape.Ask{Class: shape.Class(d.Class), Want: want, Backlog: int64(d.Backlog), Serial: d.Serial})
	}
}

// Grant writes what the line grants until ctx ends (nil), or a write fails.
func (m *Member) Grant(ctx context.Context) error {
	for {
		select {
		case g := <-m.grants:
			if err := m.wc.Write(wire.TypeGrant, 0, g); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// more is what came over the line since the last call, as IP packets. The kernel tells it: what nobody has read yet was on the line, too, and is billed in
// the sample in which it was. Of a connection that is closed, what was read is known at least. line.mu is held.
func (m *Member) more() int64 {
	bytes, packets, ok := m.wc.Crossed()
	if !ok {
		d := max(0, m.wc.WireIn()-m.bytes)
		m.bytes += d
		return shape.OnLine(d, m.mss, m.headers)
	}
	d := bytes - m.bytes + int64(packets-m.packets)*m.headers
	m.bytes, m.packets = bytes, packets
	return d
}
