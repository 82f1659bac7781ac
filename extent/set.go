package extent

import (
	"fmt"
	"iter"
	"math/bits"
	"sync"
)

const (
	pageWords = 64                  // one page of a Set: 512 bytes of bits
	pageBits  = pageWords * 64      // granules in a page
	dirPages  = 512                 // pages in a directory
	dirBits   = dirPages * pageBits // granules under a directory
)

type (
	page [pageWords]uint64
	dir  [dirPages]*page
)

// Set is a set of granules of one volume. Memory follows what is set: 512 bytes for each 4,096 granules that have a member, and
// 4 KiB for each 2 Mi granules. The zero value is not usable; see NewSet. Methods are safe for concurrent use.
type Set struct {
	size, granule int64

	mu    sync.RWMutex // guards all below; never held while another set's is taken
	dirs  []*dir
	count int64 // granules in the set
}

// NewSet makes an empty set for a volume of size bytes. granule is in bytes, a power of two.
func NewSet(size, granule int64) *Set {
	if size < 0 || granule <= 0 || granule&(granule-1) != 0 {
		panic(fmt.Sprintf("extent: set of size %d with granule %d", size, granule))
	}
	s := &Set{size: size, granule: granule}
	s.dirs = make([]*dir, (s.granules()+dirBits-1)/dirBits)
	return s
}

// Size is the volume's size in bytes.
func (s *Set) Size() int64 { return s.size }

// Granule is the granule in bytes.
func (s *Set) Granule() int64 { return s.granule }

// granules is how many the volume has.
func (s *Set) granules() int64 {
	n := s.size / s.granule
	if s.size%s.granule != 0 {
		n++
	}
	return n
}

// page finds the page of granule g, or nil. mu is held.
func (s *Set) page(g int64) *page {
	if d := s.dirs[g/dirBits]; d != nil {
		return d[g%dirBits/pageBits]
	}
	return nil
}

// need is page, making what is missing. mu is held for writing.
func (s *Set) need(g int64) *page {
	d := &s.dirs[g/dirBits]
	if *d == nil {
		*d = new(dir)
	}
	p := &(*d)[g%dirBits/pageBits]
	if *p == nil {
		*p = new(page)
	}
	return *p
}

func (s *Set) clip(e Extent) Extent { return e.Intersect(Extent{0, s.size}) }

// Add puts every granule that e touches into the set.
func (s *Set) Add(e Extent) {
	if e = s.clip(e); e.Empty() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(e.Off/s.granule, (e.End()-1)/s.granule+1, true)
}

