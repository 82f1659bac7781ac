package catalog

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/room"
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

// TestIndexFull: a state disk that fills up under the index ends the index, never the process; its room is given back, and a start with a full disk
// goes on without one.
func TestIndexFull(t *testing.T) {
	looptest.NeedRoot(t)
	for _, left := range []int64{0, 16 << 10, 300 << 10, 2 << 20} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			l := looptest.New(t, 32<<20, looptest.Options{})
			looptest.Mkfs(t, l.Dev, "ext4", "-m", "0", "-O", "^has_journal")
			mnt := looptest.Mount(t, l.Dev)
			dir := filepath.Join(mnt, "index")
			x := openIndex(t, dir)
			x.least = 0
			ds := digests(2000)
			x.Add("acme", 1, 0, ds, digest.Digest{})
			ballast, err := os.Create(filepath.Join(mnt, "ballast"))
			must(t, err)
			defer ballast.Close()
			free, _, err := room.Of(mnt)
			must(t, err)
			must(t, unix.Fallocate(int(ballast.Fd()), 0, 0, free-left-256<<10))
			_, err = ballast.Seek(0, io.SeekEnd)
			for b := make([]byte, 4096); free > left && err == nil; free, _, _ = room.Of(mnt) {
				_, err = ballast.Write(b)
			}
			for i := int64(0); i < 400 && !x.bad.Load(); i++ {
				for k := range ds {
					binary.BigEndian.PutUint64(ds[k][:], uint64(i)*0x9e3779b97f4a7c15+uint64(k)*0xbf58476d1ce4e5b9)
				}
				x.Add("acme", 1, i*int64(len(ds)), ds, digest.Digest{})
				if i%10 == 0 {
					x.Lookup("acme", ds, make([]Place, len(ds)))
				}
			}
			if !x.bad.Load() {
				t.Fatal("the disk did not fill up")
			}
			<-x.end
			out := make([]Place, len(ds))
			if x.Lookup("acme", ds, out); out[len(out)-1].Flow != 0 {
				t.Fatal("what was given up answers")
			}
			must(t, x.Close())
			if _, serr := os.Stat(dir); !os.IsNotExist(serr) {
				t.Fatal("it still fills the disk", serr)
			}
			for b := make([]byte, 4096); err == nil; {
				if _, err = ballast.Seek(0, io.SeekEnd); err == nil {
					_, err = ballast.Write(b)
				}
			}
			x = openIndex(t, dir) // the disk is full
			x.Add("acme", 1, 0, ds, digest.Digest{})
			must(t, x.Close())
			must(t, ballast.Truncate(0))
			x = openIndex(t, dir)
			x.least = 0
			x.Add("acme", 1, 0, ds, digest.Digest{})
			if x.Lookup("acme", ds, out); out[9] != (Place{1, 9}) {
				t.Fatalf("after room was made: %+v", out[9])
			}
			must(t, x.Close())
		})
	}
}
