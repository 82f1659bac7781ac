package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	if out := w.must(0, "gateway", "points"); !strings.Contains(out, id) {
		t.Errorf("list of all:\n%s", out)
	}
	if out := w.must(0, "gateway", "points", "acme/db1", "--moments"); !strings.Contains(out, "no moments") {
		t.Errorf("a point that was never confirmed is a moment:\n%s", out)
	}
	served(t, w, flow, id, volume)
	for _, bad := range [][]string{{"points", flow, "--remove", id}, {"points", "--pin", id}, {"points", "acme/nix"}, {"restore", flow, id, "--to", "x", "--to-dir", "y"},
		{"serve", flow, id, "--listen", "0.0.0.0:1"}, {"serve", flow, id, "--listen", "localhost"}, {"serve", flow, id, "--listen", "127.0.0.1:1", "--unix", "x"}, {"serve", flow, id, "--unix", dir},
		{"serve", "acme/db1/nix", id, "--unix", "x"}, {"points", flow, "--pin", id, "--unpin", id}, {"restore", flow, id},
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

// served offers a point to a real NBD client, which sees the volume and cannot write; the point stays while it is served, and the end of
// the command, or of the daemon, ends the service.
func served(t *testing.T, w *world, flow, id, volume string) {
	t.Helper()
	socket := filepath.Join(w.dir, "nbd.sock")
	begin := func() (stop func(), ended chan int, out *lockedBuffer) {
		ctx, stop := context.WithCancel(context.Background())
		out, ended = &lockedBuffer{}, make(chan int, 1)
		go func() {
			ended <- run(ctx, []string{"-s", filepath.Join(w.dir, "run", "gateway.sock"), "serve", flow, id, "--unix", socket}, &terminal{in: strings.NewReader(""), out: out, err: out, now: time.Now})
		}()
		for range 500 {
			if strings.Contains(out.String(), "nbd+unix") {
				return stop, ended, out
			}
			time.Sleep(20 * time.Millisecond)
		}
		stop()
		t.Fatalf("serve: exit %d: %s", <-ended, out)
		return nil, nil, nil
	}
	uri := "nbd+unix:///?socket=" + socket
	stop, ended, out := begin()
	if mode, err := os.Stat(socket); err != nil || mode.Mode().Perm()&0o022 != 0 {
		t.Errorf("others may connect: %v %v", mode, err)
	}
	size := looptest.Run(t, "nbdinfo", "--size", uri)
	if st, _ := os.Stat(volume); strings.TrimSpace(size) != fmt.Sprint(st.Size()) {
		t.Errorf("served are %s bytes", size)
	}
	looptest.Run(t, "nbdinfo", "--is", "readonly", uri)
	got := filepath.Join(t.TempDir(), "served")
	looptest.Run(t, "nbdcopy", uri, got)
	equal(t, volume, got)
	if code, text := w.ctl("gateway", "points", flow, "--remove", id, "--yes"); code == 0 || !strings.Contains(text, "being read") {
		t.Errorf("a point was removed while it was served: %d %s", code, text)
	}
	stop() // as ctrl-c does
	if code := <-ended; code != 0 {
		t.Errorf("serve ended with %d: %s", code, out)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left behind")
	}
	stop, ended, out = begin()
	defer stop()
	w.end("gateway")
	if code := <-ended; code == 0 || !strings.Contains(out.String(), "daemon") {
		t.Errorf("serve outlived its daemon: %d %s", code, out)
	}
	if err := exec.Command("nbdinfo", uri).Run(); err == nil {
		t.Error("it is served still")
	}
	w.begin("gateway")
}
