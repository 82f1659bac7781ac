package shape

import (
	"fmt"
	"slices"
	"time"
)

// Model is how a provider bills a line.
type Model uint8

const (
	Flat       Model = iota // the rate was bought; every byte below it is free
	Plain95                 // by the sample above which 5 % of the period's samples lie
	Enhanced95              // of each day the fifth highest sample; of the period the mean of the five highest days
)

var modelNames = [...]string{"flat", "95", "enhanced-95"}

func (m Model) String() string { return modelNames[m] }

// ParseModel reads a model's name.
func ParseModel(s string) (Model, error) {
	if i := slices.Index(modelNames[:], s); i >= 0 {
		return Model(i), nil
	}
	return Flat, fmt.Errorf("billing model %q, want flat, 95 or enhanced-95", s)
}

// Billing says what may be paid for. The zero value is Flat.
type Billing struct {
	Model  Model
	Peak   int64          // bytes/s that may be billed; never exceeded by what Mover sends
	Sample time.Duration  // over which the provider takes averages; default 5 min
	Period time.Duration  // 0: a calendar month
	Day    time.Duration  // 0: a calendar day
	Zone   *time.Location // of months and days; nil: UTC
	Keep   int            // of the samples that cost nothing, how many are kept back for cutovers (in each day or period)
}

const (
	defaultSample = 5 * time.Minute
	freeOfDay     = 4 // samples of a day above the one that Enhanced95 takes
	daysOfMean    = 5 // days whose mean Enhanced95 bills
)

func (b Billing) withDefaults() Billing {
	if b.Sample == 0 {
		b.Sample = defaultSample
	}
	if b.Zone == nil {
		b.Zone = time.UTC
	}
	return b
}

// period is the one that holds at.
func (b *Billing) period(at time.Time) (begin, end time.Time) {
	if b.Period > 0 {
		begin = at.Truncate(b.Period)
		return begin, begin.Add(b.Period)
	}
	y, m, _ := at.In(b.Zone).Date()
	return time.Date(y, m, 1, 0, 0, 0, 0, b.Zone), time.Date(y, m+1, 1, 0, 0, 0, 0, b.Zone)
}

// day is the one that holds at. With a Period of its own, days count from its begin.
func (b *Billing) day(at time.Time) (begin, end time.Time) {
	if b.Day > 0 {
		first, _ := b.period(at)
		begin = first.Add(at.Sub(first).Truncate(b.Day))
		return begin, begin.Add(b.Day)
	}
	y, m, d := at.In(b.Zone).Date()
	return time.Date(y, m, d, 0, 0, 0, 0, b.Zone), time.Date(y, m, d+1, 0, 0, 0, 0, b.Zone)
}

// free is how many samples of the span in which they are counted (a period, or a day) cost nothing.
func (b *Billing) free(begin, end time.Time) int {
	switch b.Model {
	case Plain95:
		return int(end.Sub(begin)/b.Sample) / 20
	case Enhanced95:
		return freeOfDay
	}
	return 0
}

// counted is the span that holds at and in which samples above the peak are counted.
func (b *Billing) counted(at time.Time) (begin, end time.Time) {
	if b.Model == Enhanced95 {
		return b.day(at)
	}
	return b.period(at)
}

// Billed is the rate, bytes/s, that samples of one period cost: bytes of each sample, in order; perDay is how many make a day. Samples that are missing at the end
// count as nothing.
func (b Billing) Billed(samples []int64, all, perDay int) int64 {
	b = b.withDefaults()
	rate := func(n int64) int64 { return int64(float64(n) / b.Sample.Seconds()) }
	padded := func(s []int64, n int) []int64 {
		s = append(slices.Clone(s), make([]int64, max(0, n-len(s)))...)
		slices.SortFunc(s, func(a, b int64) int { return int(max(-1, min(1, b-a))) })
		return s
	}
	switch b.Model {
	case Plain95:
		s := padded(samples, all)
		return rate(s[min(all/20, len(s)-1)])
	case Enhanced95:
		var peaks []int64
		for i := 0; i < all; i += perDay {
			day := padded(samples[min(i, len(samples)):min(i+perDay, len(samples))], perDay)
			peaks = append(peaks, day[min(freeOfDay, len(day)-1)])
		}
		peaks = padded(peaks, daysOfMean)
		sum := int64(0)
		for _, p := range peaks[:daysOfMean] {
			sum += p
		}
		return rate(sum / daysOfMean)
	}
	return 0
}
