package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status [FLOW|GROUP]",
		Short: "Show how every flow and group stands",
		Args:  atMost("FLOW|GROUP"),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.status(c.Context(), args)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(all)
			}
			printStatus(a.out, all, a.now())
			printGroups(a.out, all, a.now())
			return nil
		},
	}
}

// status collects the flows of every daemon that is asked.
func (a *app) status(ctx context.Context, only []string) ([]mover.Status, error) {
	clients, err := a.clients()
	if err != nil {
		return nil, err
	}
	all := []mover.Status{}
	for _, c := range clients {
		got, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, got...)
	}
	if len(only) == 0 {
		return all, nil
	}
	var found []mover.Status
	for _, s := range all {
		if s.Flow == only[0] || s.Group != nil && s.Group.Name == only[0] {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		return nil, unknownFlow(only[0], all)
	}
	return found, nil
}

func unknownFlow(name string, all []mover.Status) error {
	var have []string
	for _, s := range all {
		have = append(have, s.Flow)
	}
	for _, s := range all {
		if s.Group != nil && s.Group.Name != "" && !slices.Contains(have, s.Group.Name) {
			have = append(have, s.Group.Name)
		}
	}
	return usagef("there is no flow %q; there are %s", name, strings.Join(have, ", "))
}

// printStatus writes one table for each role, with notes under each flow.
func printStatus(w io.Writer, all []mover.Status, now time.Time) {
	for i, role := range []string{"source", "gateway"} {
		t := table{}
		t.row("FLOW", "DEVICE", "SIZE", "STATE", "PROGRESS", "RATE", "ON THE WIRE", []string{"DIRTY", "LOG"}[i], []string{"LAG", "CONNS"}[i], "RECOVERY POINT")
		n := 0
		for _, s := range all {
			if s.Role != role || s.Bucket != nil {
				continue
			}
			n++
			last, lastly := units.Size(s.Dirty), lag(s)
			if role == "gateway" {
				last, lastly = logUse(s), fmt.Sprint(s.Conns)
			}
			t.row(s.Flow, s.Device, units.Size(s.Size), state(s), progress(s), rate(s.Rate), rate(s.WireRate), last, lastly, point(s, now))
			for _, note := range notes(s, now) {
				t.note(note[0], note[1])
			}
		}
		if n > 0 {
			t.print(w)
		}
	}
	printBuckets(w, all, now)
	if len(all) == 0 {
		fmt.Fprintln(w, "no flows")
	}
}

func state(s mover.Status) string {
	switch {
	case s.Pass != nil && s.State == mover.Passing:
		return s.Pass.Kind + " pass"
	case s.Pass != nil && s.Role == "gateway":
		return string(s.State) + " (" + s.Pass.Kind + ")"
	}
	return string(s.State)
}

func progress(s mover.Status) string {
	p := s.Pass
	if p == nil || p.Total <= 0 {
		return "-"
	}
	text := fmt.Sprintf("%d%% of %s", percent(p.Acked, p.Total), units.Size(p.Total))
	if p.ETA >= 0 {
		text += ", " + units.Duration(seconds(p.ETA)) + " left"
	}
	return text
}

// percent never says 100 before the end.
func percent(done, total int64) int {
	if total <= 0 || done >= total {
		return 100
	}
	return min(99, int(float64(done)/float64(total)*100))
}

func rate(perSecond float64) string {
	if perSecond < 1 {
		return "-"
	}
	return units.Rate(perSecond)
}

func lag(s mover.Status) string {
	if s.Lag <= 0 {
		return "-"
	}
	return units.Duration(seconds(s.Lag))
}

func logUse(s mover.Status) string {
	if s.LogLimit == 0 {
		return "-"
	}
	return units.Size(s.Log) + " of " + units.Size(s.LogLimit)
}

func point(s mover.Status, now time.Time) string {
	if s.PointTime.IsZero() {
		if s.Phase == "incomplete" {
			return "none (incomplete)"
		}
		return "none yet"
	}
	kind := s.PointConsistency
	if kind == "" {
		kind = "point"
	}
	return fmt.Sprintf("%s, %s ago (epoch %d)", kind, units.Duration(max(0, now.Sub(s.PointTime))), s.PointEpoch)
}

// printGroups writes a table of the groups, and of flows that have moments of their own.
func printGroups(w io.Writer, all []mover.Status, now time.Time) {
	t := table{}
	t.row("GROUP", "FLOWS", "STATE", "LAST MOMENT", "PAUSE", "EVERY", "NEXT")
	seen := map[string]bool{}
	for _, s := range all {
		g := s.Group
		if g == nil || seen[or(g.Name, "/"+s.Flow)] {
			continue
		}
		seen[or(g.Name, "/"+s.Flow)] = true
		moment, pause, every, due := "none yet", "-", "-", "-"
		if m := g.Moment; m != nil {
			moment = fmt.Sprintf("%s, %s ago", m.Consistency, units.Duration(max(0, now.Sub(m.Time))))
			pause = units.Duration(seconds(m.Pause))
		}
		if g.Every > 0 {
			every = units.Duration(seconds(g.Every))
			if !g.Due.IsZero() {
				due = "in " + units.Duration(max(0, g.Due.Sub(now)))
			}
		}
		t.row(or(g.Name, "("+s.Flow+")"), strings.Join(g.Members, " "), g.State, moment, pause, every, due)
		for _, note := range groupNotes(g) {
			t.note(note[0], note[1])
		}
	}
	if len(seen) > 0 {
		fmt.Fprintln(w)
		t.print(w)
	}
}

