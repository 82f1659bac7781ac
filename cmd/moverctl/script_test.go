package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files")

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guardian" { // the daemon under test starts itself as guardian
		freeze.GuardianMain()
		return
	}
	if conf := os.Getenv(asSource); conf != "" {
		os.Exit(sourceMain(conf))
	}
	os.Exit(m.Run())
}

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fake is a daemon that answers from tables.
type fake struct {
	role string

	mu    sync.Mutex // flush asks for several flows at once
	asked []string
}

func (f *fake) Daemon() control.Daemon {
	return control.Daemon{Role: f.role, Version: "v1.2.3", Pid: 42, Config: "/etc/mover/moverd.yaml"}
}

func (f *fake) Status() []mover.Status {
	if f.role == "gateway" {
		return gatewayFlows()
	}
	return sourceFlows()
}

func sourceFlows() []mover.Status {
	return []mover.Status{
		{Flow: "root", Role: "source", Device: "/dev/vda", Size: 40 << 30, State: mover.Passing, Since: testNow.Add(-time.Minute),
			Pass:     &mover.Pass{Kind: "full", Mode: "direct", Epoch: 1, Total: 12 << 30, Read: 6 << 30, Acked: 5 << 30, ETA: 62},
			Tracking: "ebpf: bitmap, granule 4 KiB, vda (254:0)", Dirty: 212 << 20, DirtyRate: 3 << 20, Rate: 210 << 20, WireRate: 98 << 20, Group: serverGroup(),
			WireOut: 3 << 30, Lag: 61, Conns: 4, RTT: 0.02, Next: "wait for the first recovery point"},
		{Flow: "data", Role: "source", Device: "/dev/vdb1", Size: 2 << 40, State: mover.Idle, Reason: "next pass in 12s", Since: testNow.Add(-18 * time.Second),
			Tracking: "ebpf: bitmap, granule 4 KiB, vdb (254:16)", Dirty: 212 << 20, Lag: 18, Conns: 4, Cutover: "final delta 212 MiB, about 4s", Estimate: 4,
			PointTime: testNow.Add(-3 * time.Minute), PointEpoch: 12, PointConsistency: "fuzzy", Next: "moverctl cutover", Group: serverGroup()},
		{Flow: "logs", Role: "source", Device: "/dev/mapper/vg-logs", Size: 100 << 30, State: mover.Stopped, Since: testNow.Add(-2 * time.Hour),
			Reason: "read bytes [4096,8192) of /dev/mapper/vg-logs: input/output error", LastError: "read bytes [4096,8192) of /dev/mapper/vg-logs: input/output error",
			Tracking: "scan: the volume is a thin volume", Gap: "the daemon was not there when the kernel started",
			Next: "replace the disk, or set on-read-error: skip", Unreadable: []string{"[4096,8192)"}},
		{Flow: "photos", Role: "source", Device: "s3://photos/ at https://rgw.example", Peer: "bos://photos-bj/ at bj.bcebos.com", Size: 3 << 30, State: mover.Passing, Rate: 80 << 20,
			Since: testNow.Add(-time.Minute), Pass: &mover.Pass{Kind: "delta", Mode: "objects", Total: 2 << 30, Acked: 1 << 30, ETA: 13},
			Bucket: &mover.Bucket{Pass: 3, Listed: 30000, Left: 12, Same: 20000, Planned: 10000, PlannedBytes: 2 << 30, Copied: 5000, CopiedBytes: 1 << 30, Vanished: 4,
				Objects: 24996, Bytes: 2 << 30, Refused: 3, Failed: 1}, Next: "3 objects cannot be carried: moverctl objects shows which"},
	}
}

func serverGroup() *mover.Group {
	return &mover.Group{Name: "server", Members: []string{"root", "data"}, State: "idle", Reason: "the last point that was due was left out: flow root is in a full pass",
		Every: 900, Due: testNow.Add(5 * time.Minute), Taken: 7, Skipped: 1,
		Moment: &mover.LastMoment{Time: testNow.Add(-10 * time.Minute), Consistency: "crash", Pause: 0.12, Worse: []string{"the pre hook failed"}}}
}

