package mover

import (
	"testing"
	"time"
)

// Points come aligned to the wall clock, once each, whatever the clock does.
func TestSchedule(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 7, 30, 0, time.UTC)
	s := Schedule{Every: 15 * time.Minute}
	wall, steady := start, time.Duration(0)
	var due []string
	ask := func() bool {
		ok, wait := s.Due(wall, steady)
		if wait <= 0 || wait > lookAgain {
			t.Fatalf("wait %v", wait)
		}
		if ok {
			due = append(due, wall.Format("15:04:05"))
		}
		return ok
	}
	run := func(d time.Duration) { // one second after the other
		for end := steady + d; steady < end; {
			ask()
			wall, steady = wall.Add(time.Second), steady+time.Second
		}
	}
	want := func(name string, all ...string) {
		t.Helper()
		if len(due) != len(all) {
			t.Fatalf("%s: %v, want %v", name, due, all)
		}
		for i := range all {
			if due[i] != all[i] {
				t.Fatalf("%s: %v, want %v", name, due, all)
			}
		}
		due = nil
	}
	run(40 * time.Minute)
	want("as the clock goes", "12:15:00", "12:30:00", "12:45:00")
	wall = wall.Add(5 * time.Hour) // 12:47:30 becomes 17:47:30; the last one was just now
	run(20 * time.Minute)
	want("after a step forward", "18:00:00")
	if ok := ask(); ok {
		t.Fatal("again at once")
	}
	wall = wall.Add(-3 * time.Hour) // 18:07:30 becomes 15:07:30
	run(25 * time.Minute)
	want("after a step back", "15:15:00", "15:30:00")
	wall = wall.Add(-3 * time.Minute) // 15:32:30 becomes 15:29:30: 15:30 comes again, too soon
	run(20 * time.Minute)
	want("after a small step back", "15:45:00")
	if next := s.Next(); next.Format("15:04") != "16:00" {
		t.Errorf("next %v", next)
	}
	if ok, _ := (&Schedule{}).Due(wall, steady); ok {
		t.Error("due without an interval")
	}
}
