// Package mover is the pure core: what both ends agree on, and the decisions. It does no I/O, reads no clock, starts no goroutine.
package mover

import (
	"context"
	"fmt"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// LeafSize is the bytes that have one digest; the last leaf of a volume may be shorter.
const LeafSize = 16 << 10

// GroupLeaves is the leaves in a group; GroupSize the bytes, which is also the largest batch.
const (
	GroupLeaves = 256
	GroupSize   = GroupLeaves * LeafSize
)

// ID is a random identifier: of a link, a pass or a generation. Zero means none.
type ID [16]byte

func (id ID) String() string { return fmt.Sprintf("%x", id[:4]) }

// IsZero tells whether the id stands for none.
func (id ID) IsZero() bool { return id == ID{} }

// Volume is what is read. Offsets, lengths and the memory of p are multiples of BlockSize, but for the end of an odd-sized volume.
// Reads bypass the page cache. Safe for concurrent use.
type Volume interface {
	ReadAt(p []byte, off int64) (int, error)
	Size() int64      // bytes
	BlockSize() int   // bytes: 512 or 4096
	Identity() string // stable across reboots and renames (WWID, serial, UUID), with the size
	// Check reports a volume that is no longer what was opened: resized, gone, another device (ErrTrackLost, ErrRefused).
	Check() error
	Close() error
}

// Target is what is written; claimed, checked and held exclusively while open (C12). Safe for concurrent use on disjoint extents.
// Offsets and lengths are multiples of 512; alignment to the device is the target's business.
type Target interface {
	WriteAt(p []byte, off int64) (int, error)
	// ReadAt reads what the device holds, past the page cache.
	ReadAt(p []byte, off int64) (int, error)
	// Zero makes e read as zeros, giving space back where that is possible.
	Zero(e extent.Extent) error
	// Sync returns when everything written before is durable (C3).
	Sync() error
	Size() int64 // bytes; may exceed the volume's
	Identity() string
	Close() error
}

// History is where a tracker stands. It survives the process and dies with the kernel.
type History struct {
	Generation ID
	Taken      uint64 // epoch of the last Take, 0 before the first
	Retired    uint64 // last epoch that was retired
}

// Proof is the verdict of a tracker's witness.
type Proof int

const (
	Unproven Proof = iota // no quiet moment was met
	Proven                // the kernel's account and the tracker's agree to the byte
)

// Tracker knows what changed on a volume. Implementations: blockdev/cbt, and Scan, which knows nothing.
type Tracker interface {
	// Method names how changes are found: "ebpf" or "scan"; Detail says why or which variant.
	Method() (name, detail string)
	History() History
	// Take begins an epoch and returns everything dirty or taken (C1, C9): the set may over-report. ErrTrackLost: rescan (C2).
	Take(ctx context.Context) (epoch uint64, dirty *extent.Set, err error)
	// Retire forgets what was taken up to epoch, after its commit was acknowledged (C4).
	Retire(epoch uint64) error
	// Pending is dirty plus taken, in bytes.
	Pending() int64
	// Prove compares the tracker's account with the kernel's; it waits for a quiet moment until ctx ends. A mismatch is ErrTrackLost.
	Prove(ctx context.Context) (Proof, error)
	// Restart begins a new generation with empty bitmaps; tracking itself never pauses. A Take and a rescan have to follow.
	Restart() error
	// Close leaves tracking in the kernel running and pinned; Remove ends it.
	Close() error
	Remove() error
}

// Freezer stops the writers of a volume for a bounded time.
type Freezer interface {
	// Freeze returns when nothing on the volume's filesystems is being written. Whatever happens, they are thawed at the deadline
	// or when this process dies, unless Keep was called.
	Freeze(ctx context.Context, deadline time.Duration) error
	// Thaw is idempotent. ErrRefused-free: a filesystem that the deadline thawed before is reported as an error.
	Thaw() error
	// Keep lets the freeze outlive the deadline and this process.
	Keep() error
	// Names lists what would be frozen, for people.
	Names() []string
}

// Counts is what a pass moved. Both ends count; they must agree at the commit.
type Counts struct {
	Offered    uint64 // leaves offered
	Same       uint64 // leaves that the target had at that place
	Copied     uint64 // leaves found on another place of the tenant
	Sent       uint64 // leaves sent
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
)

func (c Consistency) String() string { return enum([]string{"none", "fuzzy", "crash"}, int(c)) }

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