func gatewayFlows() []mover.Status {
	return []mover.Status{
		{Flow: "acme/db1/root", Role: "gateway", Device: "/dev/vdb", Size: 40 << 30, State: mover.Passing, Phase: "incomplete", Conns: 4,
			Pass: &mover.Pass{Kind: "full", Mode: "direct", Total: 12 << 30, Acked: 5 << 30, ETA: -1}, Rate: 210 << 20, WireRate: 98 << 20, LogLimit: 4 << 30},
		{Flow: "acme/db1/data", Role: "gateway", Device: "/srv/data.img", Size: 2 << 40, State: mover.Waiting, Reason: "for the source to connect", Phase: "point",
			Since: testNow.Add(-90 * time.Second), Log: 1 << 20, LogLimit: 4 << 30, PointTime: testNow.Add(-time.Hour), PointEpoch: 7, PointConsistency: "crash"},
	}
}

func (f *fake) Do(_ context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	b, _ := json.Marshal(r)
	f.mu.Lock()
	f.asked = append(f.asked, verb+" "+string(b))
	f.mu.Unlock()
	if verb == control.Lines {
		return lines(r)
	}
	if verb == control.Report {
		return control.Result{Past: f.past(r.Flow)}, nil
	}
	if verb != control.Claim && !slices.ContainsFunc(sourceFlows(), func(s mover.Status) bool { return s.Flow == r.Flow }) {
		return control.Result{}, fmt.Errorf("there is no flow %q; there are root data logs: %w", r.Flow, sentinel.ErrUsage)
	}
	if r.Flow == "photos" {
		return bucketVerb(verb, r)
	}
	switch verb {
	case control.Manifest, control.Objects:
		return control.Result{}, fmt.Errorf("%s is for bucket flows; %s moves a volume: %w", verb, r.Flow, sentinel.ErrUsage)
	case control.Cutover:
		for _, p := range []mover.Progress{
			{Step: "rounds", Text: "sending what has changed"}, {Step: "rounds", Text: "round 1: 212 MiB sent, the pause would be about 400 ms"},
			{Step: "freeze", Text: "freeze"}, {Step: "read-back", Text: "reading the source", Done: 5 << 20, Total: 10 << 20, ETA: 2}, {Step: "release", Text: "release"}} {
			progress(p)
		}
		report := reportOf(r)
		if r.Flow == "logs" {
			report.OK, report.Error, report.Left = false, "not converged: changes arrive at 90 MiB/s, the line carries 80 MiB/s", "running"
			return control.Result{Report: report}, fmt.Errorf("%w: changes arrive at 90 MiB/s, the line carries 80 MiB/s", sentinel.ErrNotConverged)
		}
		return control.Result{Report: report}, nil
	case control.Point:
		return groupPoint(r)
	case control.Verify:
		report := reportOf(r)
		report.Kind = "verify"
		if r.Flow == "data" {
			report.OK, report.Error, report.TargetRoot = false, "source and target differ: 16 KiB in 1 places", strings.Repeat("c", 64)
			report.Differ = []extent.Extent{{Off: 1 << 20, Len: 16 << 10}}
			return control.Result{Report: report}, fmt.Errorf("%w: 16 KiB in 1 places", sentinel.ErrDiffer)
		}
		return control.Result{Report: report}, nil
	case control.Claim:
		if !r.Overwrite && !r.Drop {
			return control.Result{}, fmt.Errorf("target /dev/vdb is not blank (ext4 \"old\"); claim it with --overwrite if nothing on it is needed: %w", sentinel.ErrRefused)
		}
	}
	return control.Result{Text: r.Flow + " " + verb + " done"}, nil
}

