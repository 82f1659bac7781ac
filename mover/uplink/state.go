package uplink

import (
	"context"
	"slices"
	"time"

	"github.com/moverd/mover/mover"
)

// State is how a link stands.
type State struct {
	Conns int       // live ones that carry data
	Fatal error     // nobody dials but to see whether it was mended; nil: all is well, or will be
	Why   string    // of the last failure to connect; empty: none since
	Next  time.Time // of the next try
}

// State tells how the link stands now.
func (l *Link) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state()
}

func (l *Link) state() State { return State{len(l.conns), l.fatal, l.why, l.next} }

// Changed is closed when the link's state changes after this call, or at Wake.
func (l *Link) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Wake wakes everyone in Until and behind Changed: what the user knows has changed.
func (l *Link) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change()
}

// change is Wake with mu held.
func (l *Link) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Until waits until cond holds, or ctx ends: then its error.
func (l *Link) Until(ctx context.Context, cond func(State) bool) error {
	return l.until(ctx, func() bool { return cond(l.state()) })
}

// until is Until of a cond that is called with mu held.
func (l *Link) until(ctx context.Context, cond func() bool) error {
	for {
		l.mu.Lock()
		ok, ch := cond(), l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Pick is the live connection with the least Load. One whose key is spent gets nothing more and is closed when nothing is on its way
// on it; its slot dials anew.
func (l *Link) Pick() (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal != nil {
		return nil, l.fatal
	}
	var best *Conn
	for _, c := range l.conns {
		if c.moving && len(l.conns) > 1 {
			continue // rehome closes it
		}
		if l.spent(c) {
			if len(l.conns) == 1 || c.Load.Load() == 0 && !l.user.Asked(c) {
				go c.Close()
			}
			continue
		}
		if best == nil || c.Load.Load() < best.Load.Load() {
			best = c
		}
	}
	if best == nil {
		return nil, ErrDown
	}
	return best, nil
}

// spent tells whether enough was sent on c. The slots, which share the bytes evenly, come to that one after the other.
func (l *Link) spent(c *Conn) bool {
	return !c.quiet && c.WireOut() > l.cfg.ConnBytes-l.cfg.ConnBytes*int64(c.slot)/int64(2*l.cfg.Conns)
}

// Conns are the connections that carry data now, and whether a lease holds their writers back.
func (l *Link) Conns() (conns []*Conn, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.paths {
		held = held || p.held.Load() > 0
	}
	return slices.Clone(l.conns), held
}

// View is a State with figures.
type View struct {
	State
	In, Out int64 // bytes on the line, of all connections since the link was made
	RTT     time.Duration
	Losses  int64
	Heard   int64              // grows while the gateway says something about a connection that it has not welcomed yet
	Links   []mover.LinkStatus // where there are several, or the line is shared out
}

// View tells how the link stands, with figures.
func (l *Link) View() View {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := View{State: l.state(), In: l.in.Load(), Out: l.out.Load(), Losses: l.losses.Load(), Heard: l.heard.Load()}
	for i, p := range l.paths {
		if len(l.paths) > 1 || p.shaped {
			v.Links = append(v.Links, l.pathView(i))
		}
		if p.quiet != nil {
			v.In += p.quiet.WireIn()
			v.Out += p.quiet.WireOut()
		}
	}
	for _, c := range l.conns {
		v.In += c.WireIn()
		v.Out += c.WireOut()
		if r := c.RTT(); r > 0 && (v.RTT == 0 || r < v.RTT) {
			v.RTT = r
		}
	}
	return v
}
