package shape

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// LineConfig is a circuit as its owner describes it.
type LineConfig struct {
	Timetable Timetable // Rate is that of the circuit; 0: unlimited
	Month     int64     // bytes that may be sent in a month; 0: no such bound
	Billing   Billing
}

// Used is what a line has carried in the period of its bill; it is kept on disk.
type Used struct {
	Begin   time.Time `json:"begin"`   // of the period
	Month   time.Time `json:"month"`   // of the calendar month that Bytes belongs to
	Bytes   int64     `json:"bytes"`   // since Month began
	Samples []int64   `json:"samples"` // bytes of each sample of the period; missing ones at the end are to come
}

// Line decides what may go over one circuit. It is not safe for concurrent use.
type Line struct {
	cfg  LineConfig
	used Used
	slot int  // of the sample that runs
	over bool // the sample that runs may go beyond the peak

	counted   time.Time // what beyond was counted from
	countedTo int       // slot
	beyond    int
}

// Allowance is what a line may carry now.
type Allowance struct {
	Rate   int64 // bytes/s; 0: nothing but what a cutover under way needs
	Why    string
	Burst  bool  // a sample that costs nothing is being used
	Frozen int64 // bytes/s for cutovers, at least Rate
	Final  int64 // bytes/s for who stands still, at least Frozen
	Beyond bool  // the month's bytes are spent, and who stands still goes on

	// Until is when all of this ends for certain: no lease may hold longer. Zero: what follows bears a lease that is used for a while still.
	Until time.Time
}

// NewLine makes a line that goes on from what it has carried.
func NewLine(cfg LineConfig, used Used) *Line {
	cfg.Billing = cfg.Billing.withDefaults()
	return &Line{cfg: cfg, used: used, slot: -1}
}

// Set changes the line from now on. Samples stay counted, also when a lower peak makes them cost something.
func (l *Line) Set(cfg LineConfig) {
	cfg.Billing = cfg.Billing.withDefaults()
	if cfg.Billing.Sample != l.cfg.Billing.Sample || cfg.Billing.Period != l.cfg.Billing.Period {
		l.used.Samples, l.used.Begin = nil, time.Time{}
	}
	l.cfg, l.slot, l.over, l.counted = cfg, -1, false, time.Time{}
}

// Used is a copy of what has been carried.
func (l *Line) Used() Used {
	u := l.used
	u.Samples = slices.Clone(u.Samples)
	return u
}

// Config is the line as it is now.
func (l *Line) Config() LineConfig { return l.cfg }

// Count adds n bytes that crossed the line by now.
func (l *Line) Count(now time.Time, n int64) {
	l.turn(now)
	l.used.Bytes += n
	l.used.Samples[l.slot] += n
}

// Return takes back n bytes that were counted and did not cross the line, recent ones of them in the sample that holds now.
func (l *Line) Return(now time.Time, n, recent int64) {
	l.turn(now)
	l.used.Bytes = max(0, l.used.Bytes-n)
	l.used.Samples[l.slot] = max(0, l.used.Samples[l.slot]-recent)
}

// Spread adds n bytes that crossed the line evenly from one time to another: each sample gets its part.
func (l *Line) Spread(from, to time.Time, n int64) {
	for n > 0 && from.Before(to) {
		end := l.Border(from)
		if !end.Before(to) {
			break
		}
		part := int64(float64(n) * float64(end.Sub(from)) / float64(to.Sub(from)))
		l.Count(from, part)
		n, from = n-part, end
	}
	l.Count(to, n)
}

// Border is when the sample that holds now ends.
func (l *Line) Border(now time.Time) time.Time {
	l.turn(now)
	end := l.used.Begin.Add(time.Duration(l.slot+1) * l.cfg.Billing.Sample)
	if _, last := l.cfg.Billing.period(now); last.Before(end) && now.Before(last) {
		return last
	}
	return end
}

// turn moves on to the sample that holds now; what has no bytes was idle. A clock that was set back goes on with the last sample.
func (l *Line) turn(now time.Time) {
	b := &l.cfg.Billing
	y, m, _ := now.In(b.Zone).Date()
	if month := time.Date(y, m, 1, 0, 0, 0, 0, b.Zone); month.After(l.used.Month) {
		l.used.Month, l.used.Bytes = month, 0
	}
	begin, _ := b.period(now)
	if begin.After(l.used.Begin) {
		l.used.Begin, l.used.Samples, l.slot = begin, nil, -1
	}
	slot := max(0, int(now.Sub(l.used.Begin)/b.Sample))
	if slot < len(l.used.Samples)-1 {
		slot = len(l.used.Samples) - 1
	}
	for len(l.used.Samples) <= slot {
		l.used.Samples = append(l.used.Samples, 0)
	}
	if slot != l.slot {
		l.slot, l.over = slot, false
	}
}