func lines(r control.Request) (control.Result, error) {
	l := mover.LineStatus{Name: "idc-bj", Rate: 25e6, Allowed: 25e6 / 4, Why: "the peak of 95 billing", Used: 6.2e6, Changes: testNow.Add(8 * time.Hour), Next: 50e6 / 8, Billing: "95", Peak: 25e6 / 4,
		Spare: 318, Month: testNow, MonthBytes: 3 << 40, MonthLimit: 20 << 40, Leases: []mover.Lease{{Flow: "acme/db1/data", Class: "delta", Want: 2e6, Rate: 2e6},
			{Flow: "acme/db1/logs", Class: "idle"}, {Flow: "acme/db1/root", Class: "bulk", Want: -1, Rate: 4e6}}}
	switch {
	case r.Line != "" && r.Line != "idc-bj":
		return control.Result{}, fmt.Errorf("there is no line %q; there are idc-bj: %w", r.Line, sentinel.ErrUsage)
	case r.Set == nil:
		return control.Result{Lines: []mover.LineStatus{l, {Name: "vpn", Allowed: -1, Why: "no rate is set", Billing: "flat", Month: testNow}}}, nil
	}
	if *r.Set == (mover.LineSet{}) {
		return control.Result{Text: "line idc-bj is as configured again", Lines: []mover.LineStatus{l}}, nil
	}
	l.Set = r.Set
	return control.Result{Text: "line idc-bj was set", Lines: []mover.LineStatus{l}}, nil
}

// past is three weeks of the first flow, at a source.
func (f *fake) past(name string) *report.Document {
	began := testNow.AddDate(0, 0, -20)
	s := sourceFlows()[1]
	s.Size = 100 << 30
	d := &report.Document{Made: testNow, Asked: name, Role: f.role, Host: "db1", Software: "v1.2.3", Flows: []report.Flow{{Status: s}}}
	past := history.Past{Samples: map[string][]history.Sample{}}
	ended := func(kind string, at time.Time, looked int64) {
		past.Events = append(past.Events, mover.Event{Kind: mover.PassEvent, Flow: s.Flow, Began: at, Time: at.Add(time.Hour), Pass: &mover.EndedPass{Kind: kind, Passes: 10,
			Moved: mover.Moved{Looked: looked, Free: looked / 2, Same: looked / 4, Sent: looked / 4, Payload: looked / 8, Wire: looked/8 + looked/256}}})
	}
	ended("full", began, 100<<30)
	for i := range 19 {
		at := began.AddDate(0, 0, i+1)
		ended("delta", at, 4<<30)
		past.Samples[s.Flow] = append(past.Samples[s.Flow], history.Sample{Time: at, Span: 1800, Seen: 1800, Rate: 1 << 20, Wire: 64 << 10})
	}
	d.Fill(past)
	return d
}

func reportOf(r control.Request) *mover.Report {
	kind, left := "cutover", "frozen"
	if r.Rehearse {
		kind, left = "rehearsal", "running"
	}
	if r.Leave != "" {
		left = r.Leave
	}
	return &mover.Report{Flow: r.Flow, Kind: kind, OK: true, Started: testNow, Ended: testNow.Add(3 * time.Second), Pause: 0.41,
		Steps:  []mover.Step{{Name: "rounds", Seconds: 2.5}, {Name: "freeze", Seconds: 0.05}, {Name: "delta", Seconds: 0.2}, {Name: "read-back", Seconds: 0.16}},
		Rounds: 2, FinalDelta: 2 << 20, SourceRoot: strings.Repeat("a", 64), TargetRoot: strings.Repeat("a", 64), Compared: 12 << 30, Free: 28 << 30,
		Unreadable: []string{"[4096,8192)"}, Consistency: "crash", Proof: "exact", Left: left, Generation: "6c9958946b538d66ce2a8ca3a10b9915", Epoch: 13,
		Totals: mover.Counts{Offered: 100, Sent: 70, Same: 20, Copied: 10, Put: 4096, Zero: 8192, Free: 1 << 30}, WireOut: 1 << 20}
}

