package bench

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	got, err := parseCPU("4242 (mover d) x) S 1 4242 4242 0 -1 4194560 900 0 0 0 250 75 0 0 20 0 9 0 100 1234 567 1")
	if err != nil || got != 3.25 {
		t.Errorf("%v, %v, want 3.25", got, err)
	}
	if _, err := parseCPU("4242 (x"); err == nil {
		t.Error("no error")
	}
}

func TestRateName(t *testing.T) {
	for rate, want := range map[int64]string{0: "unlimited", 125e6: "1 Gbit/s", 25e6: "200 Mbit/s", 312500: "2.5 Mbit/s", 1000: "8000 bit/s"} {
		if got := rateName(rate); got != want {
			t.Errorf("%d: %s, want %s", rate, got, want)
		}
	}
}

// TestRepeat: once at least, never more than asked, and no run begins that would not end in time.
func TestRepeat(t *testing.T) {
	l := &Lines{Perf: Perf{Repeat: 5, W: discard{}}}
	count := func(until time.Time) (n int) {
		if err := l.repeat(until, func(int) error { n++; return nil }); err != nil {
			t.Error(err)
		}
		return n
	}
	if n := count(time.Time{}); n != 5 {
		t.Errorf("no end: %d runs", n)
	}
	if n := count(time.Now().Add(-time.Second)); n != 1 {
		t.Errorf("the end is over: %d runs", n)
	}
	if err := l.repeat(time.Time{}, func(int) error { return errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestChoose(t *testing.T) {
	got := choose(1000, 100, 7)
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != 100 || got[0] < 0 || got[99] >= 1000 {
		t.Errorf("%v", got)
	}
	if !slices.Equal(got, choose(1000, 100, 7)) || slices.Equal(got, choose(1000, 100, 8)) {
		t.Error("the choice does not follow from the seed")
	}
}

// TestSlowest: what is scarce names the limit.
func TestSlowest(t *testing.T) {
	s := stageLimits{read: 1e9, write: 2e9, digest: 2e9, compress: 200e6, unpack: 600e6, tls: 4e9, ratio: 0.4}
	if name, limit := s.slowestOf(1, true); name != "cores, most of them for compress" || limit < 120e6 || limit > 140e6 {
		t.Errorf("one core, compressed: %s, %v", name, limit)
	}
	if name, limit := s.slowest(1); name != "cores, most of them for digest" || limit < 600e6 || limit > 700e6 {
		t.Errorf("one core: %s, %v", name, limit)
	}
	if name, limit := s.slowest(64); name != "read" || limit != 1e9 {
		t.Errorf("64 cores: %s, %v", name, limit)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
