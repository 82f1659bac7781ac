package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

func (a *app) manifestCmd() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "manifest FLOW", Short: "Write what became of every object of a bucket flow, one line each, closed by a digest over all", Args: exactly("FLOW"),
		Long: `One line of JSON for each object, ascending by key, and a last one with the counts and the BLAKE3 of all lines before it. Without --to the file is
in the flow's folder below the daemon's state.`,
		RunE: func(c *cobra.Command, args []string) error {
			req := control.Request{Flow: args[0]}
			if c.Flags().Changed("to") {
				if err := writable("--to", to); err != nil {
					return err
				}
				path, err := filepath.Abs(to)
				if err != nil {
					return err
				}
				req.To = path
			}
			return a.plain(c, sourceSocket, control.Manifest, req)
		},
	}
	c.Flags().StringVar(&to, "to", "", "file to be made")
	return c
}

func (a *app) objectsCmd() *cobra.Command {
	on := map[string]*bool{}
	c := &cobra.Command{
		Use: "objects FLOW", Short: "List the objects of a bucket flow that were not carried, or not wholly, and why", Args: exactly("FLOW"),
		Long: `Objects are refused (cannot be carried: the key, the size, an archive), failed (tried in vain, and tried again by each pass), partly carried (at the
target without some attribute), or gone (at the source; the target has them still). Without a flag all of these are listed.`,
		RunE: func(c *cobra.Command, args []string) error {
			req := control.Request{Flow: args[0]}
			for _, name := range outcomes {
				if *on[name] {
					req.Outcomes = append(req.Outcomes, name)
				}
			}
			return a.listObjects(c, req)
		},
	}
	for name, text := range map[string]string{"refused": "those that cannot be carried", "failed": "those that were tried in vain", "partly": "those at the target without some attribute",
		"gone": "those that the source has no longer", "copied": "those that were carried wholly"} {
		on[name] = c.Flags().Bool(name, false, text)
	}
	return c
}

var outcomes = []string{"refused", "failed", "partly", "gone", "copied"}

// listObjects prints page after page; of JSON a line for each object.
func (a *app) listObjects(c *cobra.Command, req control.Request) error {
	for n := 0; ; {
		result, err := a.client(sourceSocket).Do(c.Context(), control.Objects, req, nil)
		if err != nil {
			return err
		}
		for _, o := range result.Objects {
			if a.output == "json" {
				if err := a.jsonLine(o); err != nil {
					return err
				}
				continue
			}
			if n++; n == 1 {
				fmt.Fprintf(a.out, "%-8s %12s  %s\n", "OUTCOME", "SIZE", "KEY AND WHY")
			}
			key := fmt.Sprintf("%q", o.Key)
			if o.KeyBytes != nil {
				key = fmt.Sprintf("%q", o.KeyBytes)
			}
			fmt.Fprintf(a.out, "%-8s %12s  %s\n", o.Outcome, units.Size(o.Size), key)
			for _, why := range append(o.Lost, o.Why) {
				if why != "" {
					fmt.Fprintf(a.out, "%24s%s\n", "", why)
				}
			}
		}
		if len(result.Next) == 0 {
			if n == 0 && a.output != "json" {
				fmt.Fprintln(a.out, "no such objects")
			}
			return nil
		}
		req.After = result.Next
	}
}

// printBuckets writes the table of bucket flows.
func printBuckets(w io.Writer, all []mover.Status, now time.Time) {
	t, n := table{}, 0
	t.row("BUCKET FLOW", "STATE", "AT THE TARGET", "PROGRESS", "RATE", "LEFT OUT", "REFUSED", "FAILED", "PARTLY")
	for _, s := range all {
		b := s.Bucket
		if b == nil {
			continue
		}
		n++
		t.row(s.Flow, state(s), fmt.Sprintf("%d, %s", b.Objects, units.Size(b.Bytes)), objectsText(s), rate(s.Rate), count(b.Left), count(b.Refused), count(b.Failed), count(b.Partly))
		t.note("from", s.Device)
		t.note("to", s.Peer)
		if b.Versions != "" {
			t.note("versions", b.Versions)
		}
		for _, note := range notes(s, now) {
			t.note(note[0], note[1])
		}
		for _, m := range b.Workers {
			if len(b.Workers) > 1 || m.Name != "local" { // alone, it is the flow itself
				t.note("worker", workerText(m, now))
			}
		}
	}
	if n == 0 {
		return
	}
	if n < len(all) {
		fmt.Fprintln(w)
	}
	t.print(w)
}

func workerText(m mover.BucketWorker, now time.Time) string {
	text := m.Name
	if m.Host != "" {
		text += " at " + m.Host
	}
	return fmt.Sprintf("%s: %d objects under way, %.0f/s, heard %s ago", text, m.Objects, m.Rate, units.Duration(max(0, now.Sub(m.Heard)).Round(time.Second)))
}

