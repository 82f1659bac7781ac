package flowtest

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy passes TCP connections on, and cuts and delays them.
type proxy struct {
	l     net.Listener
	to    func() string
	wg    sync.WaitGroup
	delay time.Duration             // one way
	back  func(n int) time.Duration // delay of what the gateway says on the nth connection; may be nil
	rate  int64                     // bytes/s of all connections together, upwards; 0: any

	paceMu sync.Mutex // held while a slice is on the line

	mu     sync.Mutex // guards all below
	conns  map[net.Conn]struct{}
	budget func() int64 // bytes until a new connection is cut; nil: never
	refuse bool
	stuck  chan struct{} // closed when it goes on; nil: nothing is stuck
	cuts   int
	order  []net.Conn // the source's ends, as they came
}

func newProxy(t testing.TB, to func() string, delay time.Duration) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{l: l, to: to, delay: delay, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.stall(false)
		p.cutAll()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// cutEvery cuts each new connection after a random number of bytes around mean.
func (p *proxy) cutEvery(r *rand.Rand, mean int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var mu sync.Mutex
	p.budget = func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return 1 + r.Int64N(2*mean)
	}
	if mean == 0 {
		p.budget = nil
	}
}

// stall has everything on the way stand still, as on a line that is cut somewhere in the middle, or go on.
func (p *proxy) stall(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.stuck = make(chan struct{})
	} else if p.stuck != nil {
		close(p.stuck)
		p.stuck = nil
	}
}

func (p *proxy) stalled() {
	p.mu.Lock()
	stuck := p.stuck
	p.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
}

func (p *proxy) calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = nil
}

// cut cuts the nth connection that came; what is on its way on it is lost.
func (p *proxy) cut(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < len(p.order) {
		reset(p.order[n])
	}
}

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

// reset closes so that unsent bytes are lost and the peer gets an RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse, budget := p.refuse, int64(-1)
		if p.budget != nil {
			budget = p.budget()
		}
		p.mu.Unlock()
		g, err := net.Dial("tcp", p.to())
		if refuse || err != nil {
			reset(c)
			if g != nil {
				g.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[g] = struct{}{}, struct{}{}
		back := p.delay
		if p.back != nil {
			back = p.back(len(p.order))
		}
		p.order = append(p.order, c)
		p.mu.Unlock()
		left := &allowance{left: budget}
		end := sync.OnceFunc(func() {
			reset(c)
			reset(g)
			p.mu.Lock()
			delete(p.conns, c)
			delete(p.conns, g)
			p.mu.Unlock()
		})
		p.wg.Go(func() { defer end(); p.pipe(c, g, left, p.delay) })
		p.wg.Go(func() { defer end(); p.pipe(g, c, left, back) })
	}
}

// allowance is the bytes that a connection may still carry, both ways; negative: any number.
type allowance struct {
	mu   sync.Mutex
	left int64
}

func (a *allowance) take(n int) (int, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left < 0 {
		return n, true
	}
	if int64(n) >= a.left {
		n = int(a.left)
		a.left = 0
		return n, false
	}
	a.left -= int64(n)
	return n, true
}

// pace lets n bytes take the time that they take on a line of the rate.
func (p *proxy) pace(n int) {
	if p.rate > 0 {
		p.paceMu.Lock()
		defer p.paceMu.Unlock()
		time.Sleep(time.Duration(int64(n) * int64(time.Second) / p.rate)) // the line's rate
	}
}

type late struct {
	b   []byte
	due time.Time
}

func (p *proxy) pipe(from, to net.Conn, left *allowance, delay time.Duration) {
	if delay == 0 {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			m, ok := left.take(n)
			p.pace(n)
			p.stalled()
			if _, werr := to.Write(buf[:m]); werr != nil || err != nil || !ok {
				p.count(ok)
				return
			}
		}
	}
	// A delay line: bytes leave delay after they came, however many are under way.
	line := make(chan late, 1<<14)
	var wg sync.WaitGroup
	wg.Go(func() {
		for l := range line {
			time.Sleep(time.Until(l.due))
			if _, err := to.Write(l.b); err != nil {
				reset(from)
				for range line {
				}
				return
			}
		}
	})
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			line <- late{buf[:n], time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(line)
	wg.Wait()
}

func (p *proxy) count(ok bool) {
	if !ok {
		p.mu.Lock()
		p.cuts++
		p.mu.Unlock()
	}
}
