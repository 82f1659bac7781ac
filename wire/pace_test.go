package wire

import (
	"context"
	"net"
	"testing"
	"time"
)

// halted is a line that lets no frame of data begin.
type halted struct{ asked chan struct{} }

func (h halted) Ready(done <-chan struct{}) {
	h.asked <- struct{}{}
	<-done
}
func (halted) Wait(<-chan struct{}, int64) {}
func (halted) Spend(int64)                 {}
func (halted) Slice() int                  { return recordSize }

// TestHaltedLine: while no data may begin, a connection pings; Close ends the wait, and so does whoever waits.
func TestHaltedLine(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c, peer := NewConn(a), NewConn(b)
	h := halted{make(chan struct{}, 2)}
	c.SetPace(h)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	await := func(ctx context.Context) {
		go func() { ended <- c.Await(ctx) }()
		<-h.asked
	}
	await(ctx)
	go c.Write(TypeState, 2, &State{})
	b.SetReadDeadline(time.Now().Add(5 * time.Second))
	if f, err := peer.ReadFrame(nil); err != nil || f.Type != TypeState {
		t.Errorf("behind data that may not begin: %v, %v", f.Type, err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("data may begin although who waits for it has gone")
	}
	await(t.Context())
	go func() {
		for { // what Close says
			if _, err := b.Read(make([]byte, 100)); err != nil {
				return
			}
		}
	}()
	c.Close()
	if err := <-ended; err != nil {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Write(TypeData, 1, &Data{Plain: 1, Payload: []byte{1}}); err == nil {
		t.Error("data was written to a closed connection")
	}
}

// TestCrossed: what has come over the line is known although nobody reads it, and a slow peer does not let much pile up in the socket.
func TestCrossed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	sender, reader := NewConn(a), NewConn(b)
	sender.Smooth(1 << 20)
	const n = 100_000
	a.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := a.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	// A paced socket takes 100 kB in a tenth of a second: what it had not sent by then is at most the bound for it, and one piece more.
	got, _, ok := reader.Crossed()
	if !ok || got < n-leastUnsent-64<<10 {
		t.Errorf("%d bytes of %d crossed when they were written, %v", got, n, ok)
	}
	for range 500 {
		if got, _, _ = reader.Crossed(); got == n {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	_, packets, _ := reader.Crossed()
	if got != n || packets < 3 || reader.WireIn() != 0 {
		t.Errorf("%d bytes in %d packets crossed, %d were read", got, packets, reader.WireIn())
	}
	if reader.IPv6() {
		t.Error("127.0.0.1 is IPv6")
	}
	reader.Close()
	if _, _, ok := reader.Crossed(); ok {
		t.Error("a closed connection tells what crossed")
	}
}
