package sender

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// A plan must cover what it has to, once: C10 and C1. Random dirty sets over odd sizes, with leaves that have to go whole.
func TestChangesCoverExactly(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		size := 1 + rnd.Int64N(12<<20)
		gran := int64(512) << rnd.IntN(9)
		dirty, whole := extent.NewSet(size, gran), extent.NewSet(size, chunker.LeafSize)
		for range rnd.IntN(2000) {
			off := rnd.Int64N(size)
			dirty.Add(extent.Extent{Off: off, Len: 1 + rnd.Int64N(min(size-off, 1+gran*rnd.Int64N(30)))})
		}
		want := extent.NewSet(size, 512)
		for e := range dirty.All() {
			want.Add(e)
			for at := e.Off / chunker.LeafSize; at <= (e.End()-1)/chunker.LeafSize; at++ {
				if rnd.IntN(5) == 0 {
					whole.Add(chunker.LeafExtent(size, at))
				}
			}
		}
		for e := range whole.All() {
			want.Add(e)
		}
		got := extent.NewSet(size, 512)
		around := rnd.IntN(2) == 0
		for b := range changes(dirty, whole, around) {
			checkBatch(t, seed, size, b)
			if around {
				checkAround(t, seed, size, b)
			}
			for _, e := range b.ext {
				if got.Intersects(e) {
					t.Fatalf("seed %d: %v twice", seed, e)
				}
				got.Add(e)
			}
		}
		if !slices.Equal(slices.Collect(got.All()), slices.Collect(want.All())) {
			t.Fatalf("seed %d: covered %d bytes, want %d", seed, got.Bytes(), want.Bytes())
		}
	}
}

// checkAround holds the leaves around a batch against what they are made for: whole leaves, once each, that fit in a buffer; trimmed, the
// buffer holds the extents.
func checkAround(t *testing.T, seed uint64, size int64, b *batch) {
	t.Helper()
	ext := b.around(size)
	buf, end := []byte(nil), int64(-1)
	for _, e := range ext {
		if e.Off <= end || e.Off%chunker.LeafSize != 0 || e.End()%chunker.LeafSize != 0 && e.End() != size {
			t.Fatalf("seed %d: %v around %v", seed, ext, b.ext)
		}
		end = e.End()
		for at := e.Off; at < e.End(); at++ {
			buf = append(buf, byte(at>>9))
		}
	}
	if len(buf) > chunker.GroupSize {
		t.Fatalf("seed %d: %d bytes around %v", seed, len(buf), b.ext)
	}
	c := &batch{ext: b.ext, buf: buf, bad: ext}
	c.trim(ext)
	at := 0
	for _, e := range b.ext {
		for x := e.Off; x < e.End(); x++ {
			if c.buf[at] != byte(x>>9) {
				t.Fatalf("seed %d: byte %d is not where it should be", seed, x)
			}
			at++
		}
	}
	if c.n != at || !slices.Equal(c.bad, b.ext) {
		t.Fatalf("seed %d: %d bytes of %d, bad %v", seed, c.n, at, c.bad)
	}
}

// checkBatch holds a batch against the limits of the protocol.
func checkBatch(t *testing.T, seed uint64, size int64, b *batch) {
	t.Helper()
	sum, end := int64(0), int64(0)
	for _, e := range b.ext {
		if e.Off < end || e.Len <= 0 || e.End() > size {
			t.Fatalf("seed %d: extents %v", seed, b.ext)
		}
		if b.shape != put && (e.Off%chunker.LeafSize != 0 || e.End()%chunker.LeafSize != 0 && e.End() != size) {
			t.Fatalf("seed %d: %v are not whole leaves", seed, e)
		}
		sum, end = sum+e.Len, e.End()
	}
	if sum != b.bytes || sum > chunker.BatchSize || len(b.ext) > wire.MaxItems || chunker.Leaves(sum) > wire.MaxLeaves {
		t.Fatalf("seed %d: %d bytes, %d said, %d extents", seed, sum, b.bytes, len(b.ext))
	}
}

