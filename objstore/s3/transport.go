package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stall is how long a connection may carry nothing, in neither direction, while a request is under way. It is longer than stores need to put large uploads
// together.
const stall = 5 * time.Minute

// NewTransport is what a Store uses when it is given none: it keeps the connections that were needed at once, takes the proxy from the environment, and ends
// connections that carry nothing for five minutes. Callers may change it (certificates, limits) before they put it into Config.
func NewTransport() *http.Transport { return NewTransportBy(nil) }

// NewTransportBy is NewTransport with connections of a dialer; nil: one that leaves their way to the routes.
func NewTransportBy(dialer *net.Dialer) *http.Transport {
	if dialer == nil {
		dialer = &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return newLively(conn, stall), nil
		},
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       45 * time.Second, // servers close theirs after 60 to 65
		MaxIdleConnsPerHost:   1024,             // as many as there are requests at once: who limits those limits these
		DisableCompression:    true,             // an object's bytes are its bytes
		WriteBufferSize:       32 << 10,
		ReadBufferSize:        32 << 10,
		// Not HTTP/2: many requests on one connection wait for each other.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// lively ends reads and writes of a connection that carries nothing. Reading waits while a request is written, so either keeps both alive.
type lively struct {
	net.Conn
	stall time.Duration
	set   atomic.Int64    // when the deadline was set, in Unix nanoseconds
	raw   syscall.RawConn // nil where it is no TCP
}

func newLively(conn net.Conn, stall time.Duration) *lively {
	c := &lively{Conn: conn, stall: stall}
	if tcp, ok := conn.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn()
	}
	return c
}

func (c *lively) Read(p []byte) (int, error) {
	c.extend()
	n, err := c.Conn.Read(p)
	c.acknowledge()
	return n, err
}

// acknowledge sends the acknowledgement of what was read at once. Ceph RGW writes an answer in several pieces with Nagle's algorithm on, and so waits for it
// before each but the first: 40 ms, where the kernel waits too. The kernel forgets the option, so it is set each time.
func (c *lively) acknowledge() {
	if c.raw != nil {
		_ = c.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
}

func (c *lively) Write(p []byte) (int, error) {
	c.extend()
	return c.Conn.Write(p)
}

// blocks are buffers of bodies on their way out: fewer calls of the kernel than with those of net/http.
var blocks = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// ReadFrom writes all of r.
func (c *lively) ReadFrom(r io.Reader) (n int64, err error) {
	buf := blocks.Get().(*[256 << 10]byte)
	defer blocks.Put(buf)
	for {
		k, end := r.Read(buf[:])
		if k > 0 {
			w, err := c.Write(buf[:k])
			if n += int64(w); err != nil {
				return n, err
			}
		}
		switch {
		case end == io.EOF:
			return n, nil
		case end != nil:
			return n, end
		}
	}
}

func (c *lively) extend() {
	now := time.Now()
	if old := c.set.Load(); now.UnixNano()-old > int64(c.stall)/16 && c.set.CompareAndSwap(old, now.UnixNano()) {
		_ = c.SetDeadline(now.Add(c.stall)) // a closed connection says so at the call itself
	}
}

// sender gives the SDK's requests to a transport and answers back as they are: no redirect is followed, nothing is tried again.
type sender struct{ http.RoundTripper }

func (s sender) Do(r *http.Request) (*http.Response, error) {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
	case r.ContentLength > 0 && r.ContentLength <= small:
		b := make([]byte, r.ContentLength) // the transport may look at it after the answer
		_, err := io.ReadFull(r.Body, b)
		if err = errors.Join(err, r.Body.Close()); err != nil {
			return nil, err
		}
		// With GetBody the transport takes another connection where the server has closed this one before anything was written.
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		r.Body, _ = r.GetBody()
	default:
		// The WriteTo of the SDK's body ends with io.EOF once it is closed, which the transport takes for a failure when the answer is quick, and cuts it.
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	return s.RoundTrip(r)
}
