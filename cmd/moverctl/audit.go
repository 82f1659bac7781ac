package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	var expect []string
	c := &cobra.Command{
		Use: "verify [DIR]", Short: "Check every record's digest and the chain of all", Args: atMost("DIR"),
		Long: `Checks every record's digest and the chain of all. The trail has no key: who may write it could write all of it anew, or cut its end and the
file head alike. What was noted elsewhere (a report, the log of a start) tells: --expect SEQ:DIGEST wants that record in the trail.`,
		RunE: func(_ *cobra.Command, args []string) error {
			heads, err := parseHeads(expect)
			if err != nil {
				return err
			}
			dir := trailIn(args)
			s, err := audit.Verify(dir, heads.see)
			if err != nil {
				return err
			}
			if err := heads.missing(dir, s); err != nil {
				return err
			}
			if a.output == "json" {
				return json.NewEncoder(a.out).Encode(s)
			}
			fmt.Fprintf(a.out, "%d records of %s to %s are whole; the last is %d, digest %s\n", s.Records,
				s.From.Format(time.RFC3339), s.Until.Format(time.RFC3339), s.Seq, s.Digest)
			if len(heads) > 0 {
				fmt.Fprintf(a.out, "and hold what was expected\n")
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&expect, "expect", nil, "SEQ:DIGEST of a record that was noted elsewhere; may be given again")
	return c
}

// heads are records that were noted elsewhere, and whether the trail has them.
type heads map[uint64]*head

type head struct {
	digest string
	found  string // digest of the record that the trail has
}

func parseHeads(all []string) (heads, error) {
	out := heads{}
	for _, s := range all {
		seq, digest, _ := strings.Cut(s, ":")
		n, err := strconv.ParseUint(seq, 10, 64)
		raw, herr := hex.DecodeString(digest)
		if err != nil || herr != nil || n == 0 || len(raw) != 32 {
			return nil, usagef("--expect %s: is not SEQ:DIGEST, the number of a record and 64 hex digits", s)
		}
		if old := out[n]; old != nil && old.digest != strings.ToLower(digest) {
			return nil, usagef("--expect %s: another digest is expected of record %d as well", s, n)
		}
		out[n] = &head{digest: strings.ToLower(digest)}
	}
	return out, nil
}

func (h heads) see(r audit.Record) error {
	if x := h[r.Seq]; x != nil {
		x.found = r.Digest
	}
	return nil
}

// missing is a fault where the trail does not hold what was noted.
func (h heads) missing(dir string, s audit.Summary) error {
	for _, seq := range slices.Sorted(maps.Keys(h)) {
		x := h[seq]
		switch {
		case x.found == x.digest:
		case x.found != "":
			return &audit.Fault{File: dir, Why: fmt.Sprintf("record %d has digest %s, and %s was noted: the trail was written anew", seq, x.found, x.digest)}
		case seq > s.Seq:
			return &audit.Fault{File: dir, Why: fmt.Sprintf("ends with record %d, and record %d was noted: its end was cut", s.Seq, seq)}
		default:
			return &audit.Fault{File: dir, Why: fmt.Sprintf("no longer has record %d, which was noted: it was pruned by age", seq)}
		}
	}
	return nil
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
