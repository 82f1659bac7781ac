package config

import (
	"fmt"
	"slices"
	"time"
)

// Group is flows of one server that are cut over, and get their recovery points, at one moment.
type Group struct {
	Name     string      `yaml:"name"`
	Flows    []string    `yaml:"flows,flow"`
	Points   GroupPoints `yaml:"points,omitempty"`
	Hooks    Hooks       `yaml:"hooks"`
	Cutover  Cutover     `yaml:"cutover"`
	Snapshot string      `yaml:"snapshot"` // auto: read a point from LVM snapshots where the freeze would be long; off
}

// GroupPoints says when a group gets points by itself.
type GroupPoints struct {
	Every Duration `yaml:"every,omitempty"` // 0: only when asked
}

// Hooks make applications ready for a freeze: argument vectors, run before it and after the thaw.
type Hooks struct {
	Pre     []string `yaml:"pre,omitempty,flow"`
	Post    []string `yaml:"post,omitempty,flow"`
	Timeout Duration `yaml:"timeout"` // of each
}

// Bounds of a group's times.
const (
	leastEvery  = time.Second
	mostEvery   = 7 * 24 * time.Hour
	mostHook    = 10 * time.Minute
	mostMembers = 256
)

// groups checks the groups of a source whose flows have the given names.
func (v *validator) groups(s *Source, flows map[string]int) {
	names, member := map[string]int{}, map[string]string{}
	for i, g := range s.Groups {
		key := fmt.Sprintf("source.groups[%d]", i)
		v.name(key+".name", g.Name)
		v.once(key+".name", "name", g.Name, i, "source.groups", names)
		if at, twice := flows[g.Name]; twice && g.Name != "" {
			v.bad(key+".name", "%q is the name of source.flows[%d] too; commands take either, so each name may stand once", g.Name, at)
		}
		if len(g.Flows) == 0 {
			v.bad(key+".flows", "needs at least one flow")
		}
		if len(g.Flows) > mostMembers {
			v.bad(key+".flows", "names %d flows; more than %d cannot be frozen at one moment", len(g.Flows), mostMembers)
		}
		for j, name := range g.Flows {
			at := fmt.Sprintf("%s.flows[%d]", key, j)
			flow, known := flows[name]
			switch other, twice := member[name]; {
			case !known:
				v.bad(at, "there is no flow %q; there are%s", name, listed(s))
				continue
			case twice:
				v.bad(at, "flow %q is in group %q already; a flow is in one group at most, once", name, other)
				continue
			}
			member[name] = g.Name
			if own := fmt.Sprintf("source.flows[%d].cutover", flow); v.Line(own) != 0 {
				v.bad(own, "flow %q is cut over with its group %q only; write it there", name, g.Name)
			}
		}
		if d := time.Duration(g.Points.Every); d != 0 && (d < leastEvery || d > mostEvery) {
			v.bad(key+".points.every", "%v is outside %v to %v; 0s: only when asked", d, leastEvery, mostEvery)
		}
		v.hook(key+".hooks.pre", g.Hooks.Pre)
		v.hook(key+".hooks.post", g.Hooks.Post)
		if len(g.Hooks.Post) > 0 && len(g.Hooks.Pre) == 0 {
			v.bad(key+".hooks.post", "has no pre that it undoes")
		}
		if d := time.Duration(g.Hooks.Timeout); d <= 0 || d > mostHook {
			v.bad(key+".hooks.timeout", "%v is outside 0s to %v", d, mostHook)
		}
		v.cutover(key+".cutover", g.Cutover)
		v.among(key+".snapshot", g.Snapshot, "auto", "off")
	}
}

func listed(s *Source) (text string) {
	for _, f := range s.Flows {
		text += " " + f.Name
	}
	return text
}

// GroupOf is the group that a flow is in, or nil.
func (s *Source) GroupOf(flow string) *Group {
	for i := range s.Groups {
		if slices.Contains(s.Groups[i].Flows, flow) {
			return &s.Groups[i]
		}
	}
	return nil
}
