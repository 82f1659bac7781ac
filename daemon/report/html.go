package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"time"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"size":     units.Size,
	"stamp":    stamp,
	"day":      func(t time.Time) string { return t.Format(time.DateOnly) },
	"name":     func(e mover.Event) string { return Name(&e) },
	"about":    func(e mover.Event) string { return About(&e) },
	"verdict":  Verdict,
	"duration": func(s float64) string { return units.Duration(seconds(s)) },
	"or":       or,
	"short": func(s string) string {
		if len(s) > 16 {
			return s[:16] + "…"
		}
		return s
	},
}).Parse(pageText))

// page is what the template shows.
type page struct {
	*Document
	Total       mover.Moved
	Counts      Passes
	Gateway     bool
	Tone        string // ok, warn, bad
	Headline    string
	Cards       []card
	From        time.Time
	Timelines   []timeline
	Charts      []chart
	Shares      []Share
	Pauses      []pause
	Older       int // pauses that are not shown
	PointPauses string
	Proofs      []proof
	Objects     []proof       // of bucket flows
	Happened    []mover.Event // newest first
	Earlier     int
}

// card is one figure at the top.
type card struct{ Name, Value, Note string }

// chart is one picture in both widths.
type chart struct {
	Title, Note string
	Keys        []key
	Plots       []plot
}

type key struct{ Class, Text string }

// pause is how long writers stood still once, and in which steps.
type pause struct {
	Flow   string
	Report *mover.Report
	Steps  []step
}

type step struct {
	Name          string
	Class         int
	Seconds       float64
	From, Percent float64
}

// proof is what a flow's last comparison came to.
type proof struct {
	Flow   string
	Report *mover.Report
	Equal  bool
}

const (
	maxEvents = 80
	maxPauses = 12
	maxPoints = 3 // of which the pause is shown in steps
)

// HTML writes the document as one page that needs nothing from elsewhere.
func (d *Document) HTML(w io.Writer) error {
	p := &page{Document: d, Gateway: d.Role == "gateway"}
	p.Total, p.Counts = d.Sum()
	if p.Total.Looked > 0 {
		p.Shares = Shares(p.Total, d.Role)
	}
	p.headline()
	p.pictures()
	p.pauses()
	for i := range d.Flows {
		f := &d.Flows[i]
		if r := f.Last("cutover", "verify"); r != nil && r.Bucket != nil && r.Bucket.Pass > 0 {
			p.Objects = append(p.Objects, proof{f.Status.Flow, r, r.OK})
		} else if r := f.Last("cutover", "rehearsal", "verify"); r != nil && (r.SourceRoot != "" || r.TargetRoot != "") {
			p.Proofs = append(p.Proofs, proof{f.Status.Flow, r, r.OK && r.SourceRoot == r.TargetRoot})
		}
	}
	p.Happened = d.All()
	if n := len(p.Happened) - maxEvents; n > 0 {
		p.Earlier, p.Happened = n, p.Happened[n:]
	}
	slices.Reverse(p.Happened)
	p.cards()
	return pageTemplate.Execute(w, p)
}

// headline is the first thing to know.
func (p *page) headline() {
	p.Tone = "ok"
	if len(p.Flows) == 0 {
		p.Tone, p.Headline = "warn", "No flow is configured."
		return
	}
	var over, equal, rehearsed, at, lost int
	var when time.Time
	for i := range p.Flows {
		f := &p.Flows[i]
		s := &f.Status
		if s.State == mover.Stopped {
			p.Tone, p.Headline = "bad", s.Flow+" stands still: "+or(s.Reason, "see moverctl status")
			return
		}
		if r := f.Last("cutover", "rehearsal"); r != nil {
			when = r.Ended
			if !r.OK {
				lost++
			}
			if r.OK && (r.SourceRoot == r.TargetRoot || r.Bucket != nil) {
				equal++
				if r.Kind == "rehearsal" {
					rehearsed++
				}
			}
		}
		if s.State == mover.Done {
			over++
		}
		if !s.PointTime.IsZero() || s.PointEpoch > 0 || s.Bucket != nil && f.Passes.Full > 0 {
			at++
		}
	}
	n := len(p.Flows)
	switch {
	case over == n && equal == n:
		p.Headline = "Cut over at " + stamp(when) + "; both ends were compared and are equal."
	case over == n:
		p.Headline = "Cut over; the target was handed over."
		if p.Gateway {
			p.Headline = "Cut over; the source's report has the comparison."
		}
	case over > 0:
		p.Tone, p.Headline = "bad", fmt.Sprintf("%d of %d flows are cut over.", over, n)
	case lost > 0:
		p.Tone, p.Headline = "warn", "The last cutover or rehearsal, at "+stamp(when)+", was not done; the source is in use."
	case rehearsed == n:
		p.Headline = "Rehearsed at " + stamp(when) + ": both ends were equal. The source is in use and replicated."
	case at == n:
		p.Headline = "All has been moved once; changes follow."
	case at > 0:
		p.Tone, p.Headline = "warn", fmt.Sprintf("%d of %d flows have been moved once.", at, n)
	default:
		p.Tone, p.Headline = "warn", "The first pass has not been committed yet."
	}
}

