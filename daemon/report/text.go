package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// maxLines of the timeline in a text; the JSON form has all.
const maxLines = 40

// Text writes the document for a terminal.
func (d *Document) Text(w io.Writer) {
	p := func(format string, a ...any) { fmt.Fprintf(w, format+"\n", a...) }
	p("%s, told by %s %s (moverd %s) at %s\n", d.Title(), d.Role, d.Host, d.Software, stamp(d.Made))
	if d.Trouble != "" {
		p("The history is not whole: %s\n", d.Trouble)
	}
	if len(d.Flows) == 0 {
		p("No flow is configured.")
		return
	}
	for i := range d.Flows {
		d.Flows[i].text(p, d.Role)
	}
	d.bytes(p)
	if d.Cost != nil {
		d.Cost.Text(w)
		p("")
	}
	all := d.All()
	p("timeline (UTC)")
	if n := len(all) - maxLines; n > 0 {
		p("  %d earlier events: -o json", n)
		all = all[n:]
	}
	if len(all) == 0 {
		p("  nothing has happened yet")
	}
	for i := range all {
		e := &all[i]
		p("  %s  %-20s %s", e.Time.UTC().Format(time.DateTime), Name(e), strings.TrimSpace(or(e.Flow, "-")+"  "+About(e)))
	}
	p("\naudit trail: record %d, digest %s", d.Audit.Seq, or(d.Audit.Digest, "none"))
}

func (f *Flow) text(p func(string, ...any), role string) {
	s := &f.Status
	p("%s", s.Flow)
	say := func(name, format string, a ...any) { p("  %-16s %s", name, fmt.Sprintf(format, a...)) }
	if s.Bucket != nil {
		f.bucket(say)
		p("")
		return
	}
	say(map[bool]string{false: "volume", true: "target"}[role == "gateway"], "%s, %s%s", s.Device, units.Size(s.Size), comma(s.Identity))
	if s.Peer != "" {
		say(map[bool]string{false: "gateway", true: "source volume"}[role == "gateway"], "%s", s.Peer)
	}
	if f.Group != "" {
		say("group", "%s", f.Group)
	}
	say("state", "%s", strings.TrimSpace(string(s.State)+comma(s.Reason)))
	if s.Tracking != "" {
		say("tracking", "%s", s.Tracking)
	}
	say("passes", "%s", f.Passes.String())
	if !s.PointTime.IsZero() {
		say("recovery point", "%s, epoch %d, %s", or(s.PointConsistency, "fuzzy"), s.PointEpoch, stamp(s.PointTime))
	}
	if r := f.Last("cutover", "rehearsal", "verify"); r != nil {
		say("last "+r.Kind, "%s", Verdict(r))
		if r.Kind != "verify" {
			say("writers stood", "%s%s", units.Duration(seconds(r.Pause)), steps(r))
		}
		say("source root", "%s", or(r.SourceRoot, "none"))
		say("target root", "%s", or(r.TargetRoot, "none"))
		say("compared", "%s, and %s free space by its marker; tracker %s; %s consistent", units.Size(r.Compared), units.Size(r.Free), r.Proof, r.Consistency)
	}
	p("")
}

// bucket is a bucket flow.
func (f *Flow) bucket(say func(name, format string, a ...any)) {
	s, b := &f.Status, f.Status.Bucket
	say("source", "%s", s.Device)
	say("target", "%s", s.Peer)
	say("state", "%s", strings.TrimSpace(string(s.State)+comma(s.Reason)))
	say("passes", "%s; %d objects copied, %s", f.Passes.String(), f.copied(), units.Size(f.Moved.Sent))
	say("at the target", "%d objects, %s", b.Objects, units.Size(b.Bytes))
	say("not carried", "%d refused, %d failed, %d partly", b.Refused, b.Failed, b.Partly)
	r := f.Last("cutover", "verify")
	if r == nil || r.Bucket == nil {
		return
	}
	say("last "+r.Kind, "%s", Verdict(r))
	if r.Kind == "cutover" {
		say("writers stood", "%s%s", units.Duration(seconds(r.Pause)), steps(r))
	}
	say("compared", "%d objects, %s, by %s; %d differ", r.Bucket.Objects, units.Size(r.Bucket.Bytes), r.Bucket.How(), r.Bucket.Differ)
	if r.Bucket.Manifest != "" {
		say("manifest", "%s", r.Bucket.Manifest)
		say("its root", "%s", r.Bucket.Root)
	}
}

