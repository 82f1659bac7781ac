package catalog

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/internal/digest"
)

// TestSeen: what was added is never denied, what was not rarely taken for it, and one tenant's digests say nothing of another's.
func TestSeen(t *testing.T) {
	s := newSeen(64 << 10)
	s.whole.Store(true)
	all := digests(3 * int(s.room))
	in, out := all[:s.room], all[s.room:]
	scope := scopeHash("acme")
	var g sync.WaitGroup
	for part := range 4 {
		g.Go(func() {
			for i := part; i < len(in); i += 4 {
				s.add(scope, in[i][:keyDigest])
			}
		})
	}
	g.Wait()
	for i, d := range in {
		if !s.may(scope, d) {
			t.Fatalf("digest %d was added and is denied", i)
		}
	}
	wrong := func(scope uint64, ds []digest.Digest) (n int) {
		for _, d := range ds {
			if s.may(scope, d) {
				n++
			}
		}
		return n
	}
	if n := wrong(scope, out); n > len(out)/50 {
		t.Errorf("%d of %d digests that nobody added are taken for known", n, len(out))
	}
	if n := wrong(scopeHash("evil"), in); n > len(in)/50 {
		t.Errorf("%d of %d digests of another tenant are taken for known", n, len(in))
	}
}

// TestRecall: an index that is opened again knows what it had, first by asking the store, then by its filter; one with more than the filter is good for asks the store for ever.
func TestRecall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := openIndex(t, dir)
	ds := digests(5000)
	x.Add("acme", 3, 0, ds, digest.Unknown)
	must(t, x.Close())
	x = openIndex(t, dir)
	found := func() (n int) {
		out := make([]Place, len(ds))
		x.Lookup("acme", ds, out)
		for _, p := range out {
			if p.Flow == 3 {
				n++
			}
		}
		return n
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		whole := x.seen.whole.Load()
		if n := found(); n != len(ds) {
			t.Fatalf("%d of %d found, filter whole: %v", n, len(ds), whole)
		}
		if whole {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the filter never became whole")
		}
	}
	must(t, x.Close())

	x = openIndex(t, dir)
	x.recalled.Wait()
	x.seen = newSeen(64)
	x.recall()
	x.recalled.Wait()
	if n := found(); n != len(ds) || x.seen.whole.Load() {
		t.Fatalf("%d of %d found with a filter that is too small, whole: %v", n, len(ds), x.seen.whole.Load())
	}
	must(t, x.Close())
}

// BenchmarkLookupNew is what a first copy asks: 256 leaves that nobody has.
func BenchmarkLookupNew(b *testing.B) {
	x := openIndex(b, filepath.Join(b.TempDir(), "index"))
	defer x.Close()
	ds := digests(400_000)
	for i := 0; i < len(ds)/2; i += 256 {
		x.Add("acme", 3, int64(i), ds[i:i+256], digest.Unknown)
	}
	out := make([]Place, 256)
	b.SetBytes(256 * 16 << 10)
	for i := 0; b.Loop(); i++ {
		at := len(ds)/2 + i*256%(len(ds)/2-256)
		x.Lookup("acme", ds[at:at+256], out)
	}
}
