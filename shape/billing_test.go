package shape

import (
	"math/rand/v2"
	"testing"
	"time"
)

// What a month is billed by so far is of its days up to now; the rest of them is silent.
func TestBilledSoFar(t *testing.T) {
	begin := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for model, want := range map[Model]int64{Plain95: 0, Enhanced95: 2 * 1e6 / 5} {
		l := NewLine(LineConfig{Billing: Billing{Model: model, Peak: 1e9}}, Used{})
		for i := range 2 * 288 { // two days of June, which has 8,640 samples of which 432 are dropped
			l.Count(begin.Add(time.Duration(i)*5*time.Minute), 300*1e6)
		}
		now := begin.Add(47*time.Hour + 59*time.Minute)
		if got := l.Billed(now); model == Plain95 && got != 1e6 || model == Enhanced95 && got != want {
			t.Errorf("%v: %d", model, got)
		}
		if model == Plain95 {
			l = NewLine(LineConfig{Billing: Billing{Model: model, Peak: 1e9}}, Used{})
			for i := range 432 {
				l.Count(begin.Add(time.Duration(i)*5*time.Minute), 300*1e6)
			}
			if got := l.Billed(now); got != want {
				t.Errorf("%v: %d", model, got)
			}
		}
	}
}

func TestBilled(t *testing.T) {
	b := Billing{Model: Plain95, Sample: time.Second}
	s := make([]int64, 100)
	for i := range s {
		s[i] = int64(i)
	}
	if got := b.Billed(s, 100, 0); got != 94 { // 95 to 99 are dropped
		t.Errorf("95: %d", got)
	}
	if got := b.Billed(s[95:], 100, 0); got != 0 {
		t.Errorf("95 of a month that was mostly idle: %d", got)
	}
	b.Model = Enhanced95
	days := make([]int64, 60) // 6 days of 10
	for d := range 6 {
		for i := range 5 {
			days[d*10+i] = int64(100 * (d + 1)) // the fifth highest counts
		}
		days[d*10+5] = 7
	}
	if got := b.Billed(days, 60, 10); got != (600+500+400+300+200)/5 {
		t.Errorf("enhanced 95: %d", got)
	}
	days[0], days[50] = 1e9, 1e9 // one more that is high costs nothing
	if got := b.Billed(days, 60, 10); got != 400 {
		t.Errorf("enhanced 95 with bursts: %d", got)
	}
}

// load is what a simulated month brings, bytes at a time, at step.
type load func(rng *rand.Rand, step int) int64

// month runs a line through a whole month: what comes waits until it may go. It returns the bytes of each sample as a meter at the line sees them, and
// what has moved.
func month(t *testing.T, cfg LineConfig, begin, end time.Time, step time.Duration, arrive load) (samples []int64, moved, arrived int64, all Allowance) {
	t.Helper()
	l := NewLine(cfg, Used{})
	rng := rand.New(rand.NewPCG(3, uint64(cfg.Billing.Model)))
	var waits int64
	b := cfg.Billing.withDefaults()
	samples = make([]int64, int(end.Sub(begin)/b.Sample))
	for i, now := 0, begin; now.Before(end); i, now = i+1, now.Add(step) {
		n := arrive(rng, i)
		waits += n
		arrived += n
		a := l.Allow(now, Demand{Backlog: waits})
		rate := a.Rate
		if rate > cfg.Timetable.Rate {
			t.Fatalf("%v: %d allowed on a line of %d", now, rate, cfg.Timetable.Rate)
		}
		go1 := min(waits, int64(float64(rate)*step.Seconds()))
		waits -= go1
		moved += go1
		at := now.Add(step - 1)
		l.Count(at, go1)
		samples[int(at.Sub(begin)/b.Sample)] += go1
		all = a
	}
	return samples, moved, arrived, all
}

// bound is more than any plan can move that knows all in advance: at each time what has come until then, and what the line carries afterwards with as
// many of the samples that cost nothing as there can be.
func bound(cfg LineConfig, begin, end time.Time, step time.Duration, arrive load, freeSeconds func(from, to time.Time) float64) int64 {
	rng := rand.New(rand.NewPCG(3, uint64(cfg.Billing.Model)))
	var came int64
	least := int64(Unlimited)
	for i, now := 0, begin; now.Before(end); i, now = i+1, now.Add(step) {
		burst := freeSeconds(now, end)
		rest := end.Sub(now).Seconds() - burst
		least = min(least, came+int64(burst*float64(cfg.Timetable.Rate)+rest*float64(cfg.Billing.Peak)))
		came += arrive(rng, i)
	}
	return min(least, came)
}

