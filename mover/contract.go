// Package mover is the pure core: what both ends agree on, and the decisions. It does no I/O, reads no clock, starts no goroutine.
package mover

import (
	"fmt"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// ID names a link, a pass or a generation.
type ID = blockdev.ID

// Counts is what a pass moved. Both ends count; they must agree at the commit.
type Counts struct {
	Offered    uint64 // leaves offered
	Same       uint64 // leaves that the target had at that place
	Copied     uint64 // leaves found on another place of the tenant, as a whole or by all of their pages
	Sent       uint64 // leaves sent, or of which a page was sent
	Put        uint64 // bytes of parts of leaves
	Zero       uint64 // bytes put as zeros
	Free       uint64 // bytes put as free
	Unreadable uint64 // bytes that could not be read at the source
}

// Add adds o to c.
func (c *Counts) Add(o Counts) {
	c.Offered += o.Offered
	c.Same += o.Same
	c.Copied += o.Copied
	c.Sent += o.Sent
	c.Put += o.Put
	c.Zero += o.Zero
	c.Free += o.Free
	c.Unreadable += o.Unreadable
}

// PassKind is what a pass covers.
type PassKind uint8

const (
	Full   PassKind = 1 // everything in use, at a target whose content is unknown
	Delta  PassKind = 2 // what the tracker took
	Rescan PassKind = 3 // everything in use, compared by group digests first
)

func (k PassKind) String() string { return enum([]string{"", "full", "delta", "rescan"}, int(k)) }

// Consistency names what a recovery point is worth.
type Consistency uint8

const (
	Fuzzy Consistency = 1 // no single moment; never offered for launch
	Crash Consistency = 2 // as after a power cut: filesystems were frozen or writers stopped
	App   Consistency = 3 // crash, and the applications' hooks had prepared for it
)

func (c Consistency) String() string { return enum([]string{"none", "fuzzy", "crash", "app"}, int(c)) }

// Mode is how a pass reaches the target.
type Mode uint8

const (
	Staged Mode = 1 // through the redo log: the target stays at its point until the commit
	Direct Mode = 2 // written at once: incomplete until the commit
)

func (m Mode) String() string { return enum([]string{"", "staged", "direct"}, int(m)) }

// Phase is where a target stands.
type Phase uint8

const (
	Fresh      Phase = 1 // claimed, nothing committed, content unknown
	Incomplete Phase = 2 // a direct pass has begun and not committed
	Point      Phase = 3 // at a recovery point
	Released   Phase = 4 // handed over after a cutover; the gateway no longer holds it
)

func (p Phase) String() string {
	return enum([]string{"", "fresh", "incomplete", "point", "released"}, int(p))
}

func enum(names []string, i int) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("unknown(%d)", i)
	}
	return names[i]
}

// FlowState is what the gateway knows about a flow and tells the source.
type FlowState struct {
	Phase      Phase
	Generation ID
	Epoch      uint64 // last committed epoch in Generation
	VolumeSize int64  // bytes; 0: never opened
	TargetSize int64
	Pass       ID // the open pass, or zero
	Mode       Mode
	Known      uint64 // leaves whose digest the gateway's table has
	Identity   string // of the source volume, as recorded at the first OPEN
}

// Root is a Merkle root and what it stands for.
type Root struct {
	Digest   digest.Digest
	Leaves   uint64 // leaves of the volume
	Free     uint64 // of these, marked free and not compared
	ReadBack uint64 // leaves read for this answer
}

// OpError says what was done to which volume when err came.
type OpError struct {
	Op     string // "read", "write", "commit", ...
	Flow   string
	Extent extent.Extent // may be empty
	Err    error
}

func (e *OpError) Error() string {
	if e.Extent.Empty() {
		return fmt.Sprintf("%s: %s: %v", e.Flow, e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %s bytes %v: %v", e.Flow, e.Op, e.Extent, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }
