package sender

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/moverd/mover/wire"
)

// A link that comes up at the very moment when the flow begins to wait for it is not missed: nothing else would wake the flow for a day.
func TestIdleSeesTheLink(t *testing.T) {
	line, peer := net.Pipe()
	defer line.Close()
	defer peer.Close()
	for i := range 20000 {
		f := &Flow{link: newLink(Config{Conns: 1}, onePath(nil), discard), orders: make(chan *order), wake: make(chan struct{}, 1)}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		up := make(chan struct{})
		go func() {
			defer close(up)
			for range i % 200 { // at any time
				if ctx.Err() != nil {
					return
				}
			}
			f.link.mu.Lock()
			f.link.conns = []*conn{{Conn: wire.NewConn(line), gone: make(chan struct{})}}
			f.link.change()
			f.link.mu.Unlock()
		}()
		_, err := f.idle(ctx)
		cancel()
		<-up
		if err != nil {
			t.Fatalf("try %d: the link is up, and the flow waits for it", i)
		}
	}
}