// bucketVerb answers for the bucket flow.
func bucketVerb(verb string, r control.Request) (control.Result, error) {
	switch verb {
	case control.Objects:
		if len(r.After) == 0 {
			return control.Result{Objects: []mover.BucketObject{{Key: "a/../b", Outcome: "refused", Size: 10, Why: "a key with .. is not supported"}}, Next: []byte("a/../b")}, nil
		}
		return control.Result{Objects: []mover.BucketObject{{KeyBytes: []byte("\xff"), Outcome: "partly", Size: 1 << 20, Lost: []string{"user metadata: 3000 bytes, at most 2048"}}}}, nil
	case control.Cutover, control.Verify:
		report := &mover.Report{Flow: r.Flow, Kind: verb, OK: true, Started: testNow, Ended: testNow.Add(9 * time.Second), Pause: 5, Rounds: 2, FinalDelta: 2 << 20,
			Steps:  []mover.Step{{Name: "rounds", Seconds: 4}, {Name: "final", Seconds: 5}},
			Bucket: &mover.BucketReport{Pass: 5, Passes: 2, Objects: 29997, Bytes: 3 << 30, Read: r.All, Manifest: "/var/lib/mover/buckets/photos/manifest-000005.jsonl", Root: strings.Repeat("d", 64)}}
		if verb == control.Verify {
			report.Bucket.Manifest, report.Bucket.Root = "", ""
			report.Bucket.Differ, report.Bucket.Examples = 1, []string{`"k": it is missing`}
			report.OK, report.Error = false, "1 objects are not what was written there"
			return control.Result{Report: report}, fmt.Errorf("%s: %w", report.Error, sentinel.ErrDiffer)
		}
		if !r.WithoutRefused {
			report.OK, report.Error = false, "3 objects cannot be carried"
			report.Bucket = &mover.BucketReport{Refused: 3}
			return control.Result{Report: report}, fmt.Errorf("%s: %w", report.Error, sentinel.ErrRefused)
		}
		report.Bucket.Refused = 3
		return control.Result{Report: report}, nil
	}
	return control.Result{Text: r.Flow + " " + verb + " done"}, nil
}

// groupPoint is a point of a flow; of logs, a moment that is incomplete.
func groupPoint(r control.Request) (control.Result, error) {
	one := reportOf(r)
	one.Kind, one.Consistency, one.Left, one.SourceRoot, one.TargetRoot = "point", "app", "running", "", ""
	one.Moment, one.MomentTime, one.Point = "09bacba7", testNow, "20260301T120000Z-09bacba7"
	if r.Flow != "logs" {
		return control.Result{Report: one}, nil
	}
	two := *one
	two.Flow, two.Point, two.OK, two.PointError, two.Error = "data", "", false, "no room", "no copy of the point is kept: no room"
	two.Worse = []string{"no freeze stops: dbwriter (pid 7)"}
	whole := mover.Whole("server", "point", []*mover.Report{one, &two})
	return control.Result{Report: whole}, fmt.Errorf("flow data: %s: %w", two.Error, sentinel.ErrRefused)
}

