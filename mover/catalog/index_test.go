package catalog

import (
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/moverd/mover/internal/digest"
)

func openIndex(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := OpenIndex(dir, 8<<20, slog.New(slog.NewTextHandler(io.Discard, nil)))
	must(t, err)
	return x
}

func digests(n int) []digest.Digest {
	out := make([]digest.Digest, n)
	for i := range out {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(i))
		out[i] = digest.Sum(b[:])
	}
	return out
}

func TestIndex(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := openIndex(t, dir)
	ds := digests(3000)
	skip := ds[5]
	x.Add("acme", 3, 100, ds, skip)
	x.Add("acme", 4, 0, []digest.Digest{digest.Free, digest.Unknown}, skip)
	look := func(tenant string) (n int) {
		out := make([]Place, len(ds))
		x.Lookup(tenant, ds, out)
		for i, p := range out {
			if p.Flow == 0 {
				continue
			}
			if n++; p != (Place{3, 100 + int64(i)}) || i == 5 {
				t.Fatalf("leaf %d at %+v", i, p)
			}
		}
		return n
	}
	if n := look("acme"); n != len(ds)-1 {
		t.Fatalf("%d found", n)
	}
	for _, other := range []string{"acm", "acme2", "evil", ""} {
		if n := look(other); n != 0 {
			t.Fatalf("tenant %q sees %d entries of another", other, n)
		}
	}
	must(t, x.Close())
	x = openIndex(t, dir)
	if n := look("acme"); n != len(ds)-1 {
		t.Fatalf("%d found after closing", n)
	}
	must(t, x.Close())

	// Garbage in any file: rebuilt empty, or read as it was; never a wrong answer, never an end of the process.
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		for i := range b {
			b[i] ^= 0x5a
		}
		must(t, os.WriteFile(f, b, 0o600))
	}
	x = openIndex(t, dir)
	look("acme")
	must(t, x.Close())
	x = openIndex(t, dir)
	x.Add("acme", 3, 100, ds, skip)
	if n := look("acme"); n != len(ds)-1 {
		t.Fatalf("%d found after rebuilding", n)
	}
	must(t, x.Close())
}

func BenchmarkIndexAdd(b *testing.B) {
	x := openIndex(b, filepath.Join(b.TempDir(), "index"))
	ds := digests(256)
	n := 0
	for b.Loop() {
		for i := range ds {
			binary.BigEndian.PutUint64(ds[i][:], uint64(n)*0x9e3779b97f4a7c15)
			n++
		}
		x.Add("acme", 1, int64(n), ds, digest.Unknown)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/leaf")
	must(b, x.Close())
}
