package extent

import (
	"fmt"
	"iter"
	"math/bits"
	"sync"
)

const (
	pageWords = 512            // one page of a Set: 4 KiB of bits
	pageBits  = pageWords * 64 // granules in a page
)

// Set is a set of granules of one volume. Memory follows what is set: 4 KiB for each 32,768 granules that have a member.
// The zero value is not usable; see NewSet. Methods are safe for concurrent use.
type Set struct {
	size, granule int64

	mu    sync.RWMutex // guards all below
	pages map[int64]*[pageWords]uint64
	count int64 // granules in the set
}

// NewSet makes an empty set for a volume of size bytes. granule is in bytes, a power of two.
func NewSet(size, granule int64) *Set {
	if size < 0 || granule <= 0 || granule&(granule-1) != 0 {
		panic(fmt.Sprintf("extent: set of size %d with granule %d", size, granule))
	}
	return &Set{size: size, granule: granule, pages: map[int64]*[pageWords]uint64{}}
}

// Size is the volume's size in bytes.
func (s *Set) Size() int64 { return s.size }

// Granule is the granule in bytes.
func (s *Set) Granule() int64 { return s.granule }

func (s *Set) clip(e Extent) Extent { return e.Intersect(Extent{0, s.size}) }

// Add puts every granule that e touches into the set.
func (s *Set) Add(e Extent) {
	if e = s.clip(e); e.Empty() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(e.Off/s.granule, (e.End()+s.granule-1)/s.granule, true)
}

// Remove takes out the granules that lie wholly in e; the volume's last granule counts as whole at the volume's end.
func (s *Set) Remove(e Extent) {
	if e = s.clip(e); e.Empty() {
		return
	}
	last := e.End() / s.granule
	if e.End() == s.size {
		last = (s.size + s.granule - 1) / s.granule
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change((e.Off+s.granule-1)/s.granule, last, false)
}

// change sets or clears granules [first, last). mu is held.
func (s *Set) change(first, last int64, set bool) {
	for g := first; g < last; {
		no := g / pageBits
		end := min(last, (no+1)*pageBits)
		page := s.pages[no]
		if page == nil {
			if !set {
				g = end
				continue
			}
			page = new([pageWords]uint64)
			s.pages[no] = page
		}
		for g < end {
			w, b := g%pageBits/64, g%64
			n := min(64-b, end-g)
			mask := ^uint64(0) >> (64 - n) << b
			old := page[w]
			if set {
				page[w] |= mask
			} else {
				page[w] &^= mask
			}
			s.count += int64(bits.OnesCount64(page[w]) - bits.OnesCount64(old))
			g += n
		}
	}
}

// AddWord puts up to 64 granules into the set: bit i stands for granule first+i, first a multiple of 64.
func (s *Set) AddWord(first int64, word uint64) {
	if n := (s.size+s.granule-1)/s.granule - first; n < 64 {
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
	page := s.pages[first/pageBits]
	if page == nil {
		page = new([pageWords]uint64)
		s.pages[first/pageBits] = page
	}
	w := &page[first%pageBits/64]
	s.count += int64(bits.OnesCount64(word &^ *w))
	*w |= word
}

// Union adds every extent of o.
func (s *Set) Union(o *Set) {
	for e := range o.All() {
		s.Add(e)
	}
}

// next finds the first granule at or after g that is (or is not) in the set, or last. mu is held.
func (s *Set) next(g, last int64, set bool) int64 {
	for g < last {
		page := s.pages[g/pageBits]
		if page == nil {
			if !set {
				return g
			}
			g = (g/pageBits + 1) * pageBits
			continue
		}
		word := page[g%pageBits/64]
		if !set {
			word = ^word
		}
		if word >>= g % 64; word != 0 {
			return min(last, g+int64(bits.TrailingZeros64(word)))
		}
		g = (g/64 + 1) * 64
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
		g, last := e.Off/s.granule, (e.End()+s.granule-1)/s.granule
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

// Contains tells whether every byte of e is in the set.
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
	clear(s.pages)
	s.count = 0
}

// Clone copies the set.
func (s *Set) Clone() *Set {
	c := NewSet(s.size, s.granule)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for no, p := range s.pages {
		q := *p
		c.pages[no] = &q
	}
	c.count = s.count
	return c
}
