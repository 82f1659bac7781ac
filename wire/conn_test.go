package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// pipe is two Conns without TLS, for fake time.
func pipe() (a, b *Conn) {
	x, y := net.Pipe()
	return NewConn(x), NewConn(y)
}

// TestEveryMessage sends every message over TLS and counts.
func TestEveryMessage(t *testing.T) {
	c := newCerts(t)
	s, g := tlsPair(t, c.server(t), c.client(t))
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, m := range samples() {
			if err := s.Write(TypeOf(m.m), m.seq, m.m); err != nil {
				t.Error(err)
			}
		}
		s.Close()
	}()
	for _, want := range samples() {
		switch TypeOf(want.m) {
		case TypePing, TypePong:
			continue // not for the caller
		case TypeError:
			_, err := g.ReadFrame(nil)
			if e, ok := errors.AsType[*Error](err); !ok || *e != *want.m.(*Error) {
				t.Fatalf("ERROR came as %v", err)
			}
			continue
		}
		f, err := g.ReadFrame(nil)
		must(t, err)
		m := New(f.Type)
		must(t, m.Decode(f.Payload))
		if f.Seq != want.seq || !equal(m, want.m) {
			t.Fatalf("%v seq %d: %+v, want %+v", f.Type, f.Seq, m, want.m)
		}
	}
	if _, err := g.ReadFrame(nil); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	<-closed // the sender counts after it has written
	if s.Out() != g.In() || s.Out() == 0 {
		t.Errorf("sent %d bytes, received %d", s.Out(), g.In())
	}
	if s.WireOut() <= s.Out() || g.WireIn() <= g.In() || s.WireOut() < g.WireIn() {
		t.Errorf("wire: out %d, in %d; frames %d", s.WireOut(), g.WireIn(), s.Out())
	}
	name, err := peerOf(g)
	if err != nil || name.String() != "acme/db1" {
		t.Errorf("peer is %v, %v", name, err)
	}
}

// TestWritersTogether: frames of many writers never mix, bodies of all sizes around a slice are whole.
func TestWritersTogether(t *testing.T) {
	c := newCerts(t)
	s, g := tlsPair(t, c.server(t), c.client(t))
	sizes := []int{1, 1000, sliceSize - HeaderSize - 5, sliceSize - HeaderSize - 4, sliceSize, 3*sliceSize + 17, 1 << 20}
	const rounds = 20
	var wg sync.WaitGroup
	for w, n := range sizes {
		wg.Go(func() {
			m := &Data{Plain: uint32(n), Payload: bytes.Repeat([]byte{byte(w)}, n)}
			for range rounds {
				if err := s.Write(TypeData, uint32(w+1), m); err != nil {
					t.Error(err)
					return
				}
				if err := s.Write(TypeCheck, 1, &Check{9, some(MaxGroups)}); err != nil { // larger than the scratch
					t.Error(err)
					return
				}
			}
		})
	}
	buf := make([]byte, MaxBulk)
	seen := map[uint32]int{}
	for range 2 * rounds * len(sizes) {
		f, err := g.ReadFrame(func(int) []byte { return buf })
		must(t, err)
		if f.Type == TypeCheck {
			must(t, new(Check).Decode(f.Payload))
			continue
		}
		var m Data
		must(t, m.Decode(f.Payload))
		if &m.Payload[0] != &buf[5] {
			t.Fatal("payload does not lie in the memory that was given")
		}
		w := f.Seq - 1
		if len(m.Payload) != sizes[w] || bytes.Count(m.Payload, []byte{byte(w)}) != sizes[w] {
			t.Fatalf("payload of writer %d is mixed", w)
		}
		seen[w]++
	}
	wg.Wait()
	for w := range sizes {
		if seen[uint32(w)] != rounds {
			t.Errorf("writer %d: %d frames", w, seen[uint32(w)])
		}
	}
}

// TestNoAllocation: the frames that a pass consists of cost no memory once they have been used.
func TestNoAllocation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	y, err := l.Accept()
	must(t, err)
	a, b := NewConn(x), NewConn(y)
	defer a.Close()
	defer b.Close()
	buf := make([]byte, MaxBulk)
	get := func(int) []byte { return buf }
	for _, s := range samples() {
		ty := TypeOf(s.m)
		switch ty {
		case TypeOffer, TypeNeed, TypeData, TypePut, TypeAck:
		default:
			continue
		}
		to := New(ty)
		if n := testing.AllocsPerRun(100, func() {
			if err := a.Write(ty, s.seq, s.m); err != nil {
				t.Fatal(err)
			}
			f, err := b.ReadFrame(get)
			if err != nil {
				t.Fatal(err)
			}
			if err := to.Decode(f.Payload); err != nil {
				t.Fatal(err)
			}
		}); n != 0 && !raceEnabled {
			t.Errorf("%v: %v allocations a frame", ty, n)
		}
	}
}

