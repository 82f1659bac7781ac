package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/internal/audit"
)

const auditDir = "/var/lib/mover/audit"

func (a *app) auditCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "Read the audit trail, or prove that it is whole; needs no daemon",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; see moverctl audit --help", args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(a.auditVerifyCmd(), a.auditShowCmd())
	return c
}

// trailIn is the folder of the arguments, or the default.
func trailIn(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return auditDir
}

func (a *app) auditVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "verify [DIR]", Short: "Check every record's digest and the chain of all", Args: atMost("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := audit.Verify(trailIn(args), nil)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return json.NewEncoder(a.out).Encode(s)
			}
			fmt.Fprintf(a.out, "%d records of %s to %s are whole; the last is %d, digest %s\n", s.Records,
				s.From.Format(time.RFC3339), s.Until.Format(time.RFC3339), s.Seq, s.Digest)
			return nil
		},
	}
}

func (a *app) auditShowCmd() *cobra.Command {
	var since, flow string
	c := &cobra.Command{
		Use: "show [DIR]", Short: "Print records", Args: atMost("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			from, err := a.since(since)
			if err != nil {
				return err
			}
			_, err = audit.Verify(trailIn(args), func(r audit.Record) error {
				switch {
				case r.Time.Before(from), flow != "" && r.Flow != flow:
					return nil
				case a.output == "json":
					return json.NewEncoder(a.out).Encode(r)
				}
				_, err := fmt.Fprintf(a.out, "%d %s %s %s %s%s\n", r.Seq, r.Time.Format(time.RFC3339), r.Actor, r.Event, or(r.Flow, "-"), details(r.Details))
				return err
			})
			return err
		},
	}
	c.Flags().StringVar(&since, "since", "", "only records since: 24h, 2026-11-22, or 2026-11-22T20:00:00Z")
	c.Flags().StringVar(&flow, "flow", "", "only records of this flow")
	return c
}

// since reads a length of time before now, a day or a time.
func (a *app) since(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return a.now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--since %s: is no duration, day or time; write 24h, 2026-11-22 or 2026-11-22T20:00:00Z", s)
}

// details are key=value in the order of the keys; values come from peers too, so they are quoted as JSON.
func details(d map[string]any) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(d)) {
		v, err := json.Marshal(d[k])
		if err != nil {
			v = []byte("?")
		}
		fmt.Fprintf(&b, " %s=%s", k, v)
	}
	return b.String()
}