func groupNotes(g *mover.Group) (out [][2]string) {
	add := func(name, text string) {
		if text != "" {
			out = append(out, [2]string{name, text})
		}
	}
	add("reason", g.Reason)
	add("trouble", g.Trouble)
	if m := g.Moment; m != nil {
		for _, w := range m.Worse {
			add("worth less", w)
		}
	}
	if g.Failed > 0 || g.Skipped > 0 {
		add("moments", fmt.Sprintf("%d taken, %d failed, %d left out since the start", g.Taken, g.Failed, g.Skipped))
	}
	add("next", g.Next)
	return out
}

// verbs are commands in a next step, to which the flow's name belongs.
var verbs = regexp.MustCompile(`\bmoverctl (cutover|resume|rollback|thaw|objects)\b`)

// notes are the lines below a flow: why it stands still, what may be done.
func notes(s mover.Status, now time.Time) (out [][2]string) {
	add := func(name, text string) {
		if text != "" {
			out = append(out, [2]string{name, text})
		}
	}
	if s.Reason != "" && !s.Since.IsZero() && s.State != mover.Passing {
		add("reason", s.Reason+" (for "+units.Duration(max(0, now.Sub(s.Since)))+")")
	} else {
		add("reason", s.Reason)
	}
	if s.LastError != s.Reason {
		add("last error", s.LastError)
	}
	for _, l := range s.Links {
		if len(s.Links) == 1 && s.Pass == nil {
			break // nothing is wanted of the line
		}
		add("link", linkText(l, len(s.Links) > 1))
	}
	add("tracking", s.Tracking)
	add("gap", s.Gap)
	if s.State != mover.Done {
		add("cutover", s.Cutover)
	}
	if b := s.Bucket; b != nil {
		add("changed", bucketText(b))
		for _, end := range []string{"source", "target"} {
			if k, ok := b.Keys[end]; ok {
				add("keys", keysText(end, k))
			}
		}
	}
	if r := s.Relay; r != nil && r.Bodies > 0 {
		add("gateway", fmt.Sprintf("%s of objects, %s of which it did not have; compressed %s", units.Size(r.Bodies), units.Size(r.Needed), units.Size(r.Packed)))
	}
	if s.DirtyRate >= 1 {
		add("changes", units.Rate(s.DirtyRate)+" are being written")
	}
	if len(s.Unreadable) > 0 {
		add("unreadable", fmt.Sprintf("%d extents were skipped as told: %s", len(s.Unreadable), strings.Join(s.Unreadable, " ")))
	}
	add("next", verbs.ReplaceAllStringFunc(s.Next, func(verb string) string { return verb + " " + named(s, verb) }))
	return out
}

// linkText is one way to the gateway; several: whether it is up is of interest.
func linkText(l mover.LinkStatus, several bool) string {
	text := l.Name
	switch {
	case several && !l.Up:
		return text + ": down"
	case several:
		text += fmt.Sprintf(": up, %d connections", l.Conns)
	}
	if l.Conns > 0 && l.Line != "" {
		text += fmt.Sprintf(", %s of line %s (%s)", lineRate(l.Rate), l.Line, l.Why)
		if !l.Leased {
			text += ", the safe share: the gateway does not say more"
		}
	}
	return text
}

// named is whom a verb of a next step is for: a flow of a group is cut over with the others.
func named(s mover.Status, verb string) string {
	if s.Group != nil && s.Group.Name != "" && !strings.HasSuffix(verb, "resume") {
		return s.Group.Name
	}
	return s.Flow
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// table lines up columns; notes below a row do not widen them.
type table struct{ lines []tableLine }

type tableLine struct {
	cells []string
	note  bool
}

func (t *table) row(cells ...string) { t.lines = append(t.lines, tableLine{cells: cells}) }
func (t *table) note(name, text string) {
	t.lines = append(t.lines, tableLine{[]string{name, text}, true})
}

func (t *table) print(w io.Writer) {
	var widths []int
	for _, l := range t.lines {
		for i, c := range l.cells {
			if l.note {
				break
			}
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, l := range t.lines {
		var b strings.Builder
		if l.note {
			fmt.Fprintf(&b, "  %-10s %s", l.cells[0], l.cells[1])
		} else {
			for i, c := range l.cells {
				b.WriteString(c + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}
