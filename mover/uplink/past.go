package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// Past keeps what a flow sends past its gateway, over the gateway's line, to what the gateway grants: requests to a store; also what it sends to the gateway over
// connections of somebody else. It has one connection to the gateway,
// which asks for a lease and tells what was sent; that is estimated here, for the gateway cannot see it. While the gateway cannot be asked, the flow has its safe
// share; where the gateway shares no line out, nothing is held back.
type Past struct {
	link  *Link
	wants func() (class shape.Class, backlog int64)
	turn  chan struct{} // capacity 1: who is about to begin
	ready chan struct{} // closed by leased.said
}

// leased is what a path has beside, whose lease is used past the gateway.
type leased struct {
	begin *shape.Pacer // holds to the lease what begins
	said  func()       // the gateway has said something, or has had its time; may be called again
	free  atomic.Bool  // the gateway shares no line out

	// Used by demandOn only.
	told  *Conn     // that hears of what is sent
	away  int64     // bytes that went without a lease while nobody could be told
	until time.Time // something is told, be it nothing
}

// tell tells the gateway what was sent since the last time: what it has granted and does not hear of counts as sent.
func (p *leased) tell(c *Conn, class shape.Class, sent int64, now time.Time) {
	if c != p.told {
		p.told, sent, p.away = c, sent+p.away, 0
	}
	if class != 0 || sent > 0 {
		p.until = now.Add(time.Second)
	}
	if now.After(p.until) {
		return
	}
	if err := c.Write(wire.TypeSpent, 0, &wire.Spent{Bytes: uint64(min(sent, wire.MaxSpent))}); err != nil {
		c.Close()
	}
}

// unheard keeps in mind what goes while nobody can be told, but for what goes under a lease: that, the gateway counts as sent when the connection breaks.
func (p *path) unheard() {
	sent, _, _ := p.pace.Look()
	if _, leased := p.pace.Rate(); !leased && !p.free.Load() {
		p.away += sent
	}
}

const (
	// crowd is how many writers may wait for the lease before no further request begins: enough that the line never idles, and few enough that each of them goes on
	// before its store loses patience, also when the lease has become small.
	crowd = 8
	// crowdLook is how often is looked whether there are fewer.
	crowdLook = 2 * time.Millisecond
	// trifle is a write that does not wait: requests without a body, the ends of handshakes. It counts.
	trifle = 600
	// firstWord is how long nothing begins until the gateway has said something for the first time: it may have nothing to give.
	firstWord = 2 * time.Second
	// unsent is how much may wait in the socket of a request.
	unsent = 32 << 10
)

// NewPast makes one; cfg has no Conns. Of several paths, the lease that counts is that of the cheapest that is up.
func NewPast(cfg Config, wants func() (class shape.Class, backlog int64)) *Past {
	cfg.Conns = 0
	cfg.Capabilities |= wire.CapLease
	cfg.Needs |= wire.CapLease
	p := &Past{wants: wants, turn: make(chan struct{}, 1), ready: make(chan struct{})}
	p.link = New(cfg, p)
	said := sync.OnceFunc(func() { close(p.ready) })
	for _, way := range p.link.paths {
		way.leased = &leased{begin: shape.NewPacer(way.safe()), said: said}
	}
	return p
}

// Run keeps the connection until ctx ends.
func (p *Past) Run(ctx context.Context) error {
	defer time.AfterFunc(firstWord, p.way().said).Stop()
	return p.link.Run(ctx)
}

// Reset dials at once again, also a gateway that has refused.
func (p *Past) Reset() { p.link.Reset() }

// Welcomed, Took, Lost, Asked and Wants are for the link.
func (p *Past) Welcomed(*Conn, *wire.Welcome) error { return nil }

// Took refuses what is not for a lease.
func (p *Past) Took(_ *Conn, f wire.Frame) error {
	if f.Type == wire.TypeNotice {
		return nil
	}
	return fmt.Errorf("%w: %v on a connection that only has a lease", sentinel.ErrProtocol, f.Type)
}

// Lost tells that nobody waits for an answer.
func (p *Past) Lost(*Conn) bool { return false }

// Asked tells so, too.
func (p *Past) Asked(*Conn) bool { return false }

// Wants is what the flow would send now.
func (p *Past) Wants() (class shape.Class, backlog int64) { return p.wants() }

// way is the path whose lease is used now.
func (p *Past) way() *path {
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	return p.link.paths[p.link.best()]
}

