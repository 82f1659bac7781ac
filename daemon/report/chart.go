package report

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Pictures are drawn for two widths; a style sheet shows the one that fits.
const (
	wide   = 1000
	narrow = 360
)

// tick is a mark of an axis.
type tick struct {
	At   float64
	Text string
}

// plot is a picture of values over time.
type plot struct {
	Class                    string // wide or narrow
	W, H                     float64
	Left, Right, Top, Bottom float64 // of the area where the values are
	X, Y                     []tick
	Shapes                   []shape
	Unit, Label              string
	Empty                    string // why there is nothing to see
}

// shape is one path.
type shape struct {
	D, Class, Title string
}

// point is a value at a time; NaN breaks the line.
type point struct {
	at time.Time
	v  float64
}

// series is one line of a plot.
type series struct {
	class  string
	area   bool
	mean   bool // columns show means, not the largest
	points []point
}

// axis turns times into places.
type axis struct {
	from, until time.Time
	left, right float64
}

func (a axis) x(t time.Time) float64 {
	span := a.until.Sub(a.from).Seconds()
	return a.left + (a.right-a.left)*min(1, max(0, t.Sub(a.from).Seconds()/span))
}

var timeSteps = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute,
	5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	24 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour, 14 * 24 * time.Hour, 28 * 24 * time.Hour, 56 * 24 * time.Hour, 112 * 24 * time.Hour}

// ticks are at round times, as many as have room.
func (a axis) ticks() []tick {
	span := a.until.Sub(a.from)
	room := max(2, int((a.right-a.left)/95))
	step := timeSteps[len(timeSteps)-1]
	for _, s := range timeSteps {
		if int(span/s) < room {
			step = s
			break
		}
	}
	layout := "15:04"
	switch {
	case step >= 24*time.Hour:
		layout = "Jan 2"
	case step < time.Minute:
		layout = "15:04:05"
	case span > 24*time.Hour:
		layout = "Jan 2 15:04"
	}
	var out []tick
	for t := a.from.Truncate(step); !t.After(a.until); t = t.Add(step) {
		x := a.x(t)
		if half := float64(len(layout)) * 3.2; !t.Before(a.from) && x-half >= 0 && x+half <= a.right+12 {
			out = append(out, tick{x, t.UTC().Format(layout)})
		}
	}
	return out
}

// scale chooses a unit for values up to most, and round marks.
func scale(most float64, units []unit) (u unit, top float64, marks []float64) {
	u = units[0]
	for _, x := range units {
		if most >= x.size {
			u = x
		}
	}
	if most <= 0 {
		return u, u.size, []float64{0, u.size}
	}
	raw := most / u.size / 4
	mag := math.Pow(10, math.Floor(math.Log10(raw)))
	step := 10 * mag
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*mag >= raw {
			step = m * mag
			break
		}
	}
	for v := 0.0; ; v += step {
		marks = append(marks, v*u.size)
		if v*u.size >= most {
			return u, v * u.size, marks
		}
	}
}

type unit struct {
	size float64
	name string
}

var (
	rateUnits = []unit{{1, "B/s"}, {1 << 10, "KiB/s"}, {1 << 20, "MiB/s"}, {1 << 30, "GiB/s"}}
	sizeUnits = []unit{{1, "B"}, {1 << 10, "KiB"}, {1 << 20, "MiB"}, {1 << 30, "GiB"}, {1 << 40, "TiB"}}
	timeUnits = []unit{{1, "s"}, {60, "min"}, {3600, "h"}, {86400, "days"}}
)

// draw makes a plot of lines.
func draw(width float64, label string, units []unit, from, until time.Time, lines ...series) plot {
	p := frame(width, 220, label)
	a := axis{from, until, p.Left, p.Right}
	most := 0.0
	for i := range lines {
		lines[i].points = thin(lines[i], a)
		for _, v := range lines[i].points {
			if !math.IsNaN(v.v) {
				most = max(most, v.v)
			}
		}
	}
	u, top, marks := scale(most, units)
	p.Unit, p.X = u.name, a.ticks()
	y := func(v float64) float64 { return p.Bottom - (p.Bottom-p.Top)*v/top }
	for _, m := range marks {
		p.Y = append(p.Y, tick{y(m), fmt.Sprintf("%.4g", m/u.size)})
	}
	for _, l := range lines {
		if d, area := path(l, a, y, p.Bottom); d != "" {
			if l.area {
				p.Shapes = append(p.Shapes, shape{D: area, Class: l.class + " area"})
			}
			p.Shapes = append(p.Shapes, shape{D: d, Class: l.class + " stroke"})
		}
	}
	if len(p.Shapes) == 0 {
		p.Empty = "nothing was measured yet"
	}
	return p
}

func frame(width, height float64, label string) plot {
	p := plot{Class: "wide", W: width, H: height, Left: 56, Right: width - 14, Top: 12, Bottom: height - 26, Label: label}
	if width == narrow {
		p.Class, p.Left = "narrow", 46
	}
	return p
}

// thin makes one point of those that fall into one column of two units.
func thin(l series, a axis) []point {
	if len(l.points) < int(a.right-a.left)/2 {
		return l.points
	}
	var out []point
	col, sum, n := -1, 0.0, 0
	for _, p := range l.points {
		c := int(a.x(p.at) / 2)
		if math.IsNaN(p.v) {
			out, col, n = append(out, p), -1, 0
			continue
		}
		if c != col {
			out, col, sum, n = append(out, p), c, 0, 0
		}
		sum, n = sum+p.v, n+1
		if last := &out[len(out)-1]; l.mean {
			last.v = sum / float64(n)
		} else {
			last.v = max(last.v, p.v)
		}
	}
	return out
}

// path draws a line, and the area below it.
func path(l series, a axis, y func(float64) float64, floor float64) (line, area string) {
	var s, f strings.Builder
	open, last := false, 0.0
	end := func() {
		if open {
			fmt.Fprintf(&f, "L%.1f %.1fZ", last, floor)
		}
		open = false
	}
	for _, p := range l.points {
		if math.IsNaN(p.v) {
			end()
			continue
		}
		x, at := a.x(p.at), y(p.v)
		if open {
			fmt.Fprintf(&s, "L%.1f %.1f", x, at)
		} else {
			fmt.Fprintf(&s, "M%.1f %.1f", x, at)
			fmt.Fprintf(&f, "M%.1f %.1f", x, floor)
		}
		fmt.Fprintf(&f, "L%.1f %.1f", x, at)
		open, last = true, x
	}
	end()
	return s.String(), f.String()
}
