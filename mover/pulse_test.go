package mover

import (
	"testing"
	"time"
)

// Who works and does nothing hangs; who waits, or does a little now and then, does not, however long that lasts.
func TestStalls(t *testing.T) {
	s := Stalls{After: time.Minute}
	now := time.Now()
	look := func(after time.Duration, all ...Pulse) string {
		now = now.Add(after)
		return s.Look(now, all)
	}
	for range 10 {
		if got := look(50*time.Second, Pulse{"idle", 1, false}, Pulse{"slow", now.Unix(), true}); got != "" {
			t.Fatalf("%q hangs", got)
		}
	}
	hung := Pulse{"hung", 7, true}
	for range 2 {
		if got := look(30*time.Second, hung); got != "" {
			t.Fatalf("%q hangs too soon", got)
		}
	}
	if got := look(30*time.Second, hung); got != "hung" {
		t.Fatalf("%q hangs", got)
	}
	hung.Done++
	if got := look(30*time.Second, hung); got != "" {
		t.Fatalf("%q hangs although it went on", got)
	}
	// A wait in between ends what was counted.
	look(50*time.Second, hung)
	hung.Working = false
	look(time.Second, hung)
	hung.Working = true
	if got := look(50*time.Second, hung); got != "" {
		t.Fatalf("%q hangs although it waited", got)
	}
	if got := (&Stalls{}).Look(now, []Pulse{hung}); got != "" {
		t.Fatalf("the zero value finds %q", got)
	}
}
