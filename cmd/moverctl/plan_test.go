package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/mover"
)

// tree is names, modes, sizes and times of all that is in a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			fmt.Fprintln(&all, path, st.Mode(), st.Size(), st.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A plan tells what a pass would do: without a daemon and before the flow has ever run, of a running daemon, and beside one that was killed. Nothing is written anywhere.
func TestBucketPlan(t *testing.T) {
	w := bucketWorld(t, "      exclude: [\"tmp/**\"]\n")
	text, err := os.ReadFile(w.file("source"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("source", strings.Replace(string(text), "  buckets:", "  prices: @/prices.yaml\n  buckets:", 1))
	w.write("prices", `prices:
  - {kind: line, name: l, model: moved, price: 1, unit: GB, currency: CNY, from: 2020-01-01, source: test}
  - {kind: bos, name: COLD, price: 3, unit: GB-month, currency: CNY, from: 2020-01-01, source: test}
  - {kind: request, name: COLD, price: 10, unit: 10k, currency: CNY, from: 2020-01-01, source: test}
use: {line: line/l, target: bos/COLD, points: none}
`)
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 30 {
		put(fmt.Sprintf("from/a/%d", i), strings.Repeat("x", 1_000_000))
	}
	put("from/tmp/x", "x")
	plan := func(role string, args ...string) (p struct {
		mover.BucketPlan
		Cost *cost.Answer `json:"cost"`
	}) {
		t.Helper()
		before := tree(t, w.dir)
		out := w.must(0, role, append([]string{"plan", "photos", "-o", "json"}, args...)...)
		if role == "" && tree(t, w.dir) != before {
			t.Errorf("something was written:\n%s\n%s", before, tree(t, w.dir))
		}
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return p
	}
	p := plan("", "-c", w.file("source"))
	if p.Copy != (mover.BucketSum{Objects: 30, Bytes: 30_000_000}) || p.LeftOut != 1 || p.Pass != 0 || len(p.Refusals) != 0 || p.Requests.Put != 30 || !p.Deletes {
		t.Errorf("%+v", p.BucketPlan)
	}
	if c := p.Cost; c == nil || !c.Whole || len(c.Items) != 3 || c.Items[0].ToCome.Cost.Amount != 0.03 || c.Items[2].SoFar.Count != 30 {
		t.Errorf("%+v", c)
	}
	out := w.must(0, "", "plan", "photos", "-c", w.file("source"))
	for _, want := range []string{"nothing was written", "to be copied       30 objects, 28.6 MiB: 30 new", "1 left out by filters", "target 30 (30 put", "at 100 Mbit/s", "cost, line         0.0300 CNY", "cost, a month"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	put("to/a/7", "precious")
	if out := w.must(0, "", "plan", "photos", "-c", w.file("source")); !strings.Contains(out, "WOULD NOT BEGIN") || !strings.Contains(out, "claim: true") || !strings.Contains(out, `"a/7"`) {
		t.Errorf("a target that is not empty:\n%s", out)
	}
	if err := os.Remove(filepath.Join(w.dir, "to/a/7")); err != nil {
		t.Fatal(err)
	}

	// Wrong questions.
	w.must(2, "", "plan", "nope", "-c", w.file("source"))
	w.must(2, "", "plan")
	w.must(2, "", "plan", "photos", "-c", filepath.Join(w.dir, "none.yaml"))
	w.must(1, "source", "plan", "photos") // no daemon

	// A daemon that moves, and is asked; beside it the ledger is not read; after a kill it is.
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asSource+"="+w.file("source"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.await("source", "copied", func(s mover.Status) bool { return s.Bucket.Objects == 30 })
	w.must(0, "source", "sync", "photos")
	if p := plan("source"); p.Same.Objects+p.Copy.Objects != 30 || p.Ours.Objects != 30 || p.Others.Objects != 0 || p.Pass == 0 || len(p.Refusals) != 0 {
		t.Errorf("%+v", p.BucketPlan)
	}
	w.must(2, "source", "plan", "nope")
	if out := w.must(1, "", "plan", "photos", "-c", w.file("source")); !strings.Contains(out, fmt.Sprintf("process %d has it open", cmd.Process.Pid)) {
		t.Errorf("beside a daemon:\n%s", out)
	}
	w.must(0, "source", "pause", "photos")
	cmd.Process.Kill()
	cmd.Wait()
	put("from/new", "x")
	if err := os.Remove(filepath.Join(w.dir, "from/a/3")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.dir, "to/a/4")); err != nil {
		t.Fatal(err)
	}
	p = plan("", "-c", w.file("source"))
	if p.New != 1 || p.Delete.Objects != 1 || p.Ours.Objects != 29 || p.Source.Objects != 30 || len(p.Refusals) != 1 || !strings.Contains(p.Refusals[0], "paused") {
		t.Errorf("%+v", p.BucketPlan)
	}
}
