package objtest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/moverd/mover/objstore"
)

// concurrent has readers and writers of a few keys at once: what is read is always one whole state.
func (s *suite) concurrent(t *testing.T) {
	const n = 20_000
	keys := []string{"c", "c/d", "c/d/e"}
	var mu sync.Mutex
	states := map[string]byte{} // by ETag
	state := func(b byte) []byte { return append(content(uint64(b), n-1), b) }
	for _, key := range keys {
		states[s.put(t, key, state(0)).ETag] = 0
	}
	s.each(120, func(i int) {
		key := keys[i%len(keys)]
		switch i % 4 {
		case 0:
			b := byte(i)
			w, err := s.Store.Put(s.ctx, key, objstore.Bytes(state(b)), objstore.PutOptions{})
			if err != nil {
				t.Errorf("put: %v", err)
			}
			mu.Lock()
			states[w.ETag] = b
			mu.Unlock()
		case 1:
			if _, err := s.Store.List(s.ctx, objstore.Query{Max: 1 + i%3}); err != nil {
				t.Errorf("list: %v", err)
			}
		default:
			o, r, err := s.Store.Get(s.ctx, key, objstore.GetOptions{})
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if errors.Is(err, objstore.ErrChanged) {
				return // a body that broke off cannot go on in another state
			}
			if err != nil || len(b) != n || o.Size != n || string(b) != string(state(b[n-1])) {
				t.Errorf("read %d bytes that are no state: %v", len(b), err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if was, ok := states[o.ETag]; ok && was != b[n-1] {
				t.Error("the ETag is of another state than the bytes")
			}
		}
	})
	s.listed(t, objstore.Query{}, keys)
}

// history does random things and compares what is there with a map.
func (s *suite) history(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s.random(t, rand.New(rand.NewPCG(seed, 5)))
			s.clear(t)
		})
	}
}

func (s *suite) random(t *testing.T, r *rand.Rand) {
	type state struct{ content, etag string }
	model := map[string]state{}
	key := func() string {
		parts := []string{"a", "b", "a", "/", "/", "-", "0", ".", "%", "+", " ", "~", "\u00e4"}
		for {
			key := ""
			for range 1 + r.IntN(5) {
				key += parts[r.IntN(len(parts))]
			}
			if s.Store.Limits().Key(key) == nil {
				return key
			}
		}
	}
	known := func() string { // mostly one that is there
		if all := slices.Sorted(maps.Keys(model)); len(all) > 0 && r.IntN(3) > 0 {
			return all[r.IntN(len(all))]
		}
		return key()
	}
	for range 150 {
		switch r.IntN(8) {
		case 0, 1, 2:
			key, b := key(), string(content(r.Uint64N(1000), r.Int64N(3000)))
			model[key] = state{b, s.put(t, key, []byte(b)).ETag}
		case 3:
			keys := make([]string, r.IntN(5))
			for i := range keys {
				keys[i] = known()
				delete(model, keys[i])
			}
			s.remove(t, keys...)
		case 4, 5:
			key := known()
			want, ok := model[key]
			if !ok {
				s.gone(t, key)
				continue
			}
			o, b := s.read(t, key, objstore.GetOptions{IfTag: want.etag})
			if string(b) != want.content || o.ETag != want.etag {
				t.Fatalf("%q has %d bytes, ETag %s; want %d, %s", key, len(b), o.ETag, len(want.content), want.etag)
			}
		default:
			q := objstore.Query{Max: r.IntN(8)}
			if r.IntN(2) == 0 {
				q.After = key()
			}
			if r.IntN(2) == 0 {
				q.Prefix = string([]rune(key())[:1])
			}
			s.listed(t, q, behind(slices.Sorted(maps.Keys(model)), q.Prefix, q.After))
		}
	}
	s.listed(t, objstore.Query{}, slices.Sorted(maps.Keys(model)))
}
