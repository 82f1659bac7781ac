package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// gate is a gateway's front: it takes every connection, wants HELLO, reads frames, and keeps what it has to say about each.
type gate struct {
	net.Listener
	wg     sync.WaitGroup
	cancel context.CancelFunc
	said   chan error
}

func startGate(t *testing.T, cfg *tls.Config) *gate {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &gate{Listener: listen(t, cfg), cancel: cancel, said: make(chan error, 4096)}
	g.wg.Go(func() {
		for {
			nc, err := g.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() {
				c := NewConn(nc)
				defer c.Close()
				_, err := c.ReadHello(ctx)
				for err == nil {
					_, err = c.ReadFrame(nil)
				}
				if errors.Is(err, sentinel.ErrProtocol) {
					c.Fail(ErrorOf(err))
				}
				g.said <- err
			})
		}
	})
	t.Cleanup(g.stop)
	return g
}

func (g *gate) stop() {
	g.cancel()
	g.Close()
	g.wg.Wait()
}

func dialPlain(t *testing.T, g *gate) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", g.Addr().String())
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	return nc
}

// TestRubbish throws random bytes at the port. Memory stays flat, every connection ends, nobody is kept waiting.
func TestRubbish(t *testing.T) {
	g := startGate(t, newCerts(t).server(t))
	rng := rand.New(rand.NewPCG(1, 1))
	before := heap()
	const tries = 300
	for i := range tries {
		b := make([]byte, 1+rng.IntN(4096))
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		if i%2 == 0 { // looks like a TLS record
			copy(b, []byte{22, 3, 1, byte(rng.Uint32() % 64), byte(rng.Uint32())})
		}
		nc := dialPlain(t, g)
		nc.Write(b)
		nc.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, nc)
		nc.Close()
	}
	for range tries {
		if err := <-g.said; err == nil {
			t.Error("rubbish was taken")
		}
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestBrowser gets an answer that it can show.
func TestBrowser(t *testing.T) {
	g := startGate(t, newCerts(t).server(t))
	nc := dialPlain(t, g)
	fmt.Fprintf(nc, "GET /metrics HTTP/1.1\r\nHost: gw\r\n\r\n")
	answer := make([]byte, 4096)
	n, err := io.ReadFull(nc, answer)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(string(answer[:n]), "400 Bad Request") || !strings.Contains(string(answer[:n]), "mover/1") {
		t.Errorf("answer %q, %v", answer[:n], err)
	}
	nc.Close()
	wantText(t, <-g.said, "plain HTTP")
}

// TestBadFrames: a source with a good certificate that breaks the protocol is told so, and nothing large is made for it.
func TestBadFrames(t *testing.T) {
	certs := newCerts(t)
	g := startGate(t, certs.server(t))
	client := certs.client(t)
	hello, err := AppendFrame(nil, 0, &Hello{1, 1, CapZstd, id(1), 0, "acme/db1/root", ""})
	must(t, err)
	header := func(ty Type, seq uint32, n uint32) []byte {
		b := make([]byte, HeaderSize)
		putHeader(b, ty, seq, 0)
		binary.BigEndian.PutUint32(b, n)
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		text string
	}{
		{"no HELLO", header(TypePing, 0, 8), "begins with PING"},
		{"oversized", append(bytes.Clone(hello), header(TypeData, 1, MaxPayload+1)...), "limit 8454144"},
		{"4 GiB", append(bytes.Clone(hello), header(TypePut, 1, 1<<32-1)...), "limit 8454144"},
		{"oversized for its type", append(bytes.Clone(hello), header(TypePing, 0, 8<<20)...), "limits 8 and 8"},
		{"unknown type", append(bytes.Clone(hello), header(99, 0, 8)...), "unknown type 99"},
		{"HELLO of another protocol", func() []byte { b := bytes.Clone(hello); b[HeaderSize] = 'X'; return b }(), "magic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc, err := Dial(t.Context(), g.Addr().String(), client)
			must(t, err)
			defer nc.Close()
			b := c.b
			if c.name == "no HELLO" {
				b = append(b, make([]byte, 8)...)
			}
			_, err = nc.Write(b)
			must(t, err)
			_, err = NewConn(nc).ReadFrame(nil)
			if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeProtocol {
				t.Errorf("source sees %v", err)
			}
			wantText(t, err, c.text)
			nc.Close()
			if err := <-g.said; !errors.Is(err, sentinel.ErrProtocol) {
				t.Errorf("gateway says %v", err)
			}
		})
	}
}

