package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

// Message is the payload of a frame.
type Message interface {
	// Append appends the payload to b. What a message may hold is checked by Conn.Write and by Decode, not here.
	Append(b []byte) []byte
	// Decode reads the whole of b or reports ErrProtocol. Slices of the message are used again; the payloads of
	// Data and Put alias b, everything else is copied.
	Decode(b []byte) error
	// check tells what the limits of the protocol do not allow.
	check() error
}

// bulk is a message that ends in many bytes, which are written from where they are.
type bulk interface {
	Message
	appendHead(b []byte) []byte
	body() []byte
}

// scan reads a payload from its front. After a short read everything is zero and bad is set.
type scan struct {
	b   []byte
	bad bool
}

func (s *scan) take(n int) []byte {
	if n > len(s.b) {
		s.b, s.bad = nil, true
		return nil
	}
	p := s.b[:n]
	s.b = s.b[n:]
	return p
}

func (s *scan) u8() uint8 {
	if p := s.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (s *scan) u16() uint16 {
	if p := s.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (s *scan) u32() uint32 {
	if p := s.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (s *scan) u64() uint64 {
	if p := s.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (s *scan) id() (id [16]byte) {
	copy(id[:], s.take(16))
	return id
}

func (s *scan) digest() (d digest.Digest) {
	copy(d[:], s.take(digest.Size))
	return d
}

func (s *scan) digests(to []digest.Digest, n int) []digest.Digest {
	p := s.take(n * digest.Size)
	to = to[:0]
	for ; len(p) > 0; p = p[digest.Size:] {
		to = append(to, digest.Digest(p[:digest.Size]))
	}
	return to
}

func (s *scan) ranges(to []Range, n int) []Range {
	p := s.take(n * rangeSize)
	to = to[:0]
	for ; len(p) > 0; p = p[rangeSize:] {
		to = append(to, Range{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])})
	}
	return to
}

func (s *scan) str() string { return string(s.take(int(s.u16()))) }

// end checks the shape of a payload of type t, then what m holds.
func (s *scan) end(t Type, m Message) error {
	switch {
	case s.bad:
		return protocol(t, "payload is too short")
	case len(s.b) > 0:
		return protocol(t, "%d bytes behind the end of the payload", len(s.b))
	}
	return m.check()
}

func protocol(t Type, format string, args ...any) error {
	return fmt.Errorf("%v: %s: %w", t, fmt.Sprintf(format, args...), sentinel.ErrProtocol)
}

func u16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func str(b []byte, s string) []byte { return append(u16(b, uint16(len(s))), s...) }

// text appends words for people: what does not fit or is not UTF-8 must not cost the connection that wants to tell why.
func text(b []byte, s string) []byte { return str(b, trim(s)) }

func trim(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= MaxText {
		return s
	}
	n := MaxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func digests(b []byte, ds []digest.Digest) []byte {
	for i := range ds {
		b = append(b, ds[i][:]...)
	}
	return b
}

func ranges(b []byte, rs []Range) []byte {
	for _, r := range rs {
		b = u32(u32(b, r.First), r.Last)
	}
	return b
}

// checkString checks a string of at most most bytes.
func checkString(t Type, name, s string, most int) error {
	switch {
	case len(s) > most:
		return protocol(t, "%s has %d bytes, limit %d", name, len(s), most)
	case !utf8.ValidString(s):
		return protocol(t, "%s is not UTF-8", name)
	}
	return nil
}

// checkEnum checks that v is in [least, most].
func checkEnum(t Type, name string, v, least, most uint8) error {
	if v < least || v > most {
		return protocol(t, "%s %d", name, v)
	}
	return nil
}

func checkCount(t Type, name string, n, least, most int) error {
	if n < least || n > most {
		return protocol(t, "%d %s, limits %d and %d", n, name, least, most)
	}
	return nil
}

func checkSize(t Type, name string, v uint64) error {
	if v > MaxSize {
		return protocol(t, "%s %d is beyond every volume", name, v)
	}
	return nil
}

// checkKnown refuses the digest that stands for "has to be read first".
func checkKnown(t Type, ds []digest.Digest) error {
	for i := range ds {
		if ds[i] == digest.Unknown {
			return protocol(t, "digest %d of %d is unknown", i, len(ds))
		}
	}
	return nil
}
