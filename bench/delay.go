package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Delay makes a path long: it passes TCP on to Target, each byte Delay after it came, in both directions and at any rate. What is on its way
// is kept in Memory bytes for each direction of a connection; a rate needs rate * Delay of them.
type Delay struct {
	Target string
	Delay  time.Duration
	Memory int
}

// Serve accepts until ctx ends.
func (d Delay) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		wg.Go(func() { d.conn(ctx, c) })
	}
}

func (d Delay) conn(ctx context.Context, c net.Conn) {
	defer c.Close()
	up, err := new(net.Dialer).DialContext(ctx, "tcp", d.Target)
	if err != nil {
		return // the peer sees a closed connection, as behind any proxy
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); up.Close() })()
	d.join(c, up)
}

// join passes bytes between a and b until both directions have ended.
func (d Delay) join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		p := newPath(d.Delay, d.Memory)
		wg.Go(func() { p.fill(way[0]) })
		wg.Go(func() {
			if err := p.drain(way[1]); err != nil {
				a.Close()
				b.Close()
			}
		})
	}
	wg.Wait()
}

// path is one direction: a ring of bytes, and marks of when they may leave.
type path struct {
	delay time.Duration

	mu        sync.Mutex // guards all below; bytes between out and in belong to the drain, the others to the fill
	cond      sync.Cond
	ring      []byte
	in, out   int64 // positions in the stream
	marks     []mark
	end       error         // of what fills; nil: none yet
	ended     time.Duration // when that was
	abandoned bool          // nobody drains any more
	began     time.Time
}

// mark tells that what came before position at may leave at due.
type mark struct {
	at  int64
	due time.Duration // since began
}

// markEvery bounds the number of marks; bytes leave early by no more than that.
const markEvery = 200 * time.Microsecond

func newPath(delay time.Duration, memory int) *path {
	p := &path{delay: delay, ring: make([]byte, memory), began: time.Now()}
	p.cond.L = &p.mu
	return p
}

func (p *path) fill(from net.Conn) {
	for {
		room := p.room()
		if room == nil {
			return
		}
		n, err := from.Read(room)
		if !p.came(n, err) {
			return
		}
	}
}

// room waits for a free piece of the ring; nil when nobody drains.
func (p *path) room() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := int64(len(p.ring))
	for p.in-p.out == size && !p.abandoned {
		p.cond.Wait()
	}
	if p.abandoned {
		return nil
	}
	at := p.in % size
	return p.ring[at:min(size, at+size-(p.in-p.out))]
}

// came notes n more bytes, and the end of the stream.
func (p *path) came(n int, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	due := time.Since(p.began) + p.delay
	if n > 0 {
		p.in += int64(n)
		if k := len(p.marks) - 1; k >= 0 && due-p.marks[k].due < markEvery {
			p.marks[k].at = p.in
		} else {
			p.marks = append(p.marks, mark{p.in, due})
		}
	}
	if err != nil {
		p.end, p.ended = err, due
	}
	p.cond.Broadcast()
	return err == nil
}

// drain writes what is due. An error is one of writing.
func (p *path) drain(to net.Conn) error {
	for {
		pieces, more := p.due()
		for _, b := range pieces {
			if _, err := to.Write(b); err != nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.abandoned = true
				p.cond.Broadcast()
				return err
			}
			p.mu.Lock()
			p.out += int64(len(b))
			p.cond.Broadcast()
			p.mu.Unlock()
		}
		if !more {
			return closeWrite(to)
		}
	}
}

// due waits for bytes that may leave. more is false when there are none and never will be.
func (p *path) due() (pieces [][]byte, more bool) {
	p.mu.Lock()
	for len(p.marks) == 0 && p.end == nil {
		p.cond.Wait()
	}
	next, last := p.ended, true
	if len(p.marks) > 0 {
		next, last = p.marks[0].due, false
	}
	p.mu.Unlock()
	time.Sleep(next - time.Since(p.began))
	if last {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now, k := time.Since(p.began), 0
	for k+1 < len(p.marks) && p.marks[k+1].due <= now {
		k++
	}
	upto, size := p.marks[k].at, int64(len(p.ring))
	p.marks = append(p.marks[:0], p.marks[k+1:]...)
	first := p.ring[p.out%size : min(size, p.out%size+upto-p.out)]
	pieces = [][]byte{first}
	if rest := upto - p.out - int64(len(first)); rest > 0 {
		pieces = append(pieces, p.ring[:rest])
	}
	return pieces, true
}

// closeWrite ends one direction where the connection can.
func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return c.Close()
	}
	if err := half.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
