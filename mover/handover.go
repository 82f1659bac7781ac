package mover

import (
	"fmt"
	"time"
)

// What is known of the hand-over of a target whose cutover has come to that.
const (
	HandedOver    = "yes"
	NotHandedOver = "no"
	HandOverDoubt = "unknown"
)

// HandOver tells whether the target was handed over: yes, no, or unknown; "" without a report.
func (r *Report) HandOver() string {
	switch {
	case r == nil:
		return ""
	case r.Doubt:
		return HandOverDoubt
	case r.Released || r.OK:
		return HandedOver
	}
	return NotHandedOver
}

// Settled is r when the gateway has said whether the target was handed over.
func (r *Report) Settled(released bool) *Report {
	s := *r
	s.Doubt, s.Released = false, released
	return &s
}

// Standing tells what a flow is left in by the cutover of r, until the operator rolls back or finishes.
func (r *Report) Standing() (s State, reason, next string) {
	next = "moverctl rollback, to let the source go on"
	broken := fmt.Sprintf("the cutover of %s was broken off, source left %s", r.Ended.Format(time.RFC3339), r.Left)
	switch {
	case r.Partly && r.Doubt:
		return Stopped, broken + "; whether this target was handed over is not known yet, the gateway is asked: " + r.Error, next
	case r.Partly:
		return Stopped, broken + ": " + r.Error, next
	case r.Doubt:
		return Stopped, broken + ": the target may be handed over, the gateway is asked; nothing is known to be lost. " + r.Error,
			"wait for the gateway's answer; or moverctl rollback, to take the target back, whichever it is; or shut the source down"
	case r.OK:
		return Done, fmt.Sprintf("cut over at %s, source left %s", r.Ended.Format(time.RFC3339), r.Left), next + " instead of the target"
	case r.Released:
		return Done, fmt.Sprintf("cut over at %s, source left %s; the command had ended with: %s", r.Ended.Format(time.RFC3339), r.Left, r.Error), next + " instead of the target"
	}
	return Stopped, broken + ": the gateway says that the target was not handed over, and nothing is lost", next
}
