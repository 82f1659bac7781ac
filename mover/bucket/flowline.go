package bucket

import (
	"fmt"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
)

// Wants is what the flow would send over its line now: for what, and about how many bytes. A cutover goes first from the moment it is asked for, with the pass that
// it waits for, too.
func (f *Flow) Wants() (class shape.Class, backlog int64) {
	s := f.State()
	f.mu.Lock()
	passing := f.cancel != nil
	f.mu.Unlock()
	if passing {
		class = shape.Delta
		if s.Pass <= 1 {
			class = shape.Bulk
		}
		backlog = max(0, s.PlannedBytes-s.CopiedBytes)
	}
	switch {
	case f.still.Load():
		class = shape.Final
	case f.hurry.Load() > 0:
		class = shape.Cutover
	}
	return class, backlog
}

func (f *Flow) class() shape.Class {
	class, _ := f.Wants()
	return class
}

// hasten notes that the flow sends for a cutover, or for one whose writers stand still, until done; its workers hear of it at once.
func (f *Flow) hasten(note func(), undo func()) (done func()) {
	note()
	f.mu.Lock()
	chief := f.chief
	f.mu.Unlock()
	if chief != nil {
		chief.hurry()
	}
	return undo
}

// Wants is what the worker would send over its line now, as far as it has been told.
func (w *Worker) Wants() (class shape.Class, backlog int64) {
	if w.under.Load() == 0 {
		return 0, 0
	}
	return max(shape.Bulk, min(shape.Class(w.class.Load()), shape.Final)), 0
}

// onLine adds what the flow may use of its line, and whether it stands still for it.
func (f *Flow) onLine(s *mover.Status) {
	if f.cfg.Line == nil {
		return
	}
	l := f.cfg.Line()
	s.Links = []mover.LinkStatus{l}
	switch {
	case s.State != mover.Passing:
	case l.Leased && l.Rate == 0:
		s.Reason = fmt.Sprintf("line %s: %s", l.Line, l.Why)
		s.Next = "wait, or moverctl line set " + l.Line + " at the gateway"
	case !l.Leased && l.Rate >= 0:
		s.Reason = fmt.Sprintf("held to its safe rate of %s: the gateway does not say what it may use of the line", units.Rate(float64(l.Rate)))
		if l.Why != "" {
			s.Reason += ": " + l.Why
		}
	}
}
