package bench

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestDelay: every byte arrives, in order, one delay after it was sent, and the ring bounds what is under way.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay, memory = 50 * time.Millisecond, 64 << 10
		in, out := net.Pipe()
		back, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			Delay{Delay: delay, Memory: memory}.join(out, back)
			close(done)
		}()
		want := make([]byte, 10*memory+123)
		rand.NewChaCha8([32]byte{1}).Read(want)
		start := time.Now()
		go func() {
			for p := want; len(p) > 0; {
				n := min(len(p), 1+len(p)%7000)
				if _, err := in.Write(p[:n]); err != nil {
					t.Error(err)
				}
				p = p[n:]
			}
			in.Close()
		}()
		first := make([]byte, 1)
		if _, err := io.ReadFull(far, first); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != delay {
			t.Errorf("the first byte came after %v", d)
		}
		got, err := io.ReadAll(far)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(append(first, got...), want) {
			t.Error("other bytes came out than went in")
		}
		// A ring of memory bytes passes that much in each delay.
		if d := time.Since(start); d < 10*delay || d > 13*delay {
			t.Errorf("%d bytes through a ring of %d took %v", len(want), memory, d)
		}
		far.Close()
		<-done
	})
}

// TestDelayBothWays: a round trip takes two delays.
func TestDelayBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := net.Pipe()
		back, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			Delay{Delay: 50 * time.Millisecond, Memory: 4096}.join(out, back)
			close(done)
		}()
		go func() {
			b := make([]byte, 4)
			if _, err := io.ReadFull(far, b); err == nil {
				far.Write(b)
			}
		}()
		start := time.Now()
		in.Write([]byte("ping"))
		b := make([]byte, 4)
		if _, err := io.ReadFull(in, b); err != nil || string(b) != "ping" {
			t.Fatalf("%q, %v", b, err)
		}
		if d := time.Since(start); d != 100*time.Millisecond {
			t.Errorf("the round trip took %v", d)
		}
		in.Close()
		far.Close()
		<-done
	})
}

// TestDelayOverTCP: the end of one direction is passed on, the other goes on.
func TestDelayOverTCP(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- Delay{Target: server.Addr().String(), Delay: 10 * time.Millisecond, Memory: 1 << 16}.Serve(t.Context(), ln)
	}()
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		c.Write(b)
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("mover"), 100_000)
	go func() {
		c.Write(want)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back of %d, error %v", len(got), len(want), err)
	}
}
