package cost

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Ask is what a migration has used and will use.
type Ask struct {
	Now, Until time.Time
	Flows      []Flow
	Line       LineUse
	Notes      []string // about the figures
}

// Flow is one volume's move. All in bytes.
type Flow struct {
	Name        string
	Began       time.Time // zero: not yet
	Size        int64     // of the target
	InUse       int64     // of it, by the last pass over all; 0: not known
	Day         int64     // change a day that goes to the target
	Points      *Kept     // nil: not known here
	Moves       []Move
	Unchanged   int64 // what full copies in place of the deltas would have read beside
	Deltas      int
	Compression bool   // Payload and Wire of the moves are known
	Writes      *int64 // requests that write it, where it lies on objects; nil: one for each of Use.Object bytes
}

// Kept is recovery points.
type Kept struct {
	Count  int
	Bytes  int64 // that they hold beside the target
	Oldest time.Time
}

// Basis tells how a figure came about.
type Basis string

// Of figures.
const (
	Measured  Basis = "measured"
	Estimated Basis = "estimate"
	Given     Basis = "given" // by the operator
)

// Answer is what it has cost and will cost.
type Answer struct {
	Prices  string    `json:"prices"` // the file
	From    time.Time `json:"from"`
	Now     time.Time `json:"now"`
	Until   time.Time `json:"until"`
	Left    int64     `json:"left_bytes"`             // estimate of what the line has to carry for what is changed or not copied now
	Day     *int64    `json:"change_bytes_per_day"`   // on the line; null: not known yet
	Watched float64   `json:"change_watched_seconds"` // that the estimate is from
	Items   []Item    `json:"items"`
	Sums    []Sum     `json:"sums"`
	Whole   bool      `json:"complete"` // nothing is missing
	Missing []string  `json:"missing"`
	Saved   Saved     `json:"saved"`
	Notes   []string  `json:"notes"`
	Trouble string    `json:"trouble,omitempty"` // why there is no answer
}

// Item is one thing that costs.
type Item struct {
	What   string   `json:"what"` // line, target, points, requests, retrieval
	Flow   string   `json:"flow,omitempty"`
	Thing  string   `json:"price,omitempty"` // KIND/NAME; empty: not said
	Text   string   `json:"text,omitempty"`  // how it is reckoned
	SoFar  Part     `json:"so_far"`
	ToCome Part     `json:"to_come"`
	Source []string `json:"sources"` // of the prices
}

// Part is an item in the past or the future.
type Part struct {
	Bytes int64  `json:"bytes"` // moved, or stored
	Count int64  `json:"count,omitempty"`
	Basis Basis  `json:"basis"`
	Cost  *Money `json:"cost"` // null: not known
}

// Sum adds up what is in one currency. Different currencies are never added.
type Sum struct {
	Currency string  `json:"currency"`
	SoFar    float64 `json:"so_far"`
	ToCome   float64 `json:"to_come"`
}

// Total is both together.
func (s Sum) Total() float64 { return round(s.SoFar + s.ToCome) }

// Unpriced is the answer when there are no prices to reckon with.
func Unpriced(file string, why error) *Answer {
	return &Answer{Prices: file, Trouble: why.Error(), Items: []Item{}, Sums: []Sum{}, Missing: []string{}, Notes: []string{}, Saved: Saved{Rows: []Saving{}}}
}

// bill is an answer while it is made.
type bill struct {
	*Prices
	ask Ask
	out Answer
}

// Bill reckons.
func (p *Prices) Bill(ask Ask) *Answer {
	b := &bill{Prices: p, ask: ask}
	b.out = Answer{Prices: p.File, From: ask.Now, Now: ask.Now, Until: ask.Until, Left: ask.Line.Left, Day: ask.Line.Day, Watched: ask.Line.Watched,
		Items: []Item{}, Sums: []Sum{}, Missing: []string{}, Notes: append([]string{}, ask.Notes...)}
	for _, f := range ask.Flows {
		if !f.Began.IsZero() && f.Began.Before(b.out.From) {
			b.out.From = f.Began
		}
	}
	b.line()
	for i := range ask.Flows {
		b.flow(&ask.Flows[i])
	}
	b.saved()
	b.sum()
	return &b.out
}

