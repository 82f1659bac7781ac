package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// lineCmd shows how a gateway's lines are shared, and changes them while sources send.
func (a *app) lineCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "line [NAME]", Short: "At the gateway: show how the lines are shared out, or change one", Args: atMost("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			r := control.Request{}
			if len(args) > 0 {
				r.Line = args[0]
			}
			result, err := a.client(gatewaySocket).Do(c.Context(), control.Lines, r, nil)
			if err != nil {
				return err
			}
			if a.output == "json" {
				if result.Lines == nil {
					result.Lines = []mover.LineStatus{}
				}
				return a.json(result.Lines)
			}
			printLines(a.out, result.Lines, a.now())
			return nil
		},
	}
	c.AddCommand(a.lineSetCmd())
	return c
}

func (a *app) lineSetCmd() *cobra.Command {
	var rate, peak, month string
	var last time.Duration
	var reset bool
	c := &cobra.Command{
		Use: "set NAME", Short: "Change a line at once, beside its config, for a while or until --reset",
		Long: `What is set holds for every source at once, outlives a restart of the gateway, and goes before the config and its timetable. Each call replaces the one before:
what is not named is as configured again.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			set := mover.LineSet{}
			changed := func(name string) bool { return c.Flags().Changed(name) }
			if reset == (changed("rate") || changed("peak") || changed("month") || changed("for")) {
				return usagef("line set %s: give --rate, --peak or --month, or --reset alone", args[0])
			}
			for _, f := range []struct {
				name, value string
				to          **int64
			}{{"rate", rate, &set.Rate}, {"peak", peak, &set.Peak}} {
				if !changed(f.name) {
					continue
				}
				r, err := strict.ParseRate(f.value)
				if err != nil {
					return usagef("--%s: %v", f.name, err)
				}
				if r != 0 && r < 64<<10 {
					return usagef("--%s: %s is under 64KiB/s, which is less than a flow needs to stay alive; moverctl pause stops a flow", f.name, f.value)
				}
				n := int64(r)
				*f.to = &n
			}
			if changed("month") {
				s, err := strict.ParseSize(month)
				if err != nil {
					return usagef("--month: %v", err)
				}
				n := int64(s)
				set.Month = &n
			}
			if changed("for") {
				if last <= 0 || set == (mover.LineSet{}) {
					return usagef("--for: needs a time that is longer than 0s, and something that holds for it")
				}
				set.Until = a.now().Add(last)
			}
			return a.lineSet(c, control.Request{Line: args[0], Set: &set})
		},
	}
	c.Flags().StringVar(&rate, "rate", "", "rate of the line at all times, such as 100Mbit/s; 0: not bounded")
	c.Flags().StringVar(&peak, "peak", "", "rate that may be billed, of a line billed by the 95th percentile")
	c.Flags().StringVar(&month, "month", "", "bytes that may go over the line in a month, such as 20TB; 0: any")
	c.Flags().DurationVar(&last, "for", 0, "how long it holds, such as 2h; default: until --reset")
	c.Flags().BoolVar(&reset, "reset", false, "as configured again")
	return c
}

func (a *app) lineSet(c *cobra.Command, r control.Request) error {
	result, err := a.client(gatewaySocket).Do(c.Context(), control.Lines, r, nil)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(result.Lines)
	}
	fmt.Fprintln(a.out, result.Text)
	printLines(a.out, result.Lines, a.now())
	return nil
}

// lineRate writes a rate as lines are sold.
func lineRate(bytes int64) string {
	if bytes < 0 {
		return "not bounded"
	}
	bits := float64(bytes) * 8
	for _, u := range []struct {
		name string
		size float64
	}{{"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}} {
		if bits >= u.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", bits/u.size), ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%.0f bit/s", bits)
}

func printLines(w io.Writer, all []mover.LineStatus, now time.Time) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no lines: gateway.lines of the config names none, so nothing is shaped")
		return
	}
	t := table{}
	t.row("LINE", "RATE", "ALLOWED NOW", "USED", "THIS MONTH", "BILLING")
	for _, l := range all {
		rate, month, billing := "not bounded", units.Size(l.MonthBytes), l.Billing
		if l.Rate > 0 {
			rate = lineRate(l.Rate)
		}
		if l.MonthLimit > 0 {
			month += fmt.Sprintf(" of %s (%d%%)", units.Size(l.MonthLimit), percent(l.MonthBytes, l.MonthLimit))
		}
		if l.Peak > 0 {
			billing += ", at most " + lineRate(l.Peak)
		}
		t.row(l.Name, rate, lineRate(l.Allowed), lineRate(int64(l.Used)), month, billing)
		t.note("because", l.Why)
		if !l.Changes.IsZero() {
			next := "not bounded"
			if l.Next > 0 {
				next = lineRate(l.Next)
			}
			t.note("timetable", next+" from "+l.Changes.Format("Mon 15:04 MST"))
		}
		if l.Peak > 0 {
			t.note("free", fmt.Sprintf("%d samples above the peak cost nothing and are left", l.Spare))
		}
		if l.Set != nil {
			t.note("set", lineSetText(*l.Set, now))
		}
		for _, x := range l.Leases {
			want := "all there is"
			if x.Want >= 0 {
				want = lineRate(x.Want)
			}
			if x.Class == "idle" {
				continue
			}
			if x.Past {
				want += ", past the gateway"
			}
			t.note("lease", fmt.Sprintf("%s, %s: %s, wants %s", x.Flow, x.Class, lineRate(x.Rate), want))
		}
	}
	t.print(w)
}

func lineSetText(s mover.LineSet, now time.Time) string {
	var parts []string
	for _, x := range []struct {
		name string
		v    *int64
	}{{"rate", s.Rate}, {"peak", s.Peak}} {
		switch {
		case x.v == nil:
		case *x.v == 0:
			parts = append(parts, x.name+" not bounded")
		default:
			parts = append(parts, x.name+" "+lineRate(*x.v))
		}
	}
	if s.Month != nil && *s.Month == 0 {
		parts = append(parts, "any bytes in the month")
	} else if s.Month != nil {
		parts = append(parts, units.Size(*s.Month)+" in the month")
	}
	until := "until moverctl line set --reset"
	if !s.Until.IsZero() {
		until = "for " + units.Duration(max(0, s.Until.Sub(now)))
	}
	return strings.Join(parts, ", ") + ", by the operator, " + until
}
