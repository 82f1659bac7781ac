package wire

import (
	"context"
	"time"
)

// SetKeepalive sets the interval of pings to what WELCOME asked for; it may only become shorter.
func (c *Conn) SetKeepalive(ms uint32) {
	if ms > 0 && ms <= KeepaliveMS {
		c.pulse.Store(int64(ms) * int64(time.Millisecond))
	}
}

// RTT is the round trip as the last PONG told, queues included; 0 before the first.
func (c *Conn) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Keepalive runs beside the reader from HELLO on (after it was sent or read). It sends a PING at once and in every interval, and answers those of the peer, until ctx ends (nil) or a write fails. It
// writes in the stead of the reader, who must never wait for a line that only the peer's reader can empty.
func (c *Conn) Keepalive(ctx context.Context) error {
	var cookie uint64
	var sent time.Time
	ping := func() error {
		cookie++
		sent = time.Now()
		return c.Write(TypePing, 0, &Ping{cookie})
	}
	if err := ping(); err != nil {
		return err
	}
	timer := time.NewTimer(time.Duration(c.pulse.Load()))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-c.pong:
			if err := c.Write(TypePong, 0, &Pong{v}); err != nil && ctx.Err() == nil {
				return err
			}
		case v := <-c.ponged:
			if v == cookie {
				c.rtt.Store(int64(max(1, time.Since(sent))))
			}
		case <-timer.C:
			if err := ping(); err != nil && ctx.Err() == nil {
				return err
			}
			timer.Reset(time.Duration(c.pulse.Load()))
		}
	}
}
