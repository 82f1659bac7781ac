package buffers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"unsafe"
)

func TestBudget(t *testing.T) {
	for _, v := range []struct {
		size   int
		budget int64
		limit  int64
	}{{4096, 5 * 4096, 5 * 4096}, {4096, 5*4096 + 4095, 5 * 4096}, {8192, 0, 2 * 8192}, {8192, -1, 2 * 8192}} {
		p := New(v.size, v.budget)
		if p.Limit() != v.limit || p.Size() != v.size {
			t.Errorf("New(%d, %d): limit %d, size %d", v.size, v.budget, p.Limit(), p.Size())
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, size := range []int{0, -4096, 4095, 4097} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("New(%d) did not panic", size)
				}
			}()
			New(size, 1<<20)
		}()
	}
}

func TestAlignedDistinctAndReused(t *testing.T) {
	p := New(2*Align, 3*2*Align)
	seen := map[*byte]bool{}
	var held [][]byte
	for range 3 {
		b, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != 2*Align || cap(b) != 2*Align {
			t.Fatalf("buffer of %d bytes, room for %d", len(b), cap(b))
		}
		at := unsafe.SliceData(b)
		if uintptr(unsafe.Pointer(at))%Align != 0 || seen[at] {
			t.Fatalf("buffer at %p: not aligned, or handed out twice", at)
		}
		seen[at] = true
		held = append(held, b)
	}
	if p.Used() != p.Limit() {
		t.Fatalf("%d bytes used of %d", p.Used(), p.Limit())
	}
	p.Put(held[1][:100]) // a prefix will do
	b, err := p.Get(t.Context())
	if err != nil || len(b) != 2*Align || !seen[unsafe.SliceData(b)] {
		t.Fatalf("got %d bytes, %v; want a buffer that was put back", len(b), err)
	}
	if err := p.Close(); err == nil {
		t.Fatal("closed with buffers handed out")
	}
	for _, b := range [][]byte{held[0], b, held[2]} {
		p.Put(b)
	}
	if p.Used() != 0 {
		t.Fatalf("%d bytes used", p.Used())
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPutRefuses(t *testing.T) {
	p := New(Align, 2*Align)
	b, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wants := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", what)
			}
		}()
		f()
	}
	wants("a suffix", func() { p.Put(b[1:]) })
	p.Put(b)
	wants("a second Put", func() { p.Put(b) })
}

func TestGetWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Align, 2*Align)
		var held [][]byte
		for range 2 {
			b, err := p.Get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var cancelled, got atomic.Bool
		go func() {
			_, err := p.Get(ctx)
			cancelled.Store(errors.Is(err, context.Canceled))
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !cancelled.Load() {
			t.Error("Get did not end with its context")
		}
		go func() {
			b, err := p.Get(t.Context())
			got.Store(err == nil)
			p.Put(b)
		}()
		synctest.Wait()
		if got.Load() {
			t.Error("Get went beyond the budget")
		}
		p.Put(held[0])
		synctest.Wait()
		if !got.Load() {
			t.Error("Get did not see the buffer that was put back")
		}
		p.Put(held[1])
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Under -race: a buffer has one owner at a time, and the budget holds.
func TestConcurrent(t *testing.T) {
	p := New(Align, 4*Align)
	var wg sync.WaitGroup
	for w := range byte(16) {
		wg.Go(func() {
			for range 500 {
				b, err := p.Get(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if p.Used() > p.Limit() {
					t.Errorf("%d bytes used, limit %d", p.Used(), p.Limit())
				}
				b[0], b[Align-1] = w, w
				if b[0] != w || b[Align-1] != w {
					t.Error("two owners")
				}
				p.Put(b)
			}
		})
	}
	wg.Wait()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkGetPut(b *testing.B) {
	p := New(Align, 64*Align)
	b.ReportAllocs()
	for b.Loop() {
		x, err := p.Get(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		p.Put(x)
	}
}