func (p *page) cards() {
	var size int64
	lag := 0.0
	for i := range p.Flows {
		size += p.Flows[i].Status.Size
		lag = max(lag, p.Flows[i].Status.Lag)
	}
	add := func(name, value, note string) { p.Cards = append(p.Cards, card{name, value, note}) }
	moved := map[bool]string{false: "volumes", true: "targets"}[p.Gateway]
	if slices.ContainsFunc(p.Flows, func(f Flow) bool { return f.Status.Bucket != nil }) {
		moved = "flows"
	}
	add(moved, fmt.Sprint(len(p.Flows)), units.Size(size)+" in all")
	if m := p.Total; m.Looked > 0 {
		if p.Gateway {
			add("received", units.Size(m.Sent), "before compression")
		} else {
			add("on the line", units.Size(m.Wire), fmt.Sprintf("of %s looked at", units.Size(m.Looked)))
			add("saved", fmt.Sprintf("%.1f %%", 100*(1-min(1, float64(m.Wire)/float64(m.Looked)))), "by skip, dedup and compression")
		}
	}
	for _, x := range p.Pauses {
		add("writers stood", units.Duration(seconds(x.Report.Pause)), "at the last "+x.Report.Kind+" of "+x.Flow)
		break
	}
	if p.Cost != nil {
		for _, s := range p.Cost.Sums {
			note := s.ToComeText() + " to come until " + p.Cost.LastDay()
			if !p.Cost.Whole {
				note = "and more: prices are missing; " + note
			}
			add("cost so far", s.SoFarText(), note)
		}
	}
	add("passes", fmt.Sprint(p.Counts.Full+p.Counts.Rescan+p.Counts.Delta), p.Counts.String())
	if !p.Gateway {
		add("lag now", units.Duration(seconds(lag)), "oldest change that a target lacks")
	}
}

// pauses are the latest cutovers and rehearsals, newest first.
func (p *page) pauses() {
	var points []pause
	add := func(e *mover.Event) {
		switch r := e.Report; {
		case r == nil || r.Kind == "verify" || r.Pause == 0 || e.Group != "" && e.Group != e.Flow:
		case r.Kind == "point":
			points = append(points, pause{Flow: e.Flow, Report: r})
		default:
			p.Pauses = append(p.Pauses, pause{Flow: e.Flow, Report: r})
		}
	}
	for i := range p.Events {
		add(&p.Events[i])
	}
	for i := range p.Flows {
		for k := range p.Flows[i].Events {
			add(&p.Flows[i].Events[k])
		}
	}
	newest := func(all []pause, most int) (shown []pause, older int) {
		slices.SortStableFunc(all, func(a, b pause) int { return b.Report.Ended.Compare(a.Report.Ended) })
		return all[:min(len(all), most)], max(0, len(all)-most)
	}
	p.PointPauses = spread(points)
	p.Pauses, p.Older = newest(p.Pauses, maxPauses)
	points, _ = newest(points, maxPoints)
	p.Pauses = append(p.Pauses, points...)
	longest := 0.0
	for _, x := range p.Pauses {
		if x.Report.OK {
			longest = max(longest, x.Report.Pause, total(frozen(x.Report)))
		}
	}
	if longest == 0 && len(p.Pauses) > 0 { // none was done: one that waited for its deadline would dwarf those that were
		longest = p.Pauses[0].Report.Pause
	}
	for i := range p.Pauses {
		at := 0.0
		for _, s := range frozen(p.Pauses[i].Report) {
			from, until := min(100, 100*at/longest), min(100, 100*(at+s.Seconds)/longest)
			p.Pauses[i].Steps = append(p.Pauses[i].Steps, step{s.Name, stepClass(s.Name), s.Seconds, from, until - from})
			at += s.Seconds
		}
	}
}

