package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) watchCmd() *cobra.Command {
	var every time.Duration
	var count int
	c := &cobra.Command{
		Use:   "watch [FLOW]",
		Short: "Show the flows live, with progress bars; without a terminal one line a flow each time",
		Args:  atMost("FLOW"),
		RunE: func(c *cobra.Command, args []string) error {
			if every < 100*time.Millisecond {
				return usagef("--interval %v: is under 100ms", every)
			}
			return a.watch(c.Context(), args, every, count)
		},
	}
	c.Flags().DurationVarP(&every, "interval", "n", time.Second, "time between two looks")
	c.Flags().IntVar(&count, "count", 0, "end after so many looks (0: when interrupted)")
	return c
}

func (a *app) watch(ctx context.Context, only []string, every time.Duration, count int) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; ; i++ {
		all, err := a.status(ctx, only)
		if ctx.Err() != nil {
			return nil // ended by the operator
		}
		if err != nil && i == 1 {
			return err
		}
		a.paint(all, err)
		if i == count {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// paint shows one look. A daemon that is away for a moment is told and asked again.
func (a *app) paint(all []mover.Status, err error) {
	cols := width(a.out)
	if a.output == "json" {
		if err == nil {
			a.json(all)
		}
		return
	}
	if cols == 0 {
		if err != nil {
			fmt.Fprintln(a.out, err)
		}
		for _, s := range all {
			fmt.Fprintln(a.out, line(s, a.now()))
		}
		return
	}
	var b strings.Builder
	b.WriteString("\x1b[H\x1b[2J") // top left, and clear
	fmt.Fprintf(&b, "moverctl watch   %s   (ctrl-c ends)\n\n", a.now().Format(time.TimeOnly))
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, s := range all {
		block(&b, s, a.now(), cols)
	}
	fmt.Fprint(a.out, b.String())
}

// line is a flow on one line, for logs.
func line(s mover.Status, now time.Time) string {
	text := fmt.Sprintf("%s %s %s: %s", now.Format(time.TimeOnly), s.Role, s.Flow, state(s))
	if p := progress(s); p != "-" {
		text += " " + p
	}
	if s.Rate >= 1 {
		text += ", " + units.Rate(s.Rate) + ", wire " + units.Rate(s.WireRate)
	}
	if b := s.Bucket; b != nil {
		text += fmt.Sprintf(", %d objects at the target", b.Objects)
	} else if s.Role == "source" {
		text += ", dirty " + units.Size(s.Dirty)
	}
	if s.Reason != "" {
		text += " (" + s.Reason + ")"
	}
	return text
}

// block is a flow on several lines with a bar.
func block(b *strings.Builder, s mover.Status, now time.Time, cols int) {
	clip := func(text string) {
		if r := []rune(text); len(r) > cols {
			text = string(r[:cols-1]) + "…"
		}
		b.WriteString(text + "\n")
	}
	clip(fmt.Sprintf("%s %s   %s %s   %s", s.Role, s.Flow, s.Device, units.Size(s.Size), state(s)))
	if p := s.Pass; p != nil && p.Total > 0 {
		clip("  " + bar(p.Acked, p.Total, min(50, cols-40)) + " " + progress(s))
	}
	if s.Bucket != nil {
		clip("  " + objectsText(s) + "   rate " + rate(s.Rate))
		for _, n := range notes(s, now) {
			clip(fmt.Sprintf("  %-10s %s", n[0], n[1]))
		}
		b.WriteString("\n")
		return
	}
	clip(fmt.Sprintf("  rate %s   wire %s   dirty %s   lag %s   sent %s   conns %d", rate(s.Rate), rate(s.WireRate), units.Size(s.Dirty), lag(s), units.Size(s.WireOut), s.Conns))
	clip("  point " + point(s, now))
	for _, n := range notes(s, now) {
		clip(fmt.Sprintf("  %-10s %s", n[0], n[1]))
	}
	b.WriteString("\n")
}

// bar draws done of total over n columns.
func bar(done, total int64, n int) string {
	n = max(n, 10)
	full := n * percent(done, total) / 100
	return strings.Repeat("█", full) + strings.Repeat("░", n-full)
}
