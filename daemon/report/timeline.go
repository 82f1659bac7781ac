package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// maxLanes bounds the picture; the tables have all flows.
const maxLanes = 16

// lane is one flow in the timeline.
type lane struct {
	Name   string
	Y      float64
	Shapes []shape
}

// timeline is the picture of what happened.
type timeline struct {
	plot
	Lanes []lane
	More  int // flows that have no lane
}

// mark is how an event is drawn.
var marks = map[string]string{"gap": "gap", "point": "kept", "moment": "kept", "rehearsal": "rehearsal", "cutover": "cutover", "rollback": "rollback", "finish": "finish", "verify": "verify", "link.down": "down"}

const laneHeight = 46

// span is the time that pictures show.
func (d *Document) span() (from, until time.Time) {
	see := func(t time.Time) {
		if t.IsZero() || t.After(d.Made) {
			return
		}
		if from.IsZero() || t.Before(from) {
			from = t
		}
	}
	for i := range d.Flows {
		for _, e := range d.Flows[i].Events {
			see(e.Time)
			see(e.Began)
		}
		for _, s := range d.Flows[i].Samples {
			see(s.Time)
		}
	}
	for _, e := range d.Events {
		see(e.Time)
	}
	if until = d.Made; from.IsZero() || until.Sub(from) < 10*time.Second {
		from = until.Add(-10 * time.Second)
	}
	return from, until
}

// timeline draws one lane for each flow.
func (d *Document) timeline(width float64, from, until time.Time) timeline {
	n := min(len(d.Flows), maxLanes)
	t := timeline{plot: frame(width, float64(n)*laneHeight+30, "Timeline of passes and events"), More: len(d.Flows) - n}
	t.Left, t.Top = 8, 0
	a := axis{from, until, t.Left + 4, t.Right}
	t.X = a.ticks()
	down := d.down(a)
	for i := range n {
		f := &d.Flows[i]
		l := lane{Name: f.Status.Flow, Y: float64(i)*laneHeight + 30}
		if f.Group != "" {
			l.Name += " (" + f.Group + ")"
		}
		for _, x := range down {
			l.Shapes = append(l.Shapes, shape{D: bar(x.from, x.until, l.Y-8, 16), Class: "off", Title: x.title})
		}
		l.Shapes = append(l.Shapes, passes(f, a, l.Y)...)
		l.Shapes = append(l.Shapes, signs(append(slices.Clone(f.Events), d.Events...), a, l.Y, f.Status.Flow, f.Group)...)
		t.Lanes = append(t.Lanes, l)
	}
	return t
}

// stretch is part of a lane.
type stretch struct {
	from, until  float64
	class, title string
	count        int
}

// passes draws bars; what is nearer than a unit is one.
func passes(f *Flow, a axis, y float64) (out []shape) {
	var runs []stretch
	add := func(class string, from, until time.Time, title string) {
		s := stretch{a.x(from), a.x(until), class, title, 1}
		for i := range slices.Backward(runs) {
			if r := &runs[i]; r.class == class {
				if s.from-r.until < 1.5 && class == "delta" {
					r.until, r.count = max(r.until, s.until), r.count+1
					return
				}
				break
			}
		}
		runs = append(runs, s)
	}
	for i := range f.Events {
		e := &f.Events[i]
		switch {
		case e.Pass == nil:
		case e.Error != "":
			add("failed", e.Began, e.Time, Name(e)+" without a commit: "+e.Error)
		default:
			add(e.Pass.Kind, e.Began, e.Time, Name(e)+": "+About(e))
		}
	}
	if p := f.Status.Pass; p != nil {
		add(p.Kind, p.Started, a.until, p.Kind+" pass under way")
	}
	for _, r := range runs {
		title := r.title
		if r.count > 1 {
			title = "delta passes"
		}
		out = append(out, shape{D: bar(r.from, max(r.until, r.from+1.5), y-6, 12), Class: "pass " + r.class, Title: title})
	}
	return out
}

func bar(from, until, y, h float64) string {
	return fmt.Sprintf("M%.1f %.1fH%.1fV%.1fH%.1fZ", from, y, until, y+h, from)
}

// signs draws events; several of one kind at one place are one sign.
func signs(events []mover.Event, a axis, y float64, flow, group string) (out []shape) {
	slices.SortStableFunc(events, func(x, y mover.Event) int { return x.Time.Compare(y.Time) })
	type sign struct {
		x     float64
		class string
		title string
		count int
	}
	var all []sign
	for i := range events {
		e := &events[i]
		class := marks[e.Kind]
		if class == "" || e.Flow != "" && e.Flow != flow && e.Flow != group || e.Report != nil && len(e.Report.Members) > 0 { // members tell the rest themselves
			continue
		}
		if (e.Error != "" || e.Report != nil && !e.Report.OK) && class != "gap" {
			class = "bad"
		}
		s := sign{a.x(e.Time), class, Name(e) + ", " + stamp(e.Time) + comma(About(e)), 1}
		if n := len(all) - 1; n >= 0 && all[n].class == class && s.x-all[n].x < 5 {
			all[n].count++
			all[n].title = fmt.Sprintf("%d of: %s", all[n].count, strings.TrimPrefix(s.title, "of: "))
			continue
		}
		all = append(all, s)
	}
	for _, s := range all {
		out = append(out, shape{D: figure(s.class, s.x, y), Class: "sign " + s.class, Title: s.title})
	}
	return out
}

// figure is the form of a sign, centred at x, y.
func figure(class string, x, y float64) string {
	switch class {
	case "gap":
		return fmt.Sprintf("M%.1f %.1fl6 11h-12z", x, y-6)
	case "cutover", "rehearsal":
		return fmt.Sprintf("M%.1f %.1fl7 8l-7 8l-7 -8z", x, y-8)
	case "rollback":
		return fmt.Sprintf("M%.1f %.1fl11 -7v14z", x-6, y)
	case "finish":
		return fmt.Sprintf("M%.1f %.1fh12v12h-12z", x-6, y-6)
	case "bad":
		return fmt.Sprintf("M%.1f %.1fl3.5 -3.5l3.5 3.5l-3.5 3.5l3.5 3.5l-3.5 3.5l-3.5 -3.5l-3.5 3.5l-3.5 -3.5l3.5 -3.5l-3.5 -3.5l3.5 -3.5z", x, y-1)
	case "down":
		return fmt.Sprintf("M%.1f %.1fv10", x, y+6)
	case "verify":
		return fmt.Sprintf("M%.1f %.1fl3 4l6 -8", x-5, y)
	}
	return fmt.Sprintf("M%.1f %.1fa3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z", x-3.5, y+11)
}

// off is a time in which the daemon did not run.
type off struct {
	from, until float64
	title       string
}

func (d *Document) down(a axis) (out []off) {
	var since time.Time
	for _, e := range d.Events {
		switch e.Kind {
		case "daemon.stop":
			since = e.Time
		case "daemon.start":
			if !since.IsZero() && a.x(e.Time)-a.x(since) >= 1 {
				out = append(out, off{a.x(since), a.x(e.Time), "the daemon was stopped from " + stamp(since) + " to " + stamp(e.Time)})
			}
			since = time.Time{}
		}
	}
	return out
}
