// Package disk opens the volumes that are read and the targets that are written, says who they are, and maps a device to the leaf
// disks below it. Whole disks, partitions, loop devices, LVM, dm-crypt and md devices, and image files.
//
// Reads and writes bypass the page cache: the cache of a block device is not coherent with a filesystem that is mounted on it, and
// what was written has to be read back from the medium (C11).
package disk

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

const (
	sector  = 512
	memUnit = 4096 // alignment of memory, enough for O_DIRECT on any disk
)

// Kinds of volumes and targets.
const (
	Disk      = "disk"
	Partition = "partition"
	LVM       = "lvm"
	Crypt     = "crypt"
	DM        = "dm" // device mapper, made by neither LVM nor cryptsetup
	MD        = "md"
	Loop      = "loop"
	File      = "file"
)

// IOError says which bytes of what could not be read or written. The cause stays reachable: EIO is a bad place on a medium, ENXIO and
// ENODEV a device that is gone, ENOSPC a full filesystem under an image file.
type IOError struct {
	Op     string // "read", "write", "zero", "sync"
	Path   string
	Extent extent.Extent // empty for "sync"
	Err    error
}

func (e *IOError) Error() string {
	s := fmt.Sprintf("%s bytes %v of %s: %v", e.Op, e.Extent, e.Path, e.Err)
	if e.Extent.Empty() {
		s = fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Err)
	}
	switch {
	case errors.Is(e.Err, unix.ENXIO), errors.Is(e.Err, unix.ENODEV):
		s += "; the device is gone"
	case errors.Is(e.Err, unix.ENOSPC), errors.Is(e.Err, unix.EDQUOT):
		s += "; give the filesystem that holds it more space"
	case errors.Is(e.Err, unix.EROFS), errors.Is(e.Err, unix.EPERM):
		s += "; it has become read-only"
	}
	return s
}

func (e *IOError) Unwrap() error { return e.Err }

// typeName names what mode stands for, for people.
func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a folder"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "neither a block device nor a file"
}
