package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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
	s.unmounted(ctx, out)
	return out, ctx.Err()
}

// unmounted adds what active swap and cleanly unmounted filesystems leave free, on the volume or its partitions. What it cannot read is in
// use, and no error: a full pass then moves more than it must.
func (s space) unmounted(ctx context.Context, out *extent.Set) {
	parts := partitions(s.v.Device())
	if len(parts) == 0 {
		parts = []string{s.v.Path()} // what an older filesystem left before a disk was partitioned is not asked
	}
	for _, path := range parts {
		if err := s.idle(path); err != nil {
			s.log.Debug("free space is not known", "unmounted", path, "why", err)
			continue
		}
		v, err := disk.OpenVolume(path)
		if err != nil {
			continue
		}
		if m := v.Map(); m != nil {
			found := extent.NewSet(s.v.Size(), chunker.LeafSize)
			kind, err := fsmap.Unmounted(v, v.Size(), func(e extent.Extent) error { return add(ctx, found, m, s.v.Map(), e) })
			s.log.Debug("free space", "unmounted", path, "type", kind, "bytes", found.Bytes(), "error", err)
			if err == nil {
				out.Union(found)
			}
		}
		v.Close()
	}
}

// idle tells whether the only thing on a device is one filesystem that nobody uses, or swap that is active. A filesystem that somebody
// has overwritten with something else may still look clean; who does that has the device open, or left a signature too.
func (s space) idle(path string) error {
	found, err := disk.Inspect(path)
	if err != nil {
		return err
	}
	if len(found.Signatures) != 1 {
		return fmt.Errorf("it has signatures of %d kinds", len(found.Signatures))
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if found.Signatures[0].Type == "swap" {
		m, err := disk.Resolve(st.Rdev)
		if err != nil {
			return err
		}
		active, err := disk.Swaps(m)
		if err == nil && !slices.ContainsFunc(active, func(a disk.Swap) bool { return a.Dev == st.Rdev && !a.File }) {
			err = errors.New("it is not active as swap")
		}
		return err
	}
	if len(found.Users) > 0 {
		return fmt.Errorf("it is in use: %v", found.Users)
	}
	return opened(st.Rdev)
}

// opened is an error when another process has the block device open.
func opened(dev uint64) error {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	own := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, fd := range fds {
		var st unix.Stat_t
		if !strings.HasPrefix(fd, own) && unix.Stat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev {
			return fmt.Errorf("process %s has it open", strings.Split(fd, "/")[2])
		}
	}
	return nil
}

// sysfs is the folder of a block device.
func sysfs(dev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
}

// partitions lists the device nodes of a disk's partitions.
func partitions(dev uint64) (nodes []string) {
	found, _ := filepath.Glob(sysfs(dev) + "/*/partition")
	for _, p := range found {
		nodes = append(nodes, "/dev/"+filepath.Base(filepath.Dir(p)))
	}
	return nodes
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
