package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sliceSize is what one write hands over: four full TLS records. The peer has to take or say
	// something within DeadMS.
	sliceSize = 64 << 10
	// keepScratch is how much memory a large control frame may leave behind.
	keepScratch = 256 << 10
	// floorRate is the slowest a frame may trickle in, bytes/s, so that no peer holds a buffer for ever.
	floorRate = 1 << 10
)

// Conn sends and receives frames.
//
// One goroutine reads, any number write. ReadFrame deals with PING, PONG and ERROR itself; Keepalive has to run beside it to
// send and answer pings. A goroutine that reads must not depend on its own writes at both ends: if both wait for a full line to
// empty, nobody reads. In Mover the source's reader never writes.
type Conn struct {
	nc    net.Conn
	gone  chan struct{} // closed by Close
	count *CountConn    // below TLS, or nil
	dead  time.Duration
	pulse atomic.Int64 // ns between pings

	in, out atomic.Int64
	rtt     atomic.Int64 // ns, 0: not known yet
	born    time.Time
	heard   atomic.Int64 // when the last bytes came, ns after born; 0: none yet
	limit   time.Time    // of the reader: no read lasts longer, if set
	head    [HeaderSize]byte
	small   []byte // payloads of the reader that nobody supplied

	pong   chan uint64 // cookie to answer, the latest
	ponged chan uint64 // cookie that was answered

	mu      sync.Mutex // guards all below, and the order of writes
	scratch []byte
	werr    error // first error of a write; later ones would follow a torn frame

	failing atomic.Bool // Fail has begun: no more writes but its own
	once    sync.Once
	pace    Pace // may be nil
	cerr    error
}

// NewConn makes a Conn of a TLS connection that Dial, NewListener, tls.Client or tls.Server gave, or in tests of any net.Conn.
func NewConn(nc net.Conn) *Conn {
	c := &Conn{nc: nc, gone: make(chan struct{}), born: time.Now(), dead: DeadMS * time.Millisecond, pong: make(chan uint64, 1), ponged: make(chan uint64, 1)}
	c.pulse.Store(int64(KeepaliveMS * time.Millisecond))
	if t, ok := nc.(*tls.Conn); ok {
		c.count, _ = t.NetConn().(*CountConn)
	}
	return c
}

// In and Out count the bytes of frames that were received and sent.
func (c *Conn) In() int64  { return c.in.Load() }
func (c *Conn) Out() int64 { return c.out.Load() }

// WireIn and WireOut count the bytes on the line, TLS included, where the connection is over a CountConn, else frames.
func (c *Conn) WireIn() int64 {
	if c.count == nil {
		return c.In()
	}
	return c.count.WireIn()
}

func (c *Conn) WireOut() int64 {
	if c.count == nil {
		return c.Out()
	}
	return c.count.WireOut()
}

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// TLS is the state of the TLS connection; false over anything else.
func (c *Conn) TLS() (tls.ConnectionState, bool) {
	if t, ok := c.nc.(*tls.Conn); ok {
		return t.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

// Write sends one frame; Await goes before DATA and PUT. Bodies of Data and Put are not copied and may be used again when Write returns. After an error the
// connection is of no more use.
func (c *Conn) Write(t Type, seq uint32, m Message) error {
	if err := checkOut(t, seq, m); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing.Load() {
		return net.ErrClosed
	}
	return c.write(t, seq, m)
}

// write is Write under mu.
func (c *Conn) write(t Type, seq uint32, m Message) error {
	if c.werr != nil {
		return c.werr
	}
	var head [HeaderSize]byte
	big, isBulk := m.(bulk)
	if isBulk && cap(c.scratch) < sliceSize {
		c.scratch = make([]byte, 0, sliceSize) // not before: strangers get none
	}
	b := append(c.scratch[:0], head[:]...)
	var body []byte
	if isBulk {
		b, body = big.appendHead(b), big.body()
	} else {
		b = m.Append(b)
	}
	putHeader(b, t, seq, len(b)-HeaderSize+len(body))
	// The head shares its first record with the begin of the body, so that all records but the last are full.
	if n := sliceSize - len(b); n > 0 {
		n = min(n, len(body))
		b, body = append(b, body[:n]...), body[n:]
	}
	if cap(b) <= keepScratch {
		c.scratch = b
	}
	if err := c.send(b, isBulk); err != nil {
		return c.broken(t, err)
	}
	if err := c.send(body, isBulk); err != nil {
		return c.broken(t, err)
	}
	return nil
}

// send writes p in slices, each with its own deadline: a slow line is not a dead peer. Bulk waits for the pace.
func (c *Conn) send(p []byte, isBulk bool) error {
	for len(p) > 0 {
		n := min(len(p), c.slice(isBulk))
		c.keepPace(n, isBulk)
		c.setWriteDeadline()
		if err := c.sendSlice(p[:n]); err != nil {
			return err
		}
		c.out.Add(int64(n))
		p = p[n:]
	}
	return nil
}

// setWriteDeadline gives a slice its time. It looks at failing again afterwards, for Fail may have set its deadline in between.
func (c *Conn) setWriteDeadline() {
	if !c.failing.Load() {
		c.nc.SetWriteDeadline(time.Now().Add(c.dead))
	}
	if c.failing.Load() {
		c.nc.SetWriteDeadline(time.Now().Add(lingerLimit / 2))
	}
}

func (c *Conn) sendSlice(p []byte) error {
	if c.count == nil {
		if _, ok := c.nc.(*tls.Conn); !ok {
			_, err := c.persist(c.nc, p)
			return err
		}
		_, err := c.nc.Write(p) // crypto/tls cannot go on after a deadline
		return err
	}
	c.count.join()
	_, err := c.nc.Write(p)
	return errors.Join(err, c.count.flush(c))
}

// persist writes all of p below TLS. When a deadline passes, it goes on as long as the peer takes or says something: a gateway whose
// memory is spent stops reading for a while, and pings.
func (c *Conn) persist(w net.Conn, p []byte) (done int, err error) {
	for {
		n, err := w.Write(p[done:])
		done += n
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || c.failing.Load() || n == 0 && !c.alive() {
			return done, err
		}
		c.setWriteDeadline()
	}
}

// alive tells whether something has come from the peer within c.dead.
func (c *Conn) alive() bool {
	at := c.heard.Load()
	return at > 0 && time.Since(c.born)-time.Duration(at) < c.dead
}

func (c *Conn) broken(t Type, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("peer has taken and said nothing for %v, it or the line is gone: %w", c.dead, err)
	}
	c.werr = fmt.Errorf("send %v: %w", t, Explain(err))
	return c.werr
}

// raw is the connection below TLS.
func (c *Conn) raw() net.Conn {
	if t, ok := c.nc.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c.nc
}

// Close ends the connection and unblocks whoever reads or writes. TLS takes leave only where no write stands in the way.
func (c *Conn) Close() error {
	c.once.Do(func() {
		close(c.gone)
		if !c.mu.TryLock() {
			c.cerr = c.raw().Close()
			return
		}
		defer c.mu.Unlock()
		defer time.AfterFunc(lingerLimit/2, func() { c.raw().Close() }).Stop()
		c.cerr = c.nc.Close()
	})
	return c.cerr
}
