package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/moverd/mover/mover"
)

// groupMetric is one number of a group of flows, or of a flow that has moments of its own.
type groupMetric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*mover.Group) (v float64, ok bool)
}

// ofMoment tells a number of the last moment.
func ofMoment(f func(*mover.LastMoment) float64) func(*mover.Group) (float64, bool) {
	return func(g *mover.Group) (float64, bool) {
		if g.Moment == nil {
			return 0, false
		}
		return f(g.Moment), true
	}
}

func count(f func(*mover.Group) int64) func(*mover.Group) (float64, bool) {
	return func(g *mover.Group) (float64, bool) { return float64(f(g)), true }
}

var groups = []groupMetric{
	{"mover_group_members", "Flows of the group.", gauge, count(func(g *mover.Group) int64 { return int64(len(g.Members)) })},
	{"mover_group_moment_timestamp_seconds", "Time of the last moment of which every member has a recovery point; absent before the first.", gauge,
		ofMoment(func(m *mover.LastMoment) float64 { return float64(m.Time.UnixNano()) / 1e9 })},
	{"mover_group_moment_consistency", "What it is worth: 1 fuzzy, 2 crash, 3 app.", gauge, ofMoment(func(m *mover.LastMoment) float64 { return worth(m.Consistency) })},
	{"mover_group_moment_pause_seconds", "How long the writers stood still for it.", gauge, ofMoment(func(m *mover.LastMoment) float64 { return m.Pause })},
	{"mover_group_moment_hook_failed", "1: a post hook failed after it, so what pre did to the application may stand.", gauge, ofMoment(func(m *mover.LastMoment) float64 {
		if m.HookError != "" {
			return 1
		}
		return 0
	})},
	{"mover_group_point_interval_seconds", "Configured time between moments; absent without a schedule.", gauge,
		func(g *mover.Group) (float64, bool) { return g.Every, g.Every > 0 }},
	{"mover_group_moments_total", "Moments of which every member has a recovery point.", counter, count(func(g *mover.Group) int64 { return g.Taken })},
	{"mover_group_moments_failed_total", "Moments that were begun and are not whole.", counter, count(func(g *mover.Group) int64 { return g.Failed })},
	{"mover_group_moments_skipped_total", "Moments that were due when none could be taken.", counter, count(func(g *mover.Group) int64 { return g.Skipped })},
}

// worth is the number of a consistency, 0 for none.
func worth(name string) float64 {
	for _, c := range []mover.Consistency{mover.Fuzzy, mover.Crash, mover.App} {
		if c.String() == name {
			return float64(c)
		}
	}
	return 0
}

// collectGroups tells each group once, of whichever member it is met first.
func (c *Collector) collectGroups(ch chan<- prometheus.Metric, all []mover.Status) {
	seen := map[string]bool{}
	for _, s := range all {
		g := s.Group
		if g == nil {
			continue
		}
		name := g.Name
		if name == "" {
			name = s.Flow
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		for i, m := range groups {
			if v, ok := m.value(g); ok {
				ch <- prometheus.MustNewConstMetric(c.groups[i], m.kind, v, name)
			}
		}
	}
}
