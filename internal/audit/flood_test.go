package audit

import (
	"fmt"
	"testing"
	"time"
)

// TestFlood: however many come from however many addresses, what is told and what is counted add up, and a record stays small.
func TestFlood(t *testing.T) {
	var f Flood
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	told, counted, untold := 0, 0, 0
	for i := range 20_000 {
		a := Attempt{Kind: []string{"no certificate", "plain text"}[i%2], Address: fmt.Sprintf("192.0.2.%d", i%1000)}
		if f.Add(now, a) {
			told++
			if i == 4 { // its record found no room
				f.Untell(now, a)
				told--
				untold++
			}
		}
		if i == 9_999 {
			now = now.Add(time.Minute)
			r, ok := f.Due(now, false, "x")
			if !ok {
				t.Fatal("no record")
			}
			counted += r.Details["attempts"].(int)
			if n := len(r.Details["of"].([]More)); n > floodKeys+2 {
				t.Errorf("%d counts", n)
			}
			if b, err := encode(&r); err != nil || len(b) > 20_000 {
				t.Errorf("record of %d bytes, %v", len(b), err)
			}
		}
	}
	if _, ok := f.Due(now.Add(time.Second), false, "x"); ok {
		t.Error("a minute of a second")
	}
	r, _ := f.Due(now.Add(time.Second), true, "x")
	counted += r.Details["attempts"].(int)
	if told+counted != 20_000 || told < 10 || told > 2*toldInAll || untold != 1 {
		t.Errorf("told %d, counted %d", told, counted)
	}
	if _, ok := f.Due(now, true, "x"); ok {
		t.Error("nothing is told twice")
	}
	if !f.Add(now, Attempt{Kind: "a", Address: "b"}) {
		t.Error("one alone is told")
	}
	if _, ok := f.Due(now, true, "x"); ok {
		t.Error("no record of nothing more")
	}
}
