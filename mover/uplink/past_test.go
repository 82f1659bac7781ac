package uplink

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// teller is a gateway that welcomes whoever asks for a lease, grants what it is told to, and adds up what it hears.
type teller struct {
	shares bool
	rate   atomic.Int64
	spent  atomic.Int64
	class  atomic.Int32
	conns  atomic.Int32
	off    atomic.Bool // nobody can be asked
}

func (g *teller) dial(context.Context) (net.Conn, error) {
	if g.off.Load() {
		return nil, errors.New("no route to host")
	}
	line, peer := net.Pipe()
	go g.serve(wire.NewConn(peer))
	return line, nil
}

func (g *teller) serve(c *wire.Conn) {
	defer c.Close()
	h, err := c.ReadHello(context.Background())
	if err != nil || h.Capabilities&wire.CapLease == 0 {
		return
	}
	g.conns.Add(1)
	can := uint64(wire.CapZstd | wire.CapLease)
	if g.shares {
		can |= wire.CapShape
	}
	_ = c.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: wire.Version, Capabilities: can, KeepaliveMS: wire.KeepaliveMS, Window: wire.MaxPlain,
		State: wire.FlowState{Phase: 1}})
	serial := uint32(0)
	for !g.off.Load() {
		f, err := c.ReadFrame(nil)
		if err != nil {
			return
		}
		switch f.Type {
		case wire.TypeDemand:
			var d wire.Demand
			_ = d.Decode(f.Payload)
			g.class.Store(int32(d.Class))
			serial++
			go func(n uint32) {
				_ = c.Write(wire.TypeGrant, 0, &wire.Grant{Serial: n, Rate: uint64(g.rate.Load()), TTLMS: 300, Safe: 64 << 10, Line: "idc", Why: "the test"})
			}(serial)
		case wire.TypeSpent:
			var s wire.Spent
			_ = s.Decode(f.Payload)
			g.spent.Add(int64(s.Bytes))
		}
	}
}

func (g *teller) past(t *testing.T, safe int64, class shape.Class) *Past {
	p := NewPast(Config{Flow: "photos", Paths: []Path{{Name: "only", Dial: g.dial, Safe: safe}}, BackOff: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)},
		func() (shape.Class, int64) { return class, 1 << 30 })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return p
}

// sink is a store's end of connections that a Past has paced: it counts what comes.
func sink(t *testing.T) (dial func() net.Conn, got *atomic.Int64) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	got = &atomic.Int64{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 64<<10)
				for {
					n, err := c.Read(b)
					got.Add(int64(n))
					if err != nil {
						c.Close()
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return func() net.Conn {
		d, err := Dialer(wire.Way{})
		must(t, err)
		c, err := d.Dial("tcp", l.Addr().String())
		must(t, err)
		return c
	}, got
}

// send writes requests of n bytes on some connections until the test ends.
func send(t *testing.T, p *Past, dial func() net.Conn, conns, n int) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, conns)
	for range conns {
		c := p.Conn(dial())
		context.AfterFunc(ctx, func() { c.Close() })
		go func() {
			defer func() { ended <- struct{}{} }()
			b := make([]byte, n)
			for p.Pace(ctx, n) == nil {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		for range conns {
			<-ended
		}
	})
}

func rate(got *atomic.Int64, d time.Duration) float64 {
	began, n := time.Now(), got.Load()
	time.Sleep(d)
	return float64(got.Load()-n) / time.Since(began).Seconds()
}

