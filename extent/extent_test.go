package extent

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestExtent(t *testing.T) {
	e := Extent{10, 20}
	if e.End() != 30 || e.Empty() || e.String() != "[10,30)" {
		t.Errorf("%v ends at %d", e, e.End())
	}
	if !(Extent{5, 0}).Empty() || !(Extent{5, -1}).Empty() {
		t.Error("no bytes, and not empty")
	}
	if end := (Extent{10, math.MaxInt64}).End(); end != math.MaxInt64 {
		t.Errorf("end is %d", end)
	}
}

func TestIntersect(t *testing.T) {
	for _, v := range []struct{ a, b, want Extent }{
		{Extent{0, 10}, Extent{5, 10}, Extent{5, 5}},
		{Extent{0, 10}, Extent{10, 10}, Extent{10, 0}},
		{Extent{0, 10}, Extent{2, 3}, Extent{2, 3}},
		{Extent{4, math.MaxInt64}, Extent{0, 10}, Extent{4, 6}},
	} {
		if got := v.a.Intersect(v.b); got != v.want {
			t.Errorf("%v and %v share %v, want %v", v.a, v.b, got, v.want)
		}
		if got := v.b.Intersect(v.a); got != v.want {
			t.Errorf("%v and %v share %v, want %v", v.b, v.a, got, v.want)
		}
	}
	if got := (Extent{0, 5}).Intersect(Extent{9, 5}); !got.Empty() || got.Len < 0 {
		t.Errorf("disjoint extents share %v", got)
	}
}

func TestAlign(t *testing.T) {
	for _, v := range []struct {
		e    Extent
		unit int64
		want Extent
	}{
		{Extent{0, 1}, 512, Extent{0, 512}},
		{Extent{511, 2}, 512, Extent{0, 1024}},
		{Extent{512, 512}, 512, Extent{512, 512}},
		{Extent{100, 1000}, 1, Extent{100, 1000}},
		{Extent{513, math.MaxInt64}, 512, Extent{512, math.MaxInt64 - 512}},
	} {
		if got := v.e.Align(v.unit); got != v.want {
			t.Errorf("%v to %d is %v, want %v", v.e, v.unit, got, v.want)
		}
	}
}

// striped is two disks in stripes of 8 bytes, the first of them mirrored.
func striped() (m Map) {
	for i := range int64(10) {
		m = append(m, Segment{Off: i * 8, Len: 8, Dev: uint64(i % 2), DevOff: 1000 + i/2*8})
		if i%2 == 0 {
			m = append(m, Segment{Off: i * 8, Len: 8, Dev: 7, DevOff: i / 2 * 8})
		}
	}
	return m
}

// Byte by byte: Down names where each byte lies, and Up of that place names the byte again.
func TestMap(t *testing.T) {
	m := striped()
	r := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		e := Extent{r.Int64N(100) - 10, r.Int64N(60)}
		want := map[[2]int64]int64{} // disk and offset: byte of the device
		for _, s := range m {
			for i := range s.Len {
				if b := s.Off + i; b >= e.Off && b < e.End() {
					want[[2]int64{int64(s.Dev), s.DevOff + i}] = b
				}
			}
		}
		n := 0
		for _, s := range m.Down(e) {
			for i := range s.Len {
				n++
				if b, ok := want[[2]int64{int64(s.Dev), s.DevOff + i}]; !ok || b != s.Off+i {
					t.Fatalf("down of %v has %+v", e, s)
				}
				up := m.Up(s.Dev, Extent{s.DevOff + i, 1})
				if !slices.Equal(up, []Extent{{s.Off + i, 1}}) {
					t.Fatalf("up of disk %d at %d is %v, want byte %d", s.Dev, s.DevOff+i, up, s.Off+i)
				}
			}
		}
		if n != len(want) {
			t.Fatalf("down of %v names %d bytes, want %d", e, n, len(want))
		}
	}
	if up := m.Up(0, Extent{1004, 8}); !slices.Equal(up, []Extent{{4, 4}, {16, 4}}) {
		t.Errorf("up across stripes is %v", up)
	}
	if up := m.Up(9, Extent{0, 5000}); up != nil {
		t.Errorf("up of a disk that is not below is %v", up)
	}
}
