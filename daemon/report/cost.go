package report

import (
	"slices"
	"time"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/mover"
)

// CostMonths is how far a report looks ahead.
const CostMonths = 1

const (
	watchFor   = 7 * 24 * time.Hour // of changes, for an estimate
	watchLeast = 10 * time.Minute
)

// Price reckons what the flows of the document have cost, and will cost until then. The document is filled.
func (d *Document) Price(p *cost.Prices, until time.Time) *cost.Answer {
	ask := cost.Ask{Now: d.Made, Until: until}
	for i := range d.Flows {
		ask.Flows = append(ask.Flows, d.costFlow(&d.Flows[i]))
	}
	ask.Line = d.lineUse(p)
	if d.Role == "gateway" {
		ask.Notes = append(ask.Notes, "what the line will have to carry and what compression saved are known at the source: ask there")
	}
	return p.Bill(ask)
}

// lineUse is what the flows used of the line, and what a gateway knows of it by its own samples.
func (d *Document) lineUse(p *cost.Prices) cost.LineUse {
	u := cost.LineUse{Billed: p.Use.Billed, Over: len(d.Flows) > 0}
	for _, l := range d.Lines {
		if p.Use.Line != cost.Line+"/"+l.Name || l.Billing == cost.Flat {
			continue
		}
		month := cost.Day(l.Month.In(p.Location()))
		u.Peaks = append(u.Peaks, cost.Peak{Month: month, Rate: strict.Rate(l.Billed)})
		if u.Billed == 0 {
			u.Billed = strict.Rate(l.Peak) // what is sent never exceeds it
		}
	}
	day, known := 0.0, false
	for i := range d.Flows {
		f := &d.Flows[i]
		if began := f.began(); !began.IsZero() && (u.Began.IsZero() || began.Before(u.Began)) {
			u.Began = began
		}
		for _, b := range f.carried(d.Role) {
			if b.Until.After(d.Made) { // the span of a sample that has not ended
				b.Until = d.Made
			}
			if u.Began.IsZero() || b.From.Before(u.Began) {
				u.Began = b.From
			}
			u.SoFar = append(u.SoFar, b)
		}
		if f.Status.State == mover.Done {
			continue
		}
		u.Over = false
		u.Left += f.left()
		if n, watched := f.change(d.Made, func(s *history.Sample) float64 { return s.Wire }); watched > 0 {
			day, known = day+n, true
			if u.Watched == 0 || watched < u.Watched {
				u.Watched = watched
			}
		}
	}
	if known {
		n := int64(day)
		u.Day = &n
	}
	return u
}

// carried is what a flow had on the line: what its passes counted, and of what is under way, or at a gateway of all, what was seen each second.
func (f *Flow) carried(role string) (all []cost.Bytes) {
	since := time.Time{}
	if role != "gateway" {
		for _, e := range f.Events {
			if e.Pass != nil && e.Pass.Moved.Wire > 0 {
				all = append(all, cost.Bytes{From: e.Began, Until: e.Time, N: e.Pass.Moved.Wire})
			}
		}
		if f.Status.Pass == nil {
			return all
		}
		since = f.Status.Pass.Started
	}
	for _, s := range f.Samples {
		if n := int64(s.Wire * s.Seen); n > 0 && !s.Time.Before(since) {
			all = append(all, cost.Bytes{From: s.Time, Until: s.Time.Add(seconds(s.Span)), N: n})
		}
	}
	return all
}

// began is when the first pass did; zero: none has.
func (f *Flow) began() time.Time {
	for _, e := range f.Events {
		if e.Pass != nil && !e.Began.IsZero() {
			return e.Began
		}
	}
	if p := f.Status.Pass; p != nil {
		return p.Started
	}
	return time.Time{}
}

// ratio is how many bytes on the line a byte that a pass looked at took, of passes over the whole volume or of deltas; 1 when none has ended.
func (f *Flow) ratio(whole bool) float64 {
	var m mover.Moved
	for _, e := range f.Events {
		if e.Pass != nil && (e.Pass.Kind != mover.Delta.String()) == whole && e.Error == "" {
			m.Add(e.Pass.Moved)
		}
	}
	if m.Looked == 0 || m.Wire == 0 {
		return 1
	}
	return float64(m.Wire) / float64(m.Looked)
}

