package cost

import (
	"slices"
	"time"

	"github.com/moverd/mover/internal/strict"
)

// LineUse is what is known of the use of a line. It is the one place where figures of lines come in: today those of flows' passes and the
// rate that the operator says is billed; who has the line's own samples fills Peaks by Peak95 and PeakEnhanced95.
type LineUse struct {
	Began    time.Time   // since when the line is used; zero: it is not yet
	SoFar    []Bytes     // moved
	Left     int64       // bytes that are to be moved for what is changed or not copied now
	Day      *int64      // bytes a day that changes will need; nil: not known yet
	Watched  float64     // seconds that Day was reckoned from
	Over     bool        // all is cut over: nothing more will be moved
	Peaks    []Peak      // of months
	Billed   strict.Rate // of months that have no peak; 0: not known
	Measured string      // how SoFar is known
}

// Peak is the rate by which a month is billed.
type Peak struct {
	Month Date // its first day
	Rate  strict.Rate
}

// Sample is the mean rate of five minutes, of the busier direction.
type Sample struct {
	Time time.Time
	Rate float64 // bytes per second
}

const sampleEvery = 5 * time.Minute

// Peak95 is the rate of the plain 95th percentile: of all samples of a month the largest 5 % are dropped, the next one is billed. Times
// without a sample count as silent.
func Peak95(month Date, zone *time.Location, samples []Sample) strict.Rate {
	month = month.Month()
	begin := month.In(zone)
	end := time.Date(begin.Year(), begin.Month()+1, 1, 0, 0, 0, 0, zone)
	var rates []float64
	for _, s := range samples {
		if !s.Time.Before(begin) && s.Time.Before(end) {
			rates = append(rates, s.Rate)
		}
	}
	slices.Sort(rates)
	dropped := int(end.Sub(begin)/sampleEvery) * 5 / 100
	if len(rates) <= dropped {
		return 0
	}
	return strict.Rate(rates[len(rates)-1-dropped])
}

const (
	freeOfDay = 4 // samples of a day that cost nothing
	peakDays  = 5
)

// PeakEnhanced95 is the rate of "enhanced 95": of each day the four largest samples are dropped and the fifth is its peak; the month's is the
// mean of its five largest day peaks.
func PeakEnhanced95(month Date, zone *time.Location, samples []Sample) strict.Rate {
	month = month.Month()
	byDay := map[Date][]float64{}
	for _, s := range samples {
		if d := Day(s.Time.In(zone)); d.Month() == month {
			byDay[d] = append(byDay[d], s.Rate)
		}
	}
	var peaks []float64
	for _, rates := range byDay {
		if slices.Sort(rates); len(rates) > freeOfDay {
			peaks = append(peaks, rates[len(rates)-1-freeOfDay])
		}
	}
	slices.Sort(peaks)
	sum := 0.0
	for _, p := range peaks[max(0, len(peaks)-peakDays):] {
		sum += p
	}
	return strict.Rate(sum / peakDays)
}

// peak is the billed rate of the month of d.
func (u *LineUse) peak(d Date) strict.Rate {
	for _, p := range u.Peaks {
		if p.Month.Month() == d.Month() {
			return p.Rate
		}
	}
	return u.Billed
}

// toCome are the bytes that will be moved until then.
func (u *LineUse) toCome(now, until time.Time) (all []Bytes) {
	if u.Over || !until.After(now) {
		return nil
	}
	if u.Left > 0 {
		all = append(all, Bytes{now, now, u.Left})
	}
	if u.Day != nil {
		all = append(all, Bytes{now, until, int64(float64(*u.Day) * until.Sub(now).Hours() / 24)})
	}
	return all
}

// mbit is bytes per second.
const mbit = 1e6 / 8

// charge takes in what a line costs in a span in which bytes are moved. unsure tells that there will be more of them.
func (t *tally) charge(u *LineUse, from, until time.Time, bytes []Bytes, unsure bool) {
	zone := t.prices.Location()
	moved := daily(zone, bytes)
	for _, d := range days(zone, from, until) {
		x := t.on(d)
		if x == nil {
			continue
		}
		month := share(d, zone, from, until) / float64(d.DaysInMonth())
		switch x.Model {
		case Flat:
			t.add(x, month)
		case Moved:
			t.add(x, moved[d]/x.per())
			if unsure {
				t.lacks = "how much changes in a day: too little was watched since the last pass over the whole volume"
			}
		case Plain95, Enhanced95:
			rate := u.peak(d)
			if rate == 0 {
				t.lacks = "the rate that " + t.thing + " is billed by: set use.billed-rate in " + t.prices.File
			}
			if x.Model == Enhanced95 {
				rate = max(rate, x.Rate*strict.Rate(x.floor())/100)
			}
			t.add(x, float64(rate)/mbit*month)
		}
	}
}

// perByte is how many units of a line's price a byte costs: by the time that it takes the line, where the line is paid by time.
func (x *Price) perByte(d Date) float64 {
	month := float64(d.DaysInMonth()) * 86400
	switch x.Model {
	case Flat:
		return 1 / (float64(x.Rate) * month)
	case Moved:
		return 1 / x.per()
	}
	return 1 / (mbit * month)
}
