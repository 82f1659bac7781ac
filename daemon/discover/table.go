package discover

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moverd/mover/internal/units"
)

// Table prints the host for people.
func (h *Host) Table(w io.Writer) {
	p := func(format string, a ...any) { fmt.Fprintf(w, format+"\n", a...) }
	p("%s: %s", clean(h.Name), h.Support)
	if h.Measured > 0 {
		p("changes measured for %s", seconds(h.Measured))
	}
	if len(h.Volumes) > 0 {
		p("\n%-16s %10s %10s %12s %12s %12s  %s", "FLOW", "SIZE", "IN USE", "DIRTY", "FIRST PASS", "CUTOVER", "VOLUME")
	}
	for _, v := range h.Volumes {
		p("%-16s %10s %10s %12s %12s %12s  %s", v.Name, units.Size(v.Size), units.Size(v.InUse), v.Dirty, v.Estimate.first(), v.Estimate.cutover(), v.Path)
	}
	if len(h.Volumes) > 1 && h.Estimate != nil {
		p("%-16s %10s %10s %12s %12s %12s", "all at once", "", "", "", h.Estimate.first(), h.Estimate.cutover())
	}
	if h.Line == 0 && len(h.Volumes) > 0 {
		p("(--line 100MiB/s, or what the line is, adds estimates)")
	}
	for _, v := range h.Volumes {
		p("\n%s  %s, %s, %s", v.Name, v.Path, v.Kind, v.Identity)
		for _, l := range v.details() {
			p("  %s", l)
		}
	}
	if len(h.Refused) > 0 {
		p("\nnot proposed")
	}
	for _, r := range h.Refused {
		p("  %-16s %10s  %s", r.Device, units.Size(r.Size), r.Why)
	}
}

// details are the lines of one volume, for the table and for the comments of the config.
func (v *Volume) details() (out []string) {
	add := func(format string, a ...any) { out = append(out, clean(fmt.Sprintf(format, a...))) }
	for _, l := range v.Layers {
		add("%s%s", strings.Repeat("  ", l.Depth), l)
	}
	add("tracked by %s", v.Tracking)
	add("a full pass looks at %s of %s", units.Size(v.FirstPass), units.Size(v.Size))
	if d := v.Dirty; d != nil {
		how := "each changed place counted once"
		if d.Method == "stat" {
			how = "bytes written, also those to the same place"
		}
		add("changes %s (%s; %s written while it was measured)", units.Rate(d.Rate), how, units.Size(d.Written))
		if d.Why != "" {
			add("  not measured by the tracker: %s", d.Why)
		}
	}
	if e := v.Estimate; e != nil {
		add("cutover: %s", e)
	}
	for _, f := range v.Freezes {
		add("a cutover freezes %s", f)
	}
	for _, n := range v.NotFrozen {
		add("NOT stopped by a freeze: %s", n)
	}
	for _, n := range v.Notes {
		add("note: %s", n)
	}
	return out
}

// String is one line: what a layer is and holds.
func (l Layer) String() string {
	out := []string{fmt.Sprintf("%s %s %s", l.Device, l.Kind, units.Size(l.Size))}
	if len(l.Holds) > 0 {
		out = append(out, strings.Join(l.Holds, ", "))
	}
	for _, m := range l.Mounts {
		dir := m.Dir
		if dir == "" {
			dir = "a place that nobody can reach"
		}
		s := fmt.Sprintf("%s mounted on %s, %s of %s used", m.Type, dir, units.Size(m.Used), units.Size(m.Size))
		if m.ReadOnly {
			s += ", read-only"
		}
		out = append(out, s)
	}
	if l.Swap {
		out = append(out, "active swap")
	}
	return strings.Join(append(out, l.Users...), "; ")
}

func (t Tracking) String() string {
	s := t.Method
	if t.Variant != "" {
		s += " " + t.Variant
	}
	if t.Granule > 0 {
		s += ", granule " + units.Size(t.Granule)
	}
	if t.Method == "scan" {
		s += ", every pass reads the whole volume"
	}
	if t.Why != "" {
		s += ": " + t.Why
	}
	return clean(s)
}

// String is the rate; "?" when it was not measured.
func (d *Dirty) String() string {
	if d == nil {
		return "?"
	}
	return units.Rate(d.Rate)
}

func seconds(s float64) string {
	return units.Duration(time.Duration(min(s, 1e9) * float64(time.Second)))
}

func (e *Estimate) first() string {
	if e == nil {
		return "?"
	}
	return seconds(e.FirstPass)
}

func (e *Estimate) cutover() string {
	switch {
	case e == nil || e.Converges == nil:
		return "?"
	case !*e.Converges:
		return "no"
	}
	return seconds(e.Pause)
}

// String is the verdict with its reason.
func (e *Estimate) String() string {
	switch {
	case e.Converges == nil:
		return "not known: " + e.Why
	case *e.Converges:
		return fmt.Sprintf("converges with a pause of about %s: %s", seconds(e.Pause), e.Why)
	}
	return "does not converge: " + e.Why
}
