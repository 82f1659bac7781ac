package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

// newServer is a world with two mounted disks in the group server; more stands in the group.
func newServer(t *testing.T, more string) (w *world, mounts, files, targets []string) {
	t.Helper()
	store := looptest.New(t, 600<<20, looptest.Options{})
	looptest.Mkfs(t, store.Dev, "xfs", "-m", "reflink=1")
	copies := looptest.Mount(t, store.Dev)
	var loops []string
	for _, name := range []string{"root", "data"} {
		l := looptest.New(t, 64<<20, looptest.Options{DirectIO: true})
		loops, files = append(loops, l.Dev), append(files, l.File)
		mounts = append(mounts, mkfs(t, l.Dev))
		targets = append(targets, filepath.Join(copies, name+".img"))
	}
	w = newWorld(t, loops[0], targets[0], `    - name: data
      volume: `+loops[1]+`
      interval: 100ms
  groups:
    - name: server
      flows: [root, data]
      cutover: {limit: 5s, freeze-deadline: 20s}
`+more)
	conf, err := os.ReadFile(w.file("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("gateway", strings.ReplaceAll(string(conf), "create: true}", "create: true, points: {method: reflink}}")+
		"    - {tenant: acme, host: db1, name: data, target: "+targets[1]+", create: true, points: {method: reflink}}\n")
	return w, mounts, files, targets
}

// all polls the status until ok holds for every flow.
func (w *world) all(role, what string, ok func(mover.Status) bool) []mover.Status {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, out := w.ctl(role, "status", "-o", "json")
		var all []mover.Status
		good := json.Unmarshal([]byte(out), &all) == nil && len(all) > 0
		for _, s := range all {
			good = good && ok(s)
		}
		if good {
			return all
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s never were %s; last status:\n%s", role, what, out)
		}
		time.Sleep(10 * time.Millisecond) // polling what a person would watch
	}
}

