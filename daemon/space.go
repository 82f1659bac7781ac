package daemon

import (
	"context"
	"errors"
	"log/slog"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/fsmap"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// space asks the filesystems of a volume which of its bytes are free. It is asked after the Take of a pass, so that what is written since is
// tracked (fsmap's text says why that is enough).
type space struct {
	v   *disk.Volume
	log *slog.Logger
}

// free returns leaves that lie wholly in free space. nil: everything is in use.
func (s space) free(ctx context.Context) (*extent.Set, error) {
	m := s.v.Map()
	if m == nil {
		return nil, s.v.Unmapped()
	}
	mounts, err := disk.Mounts(m)
	if err != nil {
		return nil, err
	}
	out := extent.NewSet(s.v.Size(), chunker.LeafSize)
	for _, fs := range mounts {
		if fs.Dir == "" || fs.Map == nil {
			continue // not reachable, or spread over several devices: all in use
		}
		found := extent.NewSet(s.v.Size(), chunker.LeafSize)
		kind, err := fsmap.Free(fs.Dir, func(e extent.Extent) error { return add(ctx, found, fs.Map, m, e) })
		if errors.Is(err, sentinel.ErrNotSupported) {
			s.log.Info("free space is not known; all of the filesystem is moved", "filesystem", fs.Dir, "why", err)
			continue
		} else if err != nil {
			return nil, err
		}
		s.log.Debug("free space", "filesystem", fs.Dir, "type", kind, "bytes", found.Bytes())
		out.Union(found)
	}
	return out, nil
}

// add puts the leaves of the volume that lie wholly in e into out; e is in bytes of a filesystem's device, from is that device on the leaf
// disks and to the volume on them.
func add(ctx context.Context, out *extent.Set, from, to extent.Map, e extent.Extent) error {
	for _, s := range from.Down(e) {
		for _, x := range to.Up(s.Dev, extent.Extent{Off: s.DevOff, Len: s.Len}) {
			if in := inside(x, out.Size()); !in.Empty() {
				out.Add(in)
			}
		}
	}
	return ctx.Err()
}

// inside shrinks x to whole leaves; the last leaf of a volume may be shorter.
func inside(x extent.Extent, size int64) extent.Extent {
	off := (x.Off + chunker.LeafSize - 1) / chunker.LeafSize * chunker.LeafSize
	end := x.End() / chunker.LeafSize * chunker.LeafSize
	if x.End() >= size {
		end = size
	}
	return extent.Extent{Off: off, Len: max(0, end-off)}
}
