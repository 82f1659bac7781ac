// Package fsmap tells which bytes of a volume a filesystem does not use, so that a full pass skips them.
//
// # Why free space of a mounted filesystem may be skipped
//
// Free asks the mounted filesystem (GETFSMAP), not its blocks on disk, which may lag behind the journal. The caller has changes tracked
// from before the call, and treats every write since as dirty (C1). A block that is called free falls in one of these cases:
//
//   - It stays free. Nobody reads it; at the target it is zeroed.
//   - It is allocated later, or was already picked for delayed allocation (dirty in the page cache, no block yet, hence free). What is
//     written there is tracked and sent. What is allocated and never written (unwritten extents, preallocation) reads as zeros
//     by the filesystem's own account, whatever the block holds; new metadata blocks are always written whole.
//   - It was freed just before, and the transaction that frees it is still in memory: on disk, the block is in use. A crash, or an aborted journal,
//     would bring it back. So Free syncs the filesystem after asking, and only then are its answers good: every free that they rest on
//     is committed, and no later crash undoes it. Replaying the journal does not need freed blocks either: ext4 revokes them, XFS cancels
//     them.
//
// Anything that is not called free is in use: journal and log, superblock copies, reserved and resize blocks, inode tables that
// ext4 has not zeroed yet (lazy initialisation; the zeroing later on is tracked as any write), swap files, copy-on-write staging, and whatever
// the filesystem does not report at all, such as the end of the device behind it. An error means that everything is in use, also what
// was called free before the error.
//
// Unmounted reads the blocks of what is not mounted, and answers only where these prove that the filesystem was left clean.
package fsmap

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

// fsmap and head are struct fsmap and struct fsmap_head of linux/fsmap.h.
type fsmap struct {
	device, flags                   uint32
	physical, owner, offset, length uint64
	_                               [3]uint64
}

const batch = 2048 // records asked for at once: 128 KiB

type head struct {
	iflags, oflags, count, entries uint32
	_                              [6]uint64
	low, high                      fsmap
	recs                           [batch]fsmap
}

const (
	getfsmap     = 0xc0c0583b // FS_IOC_GETFSMAP: _IOWR('X', 59, struct fsmap_head)
	devIsDevT    = 0x1        // FMH_OF_DEV_T
	specialOwner = 0x10       // FMR_OF_SPECIAL_OWNER
	lastRecord   = 0x20       // FMR_OF_LAST
	ownerFree    = 1          // FMR_OWN_FREE
)

// Free calls free with every extent that the filesystem mounted on dir does not use: bytes on the filesystem's (data) device, ascending,
// not touching each other, of any alignment to granules. It returns "ext4" or "xfs". Memory does not grow with the filesystem.
//
// The extents are good only when the error is nil; see the package's text. ErrNotSupported: everything is in use.
func Free(dir string, free func(extent.Extent) error) (kind string, err error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return "", fmt.Errorf("ask for free space: %w", err)
	}
	defer f.Close()
	var vfs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &vfs), unix.Fstat(int(f.Fd()), &st)); err != nil {
		return "", fmt.Errorf("ask %s for free space: %w", dir, err)
	}
	switch {
	case vfs.Flags&unix.ST_RDONLY != 0:
		// An error may have made it so; then what was freed last is not committed, and the sync below does not tell.
		return "", fmt.Errorf("free space of %s: it is read-only: %w", dir, sentinel.ErrNotSupported)
	case vfs.Type == unix.EXT4_SUPER_MAGIC && vfs.Bsize == 1024:
		// Kernels before 6.6 are off by one block there; such filesystems are small.
		return "", fmt.Errorf("free space of %s: ext4 with blocks of 1 KiB: %w", dir, sentinel.ErrNotSupported)
	case vfs.Type == unix.EXT4_SUPER_MAGIC:
		kind = "ext4"
	case vfs.Type == unix.XFS_SUPER_MAGIC:
		kind = "xfs"
	default:
		return "", fmt.Errorf("free space of %s: filesystem of type %#x: %w", dir, vfs.Type, sentinel.ErrNotSupported)
	}
	m := merger{out: free}
	if err := ask(int(f.Fd()), uint32(st.Dev), &m); err != nil {
		return kind, fmt.Errorf("free space of %s: %w", dir, err)
	}
	if err := m.flush(); err != nil {
		return kind, err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return kind, fmt.Errorf("free space of %s: commit what was freed: %w", dir, err)
	}
	return kind, nil
}

// ask reads the whole map of device dev, in order.
func ask(fd int, dev uint32, m *merger) error {
	h := &head{count: batch}
	h.high = fsmap{device: ^uint32(0), flags: ^uint32(0), physical: ^uint64(0), owner: ^uint64(0), offset: ^uint64(0)}
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getfsmap, uintptr(unsafe.Pointer(h)))
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.ENOTTY || e == unix.EOPNOTSUPP || e == unix.EINVAL:
			return fmt.Errorf("GETFSMAP: %w: %w", e, sentinel.ErrNotSupported)
		case e != 0:
			return fmt.Errorf("GETFSMAP: %w", e)
		}
		if h.entries == 0 {
			return nil
		}
		if h.oflags&devIsDevT == 0 {
			return fmt.Errorf("GETFSMAP does not name devices: %w", sentinel.ErrNotSupported)
		}
		for i := range h.recs[:h.entries] {
			r := &h.recs[i]
			if r.device != dev || r.flags&specialOwner == 0 || r.owner != ownerFree {
				continue
			}
			if err := m.add(extent.Extent{Off: int64(r.physical), Len: int64(r.length)}); err != nil {
				return err
			}
		}
		last := h.recs[h.entries-1]
		if last.flags&lastRecord != 0 {
			return nil
		}
		h.low = last
	}
}

// merger joins extents that touch and hands the rest on.
type merger struct {
	out  func(extent.Extent) error
	held extent.Extent
}

func (m *merger) add(e extent.Extent) error {
	switch {
	case e.Empty():
		return nil
	case e.Off < 0 || e.Off < m.held.End():
		return fmt.Errorf("free extent %v follows %v: %w", e, m.held, sentinel.ErrCorrupt)
	case !m.held.Empty() && e.Off == m.held.End():
		m.held.Len += e.Len
		return nil
	}
	if err := m.flush(); err != nil {
		return err
	}
	m.held = e
	return nil
}

// flush hands on what is held; its end stays known.
func (m *merger) flush() error {
	if m.held.Empty() {
		return nil
	}
	e := m.held
	m.held = extent.Extent{Off: e.End()}
	return m.out(e)
}
