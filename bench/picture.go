package bench

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// bar is one row of the picture: a value and what it must not exceed, or not fall below.
type bar struct {
	label   string
	value   float64
	unit    string
	bound   float64 // 0: none
	atLeast bool
}

func (b bar) good() bool {
	return b.bound == 0 || b.atLeast == (b.value >= b.bound) || b.value == b.bound
}

var boundText = regexp.MustCompile(` ?\((at most|at least|under) ([0-9.]+)\)`)

// barOf makes a bar of a result that has a bound in its metric, or is a ratio.
func barOf(r Result) (bar, bool) {
	b := bar{label: r.Subject + ": " + r.Metric, value: r.Value, unit: r.Unit}
	m := boundText.FindStringSubmatch(r.Metric)
	if m == nil {
		return b, r.Unit == "ratio"
	}
	v, err := strconv.ParseFloat(m[2], 64)
	if err != nil {
		return b, false
	}
	b.label = r.Subject + ": " + strings.Replace(r.Metric, m[0], "", 1)
	b.bound, b.atLeast = v, m[1] == "at least"
	return b, true
}

// chart is the bars of one workload.
type chart struct {
	workload string
	bars     []bar
}

// charts takes the last of results of one name, in the order of the first ones.
func charts(results []Result) (out []chart) {
	last := map[[3]string]Result{}
	for _, r := range results {
		last[[3]string{r.Workload, r.Subject, r.Metric}] = r
	}
	for _, r := range results {
		key := [3]string{r.Workload, r.Subject, r.Metric}
		r, ok := last[key]
		if !ok {
			continue
		}
		delete(last, key)
		b, ok := barOf(r)
		if !ok {
			continue
		}
		i := slices.IndexFunc(out, func(c chart) bool { return c.workload == r.Workload })
		if i < 0 {
			out, i = append(out, chart{workload: r.Workload}), len(out)
		}
		out[i].bars = append(out[i].bars, b)
	}
	return out
}

// Sizes of the picture in pixels.
const (
	picWidth  = 1180
	picLabel  = 640 // where labels end and bars begin
	picBound  = 220 // length of a bar that is exactly at its bound, or 1
	picLonger = 1.8 // longest bar, in bounds
	picRow    = 20
	picHead   = 34
)

// Picture draws the results that have a bound, and other ratios, as SVG: each bar in units of its own bound.
func Picture(w io.Writer, results []Result) error {
	all := charts(results)
	from := origins(results)
	height := 84 + 16*len(from)
	for _, c := range all {
		height += picHead + picRow*len(c.bars)
	}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", picWidth, height, picWidth, height)
	fmt.Fprintf(out, `<rect width="%d" height="%d" fill="white"/>`+"\n", picWidth, height)
	text(out, 16, 26, "start", `font-size="17" font-weight="bold"`, "Mover, measured")
	text(out, 16, 46, "start", `fill="#555"`, "Each bar is in units of its own bound (the black line): green keeps it, red does not. At most: the bar ends before the line; at least: beyond it. Grey: no bound, the line is 1.")
	y := 58
	for _, c := range all {
		text(out, 16, y+22, "start", `font-size="14" font-weight="bold"`, c.workload)
		y += picHead
		top := y - 4
		for _, b := range c.bars {
			b.draw(out, y)
			y += picRow
		}
		fmt.Fprintf(out, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#222" stroke-width="1.5"/>`+"\n", picLabel+picBound, top, picLabel+picBound, y)
	}
	y += 20
	for _, line := range from {
		text(out, 16, y, "start", `fill="#555" font-size="11"`, line)
		y += 16
	}
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}

func (b bar) draw(w io.Writer, y int) {
	unit, colour := 1.0, "#9a9a9a"
	if b.bound > 0 {
		unit, colour = b.bound, "#2c8a57"
		if !b.good() {
			colour = "#c0392b"
		}
	}
	length := min(max(b.value/unit, 0), picLonger)
	text(w, picLabel-8, y+13, "end", "", shorten(b.label, 100))
	fmt.Fprintf(w, `<rect class="bar" x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", picLabel, y+2, length*picBound, picRow-6, colour)
	value := number(b.value)
	if b.unit != "ratio" {
		value += " " + b.unit
	}
	if b.bound > 0 {
		word := "at most"
		if b.atLeast {
			word = "at least"
		}
		value += fmt.Sprintf(" (%s %s)", word, number(b.bound))
	}
	text(w, picLabel+int(max(length, 1)*picBound)+8, y+13, "start", "", value)
}

func text(w io.Writer, x, y int, anchor, style, s string) {
	if style != "" {
		style = " " + style
	}
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, style, html.EscapeString(s))
}

func shorten(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

// origins are the commits and machines of what is shown, in the order of the results.
func origins(results []Result) (out []string) {
	for _, r := range results {
		if _, ok := barOf(r); !ok {
			continue
		}
		line := fmt.Sprintf("commit %s on %s", r.Commit, r.Machine)
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}