// spread tells the pauses of points in one line.
func spread(points []pause) string {
	if len(points) == 0 {
		return ""
	}
	var all []float64
	for _, x := range points {
		all = append(all, x.Report.Pause)
	}
	slices.Sort(all)
	at := func(q float64) string { return units.Duration(seconds(all[int(q*float64(len(all)-1))])) }
	return fmt.Sprintf("Pauses of all recovery points with a freeze (%d): median %s, longest %s.", len(all), at(.5), at(1))
}

func total(steps []mover.Step) (sum float64) {
	for _, s := range steps {
		sum += s.Seconds
	}
	return sum
}

var stepNames = []string{"freeze", "delta", "read-back", "compare", "release", "thaw", "keep"}

// bucketSteps are those of bucket flows, each like the one of a volume's at its place.
var bucketSteps = []string{"stop", "final", "verify", "sweep", "manifest", "settle"}

func stepClass(name string) int {
	return max(0, slices.Index(stepNames, name), slices.Index(bucketSteps, name))
}

// pictures draws everything over time.
func (p *page) pictures() {
	from, until := p.span()
	p.From = from
	rate, line, lag, dirty := p.series()
	add := func(title, note string, units []unit, keys []key, lines ...series) {
		c := chart{Title: title, Note: note, Keys: keys}
		for _, w := range []float64{wide, narrow} {
			c.Plots = append(c.Plots, draw(w, title, units, from, until, slices.Clone(lines)...))
		}
		p.Charts = append(p.Charts, c)
	}
	note := ""
	if len(p.Flows) > 1 {
		note = fmt.Sprintf("Sum of %d flows.", len(p.Flows))
	}
	add("Throughput", note, rateUnits, []key{{"a", "bytes of volumes made durable"}, {"b", "bytes on the line"}},
		series{class: "a", area: true, mean: true, points: rate}, series{class: "b", mean: true, points: line})
	if !p.Gateway {
		if note != "" {
			note = "The largest of all flows."
		}
		add("Lag: age of the oldest change that the target lacks", note, timeUnits, nil, series{class: "c", area: true, points: lag})
		if note != "" {
			note = "Sum of all flows."
		}
		add("Changed bytes that the target lacks", note, sizeUnits, nil, series{class: "d", area: true, points: dirty})
	}
	if len(p.Flows) > 0 {
		for _, w := range []float64{wide, narrow} {
			p.Timelines = append(p.Timelines, p.timeline(w, from, until))
		}
	}
}

// series merges the samples of all flows: rates and changed bytes add up, of lags the largest counts.
func (p *page) series() (rate, line, lag, dirty []point) {
	type at struct{ rate, wire, lag, dirty, span float64 }
	sums := map[int64]*at{}
	for i := range p.Flows {
		for _, s := range p.Flows[i].Samples {
			k := s.Time.Unix()
			if sums[k] == nil {
				sums[k] = &at{span: s.Span}
			}
			x := sums[k]
			x.rate, x.wire, x.lag, x.dirty = x.rate+s.Rate, x.wire+s.Wire, max(x.lag, s.Lag), x.dirty+s.Dirty
		}
	}
	keys := make([]int64, 0, len(sums))
	for k := range sums {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	end := int64(0)
	for _, k := range keys {
		x := sums[k]
		t := time.Unix(k, 0).Add(seconds(x.span / 2))
		if end > 0 && float64(k-end) > x.span { // nobody looked in between
			gap := point{t, math.NaN()}
			rate, line, lag, dirty = append(rate, gap), append(line, gap), append(lag, gap), append(dirty, gap)
		}
		end = k + int64(x.span)
		rate, line, lag, dirty = append(rate, point{t, x.rate}), append(line, point{t, x.wire}), append(lag, point{t, x.lag}), append(dirty, point{t, x.dirty})
	}
	return rate, line, lag, dirty
}
