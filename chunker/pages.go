package chunker

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
)

const (
	sector  = pageSize / 16 // what one dirty bit of a page stands for, bytes
	maxIovs = 256
)

// page is a cached page of the table file.
type page struct {
	no    int64
	slot  int             // in the ring
	buf   *[pageSize]byte // apart, so that a page takes what it holds
	dirty uint16          // sectors that the file lacks
	used  bool            // since the clock's hand passed
}

// cache holds pages of one shard. It is guarded by the shard's mu.
type cache struct {
	file  store
	most  int // pages, unless all of them are dirty and may not be written
	pages map[int64]*page
	ring  []*page // the same pages, for the clock
	hand  int
	dirty int // pages with dirty sectors
	spare []*page
}

// get returns a page, reading it when load is set and filling it with zeros otherwise. It never evicts.
func (c *cache) get(no int64, load bool) (*page, error) {
	p := c.pages[no]
	if p != nil {
		p.used = true
		return p, nil
	}
	if n := len(c.spare) - 1; n >= 0 {
		p, c.spare = c.spare[n], c.spare[:n]
	} else {
		p = &page{buf: new([pageSize]byte)}
	}
	p.no, p.dirty, p.used = no, 0, true
	if !load {
		clear(p.buf[:])
	} else if _, err := c.file.ReadAt(p.buf[:], no*pageSize); err != nil {
		c.spare = append(c.spare, p)
		return nil, fmt.Errorf("read digest table: %w", err)
	}
	p.slot = len(c.ring)
	c.pages[no] = p
	c.ring = append(c.ring, p)
	return p, nil
}

// touch marks bytes [from, to) of p as changed.
func (c *cache) touch(p *page, from, to int) {
	if p.dirty == 0 {
		c.dirty++
	}
	first, last := from/sector, (to-1)/sector
	p.dirty |= (1<<(last-first+1) - 1) << first
}

// evict drops clean pages until n more fit, looking at each no more than twice. It tells whether they do.
func (c *cache) evict(n int) bool {
	for limit := 2 * c.most; len(c.ring)+n > c.most; limit-- {
		if limit <= 0 || c.dirty == len(c.ring) {
			return false
		}
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		switch p := c.ring[c.hand]; {
		case p.used:
			p.used = false
			c.hand++
		case p.dirty != 0:
			c.hand++
		default:
			c.remove(p)
		}
	}
	return true
}

func (c *cache) remove(p *page) {
	last := len(c.ring) - 1
	c.ring[p.slot] = c.ring[last]
	c.ring[p.slot].slot = p.slot
	c.ring[last] = nil
	c.ring = c.ring[:last]
	delete(c.pages, p.no)
	if p.dirty != 0 {
		c.dirty--
	}
	if len(c.spare) < 4 {
		c.spare = append(c.spare, p)
	}
}

// shrink ends an excess of clean pages.
func (c *cache) shrink() {
	for i := len(c.ring) - 1; i >= 0 && len(c.ring) > c.most; i-- {
		if p := c.ring[i]; p.dirty == 0 {
			c.remove(p)
		}
	}
}

// drop forgets the pages numbered [from, to), changes and all.
func (c *cache) drop(from, to int64) {
	if int64(len(c.ring)) <= to-from {
		for i := len(c.ring) - 1; i >= 0; i-- {
			if no := c.ring[i].no; no >= from && no < to {
				c.remove(c.ring[i])
			}
		}
		return
	}
	for no := from; no < to; no++ {
		if p := c.pages[no]; p != nil {
			c.remove(p)
		}
	}
}

// write hands the dirty pages from number first on to the kernel, adjacent ones together. What was not written stays dirty.
func (c *cache) write(first int64) error {
	if c.dirty == 0 {
		return nil
	}
	list := make([]*page, 0, c.dirty)
	for _, p := range c.ring {
		if p.dirty != 0 && p.no >= first {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *page) int { return cmp.Compare(a.no, b.no) })
	var iovs [][]byte
	for i := 0; i < len(list); {
		off, n := int64(0), i
		iovs = iovs[:0]
		for ; n < len(list) && len(iovs) < maxIovs; n++ {
			p := list[n]
			lo := bits.TrailingZeros16(p.dirty) * sector
			hi := bits.Len16(p.dirty) * sector
			if n > i && (lo != 0 || p.no != list[n-1].no+1) {
				break
			}
			if n == i {
				off = p.no*pageSize + int64(lo)
			}
			iovs = append(iovs, p.buf[lo:hi])
			if hi != pageSize {
				n++
				break
			}
		}
		if err := c.file.writev(iovs, off); err != nil {
			return fmt.Errorf("%w: %w", errWrite, err)
		}
		for ; i < n; i++ {
			list[i].dirty = 0
			c.dirty--
		}
	}
	return nil
}
