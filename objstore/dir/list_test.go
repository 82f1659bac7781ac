package dir

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/objstore"
)

// fillFolder makes n files as others would.
func fillFolder(t testing.TB, path string, n int) (keys []string) {
	t.Helper()
	for i := range n {
		key := fmt.Sprintf("%06d", i)
		if err := os.WriteFile(filepath.Join(path, key), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

// TestWalkGoesOn: the pages of a listing read a folder once, however many they are.
func TestWalkGoesOn(t *testing.T) {
	path := room(t)
	keys := fillFolder(t, path, 2000)
	time.Sleep(60 * time.Millisecond) // until the time of the folder is a time past
	s, ctx := open(t, Config{Path: path, Page: 100}), context.Background()
	time.Sleep(60 * time.Millisecond)
	var got []string
	var read time.Time
	for q := (objstore.Query{}); ; {
		p, err := s.List(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			got = append(got, e.Key)
		}
		if !p.More {
			break
		}
		q.After = got[len(got)-1]
		w := s.walks.all[q]
		if w == nil || len(w.folders) != 1 {
			t.Fatalf("no walk goes on after %s", q.After)
		}
		if read.IsZero() {
			read = w.folders[0].l.read
		} else if w.folders[0].l.read != read {
			t.Fatalf("the folder was read again after %s", q.After)
		}
	}
	if !slices.Equal(got, keys) {
		t.Errorf("%d keys, want %d", len(got), len(keys))
	}
	if len(s.walks.all) != 0 {
		t.Error("a walk that has ended is kept")
	}
	for i := range 200 { // listings that nobody goes on with
		if _, err := s.List(ctx, objstore.Query{After: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.walks.all); n > walksMost {
		t.Errorf("%d walks are kept", n)
	}
}

// TestWalksShare: many walks of one folder have its names in memory once.
func TestWalksShare(t *testing.T) {
	path := room(t)
	keys := fillFolder(t, path, many)
	time.Sleep(120 * time.Millisecond)
	s, ctx := open(t, Config{Path: path, Page: 10}), context.Background()
	time.Sleep(120 * time.Millisecond) // it made its own folder there
	var first *listing
	for i := range 32 {
		q := objstore.Query{After: keys[i*100], Prefix: "00"}
		p, err := s.List(ctx, q)
		if err != nil || len(p.Entries) != 10 || p.Entries[0].Key != keys[i*100+1] {
			t.Fatal(len(p.Entries), err)
		}
		w := s.walks.all[objstore.Query{Prefix: "00", After: p.Entries[9].Key}]
		if w == nil || len(w.folders) != 1 {
			t.Fatal("no walk goes on")
		}
		if l := w.folders[0].l; first == nil {
			first = l
		} else if l != first {
			t.Fatal("the folder was read again")
		}
	}
	put(t, s, "000005x", "x") // and what is changed is seen in spite of that
	if p, err := s.List(ctx, objstore.Query{After: "000005", Max: 1}); err != nil || p.Entries[0].Key != "000005x" {
		t.Error(p, err)
	}
}

// TestWalkMeetsOthers: what another Store or program does behind a page is in the next ones.
func TestWalkMeetsOthers(t *testing.T) {
	path := room(t)
	s, o, ctx := open(t, Config{Path: path}), open(t, Config{Path: path}), context.Background()
	for _, key := range []string{"a", "b/1", "b/2", "b/3", "c"} {
		put(t, o, key, key)
	}
	next := func(after, want string) {
		t.Helper()
		p, err := s.List(ctx, objstore.Query{After: after, Max: 1})
		if err != nil || len(p.Entries) != 1 || p.Entries[0].Key != want {
			t.Errorf("after %q: %+v, %v; want %q", after, p.Entries, err, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
	next("", "a")
	next("a", "b/1")
	put(t, o, "b/11", "x")
	next("b/1", "b/11")
	remove(t, o, "b/2")
	put(t, o, "b", "is behind")
	put(t, o, "bb", "x")
	next("b/11", "b/3")
	put(t, o, "b/4/x", "x")
	next("b/3", "b/4/x")
	next("b/4/x", "bb")
	put(t, o, "c/d", "makes c move")
	next("bb", "c")
	next("c", "c/d")
}

// TestWalkOfManyChanges: more changes than are noted make the walk begin anew where it is.
func TestWalkOfManyChanges(t *testing.T) {
	path := room(t)
	keys := fillFolder(t, path, 300)
	s, ctx := open(t, Config{Path: path}), context.Background()
	p, err := s.List(ctx, objstore.Query{Max: 100})
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(s.log.keys) + 10 {
		s.log.add(fmt.Sprintf("no such object %d", i))
	}
	put(t, s, "000150x", "x")
	for i := range 100 {
		s.log.add(fmt.Sprintf("000151 no such object %d", i))
	}
	want := append(slices.Clone(keys[100:151]), append([]string{"000150x"}, keys[151:]...)...)
	if got := list(t, s, objstore.Query{After: p.Entries[99].Key}); !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
}

// TestWalkUnderWriters: whatever writers do to other keys, and how often they overwrite these, each listing has the keys that are there all the time, once, in
// order.
func TestWalkUnderWriters(t *testing.T) {
	for _, share := range []int{1, many} {
		t.Run(fmt.Sprint(share), func(t *testing.T) { walkUnderWriters(t, share) })
	}
}

func walkUnderWriters(t *testing.T, share int) {
	path := room(t)
	s, o, ctx := open(t, Config{Path: path}), open(t, Config{Path: path}), context.Background()
	s.share = share
	var stay []string
	for i := range 120 {
		stay = append(stay, fmt.Sprintf("%c%s%d", 'a'+i%3, []string{"", "/", "/x/", "//", "/x"}[i%5], i))
	}
	slices.Sort(stay)
	for _, key := range stay {
		put(t, s, key, "first")
	}
	ended, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		end()
		wg.Wait()
	}()
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for ended.Err() == nil {
				w, key := s, stay[r.IntN(len(stay))]
				if i == 3 {
					w = o // another process
				}
				var err error
				switch r.IntN(3) {
				case 0:
					_, err = w.Put(ctx, key, objstore.Bytes([]byte("again")), objstore.PutOptions{})
				case 1: // makes an object make way, or lie beside one
					_, err = w.Put(ctx, key+[]string{"/y", "-", "/y/z"}[r.IntN(3)], objstore.Bytes(nil), objstore.PutOptions{})
				default:
					_, err = w.Delete(ctx, key+"/y", key+"-", key+"/y/z")
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 15 {
		var got []string
		for q := (objstore.Query{Max: 1 + n%17}); ; {
			p, err := s.List(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Entries {
				if e.Key <= q.After {
					t.Fatalf("%q comes after %q", e.Key, q.After)
				}
				if q.After = e.Key; !strings.HasSuffix(e.Key, "/y") && !strings.HasSuffix(e.Key, "-") && !strings.HasSuffix(e.Key, "/y/z") {
					got = append(got, e.Key)
				}
			}
			if !p.More {
				break
			}
		}
		if !slices.Equal(got, stay) {
			for i, key := range stay {
				if i >= len(got) || got[i] != key {
					t.Fatalf("listing %d has %d keys, want %d: %q is not there", n, len(got), len(stay), key)
				}
			}
			t.Fatalf("listing %d has %d keys, want %d", n, len(got), len(stay))
		}
	}
}

// BenchmarkList pages through a folder of many files.
func BenchmarkList(b *testing.B) {
	path := room(b)
	fillFolder(b, path, 100_000)
	s := open(b, Config{Path: path})
	b.ReportAllocs()
	for b.Loop() {
		if n := len(list(b, s, objstore.Query{})); n != 100_000 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/key")
}

// BenchmarkPut stores small objects.
func BenchmarkPut(b *testing.B) {
	s := open(b, Config{Path: room(b)})
	content := make([]byte, 10<<10)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := s.Put(context.Background(), fmt.Sprintf("d%d/%d", i%16, i), objstore.Bytes(content), objstore.PutOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