func count(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// objectsText is how far the pass is.
func objectsText(s mover.Status) string {
	b := s.Bucket
	if s.Pass == nil {
		return "-"
	}
	if b.Listing {
		return fmt.Sprintf("%d listed, %d of %d copied so far", b.Listed, b.Copied, b.Planned)
	}
	text := fmt.Sprintf("%d of %d copied, %d%% of %s", b.Copied, b.Planned, percent(b.CopiedBytes, b.PlannedBytes), units.Size(b.PlannedBytes))
	if s.Pass.ETA >= 0 {
		text += ", " + units.Duration(seconds(s.Pass.ETA)) + " left"
	}
	return text
}

// bucketText is what the last pass has found.
func bucketText(b *mover.Bucket) string {
	if b.Pass == 0 {
		return ""
	}
	text := fmt.Sprintf("pass %d: %d listed, %d not changed, %d copied", b.Pass, b.Listed, b.Same, b.Copied)
	if b.Vanished > 0 {
		text += fmt.Sprintf(", %d gone at the source", b.Vanished)
	}
	if b.Deleted > 0 {
		text += fmt.Sprintf(" (%d deleted at the target)", b.Deleted)
	}
	return text
}

// keysText is how the session of an end stands.
func keysText(end string, k mover.BucketKeys) string {
	text := "of the " + end + ": none yet"
	switch {
	case k.Left > 0:
		text = fmt.Sprintf("of the %s: end in %s, renewed before", end, units.Duration(seconds(k.Left)))
	case !k.Ends.IsZero():
		text = "of the " + end + ": have ended"
	}
	if k.Trouble != "" {
		text += "; NOT RENEWED: " + k.Trouble
	}
	return text
}

func printBucketReport(w io.Writer, r *mover.Report) {
	b := r.Bucket
	verdict := map[string]string{"verify": "found what was written there", "cutover": "done: the target has what the source had"}[r.Kind]
	if !r.OK {
		verdict = map[bool]string{false: "NOT done", true: "found differences, or could not compare"}[r.Kind == "verify"] + ": " + r.Error
	}
	fmt.Fprintf(w, "\n%s of %s %s\n", r.Kind, r.Flow, verdict)
	say := func(name, format string, a ...any) { fmt.Fprintf(w, "  %-18s %s\n", name, fmt.Sprintf(format, a...)) }
	say("took", "%s", units.Duration(r.Ended.Sub(r.Started)))
	if r.Kind == "cutover" {
		say("writers stood", "%s", units.Duration(seconds(r.Pause)))
		say("passes", "%d before, %d final; the first final one copied %s", r.Rounds, b.Passes, units.Size(r.FinalDelta))
	}
	if b.Pass > 0 { // it came to that
		how := "size and ETag of the listing"
		if b.Read {
			how = "digest, every object was read"
		}
		say("compared by", "%s", how)
		say("as written", "%d objects, %s", b.Objects, units.Size(b.Bytes))
		if b.Attributes > 0 {
			say("attributes", "compared of %d objects", b.Attributes)
		}
	}
	if b.Differ > 0 {
		say("differ", "%d", b.Differ)
	}
	for _, e := range b.Examples[:min(len(b.Examples), 10)] {
		say("", "%s", e)
	}
	if b.Others > 0 {
		say("of others", "%d objects at the target are not of this flow", b.Others)
	}
	if b.Refused > 0 {
		say("NOT CARRIED", "%d objects; moverctl objects %s --refused shows which, and why", b.Refused, r.Flow)
	}
	if b.Partly > 0 {
		say("partly carried", "%d objects; moverctl objects %s --partly shows what they lack", b.Partly, r.Flow)
	}
	if b.Versions != "" {
		say("versions", "%s", b.Versions)
	}
	if b.Swept > 0 || b.Foreign > 0 {
		say("uploads", "%d that were left were ended, %d of others stay", b.Swept, b.Foreign)
	}
	if b.Unproven != "" {
		say("not proven", "that the writers stood still: %s", b.Unproven)
	}
	if b.Manifest != "" {
		say("manifest", "%s", b.Manifest)
		say("its root", "%s", b.Root)
	}
	if r.Kind == "cutover" && r.OK {
		say("next", "let the applications use the target; then moverctl finish %s, or moverctl rollback %s", r.Flow, r.Flow)
	}
	if len(r.Steps) > 0 {
		var all []string
		for _, s := range r.Steps {
			all = append(all, fmt.Sprintf("%s %s", s.Name, units.Duration(seconds(s.Seconds))))
		}
		say("steps", "%s", strings.Join(all, ", "))
	}
}
