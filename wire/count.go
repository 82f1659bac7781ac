package wire

import (
	"net"
	"sync"
	"sync/atomic"
)

// CountConn stands between TLS and the line: it counts what is paid for, and joins the records of a slice into one write, for
// crypto/tls makes a system call for each 16 KiB.
type CountConn struct {
	net.Conn
	in, out atomic.Int64
	settled func()      // when HELLO has been read or the connection is closed, or both; may be nil
	crowded atomic.Bool // it was cut off to make room
	denied  error       // why the peer is refused once it can be told; set in the handshake

	mu   sync.Mutex // guards all below
	hold bool       // writes are kept until flush
	kept []byte
}

// NewCountConn counts the bytes of nc. Give it to tls.Client or tls.Server.
func NewCountConn(nc net.Conn) *CountConn { return &CountConn{Conn: nc} }

// WireIn and WireOut are the bytes that crossed the line, TLS included, TCP and IP not.
func (c *CountConn) WireIn() int64  { return c.in.Load() }
func (c *CountConn) WireOut() int64 { return c.out.Load() }

func (c *CountConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *CountConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold {
		c.kept = append(c.kept, p...)
		return len(p), nil
	}
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

// join keeps writes until flush.
func (c *CountConn) join() {
	c.mu.Lock()
	c.hold = true
	c.mu.Unlock()
}

// flush writes what was kept, with the patience of by.
func (c *CountConn) flush(by *Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = false
	n, err := by.persist(c.Conn, c.kept)
	c.out.Add(int64(n))
	c.kept = c.kept[:0]
	return err
}

func (c *CountConn) settle() {
	if c.settled != nil {
		c.settled()
	}
}

// Close closes the connection below.
func (c *CountConn) Close() error {
	c.settle()
	return c.Conn.Close()
}
