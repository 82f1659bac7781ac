package mover

import "time"

// Schedule tells when points are due: at multiples of Every by the wall clock. A clock that steps makes none come in a crowd: two are never
// nearer to each other than half of Every by the time that passes.
type Schedule struct {
	Every time.Duration // 0: never

	next  time.Time     // by the wall clock
	last  time.Duration // when one was due last, by a clock that never steps
	began bool          // last is valid
}

// lookAgain bounds the wait: the wall clock may step meanwhile.
const lookAgain = 30 * time.Second

// Due tells whether a point is due now, by the wall clock and one that never steps; if not, when to ask again at the latest.
func (s *Schedule) Due(wall time.Time, steady time.Duration) (due bool, wait time.Duration) {
	if s.Every <= 0 {
		return false, lookAgain
	}
	wall = wall.Round(0)
	if s.next.IsZero() || s.next.Sub(wall) > s.Every { // the first, or the clock was set back
		s.next = s.after(wall)
	}
	if d := s.next.Sub(wall); d > 0 {
		return false, min(d, lookAgain)
	}
	s.next = s.after(wall)
	wait = min(s.next.Sub(wall), lookAgain)
	if s.began && steady-s.last < s.Every/2 {
		return false, wait
	}
	s.last, s.began = steady, true
	return true, wait
}

func (s *Schedule) after(wall time.Time) time.Time { return wall.UTC().Truncate(s.Every).Add(s.Every) }

// Next is when the next one is due; zero: never, or not asked yet.
func (s *Schedule) Next() time.Time { return s.next }