// What is sent past the gateway is as much as it grants, also when that changes, and the gateway is told all of it. When it cannot be asked, the safe share holds, and
// what went meanwhile is told afterwards.
func TestPastKeepsToItsLease(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small": 10 << 10, "large": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &teller{shares: true}
			g.rate.Store(8 << 20)
			p := g.past(t, 512<<10, shape.Delta)
			dial, got := sink(t)
			send(t, p, dial, 32, size)
			within := func(want float64) {
				t.Helper()
				if r := rate(got, 500*time.Millisecond); r > want*1.1 || r < want*0.7 { // headers count, too
					t.Errorf("%.0f bytes/s go over a line of which %.0f were granted", r, want)
				}
			}
			for end := time.Now().Add(5 * time.Second); got.Load() < 1<<20 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			within(8 << 20)
			g.rate.Store(2 << 20)
			time.Sleep(600 * time.Millisecond) // until it is granted: a demand comes when something changes, or each half second
			within(2 << 20)
			if s := p.Status(); !s.Up || !s.Leased || s.Line != "idc" || s.Rate != 2<<20 {
				t.Errorf("status %+v", s)
			}
			g.off.Store(true)
			p.Reset()
			time.Sleep(400 * time.Millisecond) // the lease ends
			within(512 << 10)
			if s := p.Status(); s.Up || s.Leased || s.Rate != 512<<10 || !strings.Contains(s.Why, "no route to host") {
				t.Errorf("status %+v", s)
			}
			g.off.Store(false)
			for end := time.Now().Add(5 * time.Second); g.conns.Load() < 2 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(300 * time.Millisecond)
			if told, sent := g.spent.Load(), got.Load(); float64(told) < 0.8*float64(sent) || told > sent+sent/5 {
				t.Errorf("the gateway was told %d of %d bytes", told, sent)
			}
			if c := shape.Class(g.class.Load()); c != shape.Delta {
				t.Errorf("it was asked for %v", c)
			}
		})
	}
}

// At rate 0 nothing begins, and what has begun goes on slowly.
func TestPastStandsStill(t *testing.T) {
	t.Parallel()
	g := &teller{shares: true}
	p := g.past(t, 1<<20, shape.Bulk)
	for end := time.Now().Add(5 * time.Second); !p.Status().Leased && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.Pace(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("something began: %v", err)
	}
	dial, got := sink(t)
	c := p.Conn(dial())
	defer c.Close()
	go func() { _, _ = c.Write(make([]byte, 1<<20)) }()
	if r := rate(got, 500*time.Millisecond); r > 4*shape.Least {
		t.Errorf("%.0f bytes/s at rate 0", r)
	}
	c.Close() // ends the write that waits
	if _, err := c.Write(make([]byte, 10<<10)); !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a write on a closed connection: %v", err)
	}
}

// Of two ways, the lease is that of the cheaper one that is up, and what goes to the gateway takes that way.
func TestPastFailsOver(t *testing.T) {
	t.Parallel()
	cheap, dear := &teller{shares: true}, &teller{shares: true}
	cheap.rate.Store(4 << 20)
	dear.rate.Store(1 << 20)
	p := NewPast(Config{Flow: "photos", BackOff: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Paths: []Path{{Name: "dear", Price: 2, Dial: dear.dial}, {Name: "cheap", Price: 1, Dial: cheap.dial}}}, func() (shape.Class, int64) { return shape.Bulk, 1 << 30 })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	on := func(name string, rate int64) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			s := p.Status()
			if s.Name == name && s.Leased && s.Rate == rate {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("status %+v, want %s at %d", s, name, rate)
			}
		}
	}
	on("cheap", 4<<20)
	cheap.off.Store(true)
	p.Reset()
	on("dear", 1<<20)
	n := dear.conns.Load()
	nc, err := p.Dial(ctx)
	must(t, err)
	c := wire.NewConn(nc)
	must(t, c.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: wire.CapZstd | wire.CapLease, Link: newID(), Flow: "photos"}))
	_, err = c.ReadFrame(nil)
	must(t, err)
	c.Close()
	if dear.conns.Load() <= n {
		t.Error("the connection did not take the way that is up")
	}
	cheap.off.Store(false)
	on("cheap", 4<<20)
}

// Where the gateway shares no line out, nothing is held back.
func TestPastIsFree(t *testing.T) {
	g := &teller{}
	p := g.past(t, 64<<10, shape.Bulk)
	for end := time.Now().Add(5 * time.Second); g.conns.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	dial, got := sink(t)
	send(t, p, dial, 4, 1<<20)
	if r := rate(got, 200*time.Millisecond); r < 20<<20 {
		t.Errorf("%.0f bytes/s although nothing is shared out", r)
	}
	if s := p.Status(); s.Rate != -1 {
		t.Errorf("status %+v", s)
	}
}