// left is an estimate of what the line has to carry for what the target lacks now.
func (f *Flow) left() int64 {
	s := &f.Status
	if p := s.Pass; p != nil {
		ratio := f.ratio(p.Kind != mover.Delta.String())
		if p.Acked > 0 && ratio == 1 { // the first of its kind: as it has gone so far
			carried := 0.0
			for _, x := range f.Samples {
				if !x.Time.Before(p.Started) {
					carried += x.Wire * x.Seen
				}
			}
			if carried > 0 {
				ratio = min(1, carried/float64(p.Acked))
			}
		}
		return int64(float64(max(0, p.Total-p.Acked)) * ratio)
	}
	if s.PointTime.IsZero() && s.PointEpoch == 0 && f.Passes.Full+f.Passes.Rescan == 0 {
		return s.Size
	}
	return int64(float64(s.Dirty) * f.ratio(false))
}

// change is the mean a day of what samples tell since the last pass over the whole volume, and how many seconds were watched; 0: too few.
func (f *Flow) change(now time.Time, of func(*history.Sample) float64) (day, watched float64) {
	since := now.Add(-watchFor)
	for _, e := range f.Events {
		if e.Pass != nil && e.Pass.Kind != mover.Delta.String() && e.Time.After(since) {
			since = e.Time
		}
	}
	if p := f.Status.Pass; p != nil && p.Kind != mover.Delta.String() {
		return 0, 0
	}
	sum := 0.0
	for i := range f.Samples {
		if s := &f.Samples[i]; !s.Time.Before(since) {
			sum, watched = sum+of(s)*s.Seen, watched+s.Seen
		}
	}
	if watched < watchLeast.Seconds() {
		return 0, 0
	}
	return sum / watched * 86400, watched
}

// costFlow is a flow as its costs see it.
func (d *Document) costFlow(f *Flow) cost.Flow {
	out := cost.Flow{Name: f.Status.Flow, Began: f.began(), Size: f.Status.Size, Compression: d.Role != "gateway"}
	if day, watched := f.change(d.Made, func(s *history.Sample) float64 { return s.Rate }); watched > 0 && f.Status.State != mover.Done {
		out.Day = int64(day)
	}
	for _, e := range f.Events {
		if e.Pass == nil || e.Error != "" {
			continue
		}
		m, n := e.Pass.Moved, max(1, e.Pass.Passes)
		out.Moves = append(out.Moves, cost.Move{From: e.Began, Until: e.Time, Looked: m.Looked, Free: m.Free, Zero: m.Zero, Same: m.Same,
			Copied: m.Copied, Unreadable: m.Unreadable, Sent: m.Sent, Payload: m.Payload, Wire: m.Wire})
		if e.Pass.Kind == mover.Delta.String() {
			out.Deltas += n
			out.Unchanged += max(0, int64(n)*f.Status.Size-m.Looked)
			continue
		}
		out.InUse = m.Looked - m.Free - m.Zero
	}
	if d.Role == "gateway" {
		out.Points = f.kept()
	}
	if b := f.Status.Bucket; b != nil { // what lies there is known, and each copy was a request at least
		writes := f.copied()
		out.Size, out.InUse, out.Unchanged, out.Deltas, out.Writes = b.Bytes, b.Bytes, 0, 0, &writes
	}
	return out
}

// kept is the recovery points: each holds at most what was changed after it, so all of them what was since the oldest.
func (f *Flow) kept() *cost.Kept {
	k := &cost.Kept{Count: len(f.Points)}
	if k.Count == 0 {
		return k
	}
	k.Oldest = slices.MinFunc(f.Points, func(a, b mover.RecoveryPoint) int { return a.Time.Compare(b.Time) }).Time
	for _, e := range f.Events {
		if e.Pass != nil && e.Error == "" && e.Pass.Kind == mover.Delta.String() && e.Time.After(k.Oldest) {
			k.Bytes += e.Pass.Moved.Looked
		}
	}
	k.Bytes = min(k.Bytes, int64(k.Count)*f.Status.Size)
	return k
}
