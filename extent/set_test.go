package extent

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// model is a Set, said plainly: one bool a granule.
type model struct {
	size, granule int64
	in            []bool
}

func newModel(size, granule int64) *model {
	return &model{size, granule, make([]bool, (size+granule-1)/granule)}
}

// extent of granule i, clipped to the volume.
func (m *model) at(i int) Extent {
	off := int64(i) * m.granule
	return Extent{off, min(m.granule, m.size-off)}
}

func (m *model) add(e Extent) {
	for i := range m.in {
		if !m.at(i).Intersect(e).Empty() {
			m.in[i] = true
		}
	}
}

func (m *model) remove(e Extent) {
	for i := range m.in {
		if g := m.at(i); g.Intersect(e) == g {
			m.in[i] = false
		}
	}
}

// within lists the maximal extents of e whose granules are in the set, or are not.
func (m *model) within(e Extent, in bool) (out []Extent) {
	for i := range m.in {
		x := m.at(i).Intersect(e)
		if m.in[i] != in || x.Empty() {
			continue
		}
		if n := len(out) - 1; n >= 0 && out[n].End() == x.Off {
			out[n].Len += x.Len
		} else {
			out = append(out, x)
		}
	}
	return out
}

func (m *model) count() (n int64) {
	for _, v := range m.in {
		if v {
			n++
		}
	}
	return n
}

func compare(t *testing.T, r *rand.Rand, s *Set, m *model) {
	t.Helper()
	all := Extent{0, m.size}
	if got, want := slices.Collect(s.All()), m.within(all, true); !slices.Equal(got, want) {
		t.Fatalf("all is %v, want %v", got, want)
	}
	if s.Bytes() != m.count()*m.granule || s.Empty() != (m.count() == 0) {
		t.Fatalf("%d bytes, empty %v; want %d", s.Bytes(), s.Empty(), m.count()*m.granule)
	}
	for range 5 {
		e := randomExtent(r, m.size)
		in, out := m.within(e, true), m.within(e, false)
		if got := slices.Collect(s.Within(e)); !slices.Equal(got, in) {
			t.Fatalf("within %v is %v, want %v", e, got, in)
		}
		if got := slices.Collect(s.Gaps(e)); !slices.Equal(got, out) {
			t.Fatalf("gaps of %v are %v, want %v", e, got, out)
		}
		if s.Intersects(e) != (len(in) > 0) {
			t.Fatalf("intersects %v is %v", e, s.Intersects(e))
		}
		clipped := e.Intersect(all)
		want := e.Empty() || len(out) == 0 && !clipped.Empty()
		if s.Contains(e) != want {
			t.Fatalf("contains %v is %v", e, s.Contains(e))
		}
	}
}

// randomExtent may be empty and may reach beyond the volume on both sides.
func randomExtent(r *rand.Rand, size int64) Extent {
	if r.IntN(30) == 0 {
		return Extent{r.Int64N(size), math.MaxInt64}
	}
	return Extent{r.Int64N(size+20) - 10, r.Int64N([...]int64{1, 10, size + 30}[r.IntN(3)])}
}

func TestSetRandom(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		granule := int64(1) << r.IntN(5)
		size := 1 + r.Int64N([...]int64{10, 500, 3 * pageBits, 12000}[r.IntN(4)])
		s, m := NewSet(size, granule), newModel(size, granule)
		other, om := NewSet(size, granule), newModel(size, granule)
		for range 60 {
			e := randomExtent(r, size)
			switch r.IntN(9) {
			case 0, 1, 2:
				s.Add(e)
				m.add(e)
			case 3, 4:
				s.Remove(e)
				m.remove(e)
			case 5:
				first, word := r.Int64N(size/granule/64+2)*64, r.Uint64()&r.Uint64()
				s.AddWord(first, word)
				for i := range int64(64) {
					if word>>i&1 != 0 && first+i < int64(len(m.in)) {
						m.in[first+i] = true
					}
				}
			case 6:
				other.Add(e)
				om.add(e)
				s.Union(other)
				for i, v := range om.in {
					m.in[i] = m.in[i] || v
				}
			case 7:
				c := s.Clone()
				s.Clear()
				if !s.Empty() {
					t.Fatal("not empty after Clear")
				}
				s = c
			case 8:
				if r.IntN(5) == 0 {
					s.Clear()
					clear(m.in)
				}
			}
			compare(t, r, s, m)
		}
	}
}

