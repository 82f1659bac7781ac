package wire

import (
	"net"
	"testing"
	"time"
)

// halted is a line that lets no frame of data begin.
type halted struct{ asked chan struct{} }

func (h halted) Ready(done <-chan struct{}) {
	close(h.asked)
	<-done
}
func (halted) Wait(<-chan struct{}, int64) {}
func (halted) Spend(int64)                 {}
func (halted) Slice() int                  { return recordSize }

// TestHaltedLine: while no data may begin, a connection pings; Close ends the wait.
func TestHaltedLine(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c, peer := NewConn(a), NewConn(b)
	h := halted{make(chan struct{})}
	c.SetPace(h)
	ended := make(chan error, 1)
	go func() { ended <- c.Write(TypeData, 1, &Data{Plain: 1, Payload: []byte{1}}) }()
	<-h.asked
	go c.Write(TypeState, 2, &State{})
	b.SetReadDeadline(time.Now().Add(5 * time.Second))
	if f, err := peer.ReadFrame(nil); err != nil || f.Type != TypeState {
		t.Errorf("behind data that may not begin: %v, %v", f.Type, err)
	}
	go func() {
		for { // what Close says
			if _, err := b.Read(make([]byte, 100)); err != nil {
				return
			}
		}
	}()
	c.Close()
	if err := <-ended; err == nil {
		t.Error("data was written to a closed connection")
	}
}
