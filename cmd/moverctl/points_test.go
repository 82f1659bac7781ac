package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

// TestPoints lists, pins, restores, exports and removes the points of an image on XFS.
func TestPoints(t *testing.T) {
	l := looptest.New(t, 400<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "xfs", "-m", "reflink=1")
	dir := looptest.Mount(t, l.Dev)
	volume, target := filepath.Join(t.TempDir(), "volume"), filepath.Join(dir, "target")
	image(t, volume, 8<<20)
	w := newWorld(t, volume, target, "")
	conf, err := os.ReadFile(w.file("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	// Image files cannot be frozen: their points are fuzzy.
	w.write("gateway", strings.Replace(string(conf), "create: true", "create: true, points: {method: reflink, fuzzy: true, keep: {last: 2, hourly: 0, daily: 0}}", 1))
	w.begin("gateway")
	w.begin("source")
	w.await("gateway", "with a point", func(s mover.Status) bool { return s.Points > 0 })
	w.must(0, "source", "pause", "root")
	const flow = "acme/db1/root"
	var listed control.Result
	if err := json.Unmarshal([]byte(w.must(0, "gateway", "points", flow, "-o", "json")), &listed); err != nil || len(listed.Points) == 0 {
		t.Fatal(err, listed)
	}
	id := listed.Points[len(listed.Points)-1].ID
	w.must(0, "gateway", "points", flow, "--pin", id)
	if out := w.must(0, "gateway", "points", flow); !strings.Contains(out, id) || !strings.Contains(out, "pinned") || !strings.Contains(out, "fuzzy") {
		t.Errorf("list:\n%s", out)
	}
	copied := filepath.Join(dir, "copy")
	w.must(0, "gateway", "restore", flow, id, "--to", copied)
	equal(t, volume, copied)
	for _, format := range []string{"raw", "qcow2"} {
		out := filepath.Join(dir, format)
		w.must(0, "gateway", "export", flow, id, "--to", out, "--format", format)
		looptest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", format, volume, out)
		if code, _ := w.ctl("gateway", "export", flow, id, "--to", out, "--format", format); code == 0 {
			t.Error("an export replaced a file")
		}
	}
	for _, bad := range [][]string{{"points", flow, "--remove", id}, {"points", flow, "--pin", id, "--unpin", id}, {"restore", flow, id},
		{"export", flow, id, "--to", "x", "--format", "vmdk"}, {"restore", flow}} {
		w.must(2, "gateway", bad...)
	}
	w.must(2, "source", "points", "root")
	if code, out := w.ctl("gateway", "restore", flow, id, "--to", target, "--overwrite", "--yes"); code == 0 || !strings.Contains(out, "target of flow") {
		t.Errorf("restore onto the target: %d %s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".mover-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	w.must(0, "gateway", "points", flow, "--remove", id, "--yes")
	if code, _ := w.ctl("gateway", "points", flow, "--unpin", id); code == 0 {
		t.Error("a removed point was changed")
	}
}