// TestMonth: a whole month of both models under several loads never costs more than the peak that was set, and moves at least 90 % of what the best plan
// in hindsight could.
func TestMonth(t *testing.T) {
	zone := time.FixedZone("CST", 8*3600)
	begin, end := time.Date(2026, 11, 1, 0, 0, 0, 0, zone), time.Date(2026, 12, 1, 0, 0, 0, 0, zone)
	const step = 60 * time.Second
	loads := map[string]load{
		"more than the line":  func(*rand.Rand, int) int64 { return 300 * mbit * 60 },
		"just above the peak": func(*rand.Rand, int) int64 { return 60 * mbit * 60 },
		"below the peak":      func(*rand.Rand, int) int64 { return 40 * mbit * 60 },
		"night batches": func(_ *rand.Rand, i int) int64 {
			if h := i / 60 % 24; h >= 1 && h < 4 {
				return 400 * mbit * 60
			}
			return 10 * mbit * 60
		},
		"lumps": func(rng *rand.Rand, _ int) int64 {
			if rng.IntN(350) == 0 {
				return int64(rng.ExpFloat64() * 120 * mbit * 20000)
			}
			return 0
		},
	}
	for _, model := range []Model{Plain95, Enhanced95} {
		cfg := LineConfig{Timetable: Timetable{Rate: 200 * mbit}, Billing: Billing{Model: model, Peak: 50 * mbit, Zone: zone, Keep: 0}}
		free := func(from, to time.Time) float64 {
			if model == Plain95 {
				return min(to.Sub(from).Seconds(), 8640/20*300)
			}
			days := to.Sub(from).Hours()/24 + 1
			return min(to.Sub(from).Seconds(), float64(int(days)*4*300))
		}
		for name, arrive := range loads {
			samples, moved, arrived, _ := month(t, cfg, begin, end, step, arrive)
			billed := cfg.Billing.Billed(samples, 8640, 288)
			best := bound(cfg, begin, end, step, arrive, free)
			t.Logf("%v, %s: billed %.2f of %d Mbit/s, moved %.4f of what the best plan could, %.4f of what came", model, name,
				float64(billed)/mbit, cfg.Billing.Peak/mbit, float64(moved)/float64(best), float64(moved)/float64(arrived))
			if billed > cfg.Billing.Peak {
				t.Errorf("%v, %s: %d is billed, the peak was to be %d", model, name, billed, cfg.Billing.Peak)
			}
			if float64(moved) < 0.9*float64(best) {
				t.Errorf("%v, %s: %d moved of %d", model, name, moved, best)
			}
		}
	}
}

// TestCutoverBurst: what was kept back lets a cutover go at once, in the middle of a sample, and nothing else.
func TestCutoverBurst(t *testing.T) {
	zone := time.UTC
	now := time.Date(2026, 11, 2, 10, 2, 30, 0, zone)
	l := NewLine(LineConfig{Timetable: Timetable{Rate: 200 * mbit}, Billing: Billing{Model: Enhanced95, Peak: 50 * mbit, Keep: 4}}, Used{})
	if a := l.Allow(now, Demand{Backlog: 1 << 40}); a.Burst || a.Rate > 63*mbit {
		t.Errorf("bulk: %+v", a)
	}
	if a := l.Allow(now, Demand{Backlog: 1 << 30, Cutover: true}); !a.Burst || a.Rate != 200*mbit {
		t.Errorf("cutover: %+v", a)
	}
}

// TestMonthlyBytes: bulk and deltas stop a little before the bytes of a month are spent, cutovers when they are, those whose writers stand still when
// they are overdrawn by a part; the next month begins anew.
func TestMonthlyBytes(t *testing.T) {
	now := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	l := NewLine(LineConfig{Timetable: Timetable{Rate: 1000}, Month: 100_000}, Used{})
	for _, c := range []struct {
		n, rate, frozen, final int64
		beyond                 bool
	}{{0, 1000, 1000, 1000, false}, {98_000, 1000, 1000, 1000, false}, {1_500, 0, 1000, 1000, false}, {500, 0, 0, 1000, true}, {beyondLeast, 0, 0, 0, false}} {
		l.Count(now, c.n)
		if a := l.Allow(now, Demand{Final: true}); a.Rate != c.rate || a.Frozen != c.frozen || a.Final != c.final || a.Beyond != c.beyond {
			t.Errorf("after %d bytes: %+v", l.Used().Bytes, a)
		}
		if a := l.Allow(now, Demand{}); a.Beyond {
			t.Errorf("after %d bytes, and nobody stands still: %+v", l.Used().Bytes, a)
		}
	}
	if a := l.Allow(now.AddDate(0, 0, 3), Demand{}); a.Rate != 1000 {
		t.Errorf("next month: %+v", a)
	}
}

// TestShortMonth: also of few samples that cost nothing every one is used.
func TestShortMonth(t *testing.T) {
	begin := time.Unix(120_000, 0)
	cfg := LineConfig{Timetable: Timetable{Rate: 200 * mbit}, Billing: Billing{Model: Plain95, Peak: 40 * mbit, Sample: 2 * time.Second, Period: 2 * time.Minute}}
	samples, moved, _, _ := month(t, cfg, begin, begin.Add(2*time.Minute), 50*time.Millisecond, func(*rand.Rand, int) int64 { return 20 * mbit })
	bursts := 0
	for _, n := range samples {
		if n > 100*mbit {
			bursts++
		}
	}
	if best := int64(57*2*40*mbit + 3*2*200*mbit); bursts != 3 || moved < best*95/100 {
		t.Errorf("%d bursts, %d moved of %d", bursts, moved, best)
	}
	if billed := cfg.Billing.Billed(samples, 60, 0); billed > 40*mbit {
		t.Errorf("%d is billed", billed)
	}
}