func (w *world) moments() []mover.Moment {
	w.t.Helper()
	out := w.must(0, "gateway", "points", "--moments", "-o", "json")
	var all struct {
		Moments []mover.Moment `json:"moments"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		w.t.Fatalf("%v in %s", err, out)
	}
	return all.Moments
}

// The whole life of a group: points when asked and on schedule, rehearsal, cutover, restart, rollback, finish.
func TestGroup(t *testing.T) {
	marks := t.TempDir()
	hook := func(name string) string { return fmt.Sprintf("[/bin/sh, -c, 'echo %s >> %s/hooks']", name, marks) }
	w, mounts, files, targets := newServer(t, "      hooks: {pre: "+hook("pre")+", post: "+hook("post")+"}\n")
	w.begin("gateway")
	w.begin("source")
	w.all("source", "at a point", func(s mover.Status) bool { return s.PointEpoch > 0 && strings.HasPrefix(s.Tracking, "ebpf") })

	// A member goes with its group.
	for _, verb := range []string{"cutover", "rollback", "finish"} {
		if out := w.must(1, "source", verb, "data", "--yes"); !strings.Contains(out, "flow data is in group server") || !strings.Contains(out, "moverctl "+verb+" server") {
			t.Errorf("%s of a member: %s", verb, out)
		}
	}
	if out := w.must(1, "source", "point", "root"); !strings.Contains(out, "moverctl point server") {
		t.Errorf("point of a member: %s", out)
	}
	if out := w.must(2, "source", "point", "nope"); !strings.Contains(out, `there is no flow or group "nope"; there are root data server`) {
		t.Errorf("unknown: %s", out)
	}
	w.must(2, "source", "point", "server", "--limit", "1m")
	w.must(1, "source", "finish", "server", "--yes")
	w.must(1, "source", "rollback", "server", "--yes")

	// Plain verbs go to each member.
	if out := w.must(0, "source", "pause", "server"); strings.Count(out, "is paused") != 2 {
		t.Errorf("pause: %s", out)
	}
	if out := w.must(1, "source", "point", "server"); !strings.Contains(out, "flow root, data: refused: the flow is paused") {
		t.Errorf("point while paused: %s", out)
	}
	w.must(0, "source", "resume", "server")
	if out := w.must(0, "source", "sync", "server"); strings.Count(out, "is in sync") != 2 {
		t.Errorf("sync: %s", out)
	}
	if out := w.must(0, "source", "verify", "server"); !strings.Contains(out, "verify of server found source and target equal") {
		t.Errorf("verify: %s", out)
	}

	for i, m := range mounts {
		if err := os.WriteFile(m+"/before", []byte(fmt.Sprint("before the point ", i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(marks, "point.json")
	out := w.must(0, "source", "point", "server", "--report", file)
	if !strings.Contains(out, "point of server taken") || !strings.Contains(out, "app consistent, of one moment") {
		t.Errorf("point: %s", out)
	}
	var r mover.Report
	if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &r) != nil || len(r.Members) != 2 || r.Consistency != "app" || r.Members[0].Moment != r.Members[1].Moment {
		t.Errorf("report %+v, %v", r, err)
	}
	all := w.moments()
	if len(all) != 1 || !all[0].Complete || all[0].Worth != "app" || len(all[0].Points) != 2 {
		t.Errorf("moments at the gateway: %+v", all)
	}
	if said, _ := os.ReadFile(marks + "/hooks"); string(said) != "pre\npost\n" {
		t.Errorf("hooks: %q", said)
	}
	if out := w.must(0, "source", "status", "server"); !strings.Contains(out, "root data") || !strings.Contains(out, "app, ") {
		t.Errorf("status: %s", out)
	}
	if out := w.must(0, "source", "cutover", "server", "--rehearse"); !strings.Contains(out, "rehearsal of server done") || strings.Count(out, "equal, root") != 2 {
		t.Errorf("rehearsal: %s", out)
	}
	if all = w.moments(); len(all) != 2 || !all[1].Rehearsed || !all[1].Complete {
		t.Errorf("moments after the rehearsal: %+v", all)
	}

	out = w.must(0, "source", "cutover", "server", "--yes")
	if !strings.Contains(out, "cutover of server done") || strings.Count(out, "target handed over") != 2 {
		t.Errorf("cutover: %s", out)
	}
	for i := range files {
		equal(t, files[i], targets[i])
		if writes(mounts[i]) == nil {
			t.Errorf("disk %d is not frozen", i)
		}
	}
	w.end("source")
	w.begin("source")
	w.all("source", "done after a restart", func(s mover.Status) bool {
		return s.State == mover.Done && s.Group.State == "done" && s.Group.Moment != nil
	})
	w.must(1, "source", "sync", "server")
	w.must(1, "source", "point", "server")

	// A boot ends the freeze, the records and the tracking; what was handed over is the gateway's word then, and the way back is open.
	w.end("source")
	w.must(0, "", "thaw", "--all", "--yes", "--run", filepath.Join(w.dir, "run"))
	for _, glob := range []string{w.dir + "/run/*.json", "/sys/fs/bpf/" + filepath.Base(w.dir)} {
		paths, _ := filepath.Glob(glob)
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.begin("source")
	w.all("source", "done after a boot", func(s mover.Status) bool { return s.State == mover.Done && s.Group.State == "done" })
	w.must(0, "source", "rollback", "server", "--yes")
	for i := range mounts {
		if err := writes(mounts[i]); err != nil {
			t.Errorf("disk %d after the rollback: %v", i, err)
		}
	}
	w.must(0, "source", "sync", "server")
	if said, _ := os.ReadFile(marks + "/hooks"); strings.Count(string(said), "pre") != strings.Count(string(said), "post") {
		t.Errorf("hooks: %q", said)
	}

	// After finish there is no way back, also for the next process, and nothing is tracked.
	w.must(0, "source", "cutover", "server", "--yes")
	w.must(2, "source", "finish", "server")
	if out := w.must(0, "source", "finish", "server", "--yes"); !strings.Contains(out, "server is finished") {
		t.Errorf("finish: %s", out)
	}
	if writes(mounts[1]) == nil {
		t.Error("finish has thawed")
	}
	for range 2 {
		if out := w.must(1, "source", "rollback", "server", "--yes"); !strings.Contains(out, "was finished at") {
			t.Errorf("rollback after finish: %s", out)
		}
		w.must(1, "source", "resume", "root")
		pins, _ := filepath.Glob("/sys/fs/bpf/" + filepath.Base(w.dir) + "/*")
		if len(pins) > 0 {
			t.Errorf("still tracked: %v", pins)
		}
		w.all("source", "finished", func(s mover.Status) bool { return s.State == mover.Done && s.Group.State == "finished" })
		w.end("source")
		w.begin("source")
	}
	w.must(0, "source", "thaw", "server", "--yes")
	for i := range mounts {
		if err := writes(mounts[i]); err != nil {
			t.Errorf("disk %d after the thaw: %v", i, err)
		}
	}
}

// Points on schedule, and what keeps them from being taken.
func TestGroupSchedule(t *testing.T) {
	w, mounts, _, _ := newServer(t, "      points: {every: 1s}\n")
	w.begin("gateway")
	w.begin("source")
	taken := func(n int64) func(mover.Status) bool { return func(s mover.Status) bool { return s.Group.Taken >= n } }
	all := w.all("source", "with moments", taken(2))
	if g := all[0].Group; g.Moment.Consistency != "crash" || g.Every != 1 || g.Due.IsZero() || len(g.Moment.Points) != 2 || g.Moment.Points["data"] == "" {
		t.Errorf("group %+v", g)
	}
	w.must(0, "source", "pause", "data")
	w.all("source", "skipping", func(s mover.Status) bool {
		return s.Group.Skipped > 0 && strings.Contains(s.Group.Reason, "flow data is paused")
	})
	w.must(0, "source", "resume", "data")
	n := w.all("source", "resumed", func(mover.Status) bool { return true })[0].Group.Taken
	w.all("source", "at it again", taken(n+1))
	if err := writes(mounts[0]); err != nil {
		t.Errorf("a write: %v", err)
	}
	moments := w.moments()
	for _, m := range moments {
		if m.Worth != "crash" || !m.Complete && m.ID != moments[0].ID {
			t.Errorf("moment %+v", m)
		}
	}
	w.end("source")
	if out, err := os.ReadFile(filepath.Join(w.dir, "run", "last-moment-server.json")); err != nil || !strings.Contains(string(out), `"crash"`) {
		t.Errorf("the last moment is not recorded: %s %v", out, err)
	}
}
