// Package strangers bounds the connections of peers that nobody knows yet, so that those who connect and say nothing cannot keep others out.
package strangers

import (
	"net"
	"net/netip"
	"sync"
)

// Gate holds the connections that have not said who they are. A newcomer always gets in: when there are too many, the oldest of the address
// that has most is cut off. Whoever says who he is soon is never the oldest for long.
type Gate struct {
	most, share int

	mu     sync.Mutex // guards all below
	next   uint64
	guests int
	of     map[netip.Addr][]*guest // oldest first
}

type guest struct {
	number uint64
	addr   netip.Addr
	cut    func()
	gone   bool
}

// New makes a gate for at most most strangers, at most share of them from one address.
func New(most, share int) *Gate {
	return &Gate{most: most, share: share, of: map[netip.Addr][]*guest{}}
}

// Enter takes in a connection from addr. cut is called at most once, when it has to make room; it must not block. leave is called when the
// peer is no stranger any more, or has gone; it may be called more than once.
func (g *Gate) Enter(addr net.Addr, cut func()) (leave func()) {
	g.mu.Lock()
	in := &guest{number: g.next, addr: Share(addr), cut: cut}
	g.next++
	g.guests++
	g.of[in.addr] = append(g.of[in.addr], in)
	var out *guest
	switch own := g.of[in.addr]; {
	case len(own) > g.share:
		out = own[0]
	case g.guests > g.most:
		out = g.largest()
	}
	if out != nil {
		g.remove(out)
	}
	g.mu.Unlock()
	if out != nil {
		out.cut()
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(in)
	}
}

// largest is the oldest stranger of the address that has most; of equals, the oldest of all. mu is held.
func (g *Gate) largest() *guest {
	var best []*guest
	for _, q := range g.of {
		if len(q) > len(best) || len(q) == len(best) && q[0].number < best[0].number {
			best = q
		}
	}
	return best[0]
}

// remove takes a guest out of its queue. mu is held.
func (g *Gate) remove(x *guest) {
	if x.gone {
		return
	}
	x.gone = true
	g.guests--
	q := g.of[x.addr]
	for i := range q {
		if q[i] == x {
			q = append(q[:i:i], q[i+1:]...)
			break
		}
	}
	if len(q) == 0 {
		delete(g.of, x.addr)
		return
	}
	g.of[x.addr] = q
}

// Count is how many strangers there are.
func (g *Gate) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.guests
}

// Share is the address that a peer shares its part of the gate under: of IPv6 the network of 64 bits, for a host has all of it. What is no
// IP address is one address.
func Share(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := t.AddrPort().Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}
