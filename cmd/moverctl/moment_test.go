package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

// TestMoment: every disk of a moment is restored and exported, all or none under their names; what is damaged or not whole is refused.
func TestMoment(t *testing.T) {
	w, mounts, _, targets := newServer(t, "")
	w.begin("gateway")
	w.begin("source")
	w.all("source", "at a point", func(s mover.Status) bool { return s.PointEpoch > 0 && strings.HasPrefix(s.Tracking, "ebpf") })
	for _, m := range mounts {
		if err := os.WriteFile(m+"/before", []byte("before the point"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.must(0, "source", "point", "server")
	w.must(0, "source", "pause", "server")
	const group = "acme/db1/server"
	m := w.moments()[0]
	for end := time.Now().Add(20 * time.Second); m.Points[0].Point.Image == "" || m.Points[1].Point.Image == ""; m = w.moments()[0] {
		if time.Now().After(end) { // roots are read after the source has its answer
			t.Fatalf("no roots: %+v", m)
		}
		time.Sleep(10 * time.Millisecond)
	}
	var kept []string // in the order of the moment's points: data, root
	for i, name := range []string{"data", "root"} {
		target := targets[1-i]
		all, err := filepath.Glob(target + ".points/*" + m.Points[i].Point.ID + ".img")
		if err != nil || len(all) != 1 || m.Points[i].Flow != "acme/db1/"+name {
			t.Fatalf("%v %v %+v", all, err, m)
		}
		kept = append(kept, all[0])
	}
	if out := w.must(0, "gateway", "points", group, "--moments"); !strings.Contains(out, m.ID) || !strings.Contains(out, "2/2") || strings.Contains(out, "incomplete") {
		t.Errorf("moments:\n%s", out)
	}
	w.must(0, "gateway", "points", group, "--pin", m.ID)
	if out := w.must(0, "gateway", "points", "acme/db1"); strings.Count(out, "pinned") != 2 || !strings.Contains(out, "acme/db1/data ") {
		t.Errorf("points:\n%s", out)
	}
	dir := filepath.Join(filepath.Dir(targets[0]), "restored")
	if out := w.must(0, "gateway", "restore", "acme/db1", m.ID, "--to-dir", dir); !strings.Contains(out, "every disk compared and equal") {
		t.Errorf("restore:\n%s", out)
	}
	for i, name := range []string{"data", "root"} {
		equal(t, kept[i], filepath.Join(dir, name+".img"))
		l := looptest.Attach(t, filepath.Join(dir, name+".img"), looptest.Options{})
		if b, err := os.ReadFile(filepath.Join(looptest.Mount(t, l.Dev), "before")); err != nil || string(b) != "before the point" {
			t.Errorf("%s as restored: %q %v", name, b, err)
		}
	}
	if out := w.must(1, "gateway", "restore", group, m.ID, "--to-dir", dir); !strings.Contains(out, "exists") {
		t.Errorf("restore over files:\n%s", out)
	}
	w.must(2, "gateway", "restore", group, m.ID, "--to-dir", dir, "--overwrite", "--yes")
	w.must(0, "gateway", "export", group, m.ID[len(m.ID)-8:], "--to-dir", dir)
	for i, name := range []string{"data", "root"} {
		looptest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", kept[i], filepath.Join(dir, name+".qcow2"))
	}

	// The second disk's copy rots: the first one's is whole, and said to be, but none has its name.
	if err := os.Chmod(kept[1], 0o600); err != nil {
		t.Fatal(err)
	}
	overwrite(t, kept[1], 64<<10, "rot")
	for _, verb := range []string{"restore", "export"} {
		to := filepath.Join(dir, verb)
		ext := map[string]string{"restore": ".img", "export": ".qcow2"}[verb]
		whole := filepath.Join(to, m.ID+".incomplete", "data"+ext)
		if out := w.must(1, "gateway", verb, group, m.ID, "--to-dir", to); !strings.Contains(out, "is damaged") || !strings.Contains(out, "whole are only: "+whole) {
			t.Errorf("%s of a damaged point:\n%s", verb, out)
		}
		named, _ := filepath.Glob(to + "/*" + ext)
		left, _ := filepath.Glob(to + "/*/*")
		if len(named) != 0 || len(left) != 1 || left[0] != whole {
			t.Errorf("%s left %v %v", verb, named, left)
		}
	}
	w.must(0, "gateway", "points", "acme/db1/root", "--remove", m.Points[1].Point.ID, "--yes")
	for _, args := range [][]string{{"points", "--moments"}, {"restore", group, m.ID, "--to-dir", filepath.Join(dir, "half")}} {
		if code, out := w.ctl("gateway", args...); (code != 0) != (args[0] == "restore") || !strings.Contains(out, "lacks acme/db1/root") {
			t.Errorf("%v of a moment that is not whole: %d\n%s", args, code, out)
		}
	}
	w.must(0, "gateway", "points", group, "--remove", m.ID, "--yes")
	if all := w.moments(); len(all) != 0 {
		t.Errorf("after the removal: %+v", all)
	}
	if out := w.must(1, "gateway", "finish", group, "--yes"); !strings.Contains(out, "nothing is finished") {
		t.Errorf("finish of a group that was not cut over:\n%s", out)
	}
}
