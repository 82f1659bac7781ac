// Package buffers hands out aligned buffers within a budget in bytes. A buffer has one owner and one release point.
package buffers

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is the memory alignment of every buffer, enough for O_DIRECT on any disk.
const Align = 4096

// Pool holds at most a fixed number of buffers of one size. Its memory is mapped apart from Go's heap, so that the
// budget is exact, and given back by Close.
type Pool struct {
	size int
	free chan []byte
	used atomic.Int64

	mu   sync.Mutex // guards all below
	made int
	most int
	maps [][]byte
}

// New makes a pool of buffers of size bytes (a multiple of Align) that together take at most budget bytes, at least two buffers.
func New(size int, budget int64) *Pool {
	if size <= 0 || size%Align != 0 {
		panic(fmt.Sprintf("buffers: size %d", size))
	}
	most := max(2, int(budget/int64(size)))
	return &Pool{size: size, most: most, free: make(chan []byte, most)}
}

// Get waits for a buffer. The caller owns it until Put.
func (p *Pool) Get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.free:
		p.used.Add(1)
		return b, nil
	default:
	}
	if b, err := p.grow(); b != nil || err != nil {
		return b, err
	}
	select {
	case b := <-p.free:
		p.used.Add(1)
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *Pool) grow() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == p.most {
		return nil, nil
	}
	b, whole, err := mapped(p.size)
	if err != nil {
		return nil, fmt.Errorf("map a buffer of %d bytes: %w", p.size, err)
	}
	p.made++
	p.maps = append(p.maps, whole)
	p.used.Add(1)
	return b, nil
}

// huge is the size of a huge page where all machines have one of 2 MiB.
const huge = 2 << 20

// mapped maps a buffer, from huge pages if it is large and the kernel has them. A disk takes a request as a list of pieces of contiguous memory, and of those
// only so many at a time: a buffer of pages of 4 KiB that lie anywhere is 1,024 pieces for 4 MiB, and one of huge pages 2. whole is what is to be unmapped;
// what it has beyond the buffer is address space that nobody touches.
func mapped(size int) (b, whole []byte, err error) {
	n := size
	if size >= huge {
		n += huge
	}
	whole, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil || size < huge {
		return whole, whole, err
	}
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(whole))) % huge)
	b = whole[skip : skip+size : skip+size]
	_ = unix.Madvise(b[:size/huge*huge], unix.MADV_HUGEPAGE) // a kernel without them says so, and the buffer is as good but slower
	return b, whole, nil
}

// Put gives b, as it came from Get or a shorter prefix of it, back to the pool. It never blocks.
func (p *Pool) Put(b []byte) {
	b = b[:p.size] // anything but a prefix is too short
	if p.used.Add(-1) < 0 {
		panic("buffers: put back twice")
	}
	p.free <- b
}

// Size is the bytes of one buffer.
func (p *Pool) Size() int { return p.size }

// Used is the bytes that are handed out, Limit the bytes that may be.
func (p *Pool) Used() int64  { return p.used.Load() * int64(p.size) }
func (p *Pool) Limit() int64 { return int64(p.most) * int64(p.size) }

// Close unmaps everything. All buffers must have been put back; those that were not are reported.
func (p *Pool) Close() error {
	if n := p.used.Load(); n != 0 {
		return fmt.Errorf("buffers: %d of %d bytes were not given back", n, p.size)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.maps {
		if err := unix.Munmap(m); err != nil {
			return err
		}
	}
	p.maps, p.made, p.free = nil, 0, make(chan []byte, p.most)
	return nil
}
