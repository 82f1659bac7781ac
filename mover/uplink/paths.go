package uplink

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

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

// path is a Path with what is known about it. A quiet connection on it carries no data: it shows within seconds whether the path is up, and
// what the gateway grants does not wait behind data. There is one on each of several paths, and on any path whose line the gateway shares out.
type path struct {
	Path
	*leased // of what is used past the gateway; else nil
	pace    *shape.Pacer
	held    atomic.Int32 // writers that a lease holds back now

	// All below is guarded by Link.mu.
	quiet     *Conn
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

// safe is what holds before the first lease.
func (p Path) safe() int64 { return cmp.Or(p.Safe, unasked) }

func newPaths(all []Path) (ps []*path) {
	for _, p := range all {
		ps = append(ps, &path{Path: p, pace: shape.NewPacer(p.safe())})
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
func (l *Link) choose(slot int) int {
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
func (l *Link) hush(ctx context.Context, i int) error {
	p := l.paths[i]
	wait := l.cfg.BackOff
	for {
		if err := l.until(ctx, func() bool {
			return (len(l.paths) > 1 || l.cfg.Conns == 0) && (l.fatal == nil || l.mendable()) || p.shaped && len(l.conns) > 0
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
		if Permanent(err) {
			d = 64 * l.cfg.BackOff
		}
		if (len(l.paths) > 1 || l.cfg.Conns == 0) && err != nil {
			l.setWhy(fmt.Errorf("link %s: %w", p.Name, err), time.Now().Add(d))
		}
		l.rest(ctx, d)
	}
}

// fellSilent takes the data away from a path that went down, if there is another. mu is held.
func (l *Link) fellSilent(i int) {
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
func (l *Link) rehome(ctx context.Context) error {
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
		var moving *Conn
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
		if moving != nil && moving.Load.Load() == 0 && !l.user.Asked(moving) {
			go moving.Close()
		}
		l.mu.Unlock()
	}
}
