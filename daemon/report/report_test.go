package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
)

var keep = flag.String("pages", "", "folder to write the pages of the tests to, to be looked at")

var now = time.Date(2026, 11, 27, 20, 15, 0, 0, time.UTC)

func pass(flow, kind string, at time.Time, took time.Duration, looked int64, r *rand.Rand) mover.Event {
	m := mover.Moved{Looked: looked}
	if kind != "delta" {
		m.Free = looked / 2
	}
	m.Zero, m.Same, m.Copied = looked/50, looked/20, looked/30
	m.Sent = looked - m.Free - m.Zero - m.Same - m.Copied
	m.Payload = int64(float64(m.Sent) * (0.3 + 0.2*r.Float64()))
	m.Wire = m.Payload + m.Payload/40
	return mover.Event{Time: at.Add(took), Began: at, Kind: mover.PassEvent, Flow: flow, Pass: &mover.EndedPass{Kind: kind, Passes: 1, Epoch: 7, Generation: "ab", Consistency: "fuzzy", Moved: m}}
}

func cutover(flow, kind string, at time.Time, pause float64, ok bool) mover.Event {
	r := &mover.Report{Flow: flow, Kind: kind, OK: ok, Started: at.Add(-20 * time.Second), Ended: at, Pause: pause, Rounds: 4, FinalDelta: 3 << 20, Compared: 18 << 30, Free: 20 << 30,
		Consistency: "crash", Proof: "exact", Left: "running", Generation: "4f1c0e9a7b2d4c55a1b2c3d4e5f60718", Epoch: 311,
		Steps: []mover.Step{{Name: "rounds", Seconds: 19}, {Name: "freeze", Seconds: pause * .1}, {Name: "delta", Seconds: pause * .35}, {Name: "read-back", Seconds: pause * .4}, {Name: "compare", Seconds: pause * .1}, {Name: "thaw", Seconds: pause * .05}}}
	if r.SourceRoot = "b5dd81a4c2a1f0f6e7a99b4e5b0c7ad3f4f1f6a2b8d7c6e5f4a3b2c1d0e9f8a7"; ok {
		r.TargetRoot = r.SourceRoot
	} else {
		r.Error, r.TargetRoot = "the freeze deadline of 10s has passed before the verdict", ""
	}
	return mover.Event{Time: at, Kind: kind, Flow: flow, Actor: "uid:0/pid:4711", Report: r, Pause: pause}
}

