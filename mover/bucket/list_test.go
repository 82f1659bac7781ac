package bucket

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/objstore"
)

// farStore lists keys, a page in so much time.
type farStore struct {
	objstore.Store // nothing else is asked
	keys           []string
	page           int
	takes          time.Duration

	mu    sync.Mutex
	calls int
}

func (s *farStore) String() string { return "far" }

func (s *farStore) List(ctx context.Context, q objstore.Query) (p objstore.Page, err error) {
	time.Sleep(s.takes)
	s.mu.Lock()
	s.calls++
	s.mu.Unlock()
	n := s.page
	if q.Max > 0 {
		n = min(n, q.Max)
	}
	i := sort.SearchStrings(s.keys, max(q.After, q.Prefix))
	for ; i < len(s.keys) && len(p.Entries) < n; i++ {
		if k := s.keys[i]; k > q.After && strings.HasPrefix(k, q.Prefix) {
			p.Entries = append(p.Entries, objstore.Entry{Key: k, ETag: "x"})
		} else if k > q.After {
			return p, ctx.Err()
		}
	}
	p.More = i < len(s.keys) && len(p.Entries) > 0 && strings.HasPrefix(s.keys[i], q.Prefix)
	return p, ctx.Err()
}

// walkAll lists s and gives every key that came, and how long it took.
func walkAll(t *testing.T, s *farStore, prefix string, width int) ([]string, time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var got []string
	at := map[uint64]string{1: ""} // where each walk has to go on
	l := &lister{store: s, prefix: prefix, width: width}
	l.cut = func(left, right uint64, sp span) error {
		mu.Lock()
		defer mu.Unlock()
		at[right] = sp.after
		return nil
	}
	l.page = func(_ context.Context, p listed) error {
		mu.Lock()
		defer mu.Unlock()
		if at[p.walk] != p.after {
			t.Errorf("walk %d goes on after %q, not %q", p.walk, p.after, at[p.walk])
		}
		at[p.walk] = p.to
		for _, e := range p.entries {
			if e.Key <= p.after || !p.has(e.Key) {
				t.Errorf("%q is not in %v", e.Key, p.span)
			}
			got = append(got, e.Key)
		}
		return nil
	}
	began := time.Now()
	if err := l.run(t.Context(), []*walk{{id: 1}}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got, time.Since(began)
}

// C18: however the keys are spread, listers side by side list each key once; and flat keyspaces too are listed many times as fast as by one.
func TestListSideBySide(t *testing.T) {
	spaces := keyspaces()
	for i := range 200_000 {
		spaces["flat"] = append(spaces["flat"], fmt.Sprintf("photos/img-%09d.jpg", i))
	}
	for name, keys := range spaces {
		synctest.Test(t, func(t *testing.T) {
			s := &farStore{keys: keys, page: 100, takes: 20 * time.Millisecond}
			one, serial := walkAll(t, s, "", 1)
			many, side := walkAll(t, s, "", 16)
			if !slices.Equal(one, keys) || !slices.Equal(many, keys) {
				t.Errorf("%s: %d keys: one lister gives %d, sixteen %d", name, len(keys), len(one), len(many))
			}
			least := map[string]float64{"flat": 6, "counted": 3, "hex": 3, "dates": 3}[name]
			if ratio := serial.Seconds() / max(side.Seconds(), 1e-9); ratio < least {
				t.Errorf("%s: sixteen listers are %.1f times as fast as one, not %.0f", name, ratio, least)
			}
		})
	}
}

// A prefix bounds the listing, wherever it is cut.
func TestListPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys []string
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 20_000 {
			keys = append(keys, fmt.Sprintf("%c/%06x", 'a'+rnd.IntN(5), rnd.IntN(1<<24)))
		}
		slices.Sort(keys)
		keys = slices.Compact(keys)
		var want []string
		for _, k := range keys {
			if strings.HasPrefix(k, "c/") {
				want = append(want, k)
			}
		}
		got, _ := walkAll(t, &farStore{keys: keys, page: 50, takes: time.Millisecond}, "c/", 8)
		if !slices.Equal(got, want) {
			t.Errorf("%d keys, not %d", len(got), len(want))
		}
	})
}

// A store that lists wrongly is found out: what it leaves out would be lost.
func TestListWrongly(t *testing.T) {
	for name, page := range map[string]objstore.Page{
		"backwards": {Entries: []objstore.Entry{{Key: "b", ETag: "x"}, {Key: "a", ETag: "x"}}},
		"twice":     {Entries: []objstore.Entry{{Key: "b", ETag: "x"}, {Key: "b", ETag: "x"}}},
		"no ETag":   {Entries: []objstore.Entry{{Key: "b"}}},
		"no end":    {More: true},
		"prefix":    {Entries: []objstore.Entry{{Key: "x", ETag: "x"}}},
	} {
		prefix := ""
		if name == "prefix" {
			prefix = "y"
		}
		l := &lister{store: wrongStore{page: page}, prefix: prefix, width: 1, page: func(context.Context, listed) error { return nil }}
		if err := l.run(t.Context(), []*walk{{id: 1}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type wrongStore struct {
	objstore.Store
	page objstore.Page
}

func (wrongStore) String() string                                                { return "wrong" }
func (s wrongStore) List(context.Context, objstore.Query) (objstore.Page, error) { return s.page, nil }

// What lies behind the last key of a listing is part of it: an object that was the last one and is gone is found missing, at the source by a pass and at the target by
// a verification, however the listing was cut.
func TestGoneBehindTheLast(t *testing.T) {
	const prefix = "in/"
	r := newRig(t)
	r.cfg.Deletes, r.cfg.Listers = true, 16
	r.cfg.Prefix, r.copy.FromPrefix, r.copy.ToPrefix = prefix, prefix, prefix
	for i := range 3000 {
		r.put(fmt.Sprintf("%sk/%05d", prefix, i), 1, uint64(i))
	}
	for _, key := range []string{"m", "zz/1", "zz/2"} {
		r.put(prefix+key, 1, 1)
	}
	r.clock.pass(time.Hour)
	r.mustPass(1)
	r.clock.pass(time.Hour)
	if _, err := r.to.Delete(t.Context(), prefix+"zz/2"); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		t.Fatal(err)
	}
	v, err := l.Verify(t.Context(), VerifyConfig{To: r.to, Copy: r.copy})
	if err := errors.Join(err, l.Close()); err != nil || v.Differ != 1 {
		t.Errorf("verified %+v, %v", v, err)
	}
	if _, err := r.from.Delete(t.Context(), prefix+"m", prefix+"zz/1", prefix+"zz/2"); err != nil {
		t.Fatal(err)
	}
	if s := r.mustPass(1); s.Vanished != 3 || s.Deleted != 3 {
		t.Errorf("%d of 3 objects were found gone, %d deleted", s.Vanished, s.Deleted)
	}
	r.equal()
}