// Demand is what all flows of the line together want.
type Demand struct {
	Backlog int64         // bytes that are known to wait
	Cutover bool          // some of them for a cutover
	Final   bool          // some of them for one whose writers stand still
	Held    int64         // bytes/s that they may be using now
	Lag     time.Duration // until new leases are kept to by all, and what was sent under the ones before is counted
}

// Allow tells what the line may carry now.
func (l *Line) Allow(now time.Time, d Demand) Allowance {
	l.turn(now)
	rate := l.cfg.Timetable.At(now)
	a := Allowance{Rate: rate, Why: "the line's rate"}
	if rate == 0 {
		a.Rate, a.Why = Unlimited, "no rate is set"
	} else if rate != l.cfg.Timetable.Rate {
		a.Why = "the timetable"
	}
	a.Final = a.Rate
	a = l.bill(now, a, d)
	a.Frozen = a.Rate
	return l.month(a, d)
}

const (
	// monthReserve is the part of a month's bytes that only cutovers may use.
	monthReserve = 0.01
	// beyondMonth is the part, and beyondLeast the bytes at least, by which cutovers whose writers stand still may overdraw a month. Such a cutover is cheaper
	// to end than to begin again; the bound is for who claims to be one.
	beyondMonth = 0.01
	beyondLeast = 256 << 20
)

// of is what holds for a class.
func (a Allowance) of(c Class) int64 {
	switch c {
	case Final:
		return a.Final
	case Cutover:
		return a.Frozen
	}
	return a.Rate
}

// For is the most that somebody may send of those who want to, bytes/s.
func (a Allowance) For(d Demand) int64 {
	if d.Final {
		return a.Final
	}
	return max(a.Rate, a.Frozen)
}

func (l *Line) month(a Allowance, d Demand) Allowance {
	if l.cfg.Month == 0 {
		return a
	}
	left := l.cfg.Month - l.used.Bytes
	switch {
	case left <= 0:
		a.Rate, a.Frozen = 0, 0
		if -left >= max(int64(float64(l.cfg.Month)*beyondMonth), beyondLeast) {
			a.Final = 0
		}
		a.Why = "the bytes of the month are spent; they come back on " + l.nextMonth()
		if d.Final && a.Final > 0 {
			a.Beyond, a.Why = true, "the bytes of the month are spent, but the writers of a cutover stand still until its last ones have come"
		}
	case left <= int64(float64(l.cfg.Month)*monthReserve):
		a.Rate, a.Why = 0, "the bytes of the month are spent but for what is kept for cutovers; they come back on "+l.nextMonth()
	}
	return a
}

func (l *Line) nextMonth() string { return l.used.Month.AddDate(0, 1, 0).Format("2006-01-02") }

const (
	// sampleMargin, and the bytes of marginTime, keep a sample's average below the peak although the provider's meter and the gateway's stand at two
	// ends of a line, and sources are late by what their timers are late.
	sampleMargin = 0.01
	marginTime   = 60 * time.Millisecond
	// catchUp is how much faster than the peak a sample may run that began slowly.
	catchUp = 1.1
)

// bill bounds a by what may be billed: the average of a sample stays at the peak, or the sample is one of those that cost nothing.
func (l *Line) bill(now time.Time, a Allowance, d Demand) Allowance {
	b := &l.cfg.Billing
	if b.Model == Flat || b.Peak == 0 || b.Peak >= a.Rate {
		return a
	}
	end := l.Border(now)
	left := min(max(0, end.Sub(now)), b.Sample)
	switch {
	case l.over:
	case l.used.Samples[l.slot] > l.limit(): // it costs nothing as others do, if there is one
		l.over = l.spare(now, true) >= 0
	case l.spare(now, d.Cutover) > 0:
		l.over = l.worth(a.Rate, b.Sample-left, d)
	}
	if l.over {
		a.Burst, a.Why = true, fmt.Sprintf("a sample of %v that costs nothing; %d more are left", b.Sample, max(0, l.spare(now, true)))
		a.Until = end
		return a
	}
	a.Why = fmt.Sprintf("the peak of %s billing", b.Model)
	full := a.Rate
	a.Rate = min(full, int64(l.steady(left, d)))
	a.Final = a.Rate
	if a.Rate < b.Peak/2 { // of a sample that is used up: nobody stands still until it ends
		a.Final = min(full, b.Peak)
	}
	return a
}