// line is the circuit.
func (b *bill) line() {
	u := &b.ask.Line
	it := Item{What: "line", Thing: b.Use.Line, SoFar: Part{Basis: Measured}, ToCome: Part{Basis: Estimated}}
	for _, x := range u.SoFar {
		it.SoFar.Bytes += x.N
	}
	coming := u.toCome(b.ask.Now, b.ask.Until)
	for _, x := range coming {
		it.ToCome.Bytes += x.N
	}
	switch b.Use.Line {
	case None:
		return
	case "":
		b.unsaid(&it, "what the line costs: set use.line in "+b.File+", to none if it costs nothing")
		return
	}
	began := u.Began
	if began.IsZero() {
		began = b.ask.Now
	}
	past, next := b.tally(it.Thing), b.tally(it.Thing)
	past.charge(u, began, b.ask.Now, u.SoFar, false)
	next.charge(u, b.ask.Now, b.ask.Until, coming, u.Day == nil && !u.Over)
	var models []string
	for _, x := range append(slices.Clone(past.used), next.used...) {
		if !slices.Contains(models, x.Model) {
			models = append(models, x.Model)
		}
		if x.Model != Moved {
			b.note(x.Thing() + " is paid by time: it stands here whole, whoever else uses it")
		}
		if (x.Model == Plain95 || x.Model == Enhanced95) && len(u.Peaks) == 0 {
			it.SoFar.Basis, it.ToCome.Basis = Given, Given
		}
	}
	it.Text = strings.Join(models, ", ")
	b.item(it, past, next)
}

// flow is what lies in the cloud of a flow.
func (b *bill) flow(f *Flow) {
	target, points := b.Use.of(f.Name)
	began := f.Began
	if began.IsZero() {
		began = b.ask.Now
	}
	it := Item{What: "target", Flow: f.Name, Thing: target}
	held := f.Size
	if kind, _, _ := strings.Cut(target, "/"); (kind == Objects || kind == Files) && f.InUse > 0 {
		held = f.InUse
	}
	b.stored(it, held, f.Day, began, Measured, f.Writes)
	switch {
	case points == None:
	case f.Points == nil:
		if points != "" {
			b.note("recovery points are known at the gateway: ask there what they cost")
		}
	case f.Points.Count > 0:
		b.stored(Item{What: "points", Flow: f.Name, Thing: points, Text: fmt.Sprintf("%d kept", f.Points.Count)}, f.Points.Bytes, f.Day, f.Points.Oldest, Estimated, nil)
	}
}

func (b *bill) note(text string) {
	if !slices.Contains(b.out.Notes, text) {
		b.out.Notes = append(b.out.Notes, text)
	}
}