// copied is how many objects the passes of a bucket flow have copied.
func (f *Flow) copied() (n int64) {
	for _, e := range f.Events {
		if e.Pass != nil && e.Pass.Bucket != nil {
			n += e.Pass.Bucket.Copied
		}
	}
	return n
}

// bytes is what became of the bytes; docs/operations.md has the definitions.
func (d *Document) bytes(p func(string, ...any)) {
	m, _ := d.Sum()
	if m.Looked == 0 {
		return
	}
	p("bytes, over all committed passes")
	for _, b := range Shares(m, d.Role) {
		p("  %-34s %10s  %5.1f %%", b.Name, units.Size(b.Bytes), b.Percent)
	}
	p("")
}

// Share is one line of what became of the bytes.
type Share struct {
	Name    string
	Class   string // total, saved, left
	Bytes   int64
	Percent float64 // of what was looked at
	From    float64 // where it begins, percent
}

// Shares takes what was saved off what was looked at, step by step. A gateway knows neither payload nor line of a pass.
func Shares(m mover.Moved, role string) []Share {
	percent := func(n int64) float64 { return 100 * float64(n) / float64(max(1, m.Looked)) }
	out := []Share{{Name: "looked at", Class: "total", Bytes: m.Looked, Percent: 100}}
	left := m.Looked
	saved := func(name string, n int64) {
		if n == 0 {
			return
		}
		left -= n
		out = append(out, Share{Name: name, Class: "saved", Bytes: n, Percent: percent(n), From: percent(left)})
	}
	saved("skipped: free space", m.Free)
	saved("skipped: zeros", m.Zero)
	saved("skipped: equal at the target", m.Same)
	saved("skipped: could not be read", m.Unreadable)
	saved("saved by dedup", m.Copied)
	if role == "gateway" {
		return append(out, Share{Name: "sent, before compression", Class: "left", Bytes: m.Sent, Percent: percent(m.Sent)})
	}
	saved("saved by compression", m.Compressed())
	return append(out, Share{Name: "sent", Class: "left", Bytes: m.Payload, Percent: percent(m.Payload)},
		Share{Name: "on the line, with digests and TLS", Class: "total", Bytes: m.Wire, Percent: percent(m.Wire)})
}

func (p Passes) String() string {
	var parts []string
	for _, x := range []struct {
		n    int
		name string
	}{{p.Full, "full"}, {p.Rescan, "rescan"}, {p.Delta, "delta"}, {p.Failed, "not committed"}} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", x.n, x.name))
		}
	}
	return or(strings.Join(parts, ", "), "none yet")
}

// Verdict is what a report came to.
func Verdict(r *mover.Report) string {
	switch {
	case !r.OK:
		return "NOT done" + comma(r.Error)
	case r.Bucket != nil:
		return "done, the target has what was written there"
	case len(r.Members) > 0 && !slices.ContainsFunc(r.Members, func(m *mover.Report) bool { return m.SourceRoot == "" || m.SourceRoot != m.TargetRoot }):
	case r.SourceRoot == "" || r.SourceRoot != r.TargetRoot:
		return "done"
	}
	return "done, both ends are equal"
}

