package cost

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moverd/mover/internal/units"
)

// String writes an amount as people do: "1,234.50 CNY".
func (m *Money) String() string {
	if m == nil {
		return "unknown"
	}
	return strings.TrimSpace(digits(m.Amount) + " " + m.Currency)
}

// digits groups thousands, with two decimals; with four where an amount is too small for two.
func digits(v float64) string {
	sign := ""
	if v < 0 {
		sign, v = "-", -v
	}
	places := 2
	if v != 0 && v < 0.1 {
		places = 4
	}
	s := strconv.FormatFloat(v, 'f', places, 64)
	for i := strings.IndexByte(s, '.') - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Name is what an item is, for people.
func (it *Item) Name() string { return strings.TrimSpace(it.What + " " + it.Flow) }

// Priced is by which price an item is reckoned, and how.
func (it *Item) Priced() string {
	switch {
	case it.Thing == "":
		return "not said"
	case it.Text == "":
		return it.Thing
	}
	return it.Thing + ", " + it.Text
}

// Quantity is a part's bytes or count; what is not measured has a ~.
func (p Part) Quantity() string {
	sign := ""
	if p.Basis != Measured {
		sign = "~"
	}
	if p.Bytes == 0 && p.Count > 0 {
		return sign + strconv.FormatInt(p.Count, 10)
	}
	return sign + units.Size(p.Bytes)
}

// Sources are those of all prices that count.
func (a *Answer) Sources() (all []string) {
	for _, it := range a.Items {
		for _, s := range it.Source {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// LastDay is the last day that the answer looks ahead to.
func (a *Answer) LastDay() string { return a.Until.Add(-1).Format(time.DateOnly) }

// Least is how a sum begins when something is missing in it.
func (a *Answer) Least() string {
	if a.Whole {
		return ""
	}
	return "at least "
}

// SoFarText and the like write a sum's parts.
func (s Sum) SoFarText() string  { return (&Money{s.SoFar, s.Currency}).String() }
func (s Sum) ToComeText() string { return (&Money{s.ToCome, s.Currency}).String() }
func (s Sum) TotalText() string  { return (&Money{s.Total(), s.Currency}).String() }

// Forecast tells what the line will have to carry.
func (a *Answer) Forecast() string {
	day := "how much changes in a day is not known yet"
	if a.Day != nil {
		day = "changes need about " + units.Size(*a.Day) + " a day"
		if a.Watched > 0 {
			day += " (watched for " + units.Duration(time.Duration(a.Watched*float64(time.Second))) + ")"
		}
	}
	return "about " + units.Size(a.Left) + " are left for what is not at the target now; " + day
}

// Text writes the answer for a terminal.
func (a *Answer) Text(w io.Writer) {
	p := func(format string, v ...any) {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf(format, v...), " "))
	}
	if a.Trouble != "" {
		p("cost: %s", a.Trouble)
		return
	}
	p("cost from %s till now, and ahead to %s, by the prices of %s", a.From.Format(time.DateOnly), a.LastDay(), a.Prices)
	rows := [][6]string{{"", "SO FAR", "COST", "TO COME", "COST", "PRICE"}}
	for i := range a.Items {
		it := &a.Items[i]
		rows = append(rows, [6]string{it.Name(), it.SoFar.Quantity(), it.SoFar.Cost.String(), it.ToCome.Quantity(), it.ToCome.Cost.String(), it.Priced()})
	}
	for _, s := range a.Sums {
		rows = append(rows, [6]string{"in all", "", a.Least() + s.SoFarText(), "", a.Least() + s.ToComeText(), "together " + a.Least() + s.TotalText()})
	}
	var wide [5]int
	for _, r := range rows {
		for i := range wide {
			wide[i] = max(wide[i], len(r[i]))
		}
	}
	for _, r := range rows {
		p("  %-*s  %*s  %*s  %*s  %*s  %s", wide[0], r[0], wide[1], r[1], wide[2], r[2], wide[3], r[3], wide[4], r[4], r[5])
	}
	p("  ~ is an estimate, or given by the operator; what has none is measured")
	p("  on the line %s", a.Forecast())
	for _, n := range a.Notes {
		p("  %s", n)
	}
	if !a.Whole {
		p("missing, and in no sum")
		for _, m := range a.Missing {
			p("  %s", m)
		}
	}
	a.Saved.text(p)
}

func (s *Saved) text(p func(string, ...any)) {
	if s.Plain == 0 {
		p("nothing was saved yet: no pass has been committed")
		return
	}
	p("saved on the line, against plain copies of the %s that passes looked at", units.Size(s.Plain))
	for _, r := range append(s.Rows, s.Net) {
		p("  %-22s %10s  %18s", r.Name, units.Size(r.Bytes), "~"+r.Cost.String())
	}
	p("  the bytes are measured; the money is what they, or the time that they take, cost on the line")
	if s.Deltas > 0 && s.Unchanged > 0 {
		p("  not in it: without tracking, each of %d deltas would have been a full pass, over %s more", s.Deltas, units.Size(s.Unchanged))
	}
}
