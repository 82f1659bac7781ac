package freeze

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What daemon and guardian say to each other, one message a packet: op u8, why u8, index of the filesystem u16, errno u32, value i64,
// all big endian, then text. The first packet to the guardian is a JSON order instead.
const (
	opFreeze = 'G' // to the guardian: freeze all; value is the deadline, CLOCK_MONOTONIC ns
	opThaw   = 'T' // thaw all
	opKeep   = 'K' // leave all frozen and go
	opVerify = 'V' // is everything still frozen?

	opReady    = 'r' // from the guardian: set up, filesystems flushed, nothing frozen; text tells what could not be had
	opFreezing = 'f' // index is about to be frozen
	opFrozen   = 'F' // index is frozen
	opFailed   = 'E' // index could not be frozen, errno; what had been is being thawed
	opAll      = 'A' // all are frozen
	opVoid     = 'D' // thawing begins because of why
	opThawed   = 't' // index: errno of its thaw
	opDone     = 'Z' // nothing is frozen any more that could be thawed
	opVerified = 'v' // errno 0: all are still frozen
	opKept     = 'k' // the guardian is gone after this
)

// Why the guardian thaws.
const (
	whyTold = iota
	whyDeadline
	whyGone // the daemon's end was closed
	whyFailed
)

const headerSize = 16

type message struct {
	op, why byte
	index   int
	errno   unix.Errno
	value   int64
	text    string
}

func (m message) append(b []byte) []byte {
	b = append(b, m.op, m.why)
	b = binary.BigEndian.AppendUint16(b, uint16(m.index))
	b = binary.BigEndian.AppendUint32(b, uint32(m.errno))
	b = binary.BigEndian.AppendUint64(b, uint64(m.value))
	return append(b, m.text...)
}

func decode(b []byte) (message, error) {
	if len(b) < headerSize {
		return message{}, fmt.Errorf("guardian message of %d bytes", len(b))
	}
	return message{
		op: b[0], why: b[1],
		index: int(binary.BigEndian.Uint16(b[2:])),
		errno: unix.Errno(binary.BigEndian.Uint32(b[4:])),
		value: int64(binary.BigEndian.Uint64(b[8:])),
		text:  string(b[headerSize:]),
	}, nil
}

// order is the first packet to the guardian. Descriptor 3 is its socket, the filesystems are 4 and up.
type order struct {
	Record string   `json:"record"`
	How    []string `json:"how"`
	Dry    bool     `json:"dry,omitempty"` // do not flush first
}

// errnoOf takes the errno out of err; what has none becomes EIO.
func errnoOf(err error) unix.Errno {
	var e unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return unix.EIO
}

// monotonic is the clock that both processes share, in ns.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // the kernel always has this clock
	}
	return t.Nano()
}
