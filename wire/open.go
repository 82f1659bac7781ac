package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/strangers"
)

const (
	// handshakeLimit is for TLS, and again for HELLO.
	handshakeLimit = 10 * time.Second
	// lingerLimit is how long a closing end waits until the peer has read why.
	lingerLimit = 2 * time.Second
	// maxStrangers is how many connections may be before their HELLO, and strangersShare how many of one address: more could use up descriptors
	// and memory. Newcomers get in at the cost of the oldest.
	maxStrangers, strangersShare = 256, 64
)

// Dial is DialBy where the routes say.
func Dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	return DialBy(ctx, addr, Way{}, cfg)
}

// DialBy connects to the gateway at addr, HOST:PORT, on a way and does the handshake. TLS 1.3 lets the source be done before the gateway has
// judged its certificate: that verdict comes with the first ReadFrame.
func DialBy(ctx context.Context, addr string, way Way, cfg *tls.Config) (net.Conn, error) {
	d, err := way.Dialer()
	if err != nil {
		return nil, err
	}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, way.explain(err)
	}
	t := tls.Client(NewCountConn(nc), cfg)
	if err := handshake(ctx, t); err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	return t, nil
}

// NewListener gives the TCP connections of inner a CountConn and TLS. Handshakes are the business of ReadHello; until it has returned the
// connection is a stranger, of whom there are at most 256, and 64 of one address: for a newcomer the oldest of the address that has most is
// cut off.
func NewListener(inner net.Listener, cfg *tls.Config) net.Listener {
	return &listener{Listener: inner, cfg: cfg, gate: strangers.New(maxStrangers, strangersShare)}
}

type listener struct {
	net.Listener
	cfg  *tls.Config
	gate *strangers.Gate
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := NewCountConn(nc)
	c.settled = l.gate.Enter(nc.RemoteAddr(), func() {
		c.crowded.Store(true)
		nc.Close()
	})
	return tls.Server(c, l.cfg), nil
}

// Handshake does the TLS handshake within 10 s and tells in clear words what is wrong with the peer; it closes the connection
// then. Over anything but TLS it does nothing.
func (c *Conn) Handshake(ctx context.Context) error {
	t, ok := c.nc.(*tls.Conn)
	if !ok {
		return nil
	}
	err := handshake(ctx, t)
	if err == nil && c.count != nil {
		if why := c.count.denied; why != nil {
			_ = c.Fail(ErrorOf(why))
			return why
		}
	}
	return err
}

func handshake(ctx context.Context, t *tls.Conn) error {
	limit, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	err := t.HandshakeContext(limit)
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		if e, ok := errors.AsType[tls.RecordHeaderError](err); ok && e.Conn != nil {
			answerPlain(e)
		}
		linger(t.NetConn()) // the alert has to arrive
	}
	t.NetConn().Close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return explainHandshake(err)
}

// answerPlain tells a browser or a health check in its own language what it has found.
func answerPlain(e tls.RecordHeaderError) {
	for _, p := range []string{"GET ", "HEAD ", "POST ", "PUT ", "OPTI"} {
		if bytes.HasPrefix(e.RecordHeader[:], []byte(p)) {
			e.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			io.WriteString(e.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"+
				"This is the port of a Mover gateway. It speaks mover/1 over TLS 1.3 with client certificates, not HTTP.\n")
			return
		}
	}
}

// linger closes the sending half and throws away what still comes, for a while: closing with unread bytes would make the
// kernel send a reset, which takes the last words from the peer.
func linger(nc net.Conn) {
	if c, ok := nc.(*CountConn); ok {
		nc = c.Conn
	}
	half, ok := nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	defer time.AfterFunc(lingerLimit, func() { nc.Close() }).Stop() // not by a deadline, which a reader beside us would move
	io.Copy(io.Discard, nc)
}

// ReadHello does the handshake and reads HELLO, each within 10 s. It is the gateway's begin of a connection.
func (c *Conn) ReadHello(ctx context.Context) (*Hello, error) {
	h, err := c.readHello(ctx)
	switch {
	case c.count == nil:
	case c.count.crowded.Load():
		_ = c.Close()
		return nil, errCrowded
	case err == nil:
		c.count.settle()
	}
	return h, err
}

var errCrowded = errors.New("the peer had not said who it is when others came, and was cut off to make room for them")

func (c *Conn) readHello(ctx context.Context) (*Hello, error) {
	if err := c.Handshake(ctx); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.limit = time.Now().Add(handshakeLimit)
	defer func() { c.limit = time.Time{} }()
	f, err := c.readFrame(nil)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case f.Type != TypeHello:
		return nil, fmt.Errorf("connection begins with %v, not HELLO: %w", f.Type, sentinel.ErrProtocol)
	}
	m := new(Hello)
	return m, m.Decode(f.Payload)
}

// Fail sends ERROR, gives the peer up to 2 s to read it, and closes. A write that is stuck is cut off, and ERROR with it.
func (c *Conn) Fail(e *Error) error {
	if !c.failing.CompareAndSwap(false, true) {
		return c.Close()
	}
	c.nc.SetWriteDeadline(time.Now().Add(lingerLimit / 2))
	c.mu.Lock()
	err := c.write(TypeError, 0, e)
	c.mu.Unlock()
	if err == nil {
		linger(c.raw())
	}
	return c.Close()
}
