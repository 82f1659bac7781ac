// Package devtest is the conformance suite of blockdev.Volume and blockdev.Target. Every implementation and every decorator passes it.
package devtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/moverd/mover/blockdev"
)

// Buffer makes n bytes of memory aligned to 4096, as the product's buffers are.
func Buffer(n int) []byte {
	b := make([]byte, n+4096)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % 4096)
	return b[skip : skip+n : skip+n]
}

// Content makes n bytes by seed in which every byte depends on its place.
func Content(seed uint64, n int64) []byte {
	b := Buffer(int(n))
	r := rand.New(rand.NewPCG(seed, 0))
	i := 0
	for ; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	for ; i < len(b); i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Volume runs the suite of blockdev.Volume. open makes a volume of exactly that content; the suite closes it.
func Volume(t *testing.T, size int64, open func(t *testing.T, content []byte) blockdev.Volume) {
	content := Content(1, size)
	v := open(t, content)
	t.Cleanup(func() { v.Close() })

	t.Run("describe", func(t *testing.T) {
		if v.Size() != size {
			t.Errorf("size %d, want %d", v.Size(), size)
		}
		if b := v.BlockSize(); b != 512 && b != 4096 {
			t.Errorf("block size %d", b)
		}
		if id := v.Identity(); id == "" || len(id) > 512 || strings.ContainsAny(id, " \n") || id != v.Identity() {
			t.Errorf("identity %q", id)
		}
		if err := v.Check(); err != nil {
			t.Errorf("check: %v", err)
		}
	})
	t.Run("whole", func(t *testing.T) { readWhole(t, v, content) })
	t.Run("places", func(t *testing.T) { readPlaces(t, v, content, int64(v.BlockSize())) })
	t.Run("end", func(t *testing.T) { readEnd(t, v, content) })
	t.Run("parallel", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { readWhole(t, v, content) })
		}
		wg.Wait()
	})
	t.Run("close", func(t *testing.T) {
		if err := v.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := v.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if _, err := v.ReadAt(Buffer(4096), 0); err == nil {
			t.Error("reading works after close")
		}
	})
}

type reader interface {
	io.ReaderAt
	Size() int64
}

func readWhole(t *testing.T, v reader, content []byte) {
	got := Buffer(len(content))
	for off := 0; off < len(got); off += 1 << 20 {
		p := got[off:min(len(got), off+1<<20)]
		if n, err := v.ReadAt(p, int64(off)); n != len(p) || err != nil && err != io.EOF {
			t.Errorf("read %d bytes at %d: %d, %v", len(p), off, n, err)
			return
		}
	}
	Same(t, got, content, 0)
}

// Same reports the first byte in which got and want differ.
func Same(t testing.TB, got, want []byte, off int64) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("byte %d differs (sector %d)", off+int64(i), (off+int64(i))/512)
			return
		}
	}
	t.Errorf("%d bytes, want %d", len(got), len(want))
}

func readPlaces(t *testing.T, v reader, content []byte, unit int64) {
	r := rand.New(rand.NewPCG(2, 2))
	size := int64(len(content))
	for range 200 {
		off := r.Int64N((size+unit-1)/unit) * unit
		n := min((1+r.Int64N(64))*unit, size-off)
		p := Buffer(int(n))
		if got, err := v.ReadAt(p, off); int64(got) != n || err != nil && err != io.EOF {
			t.Fatalf("read %d bytes at %d: %d, %v", n, off, got, err)
		}
		Same(t, p, content[off:off+n], off)
	}
}

func readEnd(t *testing.T, v reader, content []byte) {
	size := int64(len(content))
	from := max(0, size-4096) / 4096 * 4096
	p := Buffer(int(size-from) + 8192)
	n, err := v.ReadAt(p, from)
	if int64(n) != size-from || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d bytes of %d, %v; want io.EOF", n, size-from, err)
	}
	Same(t, p[:n], content[from:], from)
	if n, err := v.ReadAt(Buffer(4096), (size+4095)/4096*4096); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read behind the end: %d, %v; want io.EOF", n, err)
	}
	if n, err := v.ReadAt(Buffer(4096), -4096); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read before the beginning: %d, %v", n, err)
	}
}
