package sender

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// Path is one way to the gateway, what the config calls a link. Connections use the cheapest that is up; among those of one price they are
// spread by weight.
type Path struct {
	Name   string
	Price  int                                         // lower ones are used first
	Weight int64                                       // among paths of one price; 0 counts as 1
	Safe   int64                                       // bytes/s of this flow while the gateway does not say what it may use of a shared line; 0: what it said last
	Dial   func(ctx context.Context) (net.Conn, error) // TLS handshake done
}

// path is a Path with what is known about it. A quiet connection on it carries no batches: it shows within seconds whether the path is up, and
// what the gateway grants does not wait behind data. There is one on each of several paths, and on any path whose line the gateway shares out.
type path struct {
	Path
	pace *shape.Pacer
	held atomic.Int32 // writers that a lease holds back now

	// All below is guarded by link.mu.
	quiet     *conn
	since     time.Time // quiet is there
	shaped    bool
	line, why string
	asked     shape.Ask // last one
	askedAt   time.Time
	open      time.Time // until then the flow asks for all there is
	rate      int64     // of the last GRANT, for the kernel
}

const (
	quietPulse    = time.Second     // of pings on quiet connections
	quietPatience = 5 * time.Second // after which a silent path is down, where there is another
	settled       = 2 * time.Second // that a path has to be up before connections move to it
	unasked       = 256 << 10       // bytes/s of a flow before the first lease
)

func newPaths(all []Path) (ps []*path) {
	for _, p := range all {
		ps = append(ps, &path{Path: p, pace: shape.NewPacer(cmp.Or(p.Safe, unasked))})
	}
	return ps
}

// preferences gives each slot its order of paths: by price, and among equals first the one that its weight gives the slot to.
func preferences(ps []Path, slots int) [][]int {
	order := make([]int, len(ps))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return ps[a].Price - ps[b].Price })
	used := make([]float64, len(ps))
	out := make([][]int, slots)
	for s := range out {
		out[s] = slices.Clone(order)
		for from := 0; from < len(order); {
			to := from
			for to < len(order) && ps[order[to]].Price == ps[order[from]].Price {
				to++
			}
			equals := out[s][from:to]
			slices.SortStableFunc(equals, func(a, b int) int {
				weight := func(i int) float64 { return float64(max(1, ps[i].Weight)) }
				return cmp.Compare((used[a]+1)/weight(a), (used[b]+1)/weight(b))
			})
			used[equals[0]]++
			from = to
		}
	}
	return out
}

// choose is the path of a slot now, or -1: none is up. mu is held.
func (l *link) choose(slot int) int {
	if len(l.paths) == 1 {
		return 0
	}
	for _, i := range l.prefer[slot] {
		if l.paths[i].quiet != nil {
			return i
		}
	}
	return -1
}

// hush keeps the quiet connection of a path.
func (l *link) hush(ctx context.Context, i int) error {
	p := l.paths[i]
	wait := l.cfg.BackOff
	for {
		if err := l.until(ctx, func() bool {
			return len(l.paths) > 1 && (l.fatal == nil || l.mendable()) || p.shaped && len(l.conns) > 0
		}); err != nil {
			return nil
		}
		up, err := l.connect(ctx, wire.MaxConns-1-i, i, true)
		if ctx.Err() != nil {
			return nil
		}
		if up {
			wait = l.cfg.BackOff
		}
		d := wait
		wait = min(2*wait, 4*l.cfg.BackOff) // how fast a path comes back is seen by how often it is tried
		if permanent(err) {
			d = 64 * l.cfg.BackOff
		}
		if len(l.paths) > 1 && err != nil {
			l.setWhy(fmt.Errorf("link %s: %w", p.Name, err), time.Now().Add(d))
		}
		l.rest(ctx, d)
	}
}

// fellSilent takes the data away from a path that went down, if there is another. mu is held.
func (l *link) fellSilent(i int) {
	l.paths[i].quiet = nil
	if !slices.ContainsFunc(l.paths, func(p *path) bool { return p.quiet != nil }) {
		return
	}
	for _, c := range l.conns {
		if c.path == i {
			go c.Close()
		}
	}
}

// rehome moves connections, one after the other, to a better path that has come up.
func (l *link) rehome(ctx context.Context) error {
	if len(l.paths) == 1 {
		return nil
	}
	tick := time.NewTicker(settled / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		l.mu.Lock()
		var moving *conn
		for _, c := range l.conns {
			if c.moving {
				moving = c
			}
		}
		for _, c := range l.conns {
			if p := l.choose(c.slot); moving == nil && p >= 0 && p != c.path && time.Since(l.paths[p].since) > settled {
				c.moving, moving = true, c
			}
		}
		if moving != nil && moving.load.Load() == 0 && !l.asked(moving) {
			go moving.Close()
		}
		l.mu.Unlock()
	}
}

// demand tells the gateway, on each path whose line it shares out, what the flow would send.
func (l *link) demand(ctx context.Context) error {
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

func (l *link) demandOn(p *path, now time.Time) {
	l.mu.Lock()
	c := p.quiet
	shaped := p.shaped
	last, at, open := p.asked, p.askedAt, p.open
	l.mu.Unlock()
	if c == nil || !shaped {
		return
	}
	var class shape.Class
	var backlog int64
	if l.wants != nil {
		class, backlog = l.wants()
	}
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
	if due {
		if err := c.Write(wire.TypeDemand, 0, &wire.Demand{Class: uint8(a.Class), Serial: a.Serial, Want: uint64(a.Want), Backlog: uint64(min(a.Backlog, wire.MaxSize))}); err != nil {
			c.Close()
		}
	}
}

// granted takes over what the gateway grants.
func (l *link) granted(c *conn, m *wire.Grant) {
	p := l.paths[c.path]
	rate := int64(m.Rate)
	if rate == wire.MaxSize {
		rate = shape.Unlimited
	}
	if p.Safe == 0 {
		p.pace.SetSafe(int64(m.Safe))
	}
	p.pace.Grant(rate, time.Now().Add(time.Duration(m.TTLMS)*time.Millisecond), m.Serial)
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
func (l *link) smooth(c *conn) {
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
func (l *link) pathView(i int) mover.LinkStatus {
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