// frozen are a report's steps while the writers stood still.
func frozen(r *mover.Report) []mover.Step {
	steps := r.Steps
	if len(steps) == 0 && len(r.Members) > 0 { // of a group: those of the member that took longest
		m := slices.MaxFunc(r.Members, func(a, b *mover.Report) int { return cmp.Compare(total(a.Steps), total(b.Steps)) })
		steps = m.Steps
	}
	i := slices.IndexFunc(steps, func(s mover.Step) bool {
		return s.Name == "freeze" || r.Bucket != nil && (s.Name == "stop" || s.Name == "settle")
	})
	if i < 0 {
		return nil
	}
	steps = steps[i:]
	for k, s := range steps { // what follows is not waited for by the writers, or is the state that a cutover leaves
		if s.Name == "thaw" {
			return steps[:k+1]
		}
		if s.Name == "leave" {
			return steps[:k]
		}
	}
	return steps
}

func steps(r *mover.Report) string {
	var parts []string
	for _, s := range frozen(r) {
		parts = append(parts, s.Name+" "+units.Duration(seconds(s.Seconds)))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// About is what an event's line says beside its name.
func About(e *mover.Event) string {
	var parts []string
	add := func(format string, a ...any) { parts = append(parts, fmt.Sprintf(format, a...)) }
	if p := e.Pass; p != nil && p.Bucket != nil {
		b := p.Bucket
		add("%d objects listed, %d copied (%s) in %s", b.Listed, b.Copied, units.Size(p.Moved.Sent), units.Duration(e.Time.Sub(e.Began)))
		for _, x := range []struct {
			n    int64
			text string
		}{{b.Vanished, "gone at the source"}, {b.Deleted, "deleted at the target"}, {b.Refused, "refused"}, {b.Failed, "failed"}, {b.Partly, "partly carried"}} {
			if x.n > 0 {
				add("%d %s", x.n, x.text)
			}
		}
	} else if p != nil {
		add("%s looked at, %s sent in %s", units.Size(p.Moved.Looked), units.Size(max(p.Moved.Wire, p.Moved.Sent*b2i(p.Moved.Wire == 0))), units.Duration(e.Time.Sub(e.Began)))
		if p.Why != "" {
			add("%s", p.Why)
		}
	}
	if r := e.Report; r != nil {
		add("%s", Verdict(r))
		if b := r.Bucket; b != nil && b.Pass > 0 {
			add("%d objects, %s, compared by %s", b.Objects, units.Size(b.Bytes), b.How())
			if b.Root != "" {
				add("manifest root %s", b.Root)
			}
		}
		if r.Kind != "verify" {
			add("writers stood %s", units.Duration(seconds(r.Pause)))
		}
		if r.Kind == "cutover" && r.OK {
			add("source left %s", r.Left)
		}
		if r.Kind == "point" && r.OK {
			add("%s", r.Consistency)
		}
		for _, x := range []struct{ name, text string }{{"no copy is kept: ", r.PointError}, {"post hook: ", r.HookError}, {"worth less: ", strings.Join(r.Worse, "; ")}} {
			if x.text != "" {
				add("%s%s", x.name, x.text)
			}
		}
		if r.Doubt {
			add("whether the target was handed over was not known")
		}
		if r.Partly {
			add("only some targets were handed over")
		}
	} else {
		if e.Pause > 0 {
			add("writers stood %s", units.Duration(seconds(e.Pause)))
		}
		if e.Error != "" {
			add("%s", e.Error)
		}
	}
	if e.Consistency != "" && e.Report == nil {
		add("%s", e.Consistency)
	}
	if e.Text != "" {
		add("%s", e.Text)
	}
	for _, k := range slices.Sorted(maps.Keys(e.Details)) {
		switch v := e.Details[k].(type) {
		case string:
			if v != "" && k != "config_digest" {
				add("%s: %s", strings.ReplaceAll(k, "_", " "), v)
			}
		case bool, float64, int, int64, uint64:
			if k != "ok" || v != true {
				add("%s: %v", strings.ReplaceAll(k, "_", " "), v)
			}
		}
	}
	if e.Actor != "" && e.Actor != "daemon" {
		add("by %s", e.Actor)
	}
	return strings.Join(parts, ", ")
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func stamp(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

func comma(s string) string {
	if s == "" {
		return ""
	}
	return ", " + s
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
