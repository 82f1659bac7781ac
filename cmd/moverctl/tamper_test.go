package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/audit"
)

// A trail that a daemon wrote, tampered with in each way: what verify finds by itself, and what it finds by a record that was noted elsewhere.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	image(t, filepath.Join(dir, "volume"), 1<<20)
	w := newWorld(t, filepath.Join(dir, "volume"), filepath.Join(dir, "target"), "")
	w.begin("source")
	for range 3 {
		w.must(0, "source", "pause", "root")
		w.must(0, "source", "resume", "root")
	}
	noted := ""
	for line := range strings.SplitSeq(w.must(0, "source", "report"), "\n") {
		if rest, ok := strings.CutPrefix(line, "audit trail: record "); ok {
			noted = strings.ReplaceAll(rest, ", digest ", ":")
		}
	}
	w.end("source")
	whole := filepath.Join(w.dir, "source", "audit")
	month := time.Now().UTC().Format("2006-01") + ".jsonl"
	if out := w.must(0, "", "audit", "verify", whole, "--expect", noted); !strings.Contains(out, "hold what was expected") {
		t.Error(out)
	}
	events := w.must(0, "", "audit", "show", whole)
	for _, want := range []string{"daemon.start", "pause.begin", "pause.end", "resume.end", "daemon.stop", "uid:0/pid:"} {
		if !strings.Contains(events, want) {
			t.Errorf("no %s in the trail:\n%s", want, events)
		}
	}
	if strings.Contains(events, "daemon.unclean") {
		t.Errorf("an unclean stop is told of a new trail:\n%s", events)
	}
	lines := func(f func(l [][]byte) [][]byte) func(dir string) {
		return func(dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, month))
			if err != nil {
				t.Fatal(err)
			}
			l := f(bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n")))
			if err := os.WriteFile(filepath.Join(dir, month), append(bytes.TrimSuffix(bytes.Join(l, nil), []byte("\n")), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := lines(func(l [][]byte) [][]byte { return l[:len(l)-3] })
	setBack := func(dir string) { // the end is cut, and head is made to fit
		cut(dir)
		setHead(t, dir, month)
	}
	for name, c := range map[string]struct {
		do       func(dir string)
		alone    int // exit code of verify
		expected int // with --expect
	}{
		"changed": {lines(func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("pause"), []byte("pausE"), 1)
			return l
		}), 3, 3},
		"changed who": {lines(func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("uid:0"), []byte("uid:1"), 1)
			return l
		}), 3, 3},
		"removed":       {lines(func(l [][]byte) [][]byte { return append(l[:3:3], l[4:]...) }), 3, 3},
		"removed first": {lines(func(l [][]byte) [][]byte { return l[1:] }), 3, 3},
		"swapped":       {lines(func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }), 3, 3},
		"twice":         {lines(func(l [][]byte) [][]byte { return append(l[:4:4], l[3:]...) }), 3, 3},
		"end cut":       {cut, 3, 3},
		"torn": {func(dir string) {
			st, _ := os.Stat(filepath.Join(dir, month))
			os.Truncate(filepath.Join(dir, month), st.Size()-5)
		}, 3, 3},
		"no head":                   {func(dir string) { os.Remove(filepath.Join(dir, "head")) }, 3, 3},
		"no month":                  {func(dir string) { os.Remove(filepath.Join(dir, month)) }, 3, 3},
		"end cut and head set back": {setBack, 0, 3},
		"written anew": {func(dir string) {
			os.RemoveAll(dir)
			tr, err := audit.New(audit.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			for range 30 {
				tr.Append(audit.Record{Event: "nothing.happened"})
			}
			tr.Close()
		}, 0, 3},
	} {
		dir := filepath.Join(t.TempDir(), "audit")
		if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		c.do(dir)
		if code, out := w.ctl("", "audit", "verify", dir); code != c.alone {
			t.Errorf("%s: exit %d, want %d: %s", name, code, c.alone, out)
		}
		if code, out := w.ctl("", "audit", "verify", dir, "--expect", noted); code != c.expected {
			t.Errorf("%s, with a noted record: exit %d, want %d: %s", name, code, c.expected, out)
		}
	}
	for _, bad := range []string{"", "5", "x:y", "0:" + strings.Repeat("a", 64), "5:abc"} {
		if out := w.must(2, "", "audit", "verify", whole, "--expect", bad); !strings.Contains(out, "--expect") {
			t.Error(out)
		}
	}
	// A start after a kill says so.
	lines(func(l [][]byte) [][]byte { return l[:len(l)-1] })(whole)
	setHead(t, whole, month)
	w.begin("source")
	w.end("source")
	if out := w.must(0, "", "audit", "show", whole); !strings.Contains(out, "daemon.unclean") {
		t.Errorf("a kill is not told:\n%s", out)
	}
}

// setHead makes head fit the last record of a month.
func setHead(t *testing.T, dir, month string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, month))
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	var r audit.Record
	if err := json.Unmarshal(all[len(all)-1], &r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "head"), fmt.Appendf(nil, "%020d %s\n", r.Seq, r.Digest), 0o600); err != nil {
		t.Fatal(err)
	}
}
