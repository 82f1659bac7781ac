package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// handle is an open block device or image file and what it was when it was opened. All I/O is on whole units of align bytes in
// aligned memory when direct; volumes and targets are built on it.
type handle struct {
	path   string // as the operator names it
	f      *os.File
	direct bool   // O_DIRECT
	align  int64  // unit of O_DIRECT I/O in bytes: the logical block of a device
	size   int64  // bytes that can be addressed
	raw    int64  // bytes as the kernel tells them
	dev    uint64 // device number; 0 for files
	seq    uint64 // diskseq of the device (of its whole disk), 0 where the kernel has none
	ino    [2]uint64
	kind   string
	id     string // without the size
}

// open opens what path names, symlinks followed. flags are os.O_RDONLY or os.O_RDWR, plus O_EXCL for devices when exclusive.
func open(path string, flags int, exclusive bool) (*handle, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, missing(path, err)
	}
	m := st.Mode()
	device := m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
	if !device && !m.IsRegular() {
		return nil, fmt.Errorf("open %s: it is %s, not a block device or an image file: %w", path, typeName(m), sentinel.ErrRefused)
	}
	if device && exclusive {
		flags |= unix.O_EXCL
	}
	h := &handle{path: path, direct: true}
	h.f, err = os.OpenFile(path, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) && !device {
		h.direct = false
		h.f, err = os.OpenFile(path, flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := h.describe(device); err != nil {
		h.f.Close()
		return nil, err
	}
	return h, nil
}

// missing is what to say of a path that cannot be looked at.
func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist: %w", path, sentinel.ErrNotFound)
	}
	return err
}

// describe fills in everything that the open file tells.
func (h *handle) describe(device bool) error {
	var st unix.Stat_t
	err := unix.Fstat(int(h.f.Fd()), &st)
	if err != nil {
		return err
	}
	h.ino = [2]uint64{st.Dev, st.Ino}
	if !device {
		h.kind, h.raw, h.size = File, st.Size, st.Size
		h.fileAlign()
		h.id, err = live.fileIdentity(h.f)
		return err
	}
	h.dev = st.Rdev
	h.kind = live.kind(h.dev)
	block, err := unix.IoctlGetInt(int(h.f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("ask %s for its block size: %w", h.path, err)
	}
	h.align = int64(block)
	if h.raw, err = deviceSize(h.f); err != nil {
		return fmt.Errorf("ask %s for its size: %w", h.path, err)
	}
	// A loop device with 4096-byte blocks may end in the middle of one; the kernel lets nobody read or write that rest.
	h.size = h.raw / h.align * h.align
	if h.size == 0 {
		return fmt.Errorf("%s has no medium (its size is 0): %w", h.path, sentinel.ErrNotFound)
	}
	h.seq = live.diskSeq(h.dev)
	h.id, err = live.identity(h.dev)
	return err
}

// fileAlign asks in which units the filesystem does direct I/O on this file. Some open it with O_DIRECT and go through the page cache
// all the same; they say so from Linux 6.1 on.
func (h *handle) fileAlign() {
	h.align = memUnit
	var x unix.Statx_t
	err := unix.Statx(int(h.f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &x)
	if err != nil || x.Mask&unix.STATX_DIOALIGN == 0 {
		return
	}
	if x.Dio_offset_align == 0 || x.Dio_mem_align > memUnit {
		h.direct = false
	}
	h.align = max(memUnit, int64(x.Dio_offset_align))
}

// deviceSize asks a block device for its bytes.
func deviceSize(f *os.File) (int64, error) {
	var n uint64
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, e
	}
	return int64(n), nil
}

// diskSeq is the kernel's count of media: another one under the same number is another disk. 0 before Linux 5.15.
func (s *system) diskSeq(dev uint64) uint64 {
	dir, err := s.dir(dev)
	if err != nil {
		return 0
	}
	if exists(dir, "partition") {
		dir = filepath.Dir(dir)
	}
	n, _ := number(dir, "diskseq")
	return uint64(n)
}

// check compares what path names now with what was opened.
func (h *handle) check() error {
	st, err := os.Stat(h.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is gone: unplugged or removed since it was opened: %w", h.path, sentinel.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if h.dev == 0 {
		return h.checkFile(st)
	}
	now := stat(st)
	if !isDevice(st) {
		return fmt.Errorf("%s is no block device any more: %w", h.path, sentinel.ErrRefused)
	}
	id, err := live.identity(now.Rdev)
	if err != nil {
		return fmt.Errorf("%s is gone: %w", h.path, err)
	}
	if id != h.id {
		return fmt.Errorf("%s is another device now: it was %s, it is %s: %w", h.path, h.id, id, sentinel.ErrRefused)
	}
	if now.Rdev != h.dev || live.diskSeq(h.dev) != h.seq {
		return fmt.Errorf("%s went away and came back since it was opened; open it again: %w", h.path, sentinel.ErrTrackLost)
	}
	size, err := deviceSize(h.f)
	if err != nil {
		return &IOError{Op: "check", Path: h.path, Err: h.blame(err)}
	}
	return h.resized(size)
}

func (h *handle) checkFile(st os.FileInfo) error {
	now := stat(st)
	if now.Dev != h.ino[0] || now.Ino != h.ino[1] {
		return fmt.Errorf("%s is another file now (inode %d, was %d): %w", h.path, now.Ino, h.ino[1], sentinel.ErrRefused)
	}
	return h.resized(now.Size)
}

func (h *handle) resized(size int64) error {
	if size == 0 && h.dev != 0 {
		return fmt.Errorf("%s has lost its medium: %w", h.path, sentinel.ErrNotFound)
	}
	if size != h.raw {
		return fmt.Errorf("%s was resized from %d to %d bytes: %w", h.path, h.raw, size, sentinel.ErrTrackLost)
	}
	return nil
}

// blame finds out whether err came because the device is gone: a device without its disk has size 0, so that reads meet its end, and
// writes meet a device that is full.
func (h *handle) blame(err error) error {
	err = cause(err)
	if h.dev == 0 || errors.Is(err, os.ErrClosed) {
		return err
	}
	var size int64
	e := control(h.f, func(int) (e error) { size, e = deviceSize(h.f); return })
	if _, gone := live.dir(h.dev); e == nil && gone == nil && size > 0 {
		return err
	}
	return unix.ENODEV
}

func isDevice(st os.FileInfo) bool {
	return st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
}

func stat(st os.FileInfo) *syscall.Stat_t { return st.Sys().(*syscall.Stat_t) }

// close is idempotent.
func (h *handle) close() error {
	if err := h.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
