package cost

import (
	"time"

	"github.com/moverd/mover/internal/strict"
)

// LineUse is what is known of the use of a line. It is the one place where figures of lines come in: bytes of flows, the rates that months are
// billed by as the line's own samples tell (shape.Billing), and the rate that the operator says.
type LineUse struct {
	Began   time.Time   // since when the line is used; zero: it is not yet
	SoFar   []Bytes     // moved
	Left    int64       // bytes that are to be moved for what is changed or not copied now
	Day     *int64      // bytes a day that changes will need; nil: not known yet
	Watched float64     // seconds that Day was reckoned from
	Over    bool        // all is cut over: nothing more will be moved
	Peaks   []Peak      // of months
	Billed  strict.Rate // of months that have no peak; 0: not known
}

// Peak is the rate by which a month is billed.
type Peak struct {
	Month Date // its first day
	Rate  strict.Rate
}

// peak is the billed rate of the month of d.
func (u *LineUse) peak(d Date) (rate strict.Rate, known bool) {
	for _, p := range u.Peaks {
		if p.Month.Month() == d.Month() {
			return p.Rate, true
		}
	}
	return u.Billed, u.Billed > 0
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
			rate, known := u.peak(d)
			if !known {
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
