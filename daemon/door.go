package daemon

import (
	"net"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/mover/receiver"
)

// Events of the gateway's door.
const (
	linkAccepted = "link.accepted"
	linkRefused  = "link.refused"
	linkEnded    = "link.ended"
	more         = ".more" // the count of those that have no record of their own
)

// door writes whom the gateway lets in, refuses or ends into the trail. Nobody waits for its disk: what finds no room in the queue is counted.
type door struct {
	refused, accepted audit.Flood
	queue             chan told
}

// told is an attempt on its way to the trail.
type told struct {
	flood   *audit.Flood
	attempt audit.Attempt
}

// doorQueue is more than the floods let through in a minute.
const doorQueue = 64

func newDoor() *door { return &door{queue: make(chan told, doorQueue)} }

// seen takes an event in; it reports whether the event is told in full. It does not block.
func (d *door) seen(e receiver.Event) bool {
	now := time.Now()
	t := told{flood: &d.refused, attempt: attempt(e, now)}
	if e.Did == receiver.Accepted {
		t.flood = &d.accepted
	}
	if !t.flood.Add(now, t.attempt) {
		return false
	}
	select {
	case d.queue <- t:
		return true
	default: // a disk that hangs
		t.flood.Untell(now, t.attempt)
		return false
	}
}

func attempt(e receiver.Event, now time.Time) audit.Attempt {
	peer := e.Peer.String()
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		host = peer
	}
	a := audit.Attempt{Kind: e.Kind, Address: host, Record: audit.Record{Time: now, Event: linkRefused, Details: map[string]any{"address": peer}}}
	switch e.Did {
	case receiver.Accepted:
		a.Kind, a.Record.Event = e.Flow, linkAccepted
	case receiver.Ended:
		a.Kind, a.Record.Event = "ended: "+e.Kind, linkEnded
	}
	for key, v := range map[string]string{"kind": e.Kind, "serial": e.Serial, "flow": e.Flow, "agent": e.Agent} {
		if v != "" {
			a.Record.Details[key] = cut(v)
		}
	}
	switch {
	case e.Name == "":
	case e.Proven:
		a.Record.Actor = cut(e.Name)
	default:
		a.Record.Details["claimed_name"] = cut(e.Name)
	}
	if e.Did != receiver.Refused {
		a.Record.Flow = e.Flow // it is one of ours
	}
	if e.Err != nil {
		a.Record.Details["error"] = cut(e.Err.Error())
	}
	return a
}

// cut bounds what strangers say.
func cut(s string) string { return s[:min(len(s), 512)] }

// run writes until stop is closed.
func (d *door) run(stop <-chan struct{}, write func(audit.Record)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case t := <-d.queue:
			write(t.attempt.Record)
		case now := <-tick.C:
			d.due(now, false, write)
		case <-stop:
			return
		}
	}
}

// flush writes all that is left.
func (d *door) flush(write func(audit.Record)) {
	for {
		select {
		case t := <-d.queue:
			write(t.attempt.Record)
		default:
			d.due(time.Now(), true, write)
			return
		}
	}
}

func (d *door) due(now time.Time, last bool, write func(audit.Record)) {
	if r, ok := d.refused.Due(now, last, linkRefused+more); ok {
		write(r)
	}
	if r, ok := d.accepted.Due(now, last, linkAccepted+more); ok {
		write(r)
	}
}
