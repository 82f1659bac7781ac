package sender

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/moverd/mover/wire"
)

// welcoming is a way to a gateway that welcomes everybody, and says nothing more.
func welcoming() (net.Conn, error) {
	line, peer := net.Pipe()
	go func() {
		defer peer.Close()
		c := wire.NewConn(peer)
		if _, err := c.ReadHello(context.Background()); err != nil {
			return
		}
		_ = c.Write(wire.TypeWelcome, 0, &wire.Welcome{Version: wire.Version, Capabilities: wire.CapZstd, KeepaliveMS: wire.KeepaliveMS, Window: wire.MaxPlain,
			State: wire.FlowState{Phase: 1}})
		_, _ = c.ReadFrame(nil) // until the other end closes
	}()
	return line, nil
}

// A link that comes up at the very moment when the flow begins to wait for it is not missed: nothing else would wake the flow for a day.
func TestIdleSeesTheLink(t *testing.T) {
	for i := range 3000 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		f := &Flow{orders: make(chan *order), wake: make(chan struct{}, 1)}
		up := make(chan struct{})
		f.link = newLink(Config{Flow: "disk", Conns: 1}, onePath(func(context.Context) (net.Conn, error) {
			for range i % 200 { // at any time
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
			}
			return welcoming()
		}), discard)
		go func() { defer close(up); _ = f.link.Run(ctx) }()
		_, err := f.idle(ctx)
		cancel()
		<-up
		if err != nil {
			t.Fatalf("try %d: the link is up, and the flow waits for it", i)
		}
	}
}
