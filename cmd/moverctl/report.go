package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// steps shows progress: on a terminal the last line moves, elsewhere a line appears when there is news.
type steps struct {
	w     io.Writer
	cols  int
	now   func() time.Time
	quiet bool

	step, text string
	at         time.Time
	open       bool // the last line has no end yet
}

// stepWords tell what a step of a cutover is, where its news do not.
var stepWords = map[string]string{
	"freeze":    "the writers are being stopped",
	"delta":     "sending the last changes",
	"read-back": "reading both ends back from their devices",
	"compare":   "comparing the roots, and the tracker with the kernel",
	"release":   "handing the target over",
	"leave":     "leaving the source as asked",
	"thaw":      "letting the writers go on",
	"pre":       "making the applications ready",
	"commit":    "committing what was read; the writers go on",
	"keep":      "having the gateway keep the point",
}

func (s *steps) show(p mover.Progress) {
	if s.quiet {
		return
	}
	text := p.Text
	if words, ok := stepWords[p.Step]; ok && (text == p.Step || text == "") {
		text = words
	}
	if p.Total > 0 {
		text += fmt.Sprintf("  %d%% of %s", percent(p.Done, p.Total), units.Size(p.Total))
		if p.ETA > 0 {
			text += ", " + units.Duration(seconds(p.ETA)) + " left"
		}
	}
	line := strings.TrimRight(fmt.Sprintf("  %-10s %s", p.Step, strings.TrimSpace(text)), " ")
	now := s.now()
	if s.cols > 0 {
		if s.open && p.Step != s.step {
			fmt.Fprintln(s.w)
		}
		if r := []rune(line); len(r) >= s.cols {
			line = string(r[:s.cols-2]) + "…"
		}
		fmt.Fprintf(s.w, "\r\x1b[K%s", line)
		s.open = true
	} else if p.Step != s.step || p.Text != s.text && now.Sub(s.at) >= time.Second || now.Sub(s.at) >= 10*time.Second {
		fmt.Fprintln(s.w, line)
		s.at = now
	}
	s.step, s.text = p.Step, p.Text
}

func (s *steps) end() {
	if s.open {
		fmt.Fprintln(s.w)
	}
}

// printReport writes the outcome of a cutover, a rehearsal or a verification for people.
func printReport(w io.Writer, r *mover.Report) {
	if r.Bucket != nil {
		printBucketReport(w, r)
		return
	}
	verdict := "done: source and target are equal"
	switch r.Kind {
	case "verify":
		verdict = "found source and target equal"
	case "point":
		verdict = "taken"
	}
	if !r.OK {
		verdict = map[bool]string{false: "NOT done", true: "found no equality"}[r.Kind == "verify"]
		if r.Error != "" {
			verdict += ": " + r.Error
		}
	}
	fmt.Fprintf(w, "\n%s of %s %s\n", r.Kind, r.Flow, verdict)
	say := sayer(func(name, format string, a ...any) { fmt.Fprintf(w, "  %-18s %s\n", name, fmt.Sprintf(format, a...)) })
	took := r.Ended.Sub(r.Started)
	say("took", "%s", units.Duration(took))
	if r.Kind != "verify" {
		say("writers stood", "%s", units.Duration(seconds(r.Pause)))
		say("rounds before", "%d, the last delta was %s", r.Rounds, units.Size(r.FinalDelta))
	}
	if len(r.Members) > 0 {
		printMembers(say, r)
		return
	}
	for _, s := range r.Steps {
		say("  "+s.Name, "%s", units.Duration(seconds(s.Seconds)))
	}
	say("on the wire", "%s%s", units.Size(r.WireOut), average(r.WireOut, took))
	c := r.Totals
	say("since the start", "%s moved: %d leaves of %d offered (%d equal already, %d found at the gateway), %s of parts",
		units.Size(int64(c.Sent)*chunker.LeafSize+int64(c.Put)), c.Sent, c.Offered, c.Same, c.Copied, units.Size(int64(c.Put)))
	say("not sent", "%s zeros, %s free space", units.Size(int64(c.Zero)), units.Size(int64(c.Free)))
	if r.SourceRoot != "" || r.TargetRoot != "" {
		say("source root", "%s", or(r.SourceRoot, "none"))
		say("target root", "%s", or(r.TargetRoot, "none"))
		say("compared", "%s read back from both devices; %s free space by its marker", units.Size(r.Compared), units.Size(r.Free))
	}
	if len(r.Differ) > 0 {
		say("differ", "%s", extents(r.Differ))
	}
	for _, u := range r.Unreadable {
		say("unreadable", "%s (skipped as told; the target has zeros there)", u)
	}
	if r.Consistency != "" {
		say("recovery point", "%s consistent, epoch %d of generation %s", r.Consistency, r.Epoch, or(r.Generation, "none"))
	}
	kept(say, r)
	if r.Proof != "" {
		say("tracker", "%s", r.Proof)
	}
	if r.Left != "" {
		say("source left", "%s", r.Left)
	}
	next(say, r)
}

