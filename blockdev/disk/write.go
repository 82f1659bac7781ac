package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

// ReadAt reads what the device holds, past the page cache.
func (t *Target) ReadAt(p []byte, off int64) (int, error) { return t.h.readAt(p, off) }

// WriteAt writes p at any offset. Whole aligned blocks from aligned memory go straight to the device; edges of blocks are read, changed and
// written. Nothing is durable before Sync.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if err := t.inside("write", extent.Extent{Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	var n int
	var err error
	if t.cached != nil {
		n, err = t.writeFile(p, off)
	} else {
		n, err = t.writeDevice(p, off)
	}
	if err != nil {
		return n, &IOError{"write", t.h.path, extent.Extent{Off: off + int64(n), Len: int64(len(p) - n)}, t.h.blame(err)}
	}
	return n, nil
}

// inside refuses what reaches behind the end: a file would grow, a device would be written in part.
func (t *Target) inside(op string, e extent.Extent) error {
	if e.Off < 0 || e.Len < 0 || e.Off > t.h.size-e.Len {
		return fmt.Errorf("%s bytes %v of %s: it has %d bytes", op, e, t.h.path, t.h.size)
	}
	return nil
}

func (t *Target) writeDevice(p []byte, off int64) (int, error) {
	head := int(min(int64(len(p)), -off&(t.h.align-1)))
	body := (len(p) - head) &^ int(t.h.align-1)
	if head > 0 {
		if err := t.modify(p[:head], off); err != nil {
			return 0, err
		}
	}
	n, err := t.writeBlocks(p[head:head+body], off+int64(head))
	n += head
	if err != nil || n == len(p) {
		return n, err
	}
	if err := t.modify(p[n:], off+int64(n)); err != nil {
		return n, err
	}
	return len(p), nil
}

// writeBlocks writes whole blocks, through a bounce buffer when the memory is not aligned.
func (t *Target) writeBlocks(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if aligned(p) {
		return t.h.f.WriteAt(p, off)
	}
	buf := bounce.Get().(*[]byte)
	defer bounce.Put(buf)
	done := 0
	for done < len(p) {
		n := copy(*buf, p[done:])
		n, err := t.h.f.WriteAt((*buf)[:n], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// modify writes p inside one block of the device. Others may change other sectors of the block meanwhile, through here only: disjoint
// extents that cover it whole do not exist.
func (t *Target) modify(p []byte, off int64) error {
	buf := bounce.Get().(*[]byte)
	defer bounce.Put(buf)
	from := off / t.h.align * t.h.align
	block := (*buf)[:t.h.align]
	t.edge.Lock()
	defer t.edge.Unlock()
	if _, err := t.h.pread(block, from); err != nil {
		return fmt.Errorf("read the block around it: %w", err)
	}
	copy(block[off-from:], p)
	_, err := t.h.f.WriteAt(block, from)
	return err
}

// Zero makes e read as zeros. The device or filesystem is asked to give the space back; where it cannot, zeros are written.
func (t *Target) Zero(e extent.Extent) error {
	if err := t.inside("zero", e); err != nil {
		return err
	}
	if e.Empty() {
		return nil
	}
	var err error
	if t.cached != nil {
		err = t.zeroFile(e)
	} else {
		err = t.zeroDevice(e)
	}
	return t.zeroError(e, err)
}

// zeroError names e, unless the error names a place already.
func (t *Target) zeroError(e extent.Extent, err error) error {
	var named *IOError
	if err == nil || errors.As(err, &named) {
		return err
	}
	return &IOError{"zero", t.h.path, e, t.h.blame(err)}
}

// zeroStep bounds one call into the kernel, which cannot be interrupted.
const zeroStep = 1 << 30

// zeroDevice never discards: what a discarded block reads as is the device's choice. Punching a hole into a block device is the kernel's
// write-zeroes with leave to unmap, and fails where the device cannot promise zeros; BLKZEROOUT then writes them.
func (t *Target) zeroDevice(e extent.Extent) error {
	from := (e.Off + t.h.align - 1) / t.h.align * t.h.align
	end := e.End() / t.h.align * t.h.align
	if from >= end {
		return t.writeZeros(e)
	}
	if err := t.writeZeros(extent.Extent{Off: e.Off, Len: from - e.Off}); err != nil {
		return err
	}
	for at := from; at < end; {
		n := min(zeroStep, end-at)
		if err := t.zeroBlocks(at, n); err != nil {
			return t.zeroError(extent.Extent{Off: at, Len: n}, err)
		}
		at += n
	}
	return t.writeZeros(extent.Extent{Off: end, Len: e.End() - end})
}

func (t *Target) zeroBlocks(off, n int64) error {
	err := control(t.h.f, func(fd int) error { return punch(fd, off, n) })
	if !unsupportedCall(err) {
		return err
	}
	err = control(t.h.f, func(fd int) error {
		r := [2]uint64{uint64(off), uint64(n)}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&r))); e != 0 {
			return e
		}
		return nil
	})
	if !unsupportedCall(err) {
		return err
	}
	return t.writeZeros(extent.Extent{Off: off, Len: n})
}