// stored is bytes that lie somewhere since began.
func (b *bill) stored(it Item, bytes, day int64, began time.Time, basis Basis, writes *int64) {
	it.SoFar, it.ToCome = Part{Bytes: bytes, Basis: basis}, Part{Bytes: bytes, Basis: Estimated}
	switch it.Thing {
	case None:
		return
	case "":
		b.unsaid(&it, fmt.Sprintf("what the %s of %s lie on: set use.%s in %s", plural(it.What), it.Flow, it.What, b.File))
		return
	}
	until := b.ask.Until
	past, next := b.tally(it.Thing), b.tally(it.Thing)
	times := func(x *Price, _ Date) float64 { return b.billed(x, bytes) }
	past.monthly(began, b.ask.Now, times)
	next.monthly(b.ask.Now, until, times)
	if x := b.At(it.Thing, Day(began.In(b.Location()))); x != nil && x.MinDays > 0 {
		if least := began.AddDate(0, 0, x.MinDays); least.After(until) {
			next.monthly(later(until, b.ask.Now), least, times)
			it.Text = strings.TrimPrefix(fmt.Sprintf("%s, billed for %d days at least", it.Text, x.MinDays), ", ")
		}
	}
	b.item(it, past, next)
	if kind, name, _ := strings.Cut(it.Thing, "/"); kind == Objects {
		b.requests(it.Flow, name, bytes, day, began, writes)
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func plural(what string) string { return strings.TrimSuffix(what, "s") + "s" }

// billed is the units of the price that bytes are.
func (b *bill) billed(x *Price, bytes int64) float64 {
	switch {
	case x.Kind == Volume: // sold by whole units
		return math.Ceil(float64(bytes) / x.per())
	case x.MinSize > b.Use.Object:
		return float64(b.objects(bytes)) * float64(x.MinSize) / x.per()
	}
	return float64(bytes) / x.per()
}

// objects is how many bytes are.
func (b *bill) objects(bytes int64) int64 {
	return (bytes + int64(b.Use.Object) - 1) / int64(b.Use.Object)
}

// requests is the writing of objects, and their reading if that is planned.
func (b *bill) requests(flow, class string, bytes, day int64, began time.Time, writes *int64) {
	span := b.ask.Until.Sub(b.ask.Now).Hours() / 24
	it := Item{What: "requests", Flow: flow, Thing: Request + "/" + class, Text: "an object is written with one",
		SoFar:  Part{Count: b.objects(bytes), Basis: Estimated},
		ToCome: Part{Count: b.objects(int64(float64(day)*span)) + int64(b.Use.ReadBack)*b.objects(bytes), Basis: Estimated}}
	if writes != nil {
		it.Text, it.SoFar.Count = "as counted", *writes
	}
	if b.Use.ReadBack > 0 {
		it.Text += ", and read with one"
	}
	past, next := b.tally(it.Thing), b.tally(it.Thing)
	past.once(began, func(*Price) float64 { return float64(it.SoFar.Count) / 10e3 })
	next.once(b.ask.Now, func(*Price) float64 { return float64(it.ToCome.Count) / 10e3 })
	b.item(it, past, next)
	if b.Use.ReadBack == 0 {
		return
	}
	it = Item{What: "retrieval", Flow: flow, Thing: Retrieval + "/" + class, Text: fmt.Sprintf("read back %d times", b.Use.ReadBack),
		SoFar: Part{Basis: Measured}, ToCome: Part{Bytes: bytes * int64(b.Use.ReadBack), Basis: Estimated}}
	past, next = b.tally(it.Thing), b.tally(it.Thing)
	next.once(b.ask.Now, func(x *Price) float64 { return float64(it.ToCome.Bytes) / x.per() })
	b.item(it, past, next)
}

// once takes in what happens on one day.
func (t *tally) once(at time.Time, times func(*Price) float64) {
	if x := t.on(Day(at.In(t.prices.Location()))); x != nil {
		t.add(x, times(x))
	}
}

// unsaid is an item of which the file does not say what it is.
func (b *bill) unsaid(it *Item, why string) {
	it.Source = []string{}
	b.out.Items = append(b.out.Items, *it)
	b.out.Missing = append(b.out.Missing, why)
}

func (b *bill) item(it Item, past, next *tally) {
	it.Source = []string{}
	it.SoFar.Cost, it.ToCome.Cost = past.money(), next.money()
	gaps := past.missing()
	if n := len(past.gaps); n > 0 && len(next.gaps) > 0 { // one gap that now lies in is told once
		both := *next
		both.gaps = slices.Compact(append(slices.Clone(past.gaps), next.gaps...))
		gaps = both.missing()
	} else {
		gaps = append(gaps, next.missing()...)
	}
	for _, m := range gaps {
		if !slices.Contains(b.out.Missing, m) {
			b.out.Missing = append(b.out.Missing, m)
		}
	}
	for _, x := range append(past.used, next.used...) {
		until := ""
		if !x.Until.IsZero() {
			until = " until " + x.Until.String()
		}
		s := fmt.Sprintf("%s: %g %s for one %s from %v%s: %s", x.Thing(), x.Price.Value, x.Currency, x.Unit, x.From, until, x.Source)
		if !slices.Contains(it.Source, s) {
			it.Source = append(it.Source, s)
		}
	}
	b.out.Items = append(b.out.Items, it)
}

// sum adds up, currency by currency.
func (b *bill) sum() {
	add := func(m *Money, into func(*Sum) *float64) {
		if m == nil || m.Currency == "" {
			return
		}
		i := slices.IndexFunc(b.out.Sums, func(s Sum) bool { return s.Currency == m.Currency })
		if i < 0 {
			i, b.out.Sums = len(b.out.Sums), append(b.out.Sums, Sum{Currency: m.Currency})
		}
		at := into(&b.out.Sums[i])
		*at = round(*at + m.Amount)
	}
	for _, it := range b.out.Items {
		add(it.SoFar.Cost, func(s *Sum) *float64 { return &s.SoFar })
		add(it.ToCome.Cost, func(s *Sum) *float64 { return &s.ToCome })
	}
	b.out.Whole = len(b.out.Missing) == 0
	if len(b.out.Sums) > 1 {
		b.note("the amounts are in different currencies, which are not added up")
	}
}
