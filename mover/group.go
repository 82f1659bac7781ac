package mover

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Group is how a group stands at the source, or a flow that is in none.
type Group struct {
	Name     string      `json:"name"` // "": a flow's own
	Members  []string    `json:"members"`
	State    string      `json:"state"` // idle, point, cutover, rehearsal, done, finished
	Reason   string      `json:"reason,omitempty"`
	Next     string      `json:"next,omitempty"` // step open to the operator
	Every    float64     `json:"every_seconds,omitempty"`
	Due      time.Time   `json:"next_point,omitzero"`
	Moment   *LastMoment `json:"moment,omitempty"` // the last one of which every member has a point
	Taken    int64       `json:"moments"`          // since the start: of which every member has a point
	Failed   int64       `json:"failed"`           // since the start: that were begun and are not whole
	Skipped  int64       `json:"skipped"`          // since the start: that were due when none could be taken
	Trouble  string      `json:"trouble,omitempty"`
	Finished time.Time   `json:"finished,omitzero"`
}

// LastMoment is a moment as the source knows it.
type LastMoment struct {
	ID          string            `json:"id"`
	Time        time.Time         `json:"time"` // of the freeze
	Consistency string            `json:"consistency"`
	Pause       float64           `json:"pause_seconds"`
	Points      map[string]string `json:"points"` // by flow: ids at the gateway
	Worse       []string          `json:"worse,omitempty"`
	HookError   string            `json:"hook_error,omitempty"`
	Rehearsed   bool              `json:"rehearsed,omitempty"`
}

// Whole makes one report of those of a group's members. Each member's verdict stays in its own; the whole is well if all are.
func Whole(group, kind string, members []*Report) *Report {
	w := &Report{Flow: group, Group: group, Kind: kind, OK: len(members) > 0, Left: "running", Members: members}
	for i, m := range members {
		if i == 0 {
			w.Started, w.Consistency, w.Proof, w.Left = m.Started, m.Consistency, m.Proof, m.Left
		}
		w.OK = w.OK && m.OK
		if m.Started.Before(w.Started) {
			w.Started = m.Started
		}
		if m.Ended.After(w.Ended) {
			w.Ended = m.Ended
		}
		w.Pause, w.Rounds = max(w.Pause, m.Pause), max(w.Rounds, m.Rounds)
		w.FinalDelta += m.FinalDelta
		w.Compared += m.Compared
		w.Free += m.Free
		w.WireOut += m.WireOut
		w.Totals.Add(m.Totals)
		if m.Moment != "" {
			w.Moment, w.MomentTime = m.Moment, m.MomentTime
		}
		if weight(m.Consistency) < weight(w.Consistency) {
			w.Consistency = m.Consistency
		}
		if m.Proof != w.Proof {
			w.Proof = "unproven"
		}
		if m.Left != w.Left {
			w.Left = "mixed"
		}
		for _, text := range m.Worse {
			if !slices.Contains(w.Worse, text) {
				w.Worse = append(w.Worse, text)
			}
		}
		if w.HookError == "" {
			w.HookError = m.HookError
		}
		if w.Error == "" && m.Error != "" {
			w.Error = m.Error
		}
	}
	w.PointError = w.incomplete()
	return w
}

// incomplete tells which members of a moment have no point kept; "" when all have, or none was to.
func (r *Report) incomplete() string {
	var not []string
	for _, m := range r.Members {
		if m.Point == "" && m.Moment != "" {
			not = append(not, fmt.Sprintf("%s (%s)", m.Flow, cmp.Or(m.PointError, "the cutover ended before")))
		}
	}
	if len(not) == 0 {
		return ""
	}
	return fmt.Sprintf("the moment is incomplete: %d of %d members have no point kept: %s", len(not), len(r.Members), strings.Join(not, "; "))
}

// weight orders consistencies by their names.
func weight(s string) int {
	for c := Fuzzy; ; c++ {
		switch name := c.String(); {
		case name == s:
			return int(c)
		case strings.HasPrefix(name, "unknown"):
			return 0
		}
	}
}
