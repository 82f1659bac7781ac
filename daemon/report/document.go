// Package report makes the account of a move that moverctl report shows: as JSON, as text, and as one HTML file that needs nothing else.
package report

import (
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/mover"
)

// Version of the JSON form.
const Version = 1

// Document is what one end knows about one flow, a group, or all. docs/operations.md tells what the figures mean.
type Document struct {
	Version  int           `json:"mover_report"`
	Made     time.Time     `json:"made"`
	Asked    string        `json:"asked,omitempty"` // name of a flow or group; empty: all
	Role     string        `json:"role"`
	Host     string        `json:"host"`
	Software string        `json:"software"`
	Flows    []Flow        `json:"flows"`
	Events   []mover.Event `json:"events"` // of the daemon, and of groups
	Audit    Audit         `json:"audit"`

	Lines []mover.LineStatus `json:"lines,omitempty"` // gateway

	Prices  string       `json:"prices,omitempty"` // the price file as configured
	Cost    *cost.Answer `json:"cost,omitempty"`
	Trouble string       `json:"trouble,omitempty"` // why the history is not whole
}

// Audit is the head of the audit trail when the document was made: who keeps it can tell later whether the trail's end was cut.
type Audit struct {
	Seq    uint64 `json:"seq"`
	Digest string `json:"digest"`
}

// Flow is one volume's move.
type Flow struct {
	Status  mover.Status     `json:"status"`
	Group   string           `json:"group,omitempty"`
	Passes  Passes           `json:"passes"`
	Moved   mover.Moved      `json:"moved"`  // by passes that were committed
	Failed  mover.Moved      `json:"failed"` // by passes that ended without a commit, or with their daemon
	Events  []mover.Event    `json:"events"`
	Samples []history.Sample `json:"samples"`

	Points []mover.RecoveryPoint `json:"points,omitempty"` // gateway
}

// Passes counts what was committed.
type Passes struct {
	Full   int `json:"full"`
	Delta  int `json:"delta"`
	Rescan int `json:"rescan"`
	Failed int `json:"failed"`
}

// Sum adds the figures of all flows up.
func (d *Document) Sum() (m mover.Moved, p Passes) {
	for _, f := range d.Flows {
		m.Add(f.Moved)
		p.Full, p.Delta, p.Rescan, p.Failed = p.Full+f.Passes.Full, p.Delta+f.Passes.Delta, p.Rescan+f.Passes.Rescan, p.Failed+f.Passes.Failed
	}
	return m, p
}

// Fill sorts what is known into the flows, and counts. Document.Flows has the status of each.
func (d *Document) Fill(past history.Past) {
	d.Version = Version
	d.Events = []mover.Event{}
	at := map[string]*Flow{}
	for i := range d.Flows {
		f := &d.Flows[i]
		f.Events, f.Samples = []mover.Event{}, past.Samples[f.Status.Flow]
		if f.Samples == nil {
			f.Samples = []history.Sample{}
		}
		at[f.Status.Flow] = f
	}
	for _, e := range past.Events {
		f := at[e.Flow]
		if f == nil {
			for _, m := range members(&e) {
				if f := at[m.Flow]; f != nil {
					f.Events = append(f.Events, m)
				}
			}
			if e.Flow == "" || slices.ContainsFunc(d.Flows, func(f Flow) bool { return f.Group != "" && f.Group == e.Flow }) {
				d.Events = append(d.Events, e)
			}
			continue
		}
		f.Events = append(f.Events, e)
		if e.Pass != nil {
			f.count(&e)
		}
	}
	for i := range d.Flows { // one whose volume is not open any more does not tell its size
		f := &d.Flows[i]
		if r := f.Last("cutover", "rehearsal", "verify"); f.Status.Size == 0 && r != nil {
			f.Status.Size = r.Compared + r.Free
		}
	}
}

// members are the events of a group's flows.
func members(e *mover.Event) (all []mover.Event) {
	if e.Report == nil {
		return nil
	}
	for _, r := range e.Report.Members {
		m := *e
		m.Flow, m.Group, m.Report, m.Pause, m.Consistency = r.Flow, e.Flow, r, r.Pause, r.Consistency
		if r.Error == "" {
			m.Error = ""
		}
		all = append(all, m)
	}
	return all
}

func (f *Flow) count(e *mover.Event) {
	n := max(1, e.Pass.Passes)
	if e.Error != "" {
		f.Passes.Failed += n
		f.Failed.Add(e.Pass.Moved)
		return
	}
	f.Moved.Add(e.Pass.Moved)
	switch e.Pass.Kind {
	case "full", "first":
		f.Passes.Full += n
	case "rescan":
		f.Passes.Rescan += n
	default:
		f.Passes.Delta += n
	}
}

// Reports are the cutovers, rehearsals and verifications, oldest first.
func (f *Flow) Reports() (all []*mover.Report) {
	for i := range f.Events {
		if r := f.Events[i].Report; r != nil {
			all = append(all, r)
		}
	}
	return all
}

// Last is the latest report of one of the kinds; nil: there is none.
func (f *Flow) Last(kinds ...string) *mover.Report {
	all := f.Reports()
	for _, r := range slices.Backward(all) {
		if slices.Contains(kinds, r.Kind) {
			return r
		}
	}
	return nil
}

// All is every event of the document in the order of time, those of passes only where they tell more than that a delta went as it should.
func (d *Document) All() (all []mover.Event) {
	all = slices.Clone(d.Events)
	for _, f := range d.Flows {
		for _, e := range f.Events {
			if e.Report != nil && e.Group != "" {
				continue // its group tells
			}
			if e.Pass == nil || e.Error != "" || e.Pass.Kind != "delta" {
				all = append(all, e)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b mover.Event) int { return a.Time.Compare(b.Time) })
	return all
}

// Title names what the document is about.
func (d *Document) Title() string {
	switch {
	case d.Asked != "" && len(d.Flows) == 1 && d.Flows[0].Status.Flow == d.Asked:
		return "Move of " + d.Asked
	case d.Asked != "":
		return "Move of group " + d.Asked
	case d.Role == "gateway":
		return "Moves to gateway " + d.Host
	}
	return "Move of " + d.Host
}

// words tell what an event is, in a few of them.
var words = map[string]string{
	"pass": "pass", "gap": "history lost", "moment": "moment", "point": "recovery point", "cutover": "cutover", "rehearsal": "rehearsal", "verify": "verification",
	"rollback": "rollback", "finish": "finished", "claim": "claim", "restore": "restore", "export": "export", "serve": "served", "points": "point changed",
	"pause": "paused", "resume": "resumed", "sync": "sync", "thaw": "thaw", "thaw.stale": "stale freeze thawed", "link.up": "link up", "link.down": "link down",
	"flow.stopped": "flow stopped", "flow.frozen": "writers stopped", "flow.done": "cut over", "flow.released": "target handed over", "flow.gap": "history lost",
	"flow.paused": "paused", "flow.connecting": "waits for an end", "flow.moving": "goes on", "flow.keys": "keys", "manifest": "manifest", "plan": "plan",
	"daemon.start": "daemon started", "daemon.stop": "daemon stopped", "daemon.unclean": "unclean stop before", "config.reload": "config reloaded",
	"history.dropped": "history incomplete",
}

// Name is an event's name for people.
func Name(e *mover.Event) string {
	if e.Pass != nil {
		return e.Pass.Kind + " pass"
	}
	if w, ok := words[e.Kind]; ok {
		return w
	}
	return strings.NewReplacer(".", " ", "-", " ").Replace(e.Kind)
}
