package cost

import (
	"fmt"
	"time"
)

// Date is a day of the calendar, spelled 2026-01-31. The zero value is none.
type Date struct{ t time.Time } // midnight UTC, whatever the zone of the prices

// Day is the date of t where t is.
func Day(t time.Time) Date {
	y, m, d := t.Date()
	return Date{time.Date(y, m, d, 0, 0, 0, 0, time.UTC)}
}

// ParseDate reads a date.
func ParseDate(s string) (Date, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return Date{}, fmt.Errorf("%q is not a date; write it as in 2026-01-31", s)
	}
	return Date{t}, nil
}

// Parse reads a date.
func (d *Date) Parse(s string) (err error) { *d, err = ParseDate(s); return err }

// IsZero tells that there is none.
func (d Date) IsZero() bool { return d.t.IsZero() }

func (d Date) String() string { return d.t.Format(time.DateOnly) }

// Before tells whether d is an earlier day.
func (d Date) Before(o Date) bool { return d.t.Before(o.t) }

// Next is the day after.
func (d Date) Next() Date { return Date{d.t.AddDate(0, 0, 1)} }

// In is the moment at which the day begins in a zone.
func (d Date) In(zone *time.Location) time.Time {
	y, m, day := d.t.Date()
	return time.Date(y, m, day, 0, 0, 0, 0, zone)
}

// Month is the first day of d's month.
func (d Date) Month() Date { return Date{d.t.AddDate(0, 0, 1-d.t.Day())} }

// DaysInMonth counts the days of d's month.
func (d Date) DaysInMonth() int { return d.Month().t.AddDate(0, 1, -1).Day() }

// AddMonths is the same day n months later, or the last day of that month when it has no such day.
func AddMonths(t time.Time, n int) time.Time {
	y, m, d := t.Date()
	last := time.Date(y, m+time.Month(n)+1, 0, 0, 0, 0, 0, time.UTC).Day()
	return time.Date(y, m+time.Month(n), min(d, last), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), t.Location())
}

// share is the part of a day in a zone that lies within a span.
func share(d Date, zone *time.Location, from, until time.Time) float64 {
	begin, end := d.In(zone), d.Next().In(zone)
	length := end.Sub(begin)
	if from.After(begin) {
		begin = from
	}
	if until.Before(end) {
		end = until
	}
	return max(0, end.Sub(begin).Seconds()/length.Seconds())
}

// days are those that a span touches.
func days(zone *time.Location, from, until time.Time) (all []Date) {
	for d := Day(from.In(zone)); d.In(zone).Before(until); d = d.Next() {
		all = append(all, d)
	}
	return all
}
