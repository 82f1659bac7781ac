package mover

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestMoments(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	p := func(moment string, worth Consistency, members int, change ...func(*RecoveryPoint)) RecoveryPoint {
		r := RecoveryPoint{ID: moment, Moment: moment, Consistency: worth, Members: members, Group: "g", Time: at, Size: 10}
		for _, c := range change {
			c(&r)
		}
		return r
	}
	pin := func(p *RecoveryPoint) { p.Pinned = true }
	alone := func(p *RecoveryPoint) { p.Group = "" }
	old := func(p *RecoveryPoint) { p.Time = at.Add(-time.Hour) }
	flows := []FlowPoints{
		{Flow: "t/h/a", Group: "t/h/g", Points: []RecoveryPoint{p("aaaaaaaaaa", App, 3, pin), p("bbbbbbbbbb", Crash, 3, pin, old), {ID: "never confirmed", Consistency: Fuzzy, Time: at}}},
		{Flow: "t/h/b", Group: "t/h/g", Points: []RecoveryPoint{p("aaaaaaaaaa", Crash, 3), p("bbbbbbbbbb", Crash, 3, pin, old)}},
		{Flow: "t/h/c", Group: "t/h/g", Points: []RecoveryPoint{p("aaaaaaaaaa", App, 3)}},
		{Flow: "t/h/d", Points: []RecoveryPoint{p("aaaaaaaaaa", App, 1, alone)}},
		{Flow: "t/x/c", Group: "t/x/g", Points: []RecoveryPoint{p("bbbbbbbbbb", App, 1)}}, // another host may not complete it
	}
	got := ""
	for _, m := range Moments(flows) {
		got += fmt.Sprintf("%s %s %s complete %v pinned %v size %d of %d lacking %v\n", m.Group, m.ID, m.Worth, m.Complete, m.Pinned, m.Size, m.Members, m.Lacking)
	}
	const want = `t/h/g 20260228T230000Z-bbbbbbbb crash complete false pinned true size 20 of 3 lacking [t/h/c]
t/h/d 20260301T000000Z-aaaaaaaa app complete true pinned false size 10 of 1 lacking []
t/h/g 20260301T000000Z-aaaaaaaa crash complete true pinned false size 30 of 3 lacking []
t/x/g 20260301T000000Z-bbbbbbbb app complete true pinned false size 10 of 1 lacking []
`
	if got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
}

// Whatever the members' settings, and whichever of them have points: what one member holds by its own settings stays at all of them, nothing goes
// that Expired would not let go, with equal settings and whole moments all members lose the same, and asking again gives nothing.
func TestExpiredTogether(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 2))
		equal := seed%2 == 0
		keep := Keep{r.IntN(5), r.IntN(5), r.IntN(5)}
		flows := make([]FlowPoints, 3)
		for i := range flows {
			flows[i] = FlowPoints{Flow: fmt.Sprintf("t/h/%d", i), Group: "t/h/g", Keep: keep}
			if !equal {
				flows[i].Keep = Keep{r.IntN(5), r.IntN(5), r.IntN(5)}
			}
		}
		at := time.Unix(1.8e9, 0)
		for m := range r.IntN(40) {
			at = at.Add(time.Duration(r.Int64N(int64(9 * time.Hour))))
			p := RecoveryPoint{ID: fmt.Sprint(m), Moment: fmt.Sprint(m), Group: "g", Members: 3, Time: at, Consistency: Consistency(1 + r.IntN(3)), Rehearsed: r.IntN(9) == 0, Pinned: r.IntN(9) == 0}
			for i := range flows {
				if !equal {
					p.Consistency, p.Pinned = Consistency(1+r.IntN(3)), r.IntN(9) == 0
					if r.IntN(5) == 0 {
						continue
					}
				}
				flows[i].Points = append(flows[i].Points, p)
			}
		}
		gone := ExpiredTogether(flows)
		stay := slices.Clone(flows)
		for i, f := range flows {
			own := Expired(f.Points, f.Keep)
			if equal && !slices.Equal(own, gone[i]) {
				t.Fatalf("seed %d: %v go, by its own settings %v", seed, gone[i], own)
			}
			stay[i].Points = nil
			for _, p := range f.Points {
				if !slices.Contains(gone[i], p.ID) {
					stay[i].Points = append(stay[i].Points, p)
				} else if !slices.Contains(own, p.ID) {
					t.Fatalf("seed %d: %s went although its own settings keep it", seed, p.ID)
				}
				if slices.Contains(own, p.ID) {
					continue
				}
				for k := range flows {
					if slices.Contains(gone[k], p.ID) {
						t.Fatalf("seed %d: moment %s is torn: flow %d holds it, flow %d loses it", seed, p.ID, i, k)
					}
				}
			}
		}
		for i, ids := range ExpiredTogether(stay) {
			if len(ids) > 0 {
				t.Fatalf("seed %d: asking again removes %v of %d", seed, ids, i)
			}
		}
	}
}