// Sets of several directories, against arithmetic rather than bools.
func TestSetLarge(t *testing.T) {
	const size = 64 << 40
	s := NewSet(size, 4096)
	want := []Extent{{0, 4096}, {dirBits*4096 - 4096, 8192}, {dirBits * 4096 * 7, dirBits * 4096 * 2}, {size - 4096, 4096}}
	for _, e := range want {
		s.Add(e)
	}
	if got := slices.Collect(s.All()); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	s.Remove(Extent{4096, size - 8192})
	if got, want := slices.Collect(s.All()), []Extent{want[0], want[3]}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if got, want := slices.Collect(s.Gaps(Extent{0, size})), []Extent{{4096, size - 8192}}; !slices.Equal(got, want) {
		t.Fatalf("gaps are %v, want %v", got, want)
	}
}

func TestSetUnionOfOtherGranule(t *testing.T) {
	a, b := NewSet(1<<20, 16384), NewSet(1<<20, 512)
	b.Add(Extent{16384 + 512, 512})
	b.Add(Extent{1<<20 - 1, 1})
	a.Union(b)
	if got, want := slices.Collect(a.All()), []Extent{{16384, 16384}, {1<<20 - 16384, 16384}}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	a.Union(a)
	if a.Bytes() != 32768 {
		t.Fatalf("%d bytes after the union with itself", a.Bytes())
	}
}

func TestSetEarlyBreak(t *testing.T) {
	s := NewSet(1<<20, 512)
	s.Add(Extent{0, 512})
	s.Add(Extent{2048, 512})
	for range s.All() {
		break
	}
	for range s.Gaps(Extent{0, 1 << 20}) {
		break
	}
	s.Add(Extent{4096, 1}) // no lock was kept
}

// Under -race: members that nobody removes are seen by every reader.
func TestSetConcurrent(t *testing.T) {
	const size = 1 << 26
	s, o := NewSet(size, 4096), NewSet(size, 4096)
	s.Add(Extent{size / 2, 4096})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 300 {
				e := Extent{r.Int64N(size / 2), r.Int64N(1 << 20)}.Intersect(Extent{0, size / 2})
				switch r.IntN(7) {
				case 0:
					s.Remove(e)
				case 1:
					s.AddWord(r.Int64N(100)*64, r.Uint64())
				case 2:
					o.Add(e)
					s.Union(o)
				case 3:
					o.Union(s)
				case 4:
					if !s.Clone().Contains(Extent{size / 2, 4096}) {
						t.Error("a clone lost a member")
					}
				default:
					s.Add(e)
				}
				last := int64(0)
				for x := range s.All() {
					if x.Off < last || x.Empty() { // adjacent ones may come of changes meanwhile
						t.Errorf("%v after %d", x, last)
					}
					last = x.End()
				}
				if !s.Intersects(Extent{size / 2, 1}) {
					t.Error("a member was lost")
				}
			}
		})
	}
	wg.Wait()
	n := int64(0)
	for e := range s.All() {
		n += e.Len
	}
	if n != s.Bytes() {
		t.Fatalf("counted %d bytes, holds %d", s.Bytes(), n)
	}
}

func TestNewSetRefuses(t *testing.T) {
	for _, v := range [][2]int64{{-1, 512}, {1, 0}, {1, -512}, {1, 513}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("NewSet(%d, %d) did not panic", v[0], v[1])
				}
			}()
			NewSet(v[0], v[1])
		}()
	}
	s := NewSet(0, 512)
	s.Add(Extent{0, 512})
	s.AddWord(0, 1)
	if !s.Empty() || s.Intersects(Extent{0, 512}) {
		t.Error("a volume of no bytes has members")
	}
}

func BenchmarkSetRandom(b *testing.B) {
	for _, tib := range []int64{1, 4, 64} {
		b.Run(fmt.Sprintf("%dTiB", tib), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				s := NewSet(tib<<40, 4096)
				for range 30000 {
					s.Add(Extent{r.Int64N(tib << 40), 1})
				}
				for range s.All() {
				}
			}
		})
	}
}
