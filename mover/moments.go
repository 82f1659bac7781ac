package mover

import (
	"cmp"
	"slices"
	"time"
)

// FlowPoints are the recovery points that are kept of one flow.
type FlowPoints struct {
	Flow   string          `json:"flow"`            // TENANT/HOST/NAME
	Group  string          `json:"group,omitempty"` // TENANT/HOST/GROUP that its last confirmed point was taken with; empty: none
	Keep   Keep            `json:"keep"`
	Points []RecoveryPoint `json:"points"`
}

// Moment is what the recovery points of a group that were taken under one freeze share. A flow without a group is a group of its own.
type Moment struct {
	ID          string         `json:"id"`     // as operators name it
	Moment      string         `json:"moment"` // in full
	Group       string         `json:"group"`  // TENANT/HOST/GROUP, or the flow
	Time        time.Time      `json:"time"`
	Consistency Consistency    `json:"-"`
	Worth       string         `json:"consistency"` // the worst of its points
	Complete    bool           `json:"complete"`    // every member has its point
	Rehearsed   bool           `json:"rehearsed"`
	Cutover     bool           `json:"cutover"`
	Pinned      bool           `json:"pinned"`            // every point of it
	Size        int64          `json:"size_bytes"`        // of the volumes, together
	Members     int            `json:"members"`           // flows that were frozen together
	Points      []MomentMember `json:"points"`            // by flow
	Lacking     []string       `json:"lacking,omitempty"` // flows of the group that have no point of it, as far as their names are known
}

// MomentMember is the point of one flow.
type MomentMember struct {
	Flow  string        `json:"flow"`
	Point RecoveryPoint `json:"point"`
}

// PointID names a point, or a moment, after its time and the beginning of the id, in hex, that tells it from others.
func PointID(t time.Time, id string) string {
	return t.UTC().Format("20060102T150405Z") + "-" + id[:min(8, len(id))]
}

// Moments lists the moments that any of the flows has a point of, the oldest first. Points that were never confirmed have none. A host's
// moments are its own, whatever ids another one uses.
func Moments(flows []FlowPoints) []Moment {
	type key struct{ group, moment string }
	all := map[key]*Moment{}
	for _, f := range flows {
		for _, p := range f.Points {
			if p.Moment == "" {
				continue
			}
			k := key{p.groupOf(f.Flow), p.Moment}
			m := all[k]
			if m == nil {
				m = &Moment{ID: PointID(p.Time, p.Moment), Moment: p.Moment, Group: k.group, Time: p.Time,
					Consistency: p.Consistency, Pinned: true, Members: p.Members}
				all[k] = m
			}
			m.add(f.Flow, p)
		}
	}
	out := make([]Moment, 0, len(all))
	for k, m := range all {
		for _, f := range flows {
			if f.Group == k.group && !slices.ContainsFunc(m.Points, func(p MomentMember) bool { return p.Flow == f.Flow }) {
				m.Lacking = append(m.Lacking, f.Flow)
			}
		}
		slices.SortFunc(m.Points, func(a, b MomentMember) int { return cmp.Compare(a.Flow, b.Flow) })
		slices.Sort(m.Lacking)
		m.Worth, m.Complete = m.Consistency.String(), len(m.Points) >= m.Members
		if m.Complete {
			m.Lacking = nil // who is in the group now need not have been then
		}
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Moment) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Group, b.Group), cmp.Compare(a.Moment, b.Moment))
	})
	return out
}

func (m *Moment) add(flow string, p RecoveryPoint) {
	m.Points = append(m.Points, MomentMember{flow, p})
	m.Consistency, m.Members = min(m.Consistency, p.Consistency), max(m.Members, p.Members)
	m.Rehearsed, m.Cutover, m.Pinned = m.Rehearsed || p.Rehearsed, m.Cutover || p.Cutover, m.Pinned && p.Pinned
	m.Size += p.Size
}

// groupOf is the full name of the group that p was taken with, or the flow that it is alone.
func (p RecoveryPoint) groupOf(flow string) string {
	if p.Group == "" {
		return flow
	}
	host := flow
	for i := len(flow) - 1; i >= 0; i-- {
		if flow[i] == '/' {
			host = flow[:i]
			break
		}
	}
	return host + "/" + p.Group
}

// ExpiredTogether is Expired for flows whose points belong together: a point goes only when no flow holds on to its moment, so that what is
// promised of a group stays whole. It returns the ids that go, for each flow.
func ExpiredTogether(flows []FlowPoints) [][]string {
	type key struct{ group, moment string }
	holds := map[key]bool{}
	gone := make([][]string, len(flows))
	for i, f := range flows {
		gone[i] = Expired(f.Points, f.Keep)
		for _, p := range f.Points {
			if p.Moment != "" && (p.Pinned || !slices.Contains(gone[i], p.ID)) {
				holds[key{p.groupOf(f.Flow), p.Moment}] = true
			}
		}
	}
	for i, f := range flows {
		gone[i] = slices.DeleteFunc(gone[i], func(id string) bool {
			k := slices.IndexFunc(f.Points, func(p RecoveryPoint) bool { return p.ID == id })
			p := f.Points[k]
			return p.Moment != "" && holds[key{p.groupOf(f.Flow), p.Moment}]
		})
	}
	return gone
}