func (t *Target) zeroFile(e extent.Extent) error {
	err := control(t.cached, func(fd int) error { return punch(fd, e.Off, e.Len) })
	if unsupportedCall(err) {
		return t.writeZeros(e)
	}
	return err
}

func punch(fd int, off, n int64) error {
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// control runs a system call on f that cannot meet another file under the same number, were f closed meanwhile.
func control(f *os.File, call func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = c.Control(func(fd uintptr) {
		for inner = call(int(fd)); inner == unix.EINTR; inner = call(int(fd)) {
		}
	})
	if err != nil {
		return os.ErrClosed
	}
	return inner
}

// unsupportedCall tells errors that say "not this way" from those of the medium.
func unsupportedCall(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY, unix.EINVAL, unix.EREMOTEIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// zeros is never written to.
var zeros = alignedBuffer(bounceSize)

func (t *Target) writeZeros(e extent.Extent) error {
	for !e.Empty() {
		n := min(e.Len, int64(len(zeros)))
		if _, err := t.WriteAt(zeros[:n], e.Off); err != nil {
			return err
		}
		e.Off, e.Len = e.Off+n, e.Len-n
	}
	return nil
}

// Sync returns when everything written before is durable (C3). After an error it never succeeds again: the kernel reports a lost write
// once, and what was lost stays lost. Open the target again and write again what was not acked.
func (t *Target) Sync() error {
	t.mu.Lock()
	broken := t.broken
	t.mu.Unlock()
	if broken != nil {
		return broken
	}
	f := t.h.f
	if t.cached != nil {
		f = t.cached
	}
	err := control(f, unix.Fdatasync)
	if err == nil && t.cached != nil { // a gateway writes more than any machine's memory, and reads it back from the medium
		return control(f, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("sync %s: %w", t.h.path, err)
	}
	err = &IOError{Op: "sync", Path: t.h.path, Err: t.h.blame(err)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = err
	return err
}

// flushEvery is after how many bytes the kernel is asked to begin writing an image file back.
const flushEvery = 8 << 20

// directLeast is the least piece of an image file that is written past the page cache.
const directLeast = 256 << 10

// writeFile writes large pieces of whole pages straight to the medium, which takes half of the CPU of a copy into the page cache and its write-back. Smaller
// ones go through the cache: filling holes with O_DIRECT takes the file's lock for each write, which with pieces of 16 KiB is several times slower.
// Both may be mixed where both take the lock of the file for as long as they last (t.mixed): a page of the cache then never holds what was
// written past it meanwhile.
func (t *Target) writeFile(p []byte, off int64) (int, error) {
	if t.mixed && len(p) >= directLeast && aligned(p) && (off|int64(len(p)))%memUnit == 0 {
		return t.h.f.WriteAt(p, off)
	}
	n, err := t.cached.WriteAt(p, off)
	if t.unflushed.Add(int64(n)) >= flushEvery {
		t.unflushed.Store(0)
		// Best effort: what cannot be written is for Sync to report.
		control(t.cached, func(fd int) error { return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
	}
	return n, err
}
