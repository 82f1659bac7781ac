package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// ReadFrame waits for the next frame. get supplies memory of at least n bytes, at most MaxBulk, for the payloads of DATA and PUT;
// those of all other types, and of all if get is nil, are valid until the next ReadFrame. After an error, memory that get gave
// for this frame is the caller's again.
//
// An ERROR of the peer is returned as *Error. io.EOF means that the peer closed between frames.
func (c *Conn) ReadFrame(get func(n int) []byte) (Frame, error) {
	for {
		f, err := c.readFrame(get)
		if err != nil {
			return Frame{}, err
		}
		switch f.Type {
		case TypePing, TypePong:
			var m Ping // both are a cookie
			if err := m.Decode(f.Payload); err != nil {
				return Frame{}, err
			}
			if f.Type == TypePing {
				Latest(c.pong, m.Cookie)
			} else {
				Latest(c.ponged, m.Cookie)
			}
		case TypeError:
			e := new(Error)
			if err := e.Decode(f.Payload); err != nil {
				return Frame{}, err
			}
			return Frame{}, e
		default:
			return f, nil
		}
	}
}

// Latest puts v into a channel of capacity one in place of what is there.
func Latest[T any](ch chan T, v T) {
	for {
		select {
		case ch <- v:
			return
		default:
		}
		select {
		case <-ch:
		default:
		}
	}
}

func (c *Conn) readFrame(get func(n int) []byte) (Frame, error) {
	if err := c.fill(c.head[:], true); err != nil {
		return Frame{}, c.lost("a frame", err)
	}
	t, seq, n, err := DecodeHeader(c.head[:])
	if err != nil {
		return Frame{}, err
	}
	p := c.memory(t, n, get)
	if len(p) < n {
		return Frame{}, fmt.Errorf("read %v: no memory for %d bytes", t, n)
	}
	if err := c.fill(p[:n], false); err != nil {
		return Frame{}, c.lost(t.String(), err)
	}
	c.in.Add(int64(HeaderSize + n))
	return Frame{t, seq, p[:n]}, nil
}

func (c *Conn) memory(t Type, n int, get func(n int) []byte) []byte {
	if t.Bulk() && get != nil {
		return get(n)
	}
	if cap(c.small) < n {
		c.small = make([]byte, max(n, 4<<10))
	}
	p := c.small[:cap(c.small)]
	if cap(c.small) > keepScratch && get != nil {
		c.small = nil // a rare large OPENED
	}
	return p
}

// fill reads all of p. Some byte has to come every c.dead; and once the first of a frame has come, the rest at floorRate at least.
func (c *Conn) fill(p []byte, first bool) error {
	var end time.Time
	if !first {
		end = c.slowest(len(p))
	}
	for got := 0; got < len(p); {
		if first && got > 0 && end.IsZero() {
			end = c.slowest(len(p))
		}
		silent := time.Now().Add(c.dead)
		until := earliest(earliest(silent, end), c.limit)
		c.nc.SetReadDeadline(until)
		n, err := c.nc.Read(p[got:])
		got += n
		if n > 0 {
			c.heard.Store(int64(time.Since(c.born)) + 1)
		}
		switch {
		case got == len(p):
			return nil
		case err == io.EOF && (got > 0 || !first):
			return io.ErrUnexpectedEOF
		case err != nil && until != silent && errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("peer is too slow: %w", err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("peer has been silent for %v, it or the line is gone: %w", c.dead, err)
		case err != nil:
			return err
		}
	}
	return nil
}

func (c *Conn) slowest(n int) time.Time {
	return time.Now().Add(c.dead + time.Duration(n)*time.Second/floorRate)
}

// earliest is t, or o if that is set and before.
func earliest(t, o time.Time) time.Time {
	if !o.IsZero() && o.Before(t) {
		return o
	}
	return t
}

// lost says how reading what ended. A clean end stays io.EOF; after Fail the bytes went elsewhere.
func (c *Conn) lost(what string, err error) error {
	switch {
	case c.failing.Load():
		return net.ErrClosed
	case err == io.EOF:
		return err
	}
	return fmt.Errorf("read %s: %w", what, Explain(err))
}
