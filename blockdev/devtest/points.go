package devtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

// Points runs the suite of blockdev.Points on a target that is changed by change, which returns its whole content then. open opens the store of
// an owner; target is a path that holds no state.
func Points(t *testing.T, target string, open func(t *testing.T, owner string) blockdev.Points, change func(t *testing.T, i int) []byte) {
	ctx := context.Background()
	s, o := open(t, "0123456789abcdef"), open(t, "fedcba9876543210")
	var want [][]byte
	t.Run("take", func(t *testing.T) {
		for i := range 4 {
			want = append(want, change(t, i))
			if err := s.Take(ctx, pointName(i)); err != nil {
				t.Fatal(err)
			}
		}
		change(t, 4)
		if err := s.Take(ctx, pointName(1)); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("a name was taken twice: %v", err)
		}
		listed(t, s, 0, 1, 2, 3)
	})
	t.Run("content", func(t *testing.T) {
		for i, w := range want {
			kept(t, s, pointName(i), w, target)
		}
	})
	t.Run("owners", func(t *testing.T) {
		listed(t, o)
		if _, err := o.Open(ctx, pointName(0)); !errors.Is(err, sentinel.ErrNotFound) {
			t.Errorf("another owner's state was opened: %v", err)
		}
		if err := o.Take(ctx, pointName(0)); err != nil {
			t.Fatal(err)
		}
		listed(t, o, 0)
		if err := o.Remove(ctx, pointName(1)); err != nil {
			t.Error(err)
		}
		if err := o.Remove(ctx, pointName(0)); err != nil {
			t.Error(err)
		}
		listed(t, s, 0, 1, 2, 3)
	})
	t.Run("two readers", func(t *testing.T) {
		a, err := s.Open(ctx, pointName(2))
		if err != nil {
			t.Fatal(err)
		}
		kept(t, s, pointName(2), want[2], target)
		same(t, a, want[2])
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("names", func(t *testing.T) {
		for _, bad := range []string{"", "../x", "-x", "a/b", "a.b", "a b", "a;b", "$(x)", strings.Repeat("x", 65)} {
			_, err := s.Open(ctx, bad)
			for verb, err := range map[string]error{"take": s.Take(ctx, bad), "remove": s.Remove(ctx, bad), "open": err} {
				if !errors.Is(err, sentinel.ErrUsage) {
					t.Errorf("%s %q: %v", verb, bad, err)
				}
			}
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Take(ended, "late"); !errors.Is(err, context.Canceled) {
			t.Errorf("take after the end: %v", err)
		}
		listed(t, s, 0, 1, 2, 3)
	})
	t.Run("remove", func(t *testing.T) {
		for _, i := range []int{1, 3, 0, 2} {
			for range 2 {
				if err := s.Remove(ctx, pointName(i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Open(ctx, pointName(i)); !errors.Is(err, sentinel.ErrNotFound) {
				t.Errorf("a state that was removed: %v", err)
			}
			if i == 3 {
				kept(t, s, pointName(2), want[2], target)
			}
		}
		listed(t, s)
	})
}

func pointName(i int) string { return fmt.Sprintf("20260102T03040%dZ-0a%d", i, i) }

func listed(t *testing.T, s blockdev.Points, want ...int) {
	t.Helper()
	all, err := s.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var got, names []string
	for i, a := range all {
		got = append(got, a.Name)
		if a.Time.IsZero() || i > 0 && a.Time.Before(all[i-1].Time) {
			t.Errorf("times %+v", all)
		}
	}
	for _, i := range want {
		names = append(names, pointName(i))
	}
	for _, n := range names { // states of one second come in any order
		if !strings.Contains(strings.Join(got, " "), n) {
			t.Errorf("list %v lacks %s", got, n)
		}
	}
	if len(got) != len(names) {
		t.Errorf("list %v, want %v", got, names)
	}
}

// kept opens a state, compares it, and closes it.
func kept(t *testing.T, s blockdev.Points, name string, want []byte, target string) {
	t.Helper()
	k, err := s.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	same(t, k, want)
	if !s.Holds(k.Path()) || s.Holds(target) {
		t.Errorf("does not know that %s is kept, or takes %s for it", k.Path(), target)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func same(t *testing.T, k blockdev.Kept, want []byte) {
	t.Helper()
	got := Buffer(len(want))
	if k.Size() != int64(len(want)) {
		t.Errorf("%d bytes, want %d", k.Size(), len(want))
	}
	if _, err := k.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	Same(t, got, want, 0)
}
