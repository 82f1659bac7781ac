package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status [FLOW]",
		Short: "Show how every flow stands",
		Args:  atMost("FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.status(c.Context(), args)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(all)
			}
			printStatus(a.out, all, a.now())
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
	for _, s := range all {
		if s.Flow == only[0] {
			return []mover.Status{s}, nil
		}
	}
	return nil, unknownFlow(only[0], all)
}

func unknownFlow(name string, all []mover.Status) error {
	var have []string
	for _, s := range all {
		have = append(have, s.Flow)
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
			if s.Role != role {
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

// verbs are commands in a next step, to which the flow's name belongs.
var verbs = regexp.MustCompile(`\bmoverctl (cutover|resume|rollback|thaw)\b`)

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
	add("tracking", s.Tracking)
	add("gap", s.Gap)
	if s.State != mover.Done {
		add("cutover", s.Cutover)
	}
	if s.DirtyRate >= 1 {
		add("changes", units.Rate(s.DirtyRate)+" are being written")
	}
	if len(s.Unreadable) > 0 {
		add("unreadable", fmt.Sprintf("%d extents were skipped as told: %s", len(s.Unreadable), strings.Join(s.Unreadable, " ")))
	}
	add("next", verbs.ReplaceAllString(s.Next, "moverctl $1 "+s.Flow))
	return out
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
