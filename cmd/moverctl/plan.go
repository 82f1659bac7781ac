package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) planCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "plan FLOW", Short: "Tell what a pass of a bucket flow would do, without writing a byte anywhere", Args: exactly("FLOW"),
		Long: `Lists both ends, and tells what a pass would copy and delete, what cannot be carried and why, what the target has that is not of the flow or
not what was written there, the requests, the time at limits.rate, and the cost where prices are configured. Nothing is written: not to the stores, not to
the flow's ledger. The daemon is asked; with -c the config is read here and no daemon is needed, also before the flow has ever run.`,
		RunE: func(c *cobra.Command, args []string) error {
			p := &steps{w: a.out, cols: width(a.out), now: a.now, quiet: a.output == "json"}
			result, err := a.plan(c, args[0], file, p.show)
			p.end()
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(struct {
					*mover.BucketPlan
					Cost *cost.Answer `json:"cost,omitempty"`
				}{result.Plan, result.Cost})
			}
			printPlan(a.out, result.Plan, result.Cost)
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "config file; no daemon is asked")
	return c
}

func (a *app) plan(c *cobra.Command, flow, file string, progress func(mover.Progress)) (control.Result, error) {
	if !c.Flags().Changed("config") {
		return a.client(sourceSocket).Do(c.Context(), control.Plan, control.Request{Flow: flow}, progress)
	}
	conf, err := config.Load(file, daemon.Source)
	if err != nil {
		return control.Result{}, err
	}
	return daemon.Plan(c.Context(), conf, flow, progress)
}

// printPlan writes a plan for people.
func printPlan(w io.Writer, p *mover.BucketPlan, bill *cost.Answer) {
	say := func(name, format string, v ...any) { fmt.Fprintf(w, "  %-18s %s\n", name, fmt.Sprintf(format, v...)) }
	sum := func(s mover.BucketSum) string { return fmt.Sprintf("%d objects, %s", s.Objects, units.Size(s.Bytes)) }
	fmt.Fprintf(w, "\nplan of %s; nothing was written\n", p.Flow)
	say("from", "%s", p.From)
	say("to", "%s", p.To)
	if len(p.Refusals) == 0 && p.Copy.Objects+p.Delete.Objects == 0 {
		say("a pass", "has nothing to do")
	}
	for _, r := range p.Refusals {
		say("WOULD NOT BEGIN", "%s", r)
	}
	say("source", "%s; %d left out by filters", sum(p.Source), p.LeftOut)
	for _, class := range sortedKeys(p.Classes) {
		name := class
		if name == "" {
			name = "standard"
		}
		say("  class "+name, "%s", sum(p.Classes[class]))
	}
	say("not changed", "%s", sum(p.Same))
	say("to be copied", "%s: %d new, %d changed, %d not sure, %d failed before", sum(p.Copy), p.New, p.Changed, p.Unsure, p.Again)
	if p.Large.Objects > 0 {
		say("  in parts", "%s", sum(p.Large))
	}
	if p.Deletes {
		say("to be deleted", "%s", sum(p.Delete))
	} else if p.Stay.Objects > 0 {
		say("gone, but stay", "%s (deletes: keep)", sum(p.Stay))
	}
	printTarget(say, sum, p)
	printEffort(say, p)
	if bill != nil {
		printPlanCost(say, bill)
	}
	if p.UnderWay {
		say("note", "pass %d is under way; what it copies meanwhile may stand here as to be copied", p.Pass)
	}
	for _, n := range p.Notes {
		say("note", "%s", n)
	}
	printKeys(w, "cannot be carried", p.Refused.Objects, p.RefusedKeys)
	printKeys(w, "at the target", p.Missing+p.Differ+p.Overwrite.Objects, p.Examples)
}

func printTarget(say sayer, sum func(mover.BucketSum) string, p *mover.BucketPlan) {
	say("at the target", "%s of this flow", sum(p.Ours))
	if p.Others.Objects > 0 {
		say("  of others", "%s, which stay", sum(p.Others))
	}
	if p.Overwrite.Objects > 0 {
		say("  OVERWRITTEN", "%s of others have the name of one to be copied (%d have its size and ETag too)", sum(p.Overwrite), p.Alike)
	}
	if p.Missing+p.Differ > 0 {
		say("  DIFFERS", "%d are missing and %d are not what was written there: moverctl verify %s has them copied again", p.Missing, p.Differ, p.Flow)
	}
	if p.Refused.Objects > 0 {
		say("NOT CARRIED", "%s, see below", sum(p.Refused))
	}
}

func printEffort(say sayer, p *mover.BucketPlan) {
	r := p.Requests
	say("requests", "source %d (%d list, %d head, %d get), target %d (%d put, %d parts, %d begin and complete, %d delete)", r.Source(), r.List, r.Head, r.Get, r.Target(), r.Put, r.Part,
		r.Upload, r.Delete)
	switch {
	case p.Copy.Bytes == 0:
	case p.Rate > 0:
		say("time", "%s of bytes at limits.rate, %s", units.Duration(seconds(p.Transfer)), units.Rate(float64(p.Rate)))
	default:
		say("time", "of bytes %s at 100 Mbit/s, %s at 1 Gbit/s; limits.rate is not set", units.Duration(seconds(float64(p.Copy.Bytes)/12.5e6)), units.Duration(seconds(float64(p.Copy.Bytes)/125e6)))
	}
}

// printPlanCost tells what the pass costs, and a month of what it leaves there.
func printPlanCost(say sayer, bill *cost.Answer) {
	if bill.Trouble != "" {
		say("cost", "%s", bill.Trouble)
		return
	}
	for i := range bill.Items {
		it := &bill.Items[i]
		part := it.ToCome
		name := it.What
		switch it.What {
		case "requests":
			part = it.SoFar
		case "target":
			name = "a month"
		}
		say("cost, "+name, "%s: %s (%s)", part.Cost.String(), part.Quantity(), it.Priced())
	}
	for _, m := range bill.Missing {
		say("cost, missing", "%s", m)
	}
}

func printKeys(w io.Writer, what string, n int64, all []mover.BucketObject) {
	if len(all) == 0 {
		return
	}
	more := ""
	if n > int64(len(all)) {
		more = fmt.Sprintf(" (%d of %d)", len(all), n)
	}
	fmt.Fprintf(w, "\n%s%s\n", what, more)
	for _, o := range all {
		key := fmt.Sprintf("%q", o.Key)
		if o.KeyBytes != nil {
			key = fmt.Sprintf("%q", o.KeyBytes)
		}
		fmt.Fprintf(w, "  %-10s %12s  %s\n", o.Outcome, units.Size(o.Size), key)
		fmt.Fprintf(w, "%26s%s\n", "", strings.TrimSpace(o.Why))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
