package shape

import (
	"time"
)

// Timetable is a line's rate over the week, by the wall clock of one place.
type Timetable struct {
	Zone  *time.Location // nil: UTC
	Rate  int64          // when no span holds
	Spans []Span         // of those that hold at a time, the last one counts
}

// Span is a time of some days of the week.
type Span struct {
	Days     [7]bool // by time.Weekday: on which it begins
	From, To int     // minutes of the day, 0 to 1440; To at or before From ends on the next day
	Rate     int64
}

// holds tells whether the span covers minute m of a day d.
func (s *Span) holds(d time.Weekday, m int) bool {
	if s.To > s.From {
		return s.Days[d] && m >= s.From && m < s.To
	}
	return s.Days[d] && m >= s.From || s.Days[(d+6)%7] && m < s.To
}

// At is the rate at now.
func (t Timetable) At(now time.Time) int64 {
	now = now.In(t.zone())
	d, m := now.Weekday(), now.Hour()*60+now.Minute()
	for i := len(t.Spans) - 1; i >= 0; i-- {
		if t.Spans[i].holds(d, m) {
			return t.Spans[i].Rate
		}
	}
	return t.Rate
}

// Next is when the rate changes next, and to what; a zero time: never.
func (t Timetable) Next(now time.Time) (time.Time, int64) {
	if len(t.Spans) == 0 {
		return time.Time{}, t.Rate
	}
	rate := t.At(now)
	// Minutes of the wall clock may be skipped or come twice, so the clock itself is asked, minute by minute, for a week.
	at := now.Truncate(time.Minute)
	for range 8 * 24 * 60 {
		at = at.Add(time.Minute)
		if r := t.At(at); r != rate {
			return at, r
		}
	}
	return time.Time{}, rate
}

func (t Timetable) zone() *time.Location {
	if t.Zone == nil {
		return time.UTC
	}
	return t.Zone
}
