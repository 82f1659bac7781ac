package chunker

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/moverd/mover/internal/sentinel"
)

func newCodec(tb testing.TB, cfg CodecConfig) *Codec {
	tb.Helper()
	c, err := NewCodec(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// text shrinks well, and differs by seed.
func text(n int, seed byte) []byte {
	words := noise(4096)
	b := make([]byte, 0, n)
	for i := 0; len(b) < n; i++ {
		w := int(words[(i*7+int(seed))%4096])
		b = append(b, words[w*8:w*8+3+w%9]...)
	}
	return b[:n]
}

func TestLevels(t *testing.T) {
	for l := Off; l < levels; l++ {
		if got, err := ParseLevel(l.String()); err != nil || got != l {
			t.Errorf("%v is read as %v, %v", l, got, err)
		}
	}
	if _, err := ParseLevel("fast"); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("an unknown level is %v", err)
	}
	if s := Level(9).String(); s != "unknown(9)" {
		t.Errorf("level 9 is %q", s)
	}
}

func TestRoundTrip(t *testing.T) {
	c := newCodec(t, CodecConfig{})
	for l := Fastest; l < levels; l++ {
		for _, n := range []int{2000, 4096, LeafSize, LeafSize + 1, 300_000, MaxPlain - 1, MaxPlain} {
			src := text(n, byte(n))
			prefix := []byte("before")
			packed, ok := c.Compress(slices.Clone(prefix), src, l)
			if !ok {
				t.Fatalf("%v: %d bytes of text do not shrink", l, n)
			}
			if !bytes.HasPrefix(packed, prefix) {
				t.Fatal("what was in dst is gone")
			}
			frame := packed[len(prefix):]
			plain, err := c.Decompress(slices.Clone(prefix), frame, n)
			if err != nil || !bytes.Equal(plain, append(prefix, src...)) {
				t.Fatalf("%v: %d bytes do not come back: %v", l, n, err)
			}
			for _, wrong := range []int{n - 1, n + 1, 0, -1, MaxPlain + 1} {
				if _, err := c.Decompress(nil, frame, wrong); !errors.Is(err, sentinel.ErrCorrupt) {
					t.Fatalf("%d bytes taken for %d: %v", n, wrong, err)
				}
			}
		}
	}
}

func TestCompressKeepsPlain(t *testing.T) {
	c := newCodec(t, CodecConfig{})
	dst := []byte{1, 2, 3}
	for l := Off; l < levels; l++ {
		for _, src := range [][]byte{nil, {}, {7}, noise(511), noise(LeafSize), noise(MaxPlain)} {
			if out, ok := c.Compress(dst, src, l); ok || !bytes.Equal(out, dst) {
				t.Errorf("%v: %d random bytes are packed into %d", l, len(src), len(out)-len(dst))
			}
		}
	}
	if _, ok := c.Compress(nil, text(1000, 1), Off); ok {
		t.Error("off packs")
	}
	// 3 % of zeros in noise is about the least that is worth it.
	for share, want := range map[int]bool{2: false, 5: true} {
		src := noise(1 << 20)
		clear(src[:len(src)*share/100])
		if _, ok := c.Compress(nil, src, Fastest); ok != want {
			t.Errorf("%d %% of zeros: packed %v", share, ok)
		}
	}
}

func TestCodecDoesNotAllocate(t *testing.T) {
	c := newCodec(t, CodecConfig{})
	src, rnd := text(MaxPlain, 1), noise(MaxPlain)
	dst, plain := make([]byte, 0, Bound(MaxPlain)), make([]byte, 0, MaxPlain)
	for l := Fastest; l <= Better; l++ {
		packed, ok := c.Compress(dst, src, l)
		if !ok || &packed[0] != &dst[:1][0] {
			t.Fatalf("%v: not packed in place", l)
		}
		if out, ok := c.Compress(dst, rnd, l); ok || len(out) != 0 {
			t.Fatal("noise is packed")
		}
		packed, _ = c.Compress(nil, src, l)
		c.Compress(dst, src, l)
		if n := allocated(5, func() {
			c.Compress(dst, src, l)
			c.Compress(dst, rnd, l)
		}); n > 16<<10 {
			t.Errorf("%v: %d bytes allocated to compress", l, n)
		}
		if n := allocated(20, func() {
			if _, err := c.Decompress(plain, packed, MaxPlain); err != nil {
				t.Fatal(err)
			}
		}); n > 256<<10 { // a decoder takes tables from pools, which the race detector empties
			t.Errorf("%v: %d bytes allocated to decompress", l, n)
		}
	}
}

// allocated is the bytes that each of n calls of f allocates.
func allocated(n int, f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / uint64(n)
}

func TestBound(t *testing.T) {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= MaxPlain; n += 997 {
		if w.MaxEncodedSize(n) > Bound(n) {
			t.Fatalf("%d bytes may take %d, Bound says %d", n, w.MaxEncodedSize(n), Bound(n))
		}
	}
}

// What an encoder of each level holds once it has packed a batch, and the decoders together.
func TestCodecMemory(t *testing.T) {
	src := text(MaxPlain, 1)
	dst, plain := make([]byte, 0, Bound(MaxPlain)), make([]byte, 0, MaxPlain)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for l := Fastest; l < levels; l++ {
		c := newCodec(t, CodecConfig{})
		was := heap()
		packed, _ := c.Compress(dst, src, l)
		enc := heap() - was
		if _, err := c.Decompress(plain, packed, MaxPlain); err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: encoder %.1f MiB, decoder %.1f MiB", l, float64(enc)/(1<<20), float64(heap()-was-enc)/(1<<20))
		if most := int64([]int{0, 10, 11, 14, 44}[l]) << 20; enc > most {
			t.Errorf("%v: an encoder holds %d bytes, at most %d", l, enc, most)
		}
		runtime.KeepAlive(c)
	}
	runtime.KeepAlive(dst)
	runtime.KeepAlive(plain)
}

func TestDecompressRefuses(t *testing.T) {
	c := newCodec(t, CodecConfig{})
	src := text(200_000, 3)
	frame, _ := c.Compress(nil, src, Default)
	enc := func(o ...zstd.EOption) []byte {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, o...)
		if err != nil {
			t.Fatal(err)
		}
		for part := range slices.Chunk(src, 50_000) { // streaming: the size is not announced
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	bomb := func() []byte {
		w, _ := zstd.NewWriter(nil)
		return w.EncodeAll(make([]byte, 64<<20), nil)
	}()
	lying := slices.Clone(bomb)
	var h zstd.Header
	if err := h.Decode(bomb); err != nil || h.FrameContentSize != 64<<20 {
		t.Fatal("bomb has no size", err)
	}
	lying[6], lying[7], lying[8], lying[9] = 0, 0, 0x40, 0 // 4 MiB, says the header
	for name, b := range map[string][]byte{
		"empty": nil, "garbage": noise(1000), "cut": frame[:len(frame)-1], "half": frame[:len(frame)/2], "magic only": frame[:4],
		"no size": enc(), "trailing garbage": append(slices.Clone(frame), 1, 2, 3), "two frames": append(slices.Clone(frame), frame...),
		"skippable behind": append(slices.Clone(frame), 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4),
		"skippable":        append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, frame...),
	} {
		out, err := c.Decompress([]byte{9}, b, len(src))
		if !errors.Is(err, sentinel.ErrCorrupt) || !bytes.Equal(out, []byte{9}) {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
	for name, b := range map[string][]byte{"bomb": bomb, "bomb that lies": lying} {
		out, err := c.Decompress(nil, b, MaxPlain)
		if !errors.Is(err, sentinel.ErrCorrupt) || cap(out) > MaxPlain {
			t.Errorf("%s: %d bytes, %v", name, cap(out), err)
		}
	}
}

// Under -race: more callers than encoders, over all levels, wait for each other and stay within the bound.
func TestCodecConcurrent(t *testing.T) {
	c := newCodec(t, CodecConfig{Encoders: 2, Decoders: 2})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			src := text(100_000+w, byte(w))
			for i := range 12 {
				packed, ok := c.Compress(nil, src, Level(1+(w+i)%3))
				if !ok {
					t.Error("text does not shrink")
					return
				}
				plain, err := c.Decompress(nil, packed, len(src))
				if err != nil || !bytes.Equal(plain, src) {
					t.Error("does not come back", err)
				}
			}
		})
	}
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := 0
	for _, l := range c.idle {
		idle += len(l)
	}
	if c.made > 2 || idle != c.made {
		t.Errorf("%d encoders made, %d idle, at most 2", c.made, idle)
	}
}