func TestRefusedWrites(t *testing.T) {
	a, b := pipe()
	defer a.Close()
	defer b.Close()
	for _, err := range []error{
		a.Write(TypeData, 0, &Data{Plain: 1, Payload: []byte{1}}),
		a.Write(TypeData, 1, &Data{Plain: 2, Payload: []byte{1}}),
		a.Write(TypeAck, 0, &Need{N: 1, Bitmap: []byte{0}}),
		a.Write(0, 0, nil),
	} {
		if !errors.Is(err, sentinel.ErrProtocol) {
			t.Errorf("%v", err)
		}
	}
	if a.Out() != 0 {
		t.Errorf("%d bytes were sent", a.Out())
	}
}

func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		defer b.Close()
		defer a.Close()
		start := time.Now()
		_, err := a.ReadFrame(nil)
		if d := time.Since(start); d != DeadMS*time.Millisecond {
			t.Errorf("gave up after %v", d)
		}
		wantText(t, err, "silent for 30s")
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestPeerThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		defer b.Close()
		defer a.Close()
		start := time.Now()
		err := a.Write(TypeData, 1, &Data{Plain: 1 << 20, Payload: make([]byte, 1<<20)})
		if d := time.Since(start); d != DeadMS*time.Millisecond {
			t.Errorf("gave up after %v", d)
		}
		wantText(t, err, "taken and said nothing for 30s")
		if again := a.Write(TypePing, 0, &Ping{}); again != err {
			t.Errorf("after a torn frame: %v", again)
		}
	})
}

// TestBusyPeer: a gateway that does not read for a while, but pings, is not dead; over TLS, where a write that was given up cannot be
// taken up again. Nothing is torn by it.
func TestBusyPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := tlsPipe(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { g.Keepalive(ctx) })
		wg.Go(func() { s.ReadFrame(nil) })
		m := &Data{Plain: 1 << 20, Payload: bytes.Repeat([]byte("bytes"), 1<<18)[:1<<20]}
		sent := make(chan error)
		go func() { sent <- s.Write(TypeData, 1, m) }()
		time.Sleep(10 * time.Minute)
		select {
		case err := <-sent:
			t.Fatalf("gave up: %v", err)
		default:
		}
		f, err := g.ReadFrame(nil)
		if err != nil || !bytes.Equal(f.Payload[5:], m.Payload) {
			t.Fatalf("%v of %d bytes, %v", f.Type, len(f.Payload), err)
		}
		must(t, <-sent)

		cancel() // no pings from here on
		start := time.Now()
		wantText(t, s.Write(TypeData, 2, m), "taken and said nothing")
		if d := time.Since(start); d > 2*DeadMS*time.Millisecond {
			t.Errorf("gave up after %v", d)
		}
		s.Close()
		g.raw().Close()
		wg.Wait()
	})
}

// TestSlowLine: 64 KiB in 20 s is slow, not dead.
func TestSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		defer b.Close()
		defer a.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 8<<10)
			for {
				time.Sleep(2500 * time.Millisecond)
				if _, err := io.ReadFull(b.nc, buf); err != nil {
					return
				}
			}
		})
		m := &Data{Plain: MaxPlain, Payload: make([]byte, MaxPlain)}
		start := time.Now()
		err := a.Write(TypeData, 1, m)
		if err != nil || time.Since(start) < 20*time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		a.Close()
		wg.Wait()
	})
}

// TestTrickle: a byte now and then keeps no buffer for ever.
func TestTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		defer b.Close()
		defer a.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			frame, _ := AppendFrame(nil, 1, &Data{Plain: 1 << 20, Payload: make([]byte, 1<<20)})
			b.nc.Write(frame[:HeaderSize])
			for _, v := range frame[HeaderSize:] {
				if _, err := b.nc.Write([]byte{v}); err != nil {
					return
				}
				time.Sleep(20 * time.Second)
			}
		})
		start := time.Now()
		_, err := a.ReadFrame(nil)
		wantText(t, err, "too slow")
		if d := time.Since(start); d > 18*time.Minute { // 30 s and 1 MiB at 1 KiB/s
			t.Errorf("gave up after %v", d)
		}
		a.Close()
		wg.Wait()
	})
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, b := NewConn(x), NewConn(late{y, 70 * time.Millisecond})
		b.SetKeepalive(5000)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		run := func(ctx context.Context, c *Conn) {
			wg.Go(func() {
				if err := c.Keepalive(ctx); err != nil {
					t.Errorf("keepalive: %v", err)
				}
			})
		}
		run(ctx, a)
		bctx, bcancel := context.WithCancel(ctx)
		run(bctx, b)
		got := make(chan Frame)
		wg.Go(func() { a.ReadFrame(nil) })
		wg.Go(func() {
			for {
				f, err := b.ReadFrame(nil)
				if err != nil {
					return
				}
				got <- f
			}
		})
		time.Sleep(10 * time.Minute) // nothing to say, and nobody is dead
		must(t, a.Write(TypeState, 1, &State{}))
		if f := <-got; f.Type != TypeState {
			t.Errorf("got %v", f.Type)
		}
		if a.RTT() != 70*time.Millisecond { // b's PONG is late
			t.Errorf("round trip %v", a.RTT())
		}
		if b.Out() < 100*HeaderSize {
			t.Errorf("b has sent %d bytes in 10 minutes of 5 s", b.Out())
		}
		bcancel() // a still sends; b is silent now
		time.Sleep(time.Minute)
		cancel()
		a.Close()
		b.Close()
		wg.Wait()
	})
}

