package shape

import (
	"math/rand/v2"
	"testing"
	"time"
)

// fleet is sources on a line as they are: leases reach them late, what they let go waits in sockets for a while, and the gateway counts it when it has come.
type fleet struct {
	line    *Line
	ledger  *Ledger[int]
	sources []*source
	samples []int64 // by the provider's meter
	begin   time.Time
	rng     *rand.Rand
}

type source struct {
	lease   Lease
	safe    int64
	socket  float64 // bytes let go, not yet on the line
	tokens  float64
	news    []news
	askedAt time.Time
}

// news is a lease on its way.
type news struct {
	at    time.Time
	lease Lease
	safe  int64
}

const fleetStep = 5 * time.Millisecond

// rate is what a source may send now.
func (s *source) rate(now time.Time) int64 {
	if now.Before(s.lease.Until) {
		return s.lease.Rate
	}
	return s.safe
}

// step sends what the sources may send within a step before now, and returns its bytes. burst is the most that a source saves up and then lets go at once.
func (f *fleet) step(now time.Time) (sent int64) {
	for k, s := range f.sources {
		for len(s.news) > 0 && !s.news[0].at.After(now) {
			s.lease, s.safe, s.news = s.news[0].lease, s.news[0].safe, s.news[1:]
		}
		rate := float64(s.rate(now))
		s.tokens = min(s.tokens+rate*fleetStep.Seconds(), max(16<<10, rate/20))
		if s.tokens >= max(16<<10, rate/25) { // a slice
			s.socket, s.tokens = s.socket+s.tokens, 0
		}
		out := min(s.socket, 2*rate*fleetStep.Seconds()) // as the kernel paces
		s.socket -= out
		sent += int64(out)
		if now.Sub(s.askedAt) >= 100*time.Millisecond {
			s.askedAt = now
			f.ledger.Ask(now, k, Ask{Class: Bulk, Want: Unlimited, Backlog: 1 << 34, Serial: s.lease.Serial})
		}
	}
	f.samples[int(now.Add(-1).Sub(f.begin)/f.line.cfg.Billing.Sample)] += sent
	return sent
}

func (f *fleet) share(now time.Time) {
	d := f.ledger.Demand(now)
	d.Lag = 100 * time.Millisecond
	a := f.line.Allow(now, d)
	safe := f.line.Safe(now) / int64(len(f.sources))
	f.ledger.Share(now, a, func(k int, l Lease) {
		s := f.sources[k]
		at := now.Add(time.Duration(1+f.rng.IntN(60)) * time.Millisecond)
		if n := len(s.news); n > 0 && at.Before(s.news[n-1].at) {
			at = s.news[n-1].at
		}
		s.news = append(s.news, news{at, l, safe})
	})
}

// run is a month of 60 samples. busy tells when the gateway shares nothing out; late is how long after the line it counts.
func (f *fleet) run(late time.Duration, busy func(now time.Time) bool) {
	type crossed struct {
		at time.Time
		n  int64
	}
	var under []crossed
	end := f.begin.Add(60 * f.line.cfg.Billing.Sample)
	looked, next := f.begin, f.begin
	for now := f.begin.Add(fleetStep); !now.After(end); now = now.Add(fleetStep) {
		under = append(under, crossed{now, f.step(now)})
		if now.Before(next) || busy(now) {
			continue
		}
		n := int64(0)
		for len(under) > 0 && !under[0].at.After(now.Add(-late)) {
			n, under = n+under[0].n, under[1:]
		}
		f.line.Spread(looked, now, n)
		looked = now
		if now.Before(end) {
			f.share(now)
			next = now.Add(50 * time.Millisecond)
			if b := f.line.Border(now); b.Before(next) {
				next = b
			}
		}
	}
}

func newFleet(n int, sample time.Duration) *fleet {
	f := &fleet{ledger: NewLedger[int](), begin: time.Unix(0, 0).Add(6000 * sample), samples: make([]int64, 60), rng: rand.New(rand.NewPCG(1, uint64(n)))}
	f.line = NewLine(LineConfig{Timetable: Timetable{Rate: 200 * mbit}, Billing: Billing{Model: Plain95, Peak: 40 * mbit, Sample: sample, Period: 60 * sample}}, Used{})
	for range n {
		f.sources = append(f.sources, &source{safe: 256 << 10})
	}
	return f
}

