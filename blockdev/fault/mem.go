package fault

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
)

// memPage is the memory that one written place takes.
const memPage = 64 << 10

// Mem is a volume and a target in memory. It is sparse: only pages that were written take memory, so that it can be as large as a disk.
type Mem struct {
	size     int64
	identity string

	mu     sync.RWMutex // guards all below
	pages  map[int64]*[memPage]byte
	closed bool
}

var (
	_ blockdev.Volume = (*Mem)(nil)
	_ blockdev.Target = (*Mem)(nil)
	_ blockdev.Volume = (*Volume)(nil)
	_ blockdev.Target = (*Target)(nil)
)

// NewMem makes size bytes of zeros.
func NewMem(size int64) *Mem {
	return &Mem{size: size, identity: fmt.Sprintf("mem:/%d", size), pages: map[int64]*[memPage]byte{}}
}

// SetIdentity gives it another identity.
func (m *Mem) SetIdentity(id string) { m.identity = id }

func (m *Mem) Size() int64      { return m.size }
func (m *Mem) BlockSize() int   { return 512 }
func (m *Mem) Identity() string { return m.identity }
func (m *Mem) Check() error     { return nil }
func (m *Mem) Sync() error      { return m.open() }

func (m *Mem) open() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return os.ErrClosed
	}
	return nil
}

// Close keeps the content: Reopen gives it back.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Reopen makes a closed Mem usable again, content kept.
func (m *Mem) Reopen() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = false
	return m
}

func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, os.ErrClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("read at byte %d", off)
	}
	n := int(max(0, min(int64(len(p)), m.size-off)))
	for b := p[:n]; len(b) > 0; {
		in := off % memPage
		k := int(min(int64(len(b)), memPage-in))
		if page := m.pages[off/memPage]; page != nil {
			copy(b[:k], page[in:])
		} else {
			clear(b[:k])
		}
		b, off = b[k:], off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	if err := m.inside(off, int64(len(p))); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, os.ErrClosed
	}
	for b := p; len(b) > 0; {
		page := m.pages[off/memPage]
		if page == nil {
			page = new([memPage]byte)
			m.pages[off/memPage] = page
		}
		k := copy(page[off%memPage:], b)
		b, off = b[k:], off+int64(k)
	}
	return len(p), nil
}

func (m *Mem) inside(off, n int64) error {
	if off < 0 || n < 0 || off > m.size-n {
		return fmt.Errorf("bytes %v of a memory disk of %d bytes", extent.Extent{Off: off, Len: n}, m.size)
	}
	return nil
}

func (m *Mem) Zero(e extent.Extent) error {
	if err := m.inside(e.Off, e.Len); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return os.ErrClosed
	}
	if e.Len > int64(len(m.pages))*memPage { // few pages in a large extent
		for no, page := range m.pages {
			if x := e.Intersect(extent.Extent{Off: no * memPage, Len: memPage}); !x.Empty() {
				m.zero(no, page, x)
			}
		}
		return nil
	}
	for no := e.Off / memPage; no*memPage < e.End(); no++ {
		if page := m.pages[no]; page != nil {
			m.zero(no, page, e.Intersect(extent.Extent{Off: no * memPage, Len: memPage}))
		}
	}
	return nil
}

// zero clears x within page no. mu is held.
func (m *Mem) zero(no int64, page *[memPage]byte, x extent.Extent) {
	if x.Len == memPage {
		delete(m.pages, no)
		return
	}
	clear(page[x.Off-no*memPage : x.End()-no*memPage])
}
