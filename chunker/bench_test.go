package chunker

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

const (
	gib = 1 << 30
	tib = 1 << 40
)

func BenchmarkDigest(b *testing.B) {
	buf := make([]byte, LeafSize)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	out := make([]digest.Digest, 0, 1)
	b.SetBytes(LeafSize)
	b.ReportAllocs()
	for b.Loop() {
		Digests(buf, out)
	}
}

func BenchmarkIsZero(b *testing.B) {
	buf := make([]byte, GroupSize)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if !IsZero(buf) {
			b.Fatal("not zero")
		}
	}
}

// filled makes a table of size bytes in which groups groups, spread evenly, hold data and the rest is free.
func filled(b testing.TB, size, groups int64) *Table {
	tab, err := OpenTable(filepath.Join(b.TempDir(), "table"), size)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = tab.Close() })
	if err := tab.Fill(0, Leaves(size), digest.Free); err != nil {
		b.Fatal(err)
	}
	var ds [GroupLeaves]digest.Digest
	for i := range groups {
		g := i * (Groups(size) / groups)
		for j := range ds {
			binary.LittleEndian.PutUint64(ds[j][:], uint64(g*GroupLeaves+int64(j)+1))
		}
		if err := tab.Set(g*GroupLeaves, ds[:min(GroupLeaves, Leaves(size)-g*GroupLeaves)]); err != nil {
			b.Fatal(err)
		}
	}
	if err := tab.Flush(); err != nil {
		b.Fatal(err)
	}
	if _, ok := tab.Root(); !ok {
		b.Fatal("no root", tab.Err())
	}
	return tab
}

var volumes = []struct {
	name         string
	size, groups int64
}{
	{"12GiB", 12 * gib, 12 * gib / GroupSize},
	{"4TiB-20GiB", 4 * tib, 20 * gib / GroupSize},
	{"4TiB-full", 4 * tib, 4 * tib / GroupSize},
}

func each(b *testing.B, f func(b *testing.B, tab *Table)) {
	for _, v := range volumes {
		b.Run(v.name, func(b *testing.B) { f(b, filled(b, v.size, v.groups)) })
	}
}

// BenchmarkRoot is the root after 4,000 random leaves were set; setting them is timed apart.
func BenchmarkRoot(b *testing.B) {
	each(b, func(b *testing.B, tab *Table) {
		r := rand.New(rand.NewPCG(1, 2))
		for b.Loop() {
			b.StopTimer()
			setRandom(b, r, tab, 4000)
			b.StartTimer()
			if _, ok := tab.Root(); !ok {
				b.Fatal("no root", tab.Err())
			}
		}
	})
}

func BenchmarkSetRandom4000(b *testing.B) {
	each(b, func(b *testing.B, tab *Table) {
		r := rand.New(rand.NewPCG(1, 2))
		for b.Loop() {
			setRandom(b, r, tab, 4000)
		}
	})
}

func setRandom(b *testing.B, r *rand.Rand, tab *Table, n int) {
	for range n {
		var ds [1]digest.Digest
		binary.LittleEndian.PutUint64(ds[0][:], r.Uint64()|1)
		if err := tab.Set(r.Int64N(tab.leaves), ds[:]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInvalidate is 30,000 random pages in ascending order, and the flush.
func BenchmarkInvalidate(b *testing.B) {
	each(b, func(b *testing.B, tab *Table) {
		r := rand.New(rand.NewPCG(1, 2))
		for b.Loop() {
			b.StopTimer()
			s := extent.NewSet(tab.size, 4096)
			for range 30000 {
				s.Add(extent.Extent{Off: r.Int64N(tab.size), Len: 1})
			}
			b.StartTimer()
			for e := range s.All() {
				if err := tab.Invalidate(e); err != nil {
					b.Fatal(err)
				}
			}
			if err := tab.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkFill64TiB(b *testing.B) {
	tab := filled(b, 64*tib, 1)
	for i := 0; b.Loop(); i++ {
		if err := tab.Fill(0, tab.leaves, fills[i%3]); err != nil {
			b.Fatal(err)
		}
		if err := tab.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	each(b, func(b *testing.B, tab *Table) {
		if err := tab.Close(); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			tab, err := OpenTable(tab.path, tab.size)
			if err != nil {
				b.Fatal(err)
			}
			if _, ok := tab.Root(); !ok {
				b.Fatal("no root")
			}
			if err := tab.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSetGroups is a full pass: whole groups from several goroutines. Bytes are those of the volume.
func BenchmarkSetGroups(b *testing.B) {
	for _, workers := range []int{1, 4} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			tab := filled(b, 4*tib, 1)
			var mu sync.Mutex
			next := int64(0)
			b.SetBytes(BatchSize)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					var ds [GroupLeaves]digest.Digest
					for {
						mu.Lock()
						g := next
						next++
						mu.Unlock()
						if g >= int64(b.N) {
							return
						}
						for j := range ds {
							binary.LittleEndian.PutUint64(ds[j][:], uint64(g<<8+int64(j)+1))
						}
						if err := tab.Set(g%tab.groups*GroupLeaves, ds[:]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// usr is real data: batches from the files of /usr.
func usr(tb testing.TB, batches int) [][]byte {
	var out [][]byte
	buf := make([]byte, 0, BatchSize)
	err := filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		for {
			n, err := io.ReadFull(f, buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+n]
			if len(buf) < cap(buf) || err != nil {
				return nil
			}
			out, buf = append(out, buf), make([]byte, 0, BatchSize)
			if len(out) == batches*8 {
				return fs.SkipAll
			}
		}
	})
	if err != nil || len(out) < batches {
		tb.Fatalf("/usr has too little data: %d batches, %v", len(out), err)
	}
	var pick [][]byte // spread
	for i := range batches {
		pick = append(pick, out[i*len(out)/batches])
	}
	return pick
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func BenchmarkCompress(b *testing.B) {
	c, err := NewCodec(CodecConfig{})
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, Bound(BatchSize))
	for _, data := range []struct {
		name    string
		batches [][]byte
	}{{"usr", usr(b, 8)}, {"random", [][]byte{noise(BatchSize)}}} {
		for l := Fastest; l < levels; l++ {
			b.Run(data.name+"/"+l.String(), func(b *testing.B) {
				b.SetBytes(BatchSize)
				b.ReportAllocs()
				in, out := 0, 0
				for i := 0; b.Loop(); i++ {
					src := data.batches[i%len(data.batches)]
					res, ok := c.Compress(dst, src, l)
					if in += len(src); ok {
						out += len(res)
					} else {
						out += len(src)
					}
				}
				b.ReportMetric(float64(in)/float64(out), "ratio")
			})
		}
	}
}

func BenchmarkDecompress(b *testing.B) {
	c, err := NewCodec(CodecConfig{})
	if err != nil {
		b.Fatal(err)
	}
	var packed [][]byte
	for _, src := range usr(b, 8) {
		p, ok := c.Compress(nil, src, Default)
		if !ok {
			continue
		}
		packed = append(packed, p)
	}
	dst := make([]byte, 0, BatchSize)
	b.SetBytes(BatchSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := c.Decompress(dst, packed[i%len(packed)], BatchSize); err != nil {
			b.Fatal(err)
		}
	}
}
