// Package blockdev has the contracts of block devices: what is read, what is written, what tracks changes, what stops writers.
// The packages below it implement them; blockdev/devtest is their conformance suite.
package blockdev

import (
	"context"
	"fmt"
	"time"

	"github.com/moverd/mover/extent"
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

// Tracker knows what changed on a volume. Implementations: blockdev/cbt, and mover.Scan, which knows nothing.
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
	// Thaw is idempotent. A filesystem that the deadline thawed before is reported as an error.
	Thaw() error
	// Keep lets the freeze outlive the deadline and this process.
	Keep() error
	// Names lists what would be frozen, for people.
	Names() []string
}
