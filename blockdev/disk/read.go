package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

// bounceSize is what goes through one bounce buffer at a time.
const bounceSize = 256 << 10

// bounce has aligned memory for I/O whose own memory or edges are not aligned.
var bounce = sync.Pool{New: func() any { b := alignedBuffer(bounceSize); return &b }}

// alignedBuffer makes n bytes of memory that O_DIRECT accepts.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+memUnit)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % memUnit)
	return b[skip : skip+n : skip+n]
}

func aligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%memUnit == 0
}

// readAt reads past the page cache, from any offset into any memory. io.EOF comes with what lies behind the end.
func (h *handle) readAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at byte %d", h.path, off)
	}
	if off >= h.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), h.size-off))
	var n int
	var err error
	if h.direct {
		n, err = h.readDirect(p[:want], off)
	} else {
		n, err = h.readCached(p[:want], off)
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ends at byte %d, not at %d any more: %w", off+int64(n), h.size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return n, &IOError{"read", h.path, extent.Extent{Off: off + int64(n), Len: int64(want - n)}, h.blame(err)}
	}
	if want < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readDirect reads whole aligned blocks straight into p, and the rest through a bounce buffer.
func (h *handle) readDirect(p []byte, off int64) (int, error) {
	done := 0
	if off%h.align == 0 && aligned(p) {
		body := len(p) - len(p)%int(h.align)
		n, err := h.pread(p[:body], off)
		if err != nil {
			return n, err
		}
		done = n
	}
	if done == len(p) {
		return done, nil
	}
	buf := bounce.Get().(*[]byte)
	defer bounce.Put(buf)
	for done < len(p) {
		at := off + int64(done)
		from := at / h.align * h.align
		end := min((off+int64(len(p))+h.align-1)/h.align*h.align, from+bounceSize)
		n, err := h.pread((*buf)[:end-from], from)
		got := copy(p[done:], (*buf)[min(int(at-from), n):n])
		done += got
		if err != nil && done < len(p) && (got == 0 || !errors.Is(err, io.EOF)) {
			return done, cause(err)
		}
	}
	return done, nil
}

// readCached reads a file whose filesystem has no direct I/O: what is in the page cache is written and dropped first, and dropped
// again after.
func (h *handle) readCached(p []byte, off int64) (int, error) {
	h.dropCache(off, int64(len(p)))
	n, err := h.pread(p, off)
	unix.Fadvise(int(h.f.Fd()), off/memUnit*memUnit, int64(len(p))+memUnit, unix.FADV_DONTNEED)
	return n, err
}

// dropCache makes a following read come from the medium. Both calls are best effort: some filesystems have no medium.
func (h *handle) dropCache(off, n int64) {
	from := off / memUnit * memUnit
	n += off - from
	unix.SyncFileRange(int(h.f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE_AND_WAIT)
	unix.Fadvise(int(h.f.Fd()), from, (n+memUnit-1)/memUnit*memUnit, unix.FADV_DONTNEED)
}

// pread is ReadAt of the open file with the bare cause as error.
func (h *handle) pread(p []byte, off int64) (int, error) {
	n, err := h.f.ReadAt(p, off)
	if n > 0 && errors.Is(err, unix.EINVAL) {
		// The medium gave up inside a block, and the rest of the request was no longer aligned.
		return n / int(h.align) * int(h.align), unix.EIO
	}
	return n, cause(err)
}

// cause takes the path that package os puts around an errno off again.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
