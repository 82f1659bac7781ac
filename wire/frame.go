package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/moverd/mover/internal/sentinel"
)

// Frame is one frame as it was read.
type Frame struct {
	Type    Type
	Seq     uint32
	Payload []byte
}

// AppendFrame appends the whole frame of m, with everything that Conn.Write checks.
func AppendFrame(b []byte, seq uint32, m Message) ([]byte, error) {
	t := TypeOf(m)
	if err := checkOut(t, seq, m); err != nil {
		return b, err
	}
	at := len(b)
	b = m.Append(append(b, make([]byte, HeaderSize)...))
	putHeader(b[at:], t, seq, len(b)-at-HeaderSize)
	return b, nil
}

// checkOut checks a message that is to be sent, so that a mistake is found where it was made.
func checkOut(t Type, seq uint32, m Message) error {
	if !t.Known() || TypeOf(m) != t {
		return fmt.Errorf("send a %T as %v: %w", m, t, sentinel.ErrProtocol)
	}
	if err := checkSeq(t, seq); err != nil {
		return err
	}
	return m.check()
}

func checkSeq(t Type, seq uint32) error {
	switch want := kinds[t].seq; {
	case want == alone && seq != 0:
		return protocol(t, "seq %d where none belongs", seq)
	case want == inBatch && seq == 0:
		return protocol(t, "seq 0 of a batch")
	}
	return nil
}

func putHeader(b []byte, t Type, seq uint32, n int) {
	binary.BigEndian.PutUint32(b, uint32(n))
	b[4], b[5], b[6], b[7] = byte(t), 0, 0, 0
	binary.BigEndian.PutUint32(b[8:], seq)
}

// DecodeHeader reads the first HeaderSize bytes of a frame: its type, seq and the length of the payload, which is within
// the limits of the type.
func DecodeHeader(b []byte) (t Type, seq uint32, n int, err error) {
	if len(b) < HeaderSize {
		return 0, 0, 0, fmt.Errorf("header of %d bytes: %w", len(b), sentinel.ErrProtocol)
	}
	size := binary.BigEndian.Uint32(b)
	t, seq = Type(b[4]), binary.BigEndian.Uint32(b[8:])
	switch {
	case !t.Known():
		err = fmt.Errorf("frame of unknown type %d (a newer peer has to offer version %d): %w", b[4], Version, sentinel.ErrProtocol)
	case size > MaxPayload:
		err = protocol(t, "payload of %d bytes, limit %d", size, MaxPayload)
	case b[5]|b[6]|b[7] != 0:
		err = protocol(t, "flags or reserved bits %02x%02x%02x, not 0", b[5], b[6], b[7])
	case int(size) < kinds[t].least || int(size) > kinds[t].most:
		err = protocol(t, "payload of %d bytes, limits %d and %d", size, kinds[t].least, kinds[t].most)
	default:
		err = checkSeq(t, seq)
	}
	return t, seq, int(size), err
}

// DecodeFrame reads one frame from the front of b and returns what is behind it. The payload aliases b.
func DecodeFrame(b []byte) (f Frame, rest []byte, err error) {
	t, seq, n, err := DecodeHeader(b)
	if err != nil {
		return Frame{}, b, err
	}
	if b = b[HeaderSize:]; len(b) < n {
		return Frame{}, b, protocol(t, "%d of %d bytes of payload", len(b), n)
	}
	return Frame{t, seq, b[:n:n]}, b[n:], nil
}
