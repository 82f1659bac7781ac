package uplink

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// demand tells the gateway, on each path whose line it shares out, what the flow would send.
func (l *Link) demand(ctx context.Context) error {
	tick := time.NewTicker(demandEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, p := range l.paths {
				l.demandOn(p, now)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	demandEvery = 100 * time.Millisecond
	renewDemand = shape.LeaseTime / 4
)

func (l *Link) demandOn(p *path, now time.Time) {
	l.mu.Lock()
	c := p.quiet
	shaped := p.shaped
	last, at, open := p.asked, p.askedAt, p.open
	l.mu.Unlock()
	if c == nil || !shaped {
		if p.leased != nil {
			p.unheard()
		}
		return
	}
	class, backlog := l.user.Wants()
	sent, limited, serial := p.pace.Look()
	if limited || class != last.Class {
		open = now.Add(time.Second)
	}
	a := shape.Ask{Class: class, Backlog: backlog, Serial: serial}
	switch {
	case class == 0:
	case now.Before(open):
		a.Want = wire.MaxSize
	default: // something else is its limit: as much as it uses, and room to grow
		used := float64(sent) / demandEvery.Seconds()
		a.Want = max(int64(used*1.5)+128<<10, last.Want*9/10)
		if last.Want == wire.MaxSize {
			a.Want = int64(used*1.5) + 128<<10
		}
	}
	l.mu.Lock()
	p.open = open
	due := a.Class != last.Class || a.Serial != last.Serial || a.Want > last.Want+last.Want/10 || a.Want < last.Want-last.Want/10 || now.Sub(at) >= renewDemand
	p.asked.Want = a.Want
	if due {
		p.asked, p.askedAt = a, now
	}
	l.mu.Unlock()
	if p.leased != nil {
		p.tell(c, class, sent, now)
	}
	if due {
		if err := c.Write(wire.TypeDemand, 0, &wire.Demand{Class: uint8(a.Class), Serial: a.Serial, Want: uint64(a.Want), Backlog: uint64(min(a.Backlog, wire.MaxSize))}); err != nil {
			c.Close()
		}
	}
}

// granted takes over what the gateway grants.
func (l *Link) granted(c *Conn, m *wire.Grant) {
	p := l.paths[c.path]
	rate := int64(m.Rate)
	if rate == wire.MaxSize {
		rate = shape.Unlimited
	}
	if p.Safe == 0 {
		p.pace.SetSafe(int64(m.Safe))
		if p.leased != nil {
			p.begin.SetSafe(int64(m.Safe))
		}
	}
	until := time.Now().Add(time.Duration(m.TTLMS) * time.Millisecond)
	p.pace.Grant(rate, until, m.Serial)
	if p.leased != nil {
		p.begin.Grant(rate, until, m.Serial)
		p.said()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p.line, p.why = m.Line, m.Why
	if d := rate - p.rate; d > p.rate/20 || d < -p.rate/20 {
		p.rate = rate
		for _, c := range l.conns {
			if l.paths[c.path] == p {
				l.smooth(c)
			}
		}
	}
}

// smooth has the kernel spread a connection's packets, at twice the lease's rate: what the pacer has let go must not queue up in sockets, where a new
// lease would find it. mu is held.
func (l *Link) smooth(c *Conn) {
	p := l.paths[c.path]
	switch {
	case !p.shaped:
	case p.rate < wire.MaxSize:
		c.Smooth(2 * uint64(max(p.rate, shape.Least)))
	default:
		c.Smooth(0)
	}
}

// packets is a Pacer of IP packets for a connection that counts the bytes of its stream.
type packets struct {
	pace    *shape.Pacer
	held    *atomic.Int32
	mss     int
	headers int64
}

func (p packets) Ready(done <-chan struct{}) {
	p.held.Add(1)
	defer p.held.Add(-1)
	p.pace.Ready(done)
}

func (p packets) Wait(done <-chan struct{}, n int64) {
	p.held.Add(1)
	defer p.held.Add(-1)
	p.pace.Wait(done, shape.OnLine(n, p.mss, p.headers))
}

// Slice is what the rate sends in a twentieth of a second.
func (p packets) Slice() int {
	rate, _ := p.pace.Rate()
	return int(min(rate/20, 1<<20))
}

func (p packets) Spend(n int64) { p.pace.Spend(shape.OnLine(n, p.mss, p.headers)) }

// pathView is what Status shows of a path. mu is held.
func (l *Link) pathView(i int) mover.LinkStatus {
	p := l.paths[i]
	s := mover.LinkStatus{Name: p.Name, Up: p.quiet != nil, Line: p.line, Why: p.why, Rate: -1}
	if p.quiet != nil {
		s.RTT = p.quiet.RTT().Seconds()
	}
	for _, c := range l.conns {
		if c.path == i {
			s.Conns++
		}
	}
	if p.shaped {
		var rate int64
		if rate, s.Leased = p.pace.Rate(); rate < wire.MaxSize {
			s.Rate = rate
		}
	}
	return s
}
