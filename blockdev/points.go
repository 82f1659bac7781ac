package blockdev

import (
	"context"
	"io"
	"time"
)

// Snapshot is a kept state of a target, as the store that keeps it knows it.
type Snapshot struct {
	Name string
	Time time.Time // when it was made
}

// Points keeps states of one target for one owner. Of what others made, nothing is listed, opened or removed. Safe for concurrent use.
type Points interface {
	// Method names how states are kept, such as "reflink".
	Method() string
	// Take keeps the target as it is now, durably, under a name that is new: letters, digits, '-'. When it returns an error, also that of
	// ctx, nothing is kept under that name, or will be removed as soon as what is under way ends. No room: ErrRefused.
	Take(ctx context.Context, name string) error
	// List tells what is kept, the oldest first; remains of what was cut off included.
	List(ctx context.Context) ([]Snapshot, error)
	// Open gives a state for reading only. ErrNotFound: there is none of that name.
	Open(ctx context.Context, name string) (Kept, error)
	// Remove gives the space back; a name that is not there is no error.
	Remove(ctx context.Context, name string) error
	// Holds tells whether path is where a state is kept, so that nothing is ever written there.
	Holds(path string) bool
}

// Kept is an open state: it never changes.
type Kept interface {
	io.ReaderAt
	Size() int64  // bytes; that of the target
	Path() string // file or device, good until Close
	Close() error
}