// Remove takes out the granules that lie wholly in e; the volume's last granule counts as whole at the volume's end.
func (s *Set) Remove(e Extent) {
	if e = s.clip(e); e.Empty() {
		return
	}
	last := e.End() / s.granule
	if e.End() == s.size {
		last = s.granules()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change((e.Off+s.granule-1)/s.granule, last, false)
}

// change sets or clears granules [first, last). mu is held.
func (s *Set) change(first, last int64, set bool) {
	for g := first; g < last; {
		end := min(last, (g/pageBits+1)*pageBits)
		p := s.page(g)
		if p == nil && set {
			p = s.need(g)
		}
		if p == nil {
			g = end
			continue
		}
		for g < end {
			w, b := g%pageBits/64, g%64
			n := min(64-b, end-g)
			mask := ^uint64(0) >> (64 - n) << b
			old := p[w]
			if set {
				p[w] |= mask
			} else {
				p[w] &^= mask
			}
			s.count += int64(bits.OnesCount64(p[w]) - bits.OnesCount64(old))
			g += n
		}
	}
}

// AddWord puts up to 64 granules into the set: bit i stands for granule first+i, first a multiple of 64.
func (s *Set) AddWord(first int64, word uint64) {
	if n := s.granules() - first; n < 64 {
		if n <= 0 {
			return
		}
		word &= 1<<n - 1
	}
	if word == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.need(first)[first%pageBits/64]
	s.count += int64(bits.OnesCount64(word &^ *w))
	*w |= word
}

// Union adds every extent of o.
func (s *Set) Union(o *Set) {
	if s.size != o.size || s.granule != o.granule {
		for e := range o.All() {
			s.Add(e)
		}
		return
	}
	for g := int64(0); g < o.granules(); g += pageBits {
		o.mu.RLock()
		if o.dirs[g/dirBits] == nil {
			o.mu.RUnlock()
			g = (g/dirBits+1)*dirBits - pageBits
			continue
		}
		var copied page
		p := o.page(g)
		if p != nil {
			copied = *p
		}
		o.mu.RUnlock()
		if p != nil {
			s.or(g, &copied)
		}
	}
}

// or adds the granules of a page that begins at granule g.
func (s *Set) or(g int64, o *page) {
	if *o == (page{}) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.need(g)
	for i, w := range o {
		s.count += int64(bits.OnesCount64(w &^ p[i]))
		p[i] |= w
	}
}

// next finds the first granule at or after g that is (or is not) in the set, or last. mu is held.
func (s *Set) next(g, last int64, set bool) int64 {
	for g < last {
		if s.dirs[g/dirBits] == nil {
			if !set {
				return g
			}
			g = (g/dirBits + 1) * dirBits
			continue
		}
		p := s.page(g)
		if p == nil {
			if !set {
				return g
			}
			g = (g/pageBits + 1) * pageBits
			continue
		}
		for end := min(last, (g/pageBits+1)*pageBits); g < end; g = (g/64 + 1) * 64 {
			word := p[g%pageBits/64]
			if !set {
				word = ^word
			}
			if word >>= g % 64; word != 0 {
				return min(last, g+int64(bits.TrailingZeros64(word)))
			}
		}
	}
	return last
}

// All yields the maximal extents of the set, ascending, clipped to the volume. Changes made meanwhile may or may not be seen.
func (s *Set) All() iter.Seq[Extent] { return s.Within(Extent{0, s.size}) }

// Within yields what of the set lies in e, ascending, clipped to e.
func (s *Set) Within(e Extent) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		e := s.clip(e)
		if e.Empty() {
			return
		}
		g, last := e.Off/s.granule, (e.End()-1)/s.granule+1
		for {
			s.mu.RLock()
			from := s.next(g, last, true)
			to := s.next(from, last, false)
			s.mu.RUnlock()
			if from >= last {
				return
			}
			x := Extent{from * s.granule, (to - from) * s.granule}.Intersect(e)
			if !x.Empty() && !yield(x) {
				return
			}
			g = to
		}
	}
}

// Gaps yields what of e is not in the set, ascending.
func (s *Set) Gaps(e Extent) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		e := s.clip(e)
		at := e.Off
		for x := range s.Within(e) {
			if x.Off > at && !yield(Extent{at, x.Off - at}) {
				return
			}
			at = x.End()
		}
		if at < e.End() {
			yield(Extent{at, e.End() - at})
		}
	}
}

// Intersects tells whether any granule that e touches is in the set.
func (s *Set) Intersects(e Extent) bool {
	for range s.Within(e) {
		return true
	}
	return false
}

// Contains tells whether every byte of e that lies on the volume is in the set, and there is one, unless e is empty.
func (s *Set) Contains(e Extent) bool {
	for x := range s.Within(e) {
		return x == s.clip(e)
	}
	return e.Empty()
}

// Bytes is the size of the set in bytes, counting whole granules.
func (s *Set) Bytes() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.count * s.granule
}

// Empty tells whether nothing is in the set.
func (s *Set) Empty() bool { return s.Bytes() == 0 }

// Clear takes everything out.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.dirs)
	s.count = 0
}

// Clone copies the set.
func (s *Set) Clone() *Set {
	c := NewSet(s.size, s.granule)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i, d := range s.dirs {
		if d == nil {
			continue
		}
		c.dirs[i] = new(dir)
		for j, p := range d {
			if p != nil {
				q := *p
				c.dirs[i][j] = &q
			}
		}
	}
	c.count = s.count
	return c
}
