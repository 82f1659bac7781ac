package mover

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestExpired(t *testing.T) {
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	at := func(id string, h, m int) RecoveryPoint {
		return RecoveryPoint{ID: id, Time: day.Add(time.Duration(h)*time.Hour + time.Duration(m)*time.Minute), Consistency: Crash}
	}
	with := func(p RecoveryPoint, change func(*RecoveryPoint)) RecoveryPoint { change(&p); return p }
	pin := func(p *RecoveryPoint) { p.Pinned = true }
	for _, c := range []struct {
		name   string
		points []RecoveryPoint
		keep   Keep
		gone   []string
	}{
		{"nothing", nil, Keep{}, nil},
		{"the newest stays whatever is asked", []RecoveryPoint{at("a", 0, 0), at("b", 0, 1)}, Keep{}, []string{"a"}},
		{"last", []RecoveryPoint{at("a", 0, 0), at("b", 0, 1), at("c", 0, 2)}, Keep{Last: 2}, []string{"a"}},
		{"hours", []RecoveryPoint{at("a", 1, 0), at("b", 1, 59), at("c", 2, 0), at("d", 9, 0)}, Keep{Last: 1, Hourly: 3}, []string{"a"}},
		{"hours without points do not count", []RecoveryPoint{at("a", 1, 0), at("b", 50, 0), at("c", 99, 0)}, Keep{Hourly: 2}, []string{"a"}},
		{"days", []RecoveryPoint{at("a", 1, 0), at("b", 23, 0), at("c", 24, 0)}, Keep{Daily: 2}, []string{"a"}},
		{"pinned never", []RecoveryPoint{with(at("a", 0, 0), pin), at("b", 0, 1), at("c", 0, 2)}, Keep{Last: 1}, []string{"b"}},
		{"the better one of an hour", []RecoveryPoint{at("a", 1, 0), with(at("b", 1, 9), func(p *RecoveryPoint) { p.Consistency = Fuzzy }), at("c", 2, 0)},
			Keep{Hourly: 2}, []string{"b"}},
		{"the last rehearsed", []RecoveryPoint{with(at("a", 0, 0), func(p *RecoveryPoint) { p.Rehearsed = true }),
			with(at("b", 0, 1), func(p *RecoveryPoint) { p.Rehearsed = true }), at("c", 0, 2)}, Keep{Last: 1}, []string{"a"}},
	} {
		if got := Expired(c.points, c.keep); !slices.Equal(got, c.gone) {
			t.Errorf("%s: %v go, want %v", c.name, got, c.gone)
		}
	}
}

// Whatever is asked: pinned points and the newest stay, no more than asked stay, the order of the list changes nothing, and asking again
// about what stays gives nothing.
func TestExpiredProperties(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		keep := Keep{r.IntN(5), r.IntN(5), r.IntN(5)}
		var all []RecoveryPoint
		at := time.Unix(1.8e9, 0)
		for i := range r.IntN(60) {
			at = at.Add(time.Duration(r.Int64N(int64(9 * time.Hour))))
			all = append(all, RecoveryPoint{ID: fmt.Sprint(i), Time: at, Consistency: Consistency(1 + r.IntN(2)), Pinned: r.IntN(9) == 0, Rehearsed: r.IntN(9) == 0})
		}
		gone := Expired(all, keep)
		mixed := slices.Clone(all)
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		if !slices.Equal(gone, Expired(mixed, keep)) {
			t.Fatalf("seed %d: the order of the list matters", seed)
		}
		var stay []RecoveryPoint
		free := 0
		for i, p := range all {
			if slices.Contains(gone, p.ID) {
				if p.Pinned || i == len(all)-1 {
					t.Fatalf("seed %d: %+v went", seed, p)
				}
				continue
			}
			stay = append(stay, p)
			if !p.Pinned {
				free++
			}
		}
		if free > max(keep.Last, 1)+keep.Hourly+keep.Daily+1 {
			t.Fatalf("seed %d: %d points stay under %+v", seed, free, keep)
		}
		if again := Expired(stay, keep); len(again) != 0 {
			t.Fatalf("seed %d: asking again removes %v", seed, again)
		}
	}
}