func TestEverythingCoversExactly(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		size := 1 + rnd.Int64N(40<<20)
		var free *extent.Set
		if rnd.IntN(4) > 0 {
			raw := extent.NewSet(size, 4096)
			for range rnd.IntN(60) {
				off := rnd.Int64N(size)
				raw.Add(extent.Extent{Off: off, Len: 1 + rnd.Int64N(min(size-off, 6<<20))})
			}
			free = freeLeaves(size, raw)
			for e := range free.All() {
				if !raw.Contains(e) {
					t.Fatalf("seed %d: leaf %v is not wholly free", seed, e)
				}
			}
		}
		check := rnd.IntN(2) == 0
		got := extent.NewSet(size, 512)
		add := func(e extent.Extent) {
			if got.Intersects(e) {
				t.Fatalf("seed %d: %v twice", seed, e)
			}
			got.Add(e)
		}
		for b := range everything(size, free, check) {
			checkBatch(t, seed, size, b)
			for _, e := range b.ext {
				if free != nil && free.Intersects(e) {
					t.Fatalf("seed %d: reads free %v", seed, e)
				}
				add(e)
			}
			if len(b.items) > wire.MaxItems || b.shape == bare && len(b.items) == 0 || b.shape == checked != (check && b.shape != bare) {
				t.Fatalf("seed %d: %d items, shape %d", seed, len(b.items), b.shape)
			}
			for _, it := range append(b.items, b.free...) {
				add(extent.Extent{Off: int64(it.Off), Len: int64(it.Len)})
			}
		}
		if !got.Contains(extent.Extent{Off: 0, Len: size}) {
			t.Fatalf("seed %d: %d of %d bytes covered", seed, got.Bytes(), size)
		}
	}
}

// Applying the items of a PUT gives what was read, with zeros for what was unreadable.
func TestItemize(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		b := newBatch(put)
		at := int64(0)
		for range 1 + rnd.IntN(20) {
			at += 512 * rnd.Int64N(20)
			n := 512 * (1 + rnd.Int64N(24))
			b.add(extent.Extent{Off: at, Len: n})
			at += n
		}
		b.n = int(b.bytes)
		b.buf = make([]byte, b.bytes)
		for i := range b.buf {
			b.buf[i] = byte(rnd.Uint32())
		}
		want := make([]byte, at)
		from := int64(0)
		for _, e := range b.ext {
			for x := e.Off; x < e.End(); x += 512 {
				s := b.buf[from+x-e.Off:][:512]
				switch rnd.IntN(6) {
				case 0:
					clear(s)
				case 1:
					clear(s)
					b.bad = append(b.bad, extent.Extent{Off: x, Len: 512})
				}
				copy(want[x:], s)
			}
			from += e.Len
		}
		plain := b.itemize()
		got, used := make([]byte, at), 0
		covered := extent.NewSet(at, 512)
		for _, it := range b.items {
			e := extent.Extent{Off: int64(it.Off), Len: int64(it.Len)}
			if covered.Intersects(e) {
				t.Fatalf("seed %d: %v twice", seed, e)
			}
			covered.Add(e)
			if it.Kind == wire.ItemData {
				used += copy(got[it.Off:it.Off+it.Len], plain[used:])
			}
		}
		if used != len(plain) || !bytes.Equal(got, want) || covered.Bytes() != b.bytes {
			t.Fatalf("seed %d: items do not give what was read", seed)
		}
		c := mover.Counts(wire.CountItems(b.items))
		if int64(c.Put+c.Zero+c.Unreadable) != b.bytes || int64(c.Unreadable) != 512*int64(len(b.bad)) {
			t.Fatalf("seed %d: counts %+v", seed, c)
		}
	}
}

func TestCompact(t *testing.T) {
	const short = 700
	b := newBatch(offered)
	b.buf, b.n = make([]byte, 5*chunker.LeafSize), 4*chunker.LeafSize+short
	for i := range b.buf {
		b.buf[i] = byte(i / chunker.LeafSize)
	}
	b.digests = chunker.Digests(b.buf[:b.n], nil)
	b.need = []byte{0b10110}
	n, plain := b.compact()
	if n != 3 || len(plain) != 2*chunker.LeafSize+short {
		t.Fatalf("%d leaves, %d bytes", n, len(plain))
	}
	for i, want := range []byte{1, 2, 4} {
		if plain[i*chunker.LeafSize] != want || plain[min(len(plain), (i+1)*chunker.LeafSize)-1] != want {
			t.Errorf("place %d holds leaf %d", i, plain[i*chunker.LeafSize])
		}
	}
}

func TestSplit(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		b := newBatch(checked)
		at := int64(0)
		for range 1 + rnd.IntN(40) {
			at += chunker.LeafSize * rnd.Int64N(3)
			n := chunker.LeafSize * (1 + rnd.Int64N(4))
			b.add(extent.Extent{Off: at, Len: n})
			at += n
		}
		whole, all := b.bytes, slices.Clone(b.ext)
		if whole == chunker.LeafSize {
			continue
		}
		rest := b.split()
		if b.bytes+rest.bytes != whole || b.bytes == 0 || rest.bytes == 0 && len(all) > 1 {
			t.Fatalf("seed %d: %d and %d of %d", seed, b.bytes, rest.bytes, whole)
		}
		checkBatch(t, seed, at, b)
		checkBatch(t, seed, at, rest)
		got := extent.NewSet(at, 512)
		for _, e := range append(slices.Clone(b.ext), rest.ext...) {
			got.Add(e)
		}
		for _, e := range all {
			if !got.Contains(e) {
				t.Fatalf("seed %d: %v is lost", seed, e)
			}
		}
	}
}
