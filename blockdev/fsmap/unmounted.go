package fsmap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// Unmounted calls free with every extent of a volume of size bytes that what lies on it does not use, ascending, and returns "ext4"
// (also for ext2 and ext3), "xfs" or "swap". It reads only the blocks that say so, aligned to 4 KiB. The volume must not be mounted; it is
// looked at again at the end, and what changed meanwhile is an error.
//
// It answers only where the blocks prove that the filesystem was left clean and every feature is known; otherwise ErrNotSupported:
// everything is in use. The extents are good only when the error is nil.
func Unmounted(r io.ReaderAt, size int64, free func(extent.Extent) error) (kind string, err error) {
	d := newDisk(r, size, wide)
	first, err := d.copy(0, min(size, 128<<10))
	if err != nil {
		return "", fmt.Errorf("look for a filesystem: %w", err)
	}
	m := &merger{out: free}
	for _, f := range []struct {
		kind string
		is   func([]byte) bool
		free func(*disk, []byte, func(extent.Extent) error) error
	}{{"swap", isSwap, swapFree}, {"xfs", isXFS, xfsFree}, {"ext4", isExt, extFree}} {
		if !f.is(first) {
			continue
		}
		if err := f.free(d, first, m.add); err != nil {
			return f.kind, fmt.Errorf("free space of an unmounted %s: %w", f.kind, err)
		}
		if err := m.flush(); err != nil {
			return f.kind, err
		}
		d.forget()
		again, err := d.copy(0, int64(len(first)))
		if err != nil {
			return f.kind, err
		}
		if !bytes.Equal(first, again) {
			return f.kind, fmt.Errorf("%s was changed while its free space was looked for; is it mounted: %w", f.kind, sentinel.ErrNotSupported)
		}
		return f.kind, nil
	}
	return "", fmt.Errorf("no filesystem whose free space is known: %w", sentinel.ErrNotSupported)
}

// unsure is why everything counts as in use.
func unsure(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, sentinel.ErrNotSupported)...)
}

const (
	align = 4096
	wide  = 256 << 10      // bytes read at once where what is next follows
	near  = 64<<10 + align // where it does not: as much as the largest block needs
)

// disk reads bytes at any offset of a volume that takes aligned reads only.
type disk struct {
	r    io.ReaderAt
	size int64
	buf  []byte // aligned memory: what is read at once
	off  int64  // of what buf holds
	have int    // bytes of it
}

func newDisk(r io.ReaderAt, size, window int64) *disk {
	b := make([]byte, window+align)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % align
	return &disk{r: r, size: size, buf: b[skip:][:window]}
}

// near is the same disk with a small window of its own.
func (d *disk) near() *disk { return newDisk(d.r, d.size, near) }

func (d *disk) forget() { d.have = 0 }

// at returns n bytes from off, at most the window less 4 KiB, valid until the next call.
func (d *disk) at(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || n > int64(len(d.buf))-align || off+n > d.size {
		return nil, unsure("it points to bytes %v of a volume of %d", extent.Extent{Off: off, Len: n}, d.size)
	}
	if off < d.off || off+n > d.off+int64(d.have) {
		d.off, d.have = off/align*align, 0
		want := min(int64(len(d.buf)), d.size-d.off)
		got, err := d.r.ReadAt(d.buf[:want], d.off)
		if err != nil && !(errors.Is(err, io.EOF) && int64(got) == want) {
			return nil, err
		}
		d.have = got
	}
	return d.buf[off-d.off:][:n:n], nil
}

// copy is at with memory of its own.
func (d *disk) copy(off, n int64) ([]byte, error) {
	b, err := d.at(off, n)
	return bytes.Clone(b), err
}