// sayer writes one line of a report.
type sayer func(name, format string, a ...any)

// kept tells what became of the moment.
func kept(say sayer, r *mover.Report) {
	if r.Moment != "" {
		say("moment", "%s", mover.PointID(r.MomentTime, r.Moment))
	}
	if r.Point != "" {
		say("kept as", "%s", r.Point)
	}
	if r.PointError != "" {
		say("not kept", "%s", r.PointError)
	}
	for _, w := range r.Worse {
		say("worth less", "%s", w)
	}
	if r.HookError != "" {
		say("post hook FAILED", "%s", r.HookError)
	}
}

// next is the step that is open now.
func next(say sayer, r *mover.Report) {
	switch {
	case r.OK && r.Kind == "cutover":
		say("next", "start the target in the cloud; moverctl rollback %s lets the source go on instead", r.Flow)
	case r.OK && r.Kind == "rehearsal":
		say("next", "moverctl cutover %s", r.Flow)
	case r.Left == "frozen" && r.Kind == "cutover":
		say("next", "moverctl rollback %s", r.Flow)
	}
}

// printMembers tells of a group: what all share, then a line or two of each.
func printMembers(say sayer, r *mover.Report) {
	if r.Consistency != "" && r.Moment != "" {
		say("recovery points", "%s consistent, of one moment", r.Consistency)
	}
	kept(say, r)
	say("on the wire", "%s%s", units.Size(r.WireOut), average(r.WireOut, r.Ended.Sub(r.Started)))
	if r.Left != "" && r.Kind != "verify" {
		say("source left", "%s", r.Left)
	}
	for _, m := range r.Members {
		what := "well"
		switch {
		case !m.OK:
			what = "NOT well: " + or(m.Error, "see the others")
		case m.SourceRoot != "":
			what = "equal, root " + m.SourceRoot[:min(16, len(m.SourceRoot))]
		}
		if m.Released {
			what += ", target handed over"
		}
		if m.Point != "" {
			what += ", kept as " + m.Point
		}
		say("  "+m.Flow, "%s; epoch %d, last delta %s", what, m.Epoch, units.Size(m.FinalDelta))
	}
	next(say, r)
}

func average(n int64, took time.Duration) string {
	if took < 10*time.Millisecond || n == 0 {
		return ""
	}
	return ", " + units.Rate(float64(n)/took.Seconds()) + " on average"
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// extents lists byte ranges; after ten it tells how many more there are.
func extents(all []extent.Extent) string {
	var parts []string
	var bytes int64
	for i, e := range all {
		bytes += e.Len
		if i < 10 {
			parts = append(parts, fmt.Sprintf("%d+%d", e.Off, e.Len))
		}
	}
	if n := len(all) - 10; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more (see -o json)", n))
	}
	return fmt.Sprintf("%s in %d extents (offset+length): %s", units.Size(bytes), len(all), strings.Join(parts, " "))
}