// serve starts a fake on a socket.
func serve(t *testing.T, f *fake, path string) {
	t.Helper()
	ln, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(context.Background(), f, slog.New(slog.DiscardHandler))
	done := make(chan error)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

const prices = `zone: UTC
prices:
  - {kind: line, name: express, model: flat, price: 12000, unit: month, rate: 200Mbit/s, currency: CNY, from: 2026-01-01, until: 2026-06-30, source: contract 4711}
  - {kind: volume, name: ssd, price: 0.5, unit: GiB-month, currency: CNY, from: 2026-01-01, source: list}
use: {line: line/express, target: volume/ssd, points: none}
`

// TestScripts runs testdata/*.txt: a line "$ args" is a command, what follows is its output, standard error marked by "! ", and its exit
// code when it is not 0. @S and @G are the sockets of a source and a gateway.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"prices.yaml": prices, "wrong.yaml": strings.Replace(prices, "unit: month", "unit: year", 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sockets := strings.NewReplacer("@S", filepath.Join(dir, "s.sock"), "@G", filepath.Join(dir, "g.sock"), "@D", dir)
	back := strings.NewReplacer(runtime.Version(), "GO", "moverctl "+version.String(), "moverctl VERSION", filepath.Join(dir, "s.sock"), "@S", filepath.Join(dir, "g.sock"), "@G", dir, "@D")
	source, gateway := &fake{role: "source"}, &fake{role: "gateway"}
	serve(t, source, filepath.Join(dir, "s.sock"))
	serve(t, gateway, filepath.Join(dir, "g.sock"))

	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		t.Run(filepath.Base(path), func(t *testing.T) {
			script, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range strings.Lines(string(script)) {
				args, ok := strings.CutPrefix(line, "$ ")
				if strings.HasPrefix(line, "# ") {
					got.WriteString(line)
				}
				if !ok {
					continue
				}
				got.WriteString(line)
				var out, errs bytes.Buffer
				code := run(t.Context(), strings.Fields(sockets.Replace(args)), &terminal{in: strings.NewReader(""), out: &out, err: &errs, now: func() time.Time { return testNow }})
				got.WriteString(back.Replace(out.String()))
				for l := range strings.Lines(back.Replace(errs.String())) {
					got.WriteString("! " + l)
				}
				if code != 0 {
					fmt.Fprintf(&got, "exit %d\n", code)
				}
				for _, f := range []*fake{source, gateway} {
					f.mu.Lock()
					for _, a := range f.asked {
						fmt.Fprintf(&got, "(%s was asked: %s)\n", f.role, a)
					}
					f.asked = nil
					f.mu.Unlock()
				}
				got.WriteString("\n")
			}
			if *rewrite {
				if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(script) {
				t.Errorf("%s is out of date; look at the difference, then go test -rewrite.\n%s", path, diff(string(script), got.String()))
			}
		})
	}
}

// diff shows the first line that differs.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d\nwant %s\ngot  %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// The verdict of a JSON answer is for programs: it must parse, and the report must come also with exit code 3.
func TestJSON(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	serve(t, &fake{role: "source"}, socket)
	ctl := func(v any, args ...string) int {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"-s", socket, "-o", "json"}, args...), &terminal{in: strings.NewReader(""), out: &out, err: io.Discard, now: time.Now})
		if err := json.Unmarshal(out.Bytes(), v); err != nil {
			t.Errorf("%v: %v in %s", args, err, out.String())
		}
		return code
	}
	var all []mover.Status
	if code := ctl(&all, "status"); code != 0 || len(all) != 4 || all[0].Pass.Acked != 5<<30 {
		t.Errorf("status: exit %d, %+v", code, all)
	}
	var r mover.Report
	if code := ctl(&r, "cutover", "root", "--yes"); code != 0 || !r.OK {
		t.Errorf("cutover: exit %d, %+v", code, r)
	}
	if code := ctl(&r, "verify", "data"); code != 3 || r.OK || len(r.Differ) != 1 {
		t.Errorf("verify: exit %d, %+v", code, r)
	}
	file := filepath.Join(t.TempDir(), "report.json")
	if code := ctl(&r, "cutover", "logs", "--yes", "--report", file); code != 3 || r.OK {
		t.Errorf("cutover that does not converge: exit %d, %+v", code, r)
	}
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &r) != nil || r.Error == "" {
		t.Errorf("report file: %v %s", err, b)
	}
}

// watch on a terminal paints bars that fit, and without one it prints a line a flow.
func TestWatchPaint(t *testing.T) {
	for _, cols := range []int{40, 80, 200} {
		var b strings.Builder
		for _, s := range append(sourceFlows(), gatewayFlows()...) {
			block(&b, s, testNow, cols)
		}
		for l := range strings.Lines(b.String()) {
			if n := len([]rune(strings.TrimSuffix(l, "\n"))); n > cols {
				t.Errorf("%d columns: a line has %d: %s", cols, n, l)
			}
		}
		if !strings.Contains(b.String(), "█") || !strings.Contains(b.String(), "░") {
			t.Errorf("%d columns: no bar in\n%s", cols, b.String())
		}
	}
}