// Noise costs much less than data does (BenchmarkCompress has the figures: less than a tenth).
func TestNoiseIsCheap(t *testing.T) {
	c := newCodec(t, CodecConfig{})
	dst := make([]byte, 0, Bound(MaxPlain))
	rnd, data := noise(MaxPlain), usr(t, 3)[1]
	least := func(src []byte, l Level) time.Duration {
		d := time.Hour
		for range 2 {
			start := time.Now()
			c.Compress(dst, src, l)
			d = min(d, time.Since(start))
		}
		return d
	}
	for l := Fastest; l <= Default; l++ {
		if n, d := least(rnd, l), least(data, l); n*3 > d {
			t.Errorf("%v: noise takes %v, data %v", l, n, d)
		}
	}
}

func FuzzDecompress(f *testing.F) {
	c := newCodec(f, CodecConfig{Decoders: 1})
	for _, n := range []int{1, 100, 5000, 200_000} {
		frame, _ := c.Compress(nil, text(n, 1), Fastest)
		f.Add(frame, n)
	}
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa4, 0, 0, 0x40, 0, 3, 0, 0}, MaxPlain)
	f.Fuzz(func(t *testing.T, frame []byte, n int) {
		dst := make([]byte, 3, 3+max(0, min(n, MaxPlain)))
		out, err := c.Decompress(dst, frame, n)
		if err != nil {
			if !errors.Is(err, sentinel.ErrCorrupt) || len(out) != 3 {
				t.Fatalf("%d bytes, %v", len(out), err)
			}
			return
		}
		if len(out) != 3+n || &out[0] != &dst[0] {
			t.Fatalf("%d bytes for %d, or elsewhere", len(out), n)
		}
	})
}
