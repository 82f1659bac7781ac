package mem_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/objstore/objtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	objtest.Run(t, func(*testing.T) objtest.Subject {
		return objtest.Subject{Store: mem.New(mem.Config{Name: "b"}), Class: "COLD"}
	})
}

// TestConformanceOfLimits imitates a store that takes little.
func TestConformanceOfLimits(t *testing.T) {
	objtest.Run(t, func(*testing.T) objtest.Subject {
		l := objstore.Limits{Put: 8 << 20, Object: 64 << 20, PartLeast: 8192, PartAlign: 4096, PartMost: 1 << 20, Parts: 40, List: 7, Batch: 3, Meta: 2048,
			Key: func(key string) error {
				if key == "" || len(key) > 1023 || strings.HasPrefix(key, "/") || strings.Contains(key, "..") {
					return errors.New("not here")
				}
				return nil
			}}
		return objtest.Subject{Store: mem.New(mem.Config{Name: "small", Limits: l})}
	})
}

func TestLimits(t *testing.T) {
	at := time.Unix(1_800_000_000, 5)
	s := mem.New(mem.Config{Limits: objstore.Limits{Put: 10, Object: 12, PartMost: 8}, Now: func() time.Time { return at }, Region: "bj"})
	ctx := context.Background()
	body := func(n int) objstore.Body { return objstore.Bytes(make([]byte, n)) }
	for n, want := range map[int]error{9: nil, 10: nil, 11: objstore.ErrNotSupported} {
		if _, err := s.Put(ctx, "a", body(n), objstore.PutOptions{}); !errors.Is(err, want) {
			t.Errorf("put of %d bytes: %v", n, err)
		}
	}
	if h, err := s.Head(ctx, "a"); err != nil || !h.Modified.Equal(at) {
		t.Errorf("%+v, %v", h, err)
	}
	for last, want := range map[int]error{3: nil, 4: nil, 5: objstore.ErrNotSupported, 9: objstore.ErrNotSupported} {
		up, err := s.Begin(ctx, "b", objstore.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		one, err := s.PutPart(ctx, "b", up, 1, body(8))
		if err != nil {
			t.Fatal(err)
		}
		two, err := s.PutPart(ctx, "b", up, 2, body(last))
		if last == 9 {
			if !errors.Is(err, want) {
				t.Errorf("part of 9 bytes: %v", err)
			}
			continue
		}
		_, err = s.Complete(ctx, "b", up, []objstore.Part{{No: 1, Size: 8, ETag: one.ETag}, {No: 2, Size: int64(last), ETag: two.ETag}}, objstore.PutOptions{})
		if !errors.Is(err, want) {
			t.Errorf("an object of %d bytes: %v", 8+last, err)
		}
	}
	if where, err := s.Location(ctx); where != "bj" || err != nil {
		t.Error(where, err)
	}
}

// BenchmarkList: a page costs the same whatever there is.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		s := mem.New(mem.Config{})
		ctx := context.Background()
		for i := range n {
			if _, err := s.Put(ctx, fmt.Sprintf("%09d", i*7919%n), objstore.Bytes(nil), objstore.PutOptions{}); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if p, err := s.List(ctx, objstore.Query{After: fmt.Sprintf("%09d", i*104729%(n-1000))}); err != nil || len(p.Entries) != 1000 {
					b.Fatal(len(p.Entries), err)
				}
			}
		})
	}
}