// month is a source with two disks in a group over d, with nearly everything that can happen.
func month(d time.Duration, flows ...string) (*Document, history.Past) {
	r := rand.New(rand.NewPCG(1, 2))
	doc := &Document{Made: now, Asked: "web", Role: "source", Host: "db1", Software: "v1.4.0"}
	past := history.Past{Samples: map[string][]history.Sample{}}
	begin := now.Add(-d)
	past.Events = append(past.Events, mover.Event{Time: begin, Kind: "daemon.start"},
		mover.Event{Time: begin.Add(d / 3), Kind: "daemon.stop"}, mover.Event{Time: begin.Add(d/3 + d/40), Kind: "daemon.start"})
	for i, f := range flows {
		doc.Flows = append(doc.Flows, Flow{Group: "web", Status: mover.Status{Flow: f, Role: "source", Device: "/dev/disk/by-id/nvme-" + f, Identity: "nvme-eui.0025385" + fmt.Sprint(i) + "/42949672960", Peer: "gw.example.com:9444",
			Size: 40 << 30, State: mover.Idle, Reason: "next pass in 20 s", Tracking: "ebpf: bitmap, granule 4 KiB", Lag: 12, PointTime: now.Add(-time.Minute), PointEpoch: 311, PointConsistency: "crash"}})
		add := func(e mover.Event) { past.Events = append(past.Events, e) }
		add(pass(f, "full", begin, d/12, 40<<30, r))
		for at := begin.Add(d / 11); at.Before(now.Add(-d / 20)); at = at.Add(d / 3000) {
			if at.After(begin.Add(d/3)) && at.Before(begin.Add(d/3+d/40)) {
				continue
			}
			add(pass(f, "delta", at, d/9000, int64(1+r.IntN(300))<<20, r))
		}
		add(mover.Event{Time: begin.Add(d / 3).Add(d / 38), Kind: mover.GapEvent, Flow: f, Text: "the kernel's account does not agree: reboot"})
		add(pass(f, "rescan", begin.Add(d/3).Add(d/37), d/50, 40<<30, r))
		failed := pass(f, "delta", begin.Add(d/2), d/60, 1<<30, r)
		failed.Error = "gateway: state disk is full; make room below the state directory"
		add(failed)
		add(mover.Event{Time: begin.Add(d / 2), Kind: "link.down", Flow: f})
		for k := range 12 {
			add(mover.Event{Time: begin.Add(d * time.Duration(k+10) / 24), Kind: mover.MomentEvent, Flow: f, Group: "web", Consistency: "app", Pause: 0.21})
		}
		add(cutover(f, "rehearsal", begin.Add(d*8/10), 0.42+0.05*float64(i), true))
		add(cutover(f, "cutover", begin.Add(d*85/100), 10, false))
		add(cutover(f, "cutover", begin.Add(d*9/10), 0.38, true))
		add(mover.Event{Time: begin.Add(d * 93 / 100), Kind: "rollback", Flow: f, Actor: "uid:0/pid:812", Text: f + " goes on at the source, and is replicated again"})
		step := max(10*time.Second, (d / 800).Truncate(10*time.Second))
		for at := begin; at.Before(now); at = at.Add(step) {
			if at.After(begin.Add(d/3)) && at.Before(begin.Add(d/3+d/40)) {
				continue
			}
			x := at.Sub(begin).Seconds() / d.Seconds()
			s := history.Sample{Time: at, Span: step.Seconds(), Seen: step.Seconds(), Rate: 40e6 * (1 + math.Sin(60*x)) * r.Float64(), Lag: 30 + 60*r.Float64(), Dirty: 3e8 * r.Float64()}
			if x < 1.0/12 {
				s.Rate = 3e8 + 5e7*r.Float64()
			}
			s.Wire = s.Rate * .4
			past.Samples[f] = append(past.Samples[f], s)
		}
	}
	return doc, past
}

