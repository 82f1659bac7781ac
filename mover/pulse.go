package mover

import (
	"maps"
	"slices"
	"time"
)

// Pulse tells a watchdog how a flow stands. Flows that wait for each other (a group) share one pulse.
type Pulse struct {
	Flow string
	// Done changes with every step of work: a read, a write, an answer of the other end, a part of a log applied. Nothing else is meant by it.
	Done int64
	// Working tells that something is under way that ends without anybody's doing: not when the flow waits for its next pass, for an
	// operator, or for the other end to be connected.
	Working bool
}

// Stalls finds flows that hang: at work for longer than After, and nothing done in all of it. The zero value finds none.
type Stalls struct {
	After time.Duration
	seen  map[string]stalling
}

type stalling struct {
	done  int64
	since time.Time
}

// Look returns the name of a flow that hangs, "" for none. Its caller looks often, with a clock that does not jump.
func (s *Stalls) Look(now time.Time, all []Pulse) string {
	if s.After <= 0 {
		return ""
	}
	next := map[string]stalling{}
	for _, p := range all {
		if !p.Working {
			continue
		}
		next[p.Flow] = stalling{p.Done, now}
		if last, ok := s.seen[p.Flow]; ok && last.done == p.Done {
			next[p.Flow] = last
		}
	}
	s.seen = next
	for _, flow := range slices.Sorted(maps.Keys(next)) {
		if now.Sub(next[flow].since) >= s.After {
			return flow
		}
	}
	return ""
}