// TestLateSources: a shortened month of sources that are late, as they are on a busy machine, never costs more than the peak, and moves at least 90 % of the best
// plan. So it does where a gateway that is busy says nothing for a second after samples that cost nothing: their leases end with them.
func TestLateSources(t *testing.T) {
	for _, c := range []struct {
		name   string
		hosts  int
		sample time.Duration
		late   time.Duration
		least  float64
		busy   bool
	}{
		{"20 hosts", 20, 2 * time.Second, 10 * time.Millisecond, 0.9, false},
		{"6 hosts", 6, 5 * time.Second, 50 * time.Millisecond, 0.93, false},
		{"1 host", 1, 5 * time.Second, 10 * time.Millisecond, 0.9, false},
		{"a gateway that is busy after bursts", 20, 2 * time.Second, 10 * time.Millisecond, 0.88, true},
	} {
		f := newFleet(c.hosts, c.sample)
		f.run(c.late, func(now time.Time) bool {
			i := int(now.Sub(f.begin) / c.sample)
			return c.busy && i > 0 && f.samples[i-1] > f.line.limit() && now.Sub(f.begin)%c.sample < time.Second
		})
		b := f.line.cfg.Billing
		billed, moved := b.Billed(f.samples, 60, 0), int64(0)
		for _, n := range f.samples {
			moved += n
		}
		best := int64((57*40 + 3*200) * mbit * c.sample.Seconds())
		t.Logf("%s: billed %.3f of the peak, moved %.3f of the best plan", c.name, float64(billed)/float64(b.Peak), float64(moved)/float64(best))
		if billed > b.Peak || float64(moved) < c.least*float64(best) {
			t.Errorf("%s: %d billed of %d, %d moved of %d", c.name, billed, b.Peak, moved, best)
		}
	}
}

// TestSpread: what came while a border passed counts to both samples.
func TestSpread(t *testing.T) {
	at := time.Unix(6000, 0)
	l := NewLine(LineConfig{Billing: Billing{Model: Plain95, Peak: 1, Sample: 2 * time.Second, Period: time.Minute}}, Used{})
	l.Spread(at, at.Add(time.Second), 100)
	l.Spread(at.Add(time.Second), at.Add(5*time.Second), 400)
	if s := l.Used().Samples; len(s) != 3 || s[0] != 200 || s[1] != 200 || s[2] != 100 {
		t.Errorf("samples %v", s)
	}
	l.Spread(at.Add(59*time.Second), at.Add(61*time.Second), 100)
	if u := l.Used(); len(u.Samples) != 1 || u.Samples[0] != 50 || u.Bytes != 600 {
		t.Errorf("after the period: %+v", u)
	}
}

// TestBeyondThePeak: a sample that has gone beyond the peak goes on as one that costs nothing while there are such; else it ends there, for each further byte
// raises the bill.
func TestBeyondThePeak(t *testing.T) {
	for spare, want := range map[int]int64{1: 200 * mbit, 0: 0} {
		at := time.Unix(6000, 0)
		l := NewLine(LineConfig{Timetable: Timetable{Rate: 200 * mbit}, Billing: Billing{Model: Plain95, Peak: 40 * mbit, Sample: time.Second, Period: 20 * time.Second}}, Used{})
		for range 1 - spare {
			l.Count(at, 100*mbit)
			at = at.Add(time.Second)
		}
		l.Count(at.Add(500*time.Millisecond), 41*mbit)
		if a := l.Allow(at.Add(600*time.Millisecond), Demand{Backlog: 1 << 40}); a.Rate != want || a.Final < 40*mbit {
			t.Errorf("with %d samples that cost nothing: %+v", spare, a)
		}
	}
}

// TestLeaseEnds: a lease of a sample that costs nothing ends with it, and is spent by then.
func TestLeaseEnds(t *testing.T) {
	at := time.Unix(6000, 0)
	end := at.Add(300 * time.Millisecond)
	g := NewLedger[int]()
	g.Ask(at, 1, Ask{Class: Bulk, Want: Unlimited})
	var told Lease
	g.Share(at, Allowance{Rate: 1000, Frozen: 1000, Until: end}, func(_ int, l Lease) { told = l })
	if told.Rate != 1000 || !told.Until.Equal(end) {
		t.Errorf("told %+v", told)
	}
	if d := g.Demand(at); d.Held != 1000 {
		t.Errorf("before: %+v", d)
	}
	if d := g.Demand(end); d.Held != 0 {
		t.Errorf("after: %+v", d)
	}
}

// TestStandingStill: where only who stands still may send, he gets all, and the others nothing; when he has done, nobody gets anything.
func TestStandingStill(t *testing.T) {
	now := time.Unix(6000, 0)
	g := NewLedger[int]()
	told := map[int]Lease{}
	share := func() {
		g.Share(now, Allowance{Final: 1000}, func(k int, l Lease) { told[k] = l })
	}
	for k, c := range map[int]Class{1: Bulk, 2: Cutover, 3: Final} {
		g.Ask(now, k, Ask{Class: c, Want: Unlimited})
	}
	share()
	if told[1].Rate != 0 || told[2].Rate != 0 || told[3].Rate != 1000 {
		t.Errorf("told %+v", told)
	}
	if d := g.Demand(now); !d.Final || !d.Cutover {
		t.Errorf("demand %+v", d)
	}
	g.Ask(now, 3, Ask{Class: Delta, Want: Unlimited, Serial: told[3].Serial})
	share()
	if told[3].Rate != 0 {
		t.Errorf("afterwards %+v", told)
	}
}