// late writes after a delay.
type late struct {
	net.Conn
	d time.Duration
}

func (l late) Write(p []byte) (int, error) {
	time.Sleep(l.d)
	return l.Conn.Write(p)
}

// TestPingFlood: pings cost the reader nothing, though nobody answers.
func TestPingFlood(t *testing.T) {
	a, b := pipe()
	defer a.Close()
	defer b.Close()
	go func() {
		for i := range uint64(10000) {
			a.Write(TypePing, 0, &Ping{i})
			a.Write(TypePong, 0, &Pong{i})
		}
		a.Write(TypeState, 1, &State{})
	}()
	f, err := b.ReadFrame(nil)
	if err != nil || f.Type != TypeState {
		t.Fatalf("%v, %v", f.Type, err)
	}
	if v := <-b.pong; v != 9999 {
		t.Errorf("would answer ping %d, not the latest", v)
	}
}

// TestCloseUnblocks: Close ends a reader, and a writer whose peer takes nothing, without waiting for either.
func TestCloseUnblocks(t *testing.T) {
	for _, write := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, g := tlsPipe(t)
			ended := make(chan error, 1)
			go func() {
				m := &Data{Plain: MaxPlain, Payload: make([]byte, MaxPlain)}
				for {
					var err error
					if write {
						err = s.Write(TypeData, 1, m) // g does not read
					} else {
						_, err = s.ReadFrame(nil)
					}
					if err != nil {
						ended <- err
						return
					}
				}
			}()
			synctest.Wait()
			start := time.Now()
			s.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("write %v: %v", write, err)
			}
			if d := time.Since(start); d > lingerLimit/2 {
				t.Errorf("write %v: Close took %v", write, d)
			}
			s.Close()
			g.Close()
		})
	}
}

// TestFailArrives: the last words of a gateway reach a source that is in the middle of sending.
func TestFailArrives(t *testing.T) {
	c := newCerts(t)
	server, client := c.server(t), c.client(t)
	for range 20 {
		s, g := tlsPair(t, server, client)
		var wg sync.WaitGroup
		wg.Go(func() {
			m := &Data{Plain: 1 << 20, Payload: make([]byte, 1<<20)}
			for s.Write(TypeData, 1, m) == nil {
			}
		})
		wg.Go(func() {
			if _, err := g.ReadFrame(nil); err != nil {
				t.Error(err)
			}
			g.Fail(&Error{Code: CodeFenced, Text: "a newer link"})
			if _, err := g.ReadFrame(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after Fail: %v", err)
			}
			if err := g.Write(TypeAck, 0, &Ack{[]Range{{1, 1}}}); err == nil {
				t.Error("write after Fail")
			}
		})
		_, err := s.ReadFrame(nil)
		if !errors.Is(err, sentinel.ErrFenced) {
			t.Errorf("source sees %v", err)
		}
		s.Close()
		wg.Wait()
	}
}

// TestFailWhenStuck: a peer that reads nothing does not hold Fail. In real time, for a mutex stops the fake one.
func TestFailWhenStuck(t *testing.T) {
	a, b := pipe()
	defer b.Close()
	var wg sync.WaitGroup
	wg.Go(func() { a.Write(TypeData, 1, &Data{Plain: 1 << 20, Payload: make([]byte, 1<<20)}) })
	if _, err := b.nc.Read(make([]byte, 1)); err != nil { // a is in the middle of it
		t.Fatal(err)
	}
	start := time.Now()
	a.Fail(&Error{Code: CodeStopping, Text: "bye"})
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Fail took %v", d)
	}
	wg.Wait()
}

func TestTornFrames(t *testing.T) {
	whole, err := AppendFrame(nil, 5, &Data{Plain: 5, Payload: []byte("bytes")})
	must(t, err)
	for n := range whole {
		x, y := net.Pipe()
		c := NewConn(x)
		go func() {
			y.Write(whole[:n])
			y.Close()
		}()
		_, err := c.ReadFrame(nil)
		if n == 0 && err != io.EOF || n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
		c.Close()
	}
}

func TestNoMemory(t *testing.T) {
	a, b := pipe()
	defer a.Close()
	defer b.Close()
	go a.Write(TypeData, 5, &Data{Plain: 5, Payload: []byte("bytes")})
	_, err := b.ReadFrame(func(n int) []byte { return make([]byte, n-1) })
	wantText(t, err, "no memory")
}

func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("error is %q, want %q in it", err, p)
		}
	}
}