// TestHalfClosed: a source that ends its half, before, in and after HELLO.
func TestHalfClosed(t *testing.T) {
	certs := newCerts(t)
	g := startGate(t, certs.server(t))
	hello, err := AppendFrame(nil, 0, &Hello{1, 1, CapZstd, id(1), 0, "acme/db1/root", ""})
	must(t, err)
	for _, n := range []int{0, 5, HeaderSize + 3, len(hello)} {
		nc, err := Dial(t.Context(), g.Addr().String(), certs.client(t))
		must(t, err)
		_, err = nc.Write(hello[:n])
		must(t, err)
		must(t, nc.(*tls.Conn).CloseWrite())
		want := io.ErrUnexpectedEOF
		if n == 0 || n == len(hello) {
			want = io.EOF
		}
		if err := <-g.said; !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v", n, err)
		}
		nc.Close()
	}
}

// TestSlowLoris: a stranger that sends nothing, or a byte now and then, is thrown out after 10 s; so is a source that never says HELLO.
func TestSlowLoris(t *testing.T) {
	for _, trickle := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cfg := newCerts(t).server(t)
			x, y := net.Pipe()
			c := NewConn(tls.Server(NewCountConn(x), cfg))
			var wg sync.WaitGroup
			if trickle {
				wg.Go(func() {
					for _, b := range append([]byte{22, 3, 1, 2, 0}, make([]byte, 512)...) {
						if _, err := y.Write([]byte{b}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				})
			}
			start := time.Now()
			_, err := c.ReadHello(t.Context())
			if d := time.Since(start); d != handshakeLimit {
				t.Errorf("gave up after %v", d)
			}
			wantText(t, err, "did not finish the handshake")
			c.Close()
			y.Close()
			wg.Wait()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s, g := tlsPipe(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			frame, _ := AppendFrame(nil, 0, &Hello{1, 1, CapZstd, id(1), 0, "acme/db1/root", ""})
			for _, b := range frame {
				if _, err := s.nc.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		start := time.Now()
		_, err := g.ReadHello(t.Context())
		if d := time.Since(start); d != handshakeLimit {
			t.Errorf("gave up after %v", d)
		}
		wantText(t, err, "too slow")
		go io.Copy(io.Discard, s.raw()) // close_notify
		g.Close()
		s.raw().Close()
		wg.Wait()
	})
}

// TestStrangers: connections that never say who they are keep nobody out, cannot use up the descriptors, and each has its word in the end.
func TestStrangers(t *testing.T) {
	certs := newCerts(t)
	g := startGate(t, certs.server(t))
	client := certs.client(t)
	before := heap()
	const n = 3000
	for i := range n {
		nc := dialPlain(t, g)
		if i%3 == 0 {
			nc.Write([]byte{22, 3, 1, 2, 0, 1}) // slow loris
		}
		if i%300 == 299 { // an honest source in the midst of them
			hc, err := Dial(t.Context(), g.Addr().String(), client)
			must(t, err)
			c := NewConn(hc)
			must(t, c.Write(TypeHello, 0, &Hello{1, 1, CapZstd, id(1), 0, "root", ""}))
			must(t, c.Write(TypeHello, 0, &Hello{1, 1, CapZstd, id(1), 0, "root", ""})) // the gate takes any frame
			// On a busy machine the gate learns late that this one is honest; until then it is a stranger like those that come next.
			l := g.Listener.(*listener)
			for end := time.Now().Add(5 * time.Second); l.gate.Count() >= strangersShare && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if i > n/2 {
				for range 50 {
					dialPlain(t, g)
				}
			}
			c.Close()
		}
	}
	if l := g.Listener.(*listener); l.gate.Count() > strangersShare {
		t.Errorf("%d strangers of one address", l.gate.Count())
	}
	if grown := heap() - before; grown > 24<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	crowded, clean := 0, 0
	for range n + n/300 + 5*50 - strangersShare {
		switch err := <-g.said; {
		case errors.Is(err, errCrowded):
			crowded++
		case err == io.EOF:
			clean++
		default:
			t.Error(err)
		}
	}
	if clean != n/300 || crowded < n*9/10 {
		t.Errorf("%d were crowded out, %d of %d honest ones got in", crowded, clean, n/300)
	}
}

// TestStop: a gateway that stops is not held by a connection in its handshake, or before HELLO.
func TestStop(t *testing.T) {
	certs := newCerts(t)
	g := startGate(t, certs.server(t))
	dialPlain(t, g)
	nc, err := Dial(t.Context(), g.Addr().String(), certs.client(t))
	must(t, err)
	defer nc.Close()
	start := time.Now()
	g.stop()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}
