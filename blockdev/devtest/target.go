package devtest

import (
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
)

// Target runs the suite of blockdev.Target. open opens a target of exactly size bytes and any content; again opens the same one after it
// was closed. The suite closes both.
func Target(t *testing.T, size int64, open, again func(t *testing.T) blockdev.Target) {
	d := open(t)
	t.Cleanup(func() { d.Close() })
	want := Content(3, size)
	id := d.Identity()

	t.Run("describe", func(t *testing.T) {
		if d.Size() != size {
			t.Errorf("size %d, want %d", d.Size(), size)
		}
		if id == "" || len(id) > 512 || strings.ContainsAny(id, " \n") {
			t.Errorf("identity %q", id)
		}
	})
	t.Run("fill", func(t *testing.T) {
		for off := int64(0); off < size; off += 1 << 20 {
			write(t, d, want[off:min(size, off+1<<20)], off)
		}
		readWhole(t, d, want)
		if err := d.Sync(); err != nil {
			t.Errorf("sync: %v", err)
		}
		readWhole(t, d, want)
	})
	t.Run("sectors", func(t *testing.T) { overwrite(t, d, want, 4) })
	t.Run("unaligned memory", func(t *testing.T) {
		for n := 512; int64(n) <= min(size, 600<<10); n *= 3 {
			n := n / 512 * 512
			p := append([]byte{0}, Content(uint64(n), int64(n))...)[1:]
			write(t, d, p, 0)
			copy(want, p)
			got := make([]byte, n+1)[1:]
			if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			Same(t, got, p, 0)
		}
	})
	t.Run("zero", func(t *testing.T) { zero(t, d, want) })
	t.Run("parallel", func(t *testing.T) { parallel(t, d, want) })
	t.Run("edges", func(t *testing.T) { outside(t, d, want) })
	t.Run("end", func(t *testing.T) { readEnd(t, d, want) })
	t.Run("again", func(t *testing.T) {
		if err := d.Sync(); err != nil {
			t.Errorf("sync: %v", err)
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if _, err := d.WriteAt(Buffer(4096), 0); err == nil {
			t.Error("writing works after close")
		}
		if err := d.Sync(); err == nil {
			t.Error("a sync works after close")
		}
		d = again(t)
		if d.Identity() != id {
			t.Errorf("identity %q was %q before", d.Identity(), id)
		}
		readWhole(t, d, want)
	})
}

func write(t *testing.T, d blockdev.Target, p []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Errorf("write %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

// overwrite changes runs of sectors, and now and then large runs of pages, at random places.
func overwrite(t *testing.T, d blockdev.Target, want []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	size := int64(len(want))
	for i := range 200 {
		off := r.Int64N((size+511)/512) * 512
		n := min((1+r.Int64N(40))*512, size-off)
		if large := (64 + r.Int64N(64)) * 4096; i%8 == 0 && large <= size {
			n, off = large, r.Int64N((size-large)/4096+1)*4096
		}
		p := Content(seed<<32|uint64(i), n)
		write(t, d, p, off)
		copy(want[off:], p)
	}
	readWhole(t, d, want)
}

// zero makes extents of all sizes read as zeros, at odd sectors too, between data that has to stay.
func zero(t *testing.T, d blockdev.Target, want []byte) {
	r := rand.New(rand.NewPCG(5, 0))
	size := int64(len(want))
	list := []extent.Extent{{Off: 0, Len: 0}, {Off: 512, Len: 512}, {Off: 1536, Len: 4096}, {Off: (size - 1) / 512 * 512, Len: size - (size-1)/512*512}}
	for range 60 {
		off := r.Int64N((size+511)/512) * 512
		list = append(list, extent.Extent{Off: off, Len: min((1+r.Int64N(400))*512, size-off)})
	}
	for _, e := range list {
		e = e.Intersect(extent.Extent{Len: size})
		if err := d.Zero(e); err != nil {
			t.Fatalf("zero %v: %v", e, err)
		}
		clear(want[e.Off:e.End()])
	}
	readWhole(t, d, want)
	overwrite(t, d, want, 6) // what was given back can be written again
}

// parallel writes neighbouring sectors from several goroutines: blocks of the device are shared, sectors are not.
func parallel(t *testing.T, d blockdev.Target, want []byte) {
	const workers = 8
	size := int64(len(want))
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for s := w * 512; s < min(size, 256<<10); s += workers * 512 {
				n := min(512, size-s)
				if r.IntN(8) == 0 {
					if err := d.Zero(extent.Extent{Off: s, Len: n}); err != nil {
						t.Errorf("zero: %v", err)
					}
					clear(want[s : s+n])
					continue
				}
				p := Content(uint64(s), n)
				write(t, d, p, s)
				copy(want[s:], p)
			}
			for i := range 6 { // and larger pieces of its own, whole and in parts, beside those of others
				off := 256<<10 + w*(256<<10)
				n := min(int64(256<<10), size-off)
				if i%2 == 1 {
					k := r.Int64N(512)
					off, n = off+k*512, min((1+r.Int64N(512-k))*512, n-k*512)
				}
				if n <= 0 {
					break
				}
				p := Content(uint64(w)<<8|uint64(i), n)
				write(t, d, p, off)
				copy(want[off:], p)
			}
			if err := d.Sync(); err != nil {
				t.Errorf("sync: %v", err)
			}
		})
	}
	wg.Wait()
	readWhole(t, d, want)
}

// outside asks for what does not exist; nothing may change, and the size must not.
func outside(t *testing.T, d blockdev.Target, want []byte) {
	size := int64(len(want))
	for _, off := range []int64{-512, (size+511)/512*512 - 512, (size + 4095) / 4096 * 4096} {
		p := Content(9, 1024)
		if n, err := d.WriteAt(p, off); err == nil {
			t.Errorf("write 1024 bytes at %d of %d: %d, no error", off, size, n)
		}
		if err := d.Zero(extent.Extent{Off: off, Len: 1024}); err == nil {
			t.Errorf("zero 1024 bytes at %d of %d: no error", off, size)
		}
	}
	if d.Size() != size {
		t.Errorf("size %d, was %d", d.Size(), size)
	}
	readWhole(t, d, want)
}