func render(t *testing.T, name string, d *Document) string {
	t.Helper()
	var b, text bytes.Buffer
	if err := d.HTML(&b); err != nil {
		t.Fatal(err)
	}
	d.Text(&text)
	if *keep != "" {
		if err := os.WriteFile(filepath.Join(*keep, name+".html"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(*keep, name+".txt"), text.Bytes(), 0o644)
	}
	page := b.String()
	for _, bad := range []string{"<script", "src=", "url(", "http:", "https:", "@import", "NaN", "Inf", "%!", "ZgotmplZ", "<no value>"} {
		if strings.Contains(strings.ReplaceAll(page, `http-equiv`, ""), bad) {
			t.Errorf("%s: the page holds %q", name, bad)
		}
	}
	if strings.Contains(text.String(), "%!") {
		t.Errorf("%s: %s", name, text.String())
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back Document
	if err := json.Unmarshal(raw, &back); err != nil || back.Version != Version || len(back.Flows) != len(d.Flows) {
		t.Errorf("%s: json: %v", name, err)
	}
	return page + text.String()
}

// Every document is shown, from none at all to months of passes, and its figures stand in it.
func TestPages(t *testing.T) {
	none := &Document{Made: now, Role: "source", Host: "db1", Software: "v1.4.0"}
	none.Fill(history.Past{})
	if out := render(t, "none", none); !strings.Contains(out, "No flow is configured") {
		t.Error("a daemon without flows")
	}
	fresh := &Document{Made: now, Role: "source", Host: "db1", Software: "v1.4.0", Flows: []Flow{{Status: mover.Status{Flow: "root", Role: "source", Device: "/dev/vda", Size: 40 << 30, State: mover.Connecting, Reason: "connecting to gateway gw:9444"}}}}
	fresh.Fill(history.Past{})
	if out := render(t, "fresh", fresh); !strings.Contains(out, "No pass has been committed yet") || !strings.Contains(out, "Nothing has been compared yet") {
		t.Error("a flow that has just begun")
	}
	one, past := month(10*time.Minute, "root")
	past.Events = past.Events[:4]
	past.Samples["root"] = past.Samples["root"][:20]
	one.Asked = "root"
	one.Fill(past)
	render(t, "one", one)

	for name, d := range map[string]time.Duration{"hour": time.Hour, "month": 30 * 24 * time.Hour} {
		doc, past := month(d, "data", "wal")
		doc.Audit = Audit{4711, "9be0f7e3c1d24a55b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3"}
		doc.Fill(past)
		m, p := doc.Sum()
		if sum := m.Free + m.Zero + m.Same + m.Copied + m.Unreadable + m.Sent; sum != m.Looked || p.Full != 2 || p.Rescan != 2 || p.Failed != 2 || p.Delta < 4000 {
			t.Errorf("%s: %+v %+v", name, m, p)
		}
		left := m.Looked
		for _, s := range Shares(m, "source") {
			if s.Class == "saved" {
				left -= s.Bytes
			}
		}
		if left != m.Payload {
			t.Errorf("%s: %d bytes are left after what was saved, %d were sent", name, left, m.Payload)
		}
		out := render(t, name, doc)
		for _, want := range []string{"Move of group web", "4711", doc.Audit.Digest, "b5dd81a4c2a1f0f6e7a99b4e5b0c7ad3f4f1f6a2b8d7c6e5f4a3b2c1d0e9f8a7", "history lost", "the freeze deadline of 10s", "uid:0/pid:812"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is missing", name, want)
			}
		}
		if len(out) > 1<<20 {
			t.Errorf("%s: %d bytes", name, len(out))
		}
	}
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("disk%02d", i))
	}
	many, past := month(6*time.Hour, names[:2]...)
	many.Asked = ""
	many.Fill(past)
	if out := render(t, "many", many); len(out) > 4<<20 {
		t.Errorf("40 flows: %d bytes", len(out))
	}
	gate, past := month(24*time.Hour, "data")
	gate.Role, gate.Asked = "gateway", ""
	gate.Fill(past)
	render(t, "gateway", gate)
}

// What others wrote is shown as they wrote it, and does nothing.
func TestHostile(t *testing.T) {
	evil := `</title><script>alert(1)</script>"'><img src=x onerror=alert(1)>`
	doc, past := month(time.Hour, "root")
	f := &doc.Flows[0]
	f.Status.Flow, f.Status.Device, f.Status.Reason, f.Status.Identity, f.Status.Peer, f.Group = evil, evil, evil, evil, evil, evil
	doc.Host, doc.Software, doc.Asked, doc.Trouble = evil, evil, evil, evil
	past.Events = append(past.Events, mover.Event{Time: now, Kind: evil, Flow: evil, Text: evil, Error: evil, Actor: evil, Details: map[string]any{evil: evil}},
		mover.Event{Time: now, Kind: "verify", Flow: evil, Report: &mover.Report{Kind: evil, Flow: evil, Error: evil, SourceRoot: evil, TargetRoot: evil, Proof: evil, Left: evil, Differ: []extent.Extent{{Off: 5, Len: 7}}, Unreadable: []string{evil}}})
	doc.Fill(past)
	var b bytes.Buffer
	if err := doc.HTML(&b); err != nil {
		t.Fatal(err)
	}
	if page := b.String(); strings.Contains(page, "<script") || strings.Contains(page, "<img") || strings.Count(page, "</title>") != 1+strings.Count(page, "<title>")-1 {
		t.Error("what was written by others became part of the page")
	}
}