// best is the cheapest path that is up, or of all. mu is held.
func (l *Link) best() int {
	best := 0
	for i, p := range l.paths {
		up, was := p.quiet != nil, l.paths[best].quiet != nil
		if up && !was || up == was && p.Price < l.paths[best].Price {
			best = i
		}
	}
	return best
}

// Dial connects to the gateway for what the flow sends to it over connections of its own: on the way whose lease is used, or on any that answers.
func (p *Past) Dial(ctx context.Context) (net.Conn, error) {
	first := p.way()
	nc, err := first.Dial(ctx)
	for _, w := range p.link.paths {
		if err == nil || ctx.Err() != nil {
			break
		}
		if w != first {
			var other error
			if nc, other = w.Dial(ctx); other == nil {
				return nc, nil
			}
			err = errors.Join(err, other)
		}
	}
	return nc, err
}

// Pace waits until something of n bytes may begin, or ctx ends. Its bytes wait then in the writes of connections that Conn made.
func (p *Past) Pace(ctx context.Context, n int) error {
	w := p.way()
	select {
	case <-p.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if w.free.Load() {
		return ctx.Err()
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.turn }()
	w.pace.Ready(ctx.Done())
	w.begin.Wait(ctx.Done(), int64(n))
	tick := time.NewTicker(crowdLook)
	defer tick.Stop()
	for w.held.Load() >= crowd && !w.free.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// Conn has what is written to nc wait for the lease, and counts it.
func (p *Past) Conn(nc net.Conn) net.Conn {
	ipv6 := false
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		ipv6 = a.IP.To4() == nil
	}
	w := p.way()
	return &pacedConn{Conn: nc, pace: unless{packets{w.pace, &w.held, 0, shape.Headers(ipv6)}, &w.free}, gone: make(chan struct{})}
}

// Pacer has the data that is written to a connection to the gateway wait for the lease: what a flow sends over connections that the Past does not keep.
func (p *Past) Pacer(wc *wire.Conn) wire.Pace {
	w := p.way()
	wc.Shallow(unsent)
	return unless{packets{w.pace, &w.held, wc.MSS(), shape.Headers(wc.IPv6())}, &w.free}
}

// unless waits for nothing where the gateway shares no line out.
type unless struct {
	packets
	free *atomic.Bool
}

func (u unless) Ready(done <-chan struct{}) {
	if !u.free.Load() {
		u.packets.Ready(done)
	}
}

func (u unless) Wait(done <-chan struct{}, n int64) {
	if u.free.Load() {
		u.Spend(n)
		return
	}
	u.packets.Wait(done, n)
}

func (u unless) Slice() int {
	if u.free.Load() {
		return 1 << 20
	}
	return u.packets.Slice()
}

// Dialer makes connections on a way, whose sockets hold back little: what waits there was let go under one lease and would leave under another.
func Dialer(way wire.Way) (*net.Dialer, error) {
	d, err := way.Dialer()
	if err != nil {
		return nil, err
	}
	mark := d.Control
	d.Control = func(network, address string, raw syscall.RawConn) error {
		if mark != nil {
			if err := mark(network, address, raw); err != nil {
				return err
			}
		}
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
	}
	return d, nil
}

// pacedConn is a connection past the gateway.
type pacedConn struct {
	net.Conn
	pace unless
	gone chan struct{}
	once sync.Once
}

func (c *pacedConn) Write(b []byte) (n int, err error) {
	if len(b) <= trifle {
		n, err = c.Conn.Write(b)
		c.pace.Spend(int64(n))
		return n, err
	}
	for n < len(b) && err == nil {
		part := b[n:min(len(b), n+max(least, c.pace.Slice()))]
		c.pace.Wait(c.gone, int64(len(part)))
		var m int
		m, err = c.Conn.Write(part) // of a closed connection, the error
		n += m
	}
	return n, err
}

// least is the smallest slice of a write.
const least = 4 << 10

func (c *pacedConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// Status is what the flow shows of its lease.
func (p *Past) Status() mover.LinkStatus {
	l := p.link
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.best()
	s, w := l.pathView(i), l.paths[i]
	switch {
	case w.free.Load(): // nothing is held back
	case !s.Leased && l.fatal != nil:
		s.Why = l.fatal.Error()
	case !s.Leased && l.why != "":
		s.Why = l.why
	}
	if !w.free.Load() && !w.shaped {
		s.Rate, s.Leased = w.pace.Rate()
	}
	return s
}
