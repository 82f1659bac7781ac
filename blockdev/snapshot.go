package blockdev

import "context"

// Snapshotter makes a frozen view of one volume that outlives the freeze, so that the writers need not wait until it is read. One view at a
// time. Calls come from one goroutine; what Volume gives is safe for concurrent use.
//
//	Prepare, freeze, Take, Snap, thaw, read Volume, Volume's Check, Drop
type Snapshotter interface {
	// Prepare does all that is slow, while the writers go on. ErrNotSupported: this volume cannot have a view; ErrRefused: not now, such as no
	// room. Either way the volume is as it was, and reading has to end before the thaw.
	Prepare(ctx context.Context) error
	// Snap makes the view within the freeze, in milliseconds: it holds what the volume holds at that instant. Needs Prepare.
	Snap(ctx context.Context) error
	// Volume gives the view, of the same size and identity as the volume. A view that no longer holds that instant (its store overflowed,
	// somebody remapped the volume) fails reads or Check with ErrRefused: only a nil from Check after the last read proves that all reads were
	// of that instant (C13). Drop closes it.
	Volume() (Volume, error)
	// Drop removes the view and all that Prepare made. It is idempotent, needs no Prepare, also removes what a killed process left of this
	// volume's flow, and belongs after the thaw: removing may wait for the filesystem that it runs from. Call it with a context of its own.
	Drop(ctx context.Context) error
}
