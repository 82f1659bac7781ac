package cost

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Money is an amount in one currency, to a hundredth of a cent.
type Money struct {
	Amount   float64 `json:"amount"`
	Currency string  `json:"currency,omitempty"` // empty: nothing, of which no price says what in
}

func round(v float64) float64 { return math.Round(v*1e4) / 1e4 }

// tally adds up what one thing costs, day by day. A day without a price is remembered, and makes the whole unknown.
type tally struct {
	prices   *Prices
	thing    string
	sum      float64
	currency string
	gaps     []Date
	lacks    string // what else is not known
	used     []*Price
}

func (p *Prices) tally(thing string) *tally { return &tally{prices: p, thing: thing} }

// on is the price on a day, or nil.
func (t *tally) on(d Date) *Price {
	x := t.prices.At(t.thing, d)
	switch {
	case x == nil:
		if n := len(t.gaps); n == 0 || t.gaps[n-1].Before(d) {
			t.gaps = append(t.gaps, d)
		}
	case !slices.Contains(t.used, x):
		t.used = append(t.used, x)
	}
	return x
}

// add takes n times a price in.
func (t *tally) add(x *Price, n float64) { t.sum, t.currency = t.sum+n*x.Price.Value, x.Currency }

// money is the sum; nil: something is not known.
func (t *tally) money() *Money {
	if len(t.gaps) > 0 || t.lacks != "" {
		return nil
	}
	if t.currency == "" && t.sum == 0 {
		for _, x := range t.prices.of[t.thing] {
			t.currency = x.Currency
		}
	}
	return &Money{round(t.sum), t.currency}
}

// missing says what makes the sum unknown.
func (t *tally) missing() (all []string) {
	for i := 0; i < len(t.gaps); {
		k := i
		for k+1 < len(t.gaps) && t.gaps[k].Next() == t.gaps[k+1] {
			k++
		}
		when := "on " + t.gaps[i].String()
		if k > i {
			when = fmt.Sprintf("from %v to %v", t.gaps[i], t.gaps[k])
		}
		all = append(all, fmt.Sprintf("%s has no price of %s %s", t.prices.File, t.thing, when))
		i = k + 1
	}
	if t.lacks != "" {
		all = append(all, t.lacks)
	}
	return all
}

// monthly takes in what is billed by the month for a span, each day as its part of its month. times is how many units of the price a day of x has.
func (t *tally) monthly(from, until time.Time, times func(x *Price, d Date) float64) {
	for _, d := range days(t.prices.Location(), from, until) {
		if x := t.on(d); x != nil {
			t.add(x, times(x, d)*share(d, t.prices.Location(), from, until)/float64(d.DaysInMonth()))
		}
	}
}

// Bytes were, or will be, moved within a span, as good as evenly.
type Bytes struct {
	From, Until time.Time
	N           int64
}

// daily spreads bytes over the days of a zone.
func daily(zone *time.Location, all []Bytes) map[Date]float64 {
	out := map[Date]float64{}
	for _, b := range all {
		length := b.Until.Sub(b.From).Seconds()
		if length <= 0 {
			out[Day(b.From.In(zone))] += float64(b.N)
			continue
		}
		for _, d := range days(zone, b.From, b.Until) {
			begin, end := d.In(zone), d.Next().In(zone)
			if b.From.After(begin) {
				begin = b.From
			}
			if b.Until.Before(end) {
				end = b.Until
			}
			out[d] += float64(b.N) * end.Sub(begin).Seconds() / length
		}
	}
	return out
}
