package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// FuzzFrame: whatever comes, decoding ends with a message that encodes to the same bytes, or with ErrProtocol; and it never takes
// more memory than the frame is long.
func FuzzFrame(f *testing.F) {
	for _, s := range samples() {
		b, err := AppendFrame(nil, s.seq, s.m)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			frame, rest, err := DecodeFrame(b)
			if err != nil {
				wantProtocol(t, err)
				return
			}
			roundTrip(t, frame.Type, frame.Seq, frame.Payload, b[:len(b)-len(rest)])
			b = rest
		}
	})
}

// FuzzMessage goes straight to the payloads.
func FuzzMessage(f *testing.F) {
	for _, s := range samples() {
		f.Add(uint8(TypeOf(s.m)), s.m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, ty uint8, p []byte) {
		if m := New(Type(ty)); m != nil {
			roundTrip(t, Type(ty), 0, p, nil)
		}
	})
}

func roundTrip(t *testing.T, ty Type, seq uint32, p, whole []byte) {
	m := New(ty)
	if err := m.Decode(p); err != nil {
		wantProtocol(t, err)
		return
	}
	if again := m.Append(nil); !bytes.Equal(again, p) {
		t.Fatalf("%v\n%x decodes and encodes as\n%x", ty, p, again)
	}
	if k := kinds[ty]; len(p) < k.least || len(p) > k.most {
		t.Fatalf("%v decodes %d bytes, limits %d and %d", ty, len(p), k.least, k.most)
	}
	// A message that was used before gives the same.
	for _, s := range samples() {
		if TypeOf(s.m) == ty {
			used := New(ty)
			must(t, used.Decode(s.m.Append(nil)))
			must(t, used.Decode(p))
			if !equal(used, m) {
				t.Fatalf("%v depends on what was decoded before: %+v, %+v", ty, used, m)
			}
		}
	}
	if whole != nil {
		frame, err := AppendFrame(nil, seq, m)
		must(t, err)
		if !bytes.Equal(frame, whole) {
			t.Fatalf("frame\n%x became\n%x", whole, frame)
		}
	}
}

func wantProtocol(t *testing.T, err error) {
	if !errors.Is(err, sentinel.ErrProtocol) {
		t.Fatalf("%v is not ErrProtocol", err)
	}
}

// FuzzConn: bytes from the line end in frames that are within their limits, or in an error; reading never hangs and memory is
// asked for within MaxBulk.
func FuzzConn(f *testing.F) {
	var all []byte
	for _, s := range samples() {
		b, err := AppendFrame(nil, s.seq, s.m)
		must(f, err)
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewConn(&canned{Reader: bytes.NewReader(b)})
		for {
			frame, err := c.ReadFrame(func(n int) []byte {
				if n > MaxBulk {
					t.Fatalf("asked for %d bytes", n)
				}
				return make([]byte, n)
			})
			if err != nil {
				return
			}
			if k := kinds[frame.Type]; len(frame.Payload) < k.least || len(frame.Payload) > k.most {
				t.Fatalf("%v of %d bytes", frame.Type, len(frame.Payload))
			}
		}
	})
}

// canned is a connection from which bytes come and into which nothing goes.
type canned struct {
	io.Reader
	net.Conn
}

func (c *canned) Read(p []byte) (int, error)       { return c.Reader.Read(p) }
func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) Close() error                     { return nil }