// steady is the rate with which a sample that has left to go ends at the peak, a little below. What the leases out there let through before any
// new one is kept to, and be it within the next sample, is spent already.
func (l *Line) steady(left time.Duration, d Demand) float64 {
	b := &l.cfg.Billing
	peak := float64(b.Peak)
	most := peak * catchUp
	held := min(float64(d.Held), float64(Unlimited))
	late := min(d.Lag, left)
	open := peak*(b.Sample.Seconds()*(1-sampleMargin)-marginTime.Seconds()) - float64(l.used.Samples[l.slot])
	rest := open - held*late.Seconds()
	switch {
	case left > d.Lag:
		return min(most, max(0, rest)/max(left-d.Lag, b.Sample/100).Seconds())
	case rest >= 0: // too late for this sample: what is granted now, the next one bears
		return min(most, held)
	default:
		return min(most, held, max(0, open)/max(left, b.Sample/100).Seconds())
	}
}

// Safe is what all flows together may send while nobody can be asked: no sample goes beyond the peak by it.
func (l *Line) Safe(now time.Time) int64 {
	l.turn(now)
	if l.month(Allowance{Rate: 1}, Demand{}).Rate == 0 {
		return 0
	}
	rate, b := l.cfg.Timetable.At(now), &l.cfg.Billing
	if rate == 0 {
		rate = Unlimited
	}
	if b.Model != Flat && b.Peak > 0 {
		rate = min(rate, int64(float64(b.Peak)*(1-sampleMargin)))
	}
	return rate
}

// worth tells whether a sample that costs nothing is well used now: it is full to its end, or a cutover waits.
func (l *Line) worth(rate int64, elapsed time.Duration, d Demand) bool {
	b := &l.cfg.Billing
	if d.Cutover {
		return float64(d.Backlog) > float64(b.Peak) // more than a second at the peak
	}
	return elapsed <= b.Sample/20 && float64(d.Backlog) >= 0.9*float64(min(rate, Unlimited/int64(b.Sample.Seconds()+1)))*b.Sample.Seconds()
}

// Billed is the rate, bytes/s, that the period would be billed by if nothing more came.
func (l *Line) Billed(now time.Time) int64 {
	l.turn(now)
	b := &l.cfg.Billing
	begin, end := b.period(now)
	from, until := b.day(now)
	return b.Billed(l.used.Samples, max(1, int(end.Sub(begin)/b.Sample)), max(1, int(until.Sub(from)/b.Sample)))
}

// Spare is how many further samples may go beyond the peak, for a cutover at least.
func (l *Line) Spare(now time.Time) int {
	if l.cfg.Billing.Model == Flat || l.cfg.Billing.Peak == 0 {
		return 0
	}
	l.turn(now)
	return max(0, l.spare(now, true))
}

// spare is how many further samples may go beyond the peak. Those of a period are spread over it, but for a part that may go at once: a burst
// empties the queue, and what the peak could have carried afterwards is lost for good.
func (l *Line) spare(now time.Time, cutover bool) int {
	b := &l.cfg.Billing
	begin, end := b.counted(now)
	n := b.free(begin, end)
	if !cutover {
		n -= b.Keep
		if b.Model == Plain95 {
			n = int(math.Ceil(float64(n) * min(1, atOnce+(1-atOnce)*float64(now.Sub(begin))/float64(end.Sub(begin)))))
		}
	}
	n -= l.bursts(begin)
	if l.over || l.used.Samples[l.slot] > l.limit() {
		n--
	}
	return n
}

// atOnce is the part of a period's samples that cost nothing which may be used before its time has come.
const atOnce = 0.25

func (l *Line) limit() int64 {
	return int64(float64(l.cfg.Billing.Peak) * l.cfg.Billing.Sample.Seconds())
}

// bursts counts the samples beyond the peak since begin, without the one that runs.
func (l *Line) bursts(begin time.Time) int {
	if l.counted == begin && l.countedTo == l.slot {
		return l.beyond
	}
	first := max(0, int(begin.Sub(l.used.Begin)/l.cfg.Billing.Sample))
	l.counted, l.countedTo, l.beyond = begin, l.slot, 0
	for _, n := range l.used.Samples[min(first, l.slot):l.slot] {
		if n > l.limit() {
			l.beyond++
		}
	}
	return l.beyond
}
