package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/cmd/internal/exit"
	"github.com/moverd/mover/cost"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/report"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

// world is both daemons in this process, over TLS on loopback, controlled by moverctl's own code.
type world struct {
	t    *testing.T
	dir  string
	log  *lockedBuffer
	stop map[string]func() error
	hup  map[string]chan os.Signal
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newWorld writes certificates and configs; volume and target are paths, more is added to the flow of the source.
func newWorld(t *testing.T, volume, target, more string) *world {
	t.Helper()
	looptest.NeedRoot(t)
	w := &world{t: t, dir: looptest.Dir(t), log: &lockedBuffer{}, stop: map[string]func() error{}, hup: map[string]chan os.Signal{}}
	t.Cleanup(func() {
		for role := range w.stop {
			w.end(role)
		}
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	for _, args := range []string{"pki init --dir @/pki", "pki gateway --dir @/pki --out @/pki --name gw --address 127.0.0.1", "pki host --dir @/pki --out @/pki --tenant acme --host db1"} {
		if code, out := w.ctl("", strings.Fields(strings.ReplaceAll(args, "@", w.dir))...); code != 0 {
			t.Fatalf("%s: %s", args, out)
		}
	}
	pins := "/sys/fs/bpf/" + filepath.Base(w.dir)
	t.Cleanup(func() { os.RemoveAll(pins) })
	w.write("prices", `prices:
  - {kind: line, name: l, model: moved, price: 1, unit: GB, currency: CNY, from: 2020-01-01, source: test}
  - {kind: volume, name: disk, price: 3, unit: GiB-month, currency: CNY, from: 2020-01-01, source: test}
use: {line: line/l, target: volume/disk, points: none}
`)
	w.write("source", `source:
  state: @/source
  prices: @/prices.yaml
  run: @/run
  metrics: {listen: "127.0.0.1:0"}
  tracking: {pin-dir: `+pins+`}
  gateway: {address: `+addr+`, ca: @/pki/ca.pem, cert: @/pki/db1.pem, key: @/pki/db1.key, connections: 2}
  flows:
    - name: root
      volume: `+volume+`
      interval: 100ms
`+more)
	w.write("gateway", `gateway:
  listen: `+addr+`
  state: @/gateway
  prices: @/prices.yaml
  run: @/run
  metrics: {listen: "off"}
  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}
  log-limit: 64MiB
  flows:
    - {tenant: acme, host: db1, name: root, target: `+target+`, create: true}
`)
	return w
}

func (w *world) write(role, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.file(role), []byte(strings.ReplaceAll(text, "@", w.dir)), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) file(role string) string { return filepath.Join(w.dir, role+".yaml") }

// begin starts a daemon and returns when its control socket answers.
func (w *world) begin(role string) {
	w.t.Helper()
	conf, err := config.Load(w.file(role), role)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	w.hup[role] = make(chan os.Signal, 1)
	log := daemon.NewLog(w.log, slog.LevelDebug)
	go func() {
		err := daemon.Run(ctx, daemon.Options{Role: role, File: w.file(role), Config: conf, Log: log, Reload: w.hup[role], Ready: func() { close(ready) }})
		log.Close()
		done <- err
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		w.t.Fatalf("%s did not start: %v\n%s", role, err, w.log)
	}
	w.stop[role] = func() error { cancel(); return <-done }
}

func (w *world) end(role string) {
	w.t.Helper()
	stop := w.stop[role]
	delete(w.stop, role)
	if err := stop(); err != nil {
		w.t.Errorf("%s ended with %v", role, err)
	}
}

// ctl runs moverctl and returns its exit code and all that it wrote.
func (w *world) ctl(role string, args ...string) (int, string) {
	if role != "" {
		args = append([]string{"-s", filepath.Join(w.dir, "run", role+".sock")}, args...)
	}
	var out lockedBuffer
	code := run(context.Background(), args, &terminal{in: strings.NewReader(""), out: &out, err: &out, now: time.Now})
	return code, out.String()
}

func (w *world) must(code int, role string, args ...string) string {
	w.t.Helper()
	got, out := w.ctl(role, args...)
	if got != code {
		w.t.Fatalf("moverctl %s: exit %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// await polls the status until ok.
func (w *world) await(role, what string, ok func(mover.Status) bool) mover.Status {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		code, out := w.ctl(role, "status", "-o", "json")
		var all []mover.Status
		if last = out; code == 0 && json.Unmarshal([]byte(out), &all) == nil && len(all) == 1 && ok(all[0]) {
			return all[0]
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s never was %s; last status:\n%s", role, what, last)
		}
	}
}

func is(state mover.State) func(mover.Status) bool {
	return func(s mover.Status) bool { return s.State == state }
}

// equal waits until cmp finds no difference: a commit is durable in the log before it is applied.
func equal(t *testing.T, a, b string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := exec.Command("cmp", a, b).CombinedOutput()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("cmp: %v: %s", err, out)
			return
		}
	}
}

// image makes a file with some content.
func image(t *testing.T, path string, size int64) {
	t.Helper()
	b := make([]byte, size)
	for i := 0; i < len(b)/2; i += 8 {
		copy(b[i:], fmt.Sprintf("%08x", i*2654435761))
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every verb on image files: scan mode, no freeze.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	volume, target := filepath.Join(dir, "volume"), filepath.Join(dir, "target")
	image(t, volume, 20<<20+512)
	w := newWorld(t, volume, target, "")

	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "note  flow root") || !strings.Contains(out, "note  gateway") {
		t.Errorf("check:\n%s", out)
	}
	w.begin("gateway")
	w.begin("source")
	w.await("source", "at a point", func(s mover.Status) bool { return s.PointEpoch > 0 && s.Tracking != "" })
	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "answers with a certificate of the CA") {
		t.Errorf("check with a gateway:\n%s", out)
	}
	if out := w.must(0, "source", "status"); !strings.Contains(out, "scan") || !strings.Contains(out, "fuzzy") {
		t.Errorf("status:\n%s", out)
	}
	w.must(0, "source", "watch", "--count", "1")
	w.must(0, "gateway", "status")

	w.must(0, "source", "pause", "root")
	w.await("source", "paused", is(mover.Paused))
	w.must(1, "source", "sync", "root")
	w.must(0, "source", "resume", "root")
	w.must(0, "source", "sync", "root")
	equal(t, volume, target)
	w.must(0, "source", "verify", "root")
	w.prices(t)

	overwrite(t, volume, 3<<20, "written before the shutdown")
	if out := w.must(0, "source", "flush", "--limit", "20s"); !strings.Contains(out, "root: ") || !strings.Contains(out, " left") {
		t.Errorf("flush:\n%s", out)
	}
	equal(t, volume, target)

	// Bytes that change behind the gateway's back are found, named, and mended by the next pass.
	overwrite(t, target, 5<<20, "not what was sent")
	if out := w.must(3, "source", "verify", "root", "--all"); !strings.Contains(out, "differ ") || !strings.Contains(out, "5242880+16384") {
		t.Errorf("verify of a target that was changed:\n%s", out)
	}
	w.must(0, "source", "sync", "root")
	equal(t, volume, target)

	w.must(2, "source", "cutover", "root")
	w.must(2, "source", "cutover", "root", "--yes", "--leave", "stopped")
	w.must(2, "source", "cutover", "root", "--yes", "--limit", "1h")
	w.must(2, "source", "cutover", "nope", "--yes")
	w.must(2, "source", "claim", "acme/db1/root")
	w.must(2, "gateway", "sync", "acme/db1/root")
	w.must(1, "source", "rollback", "root", "--yes")
	// Nothing would stop who writes through a loop device.
	loop := looptest.Attach(t, volume, looptest.Options{})
	if out := w.must(1, "source", "cutover", "root", "--yes", "--limit", "5s"); !strings.Contains(out, "name the loop device as the volume") {
		t.Errorf("cutover of an image behind a loop device:\n%s", out)
	}
	loop.Detach()
	overwrite(t, volume, 7<<20, "written just before the rehearsal")
	if out := w.must(0, "source", "cutover", "root", "--rehearse", "--limit", "5s"); !strings.Contains(out, "rehearsal of root done") {
		t.Errorf("rehearsal:\n%s", out)
	}
	overwrite(t, volume, 9<<20, "written just before the cutover")
	report := filepath.Join(dir, "report.json")
	if out := w.must(0, "source", "cutover", "root", "--yes", "--limit", "5s", "--report", report); !strings.Contains(out, "cutover of root done") {
		t.Errorf("cutover:\n%s", out)
	}
	equal(t, volume, target)
	var r mover.Report
	if b, err := os.ReadFile(report); err != nil || json.Unmarshal(b, &r) != nil || !r.OK || r.SourceRoot != r.TargetRoot || r.Left != "frozen" {
		t.Errorf("report %+v, %v", r, err)
	}
	w.await("source", "done", is(mover.Done))
	w.await("gateway", "done", is(mover.Done))
	w.must(1, "source", "cutover", "root", "--yes")

	// Both know it after a restart.
	w.end("source")
	w.end("gateway")
	w.begin("gateway")
	w.begin("source")
	w.await("source", "done after a restart", is(mover.Done))
	w.must(0, "source", "rollback", "root", "--yes")
	overwrite(t, volume, 3<<20, "written after the rollback")
	w.must(0, "source", "sync", "root")
	equal(t, volume, target)

	// The way back is given up by finish only, and only after a cutover.
	if out := w.must(1, "gateway", "finish", "acme/db1/root", "--yes"); !strings.Contains(out, "not released") {
		t.Errorf("finish without a cutover:\n%s", out)
	}
	w.must(2, "gateway", "finish", "acme/db1", "--yes")
	w.must(2, "gateway", "finish", "acme/db1/nix", "--yes")
	w.must(0, "source", "cutover", "root", "--yes", "--limit", "5s")
	w.await("gateway", "done again", is(mover.Done))
	for range 2 {
		if out := w.must(0, "gateway", "finish", "acme/db1/root", "--yes"); !strings.Contains(out, "finished") {
			t.Errorf("finish:\n%s", out)
		}
	}
	w.end("gateway")
	w.begin("gateway")
	if s := w.await("gateway", "finished", is(mover.Done)); !strings.Contains(s.Reason, "finished") {
		t.Errorf("status after finish: %+v", s)
	}
	overwrite(t, volume, 3<<20, "written after the end")
	if code, out := w.ctl("source", "rollback", "root", "--yes"); code == 0 {
		// The source goes on; the gateway refuses its passes.
		w.await("source", "refused", func(s mover.Status) bool { return strings.Contains(s.Reason+s.LastError, "was finished") })
	} else if !strings.Contains(out, "was finished") {
		t.Errorf("rollback after finish: %d\n%s", code, out)
	}
	if exec.Command("cmp", "-s", volume, target).Run() == nil {
		t.Error("the target was altered after finish")
	}

	if out := w.must(0, "gateway", "claim", "acme/db1/root"); !strings.Contains(out, "already") {
		t.Errorf("claim:\n%s", out)
	}
	w.must(0, "source", "thaw", "root", "--yes")
	w.must(0, "source", "version")
	w.end("source")
	w.must(0, "gateway", "claim", "acme/db1/root", "--drop", "--yes")
	w.must(1, "gateway", "claim", "acme/db1/root")
	w.must(0, "gateway", "claim", "acme/db1/root", "--overwrite", "--yes")
}

func overwrite(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// A mounted filesystem: tracked by eBPF, frozen at the cutover and left so, read-only, or stopped by a hook.
func TestMounted(t *testing.T) {
	for _, leave := range []string{"frozen", "read-only", "stopped"} {
		t.Run(leave, func(t *testing.T) {
			loop := looptest.New(t, 64<<20, looptest.Options{DirectIO: true})
			mnt := mkfs(t, loop.Dev)
			marks := t.TempDir()
			hooks := fmt.Sprintf("      cutover: {stop-hook: [/usr/bin/touch, %[1]s/stopped], start-hook: [/bin/rm, -f, %[1]s/stopped]}\n", marks)
			w := newWorld(t, loop.Dev, filepath.Join(marks, "target"), hooks)
			// As on a server whose root disk is moved: the source's state lies on what is frozen.
			conf, err := os.ReadFile(w.file("source"))
			if err != nil {
				t.Fatal(err)
			}
			if w.write("source", strings.Replace(string(conf), "state: "+w.dir+"/source", "state: "+mnt+"/state", 1)); leave == "read-only" {
				w.begin("gateway")
				w.begin("source")
				if out := w.must(2, "source", "cutover", "root", "--yes", "--leave", leave); !strings.Contains(out, "state folder") {
					t.Errorf("read-only below the own state folder:\n%s", out)
				}
				w.end("source")
				w.end("gateway")
				w.write("source", string(conf))
			}
			stopped := func() bool { _, err := os.Stat(marks + "/stopped"); return err == nil }
			w.begin("gateway")
			w.begin("source")
			w.await("source", "at a point", func(s mover.Status) bool { return s.PointEpoch > 0 && strings.HasPrefix(s.Tracking, "ebpf") })
			if err := os.WriteFile(mnt+"/file", bytes.Repeat([]byte("before the cutover "), 10000), 0o600); err != nil {
				t.Fatal(err)
			}
			w.must(0, "source", "cutover", "root", "--rehearse", "--limit", "5s")
			if stopped() {
				t.Error("what the stop hook stopped was not started after a rehearsal")
			}
			out := w.must(0, "source", "cutover", "root", "--yes", "--limit", "5s", "--leave", leave)
			if !strings.Contains(out, "crash consistent") || !strings.Contains(out, "source left        "+leave) {
				t.Errorf("cutover:\n%s", out)
			}
			if !stopped() {
				t.Error("the stop hook did not run, or what it stopped runs again")
			}
			w.past(mnt, "cutover", "rehearsal", "pass")
			w.end("source") // the daemon's end changes nothing
			if err := writes(mnt); (leave == "stopped") != (err == nil) {
				t.Errorf("left %s: a write says %v", leave, err)
			}
			w.must(0, "", "thaw", "--stale", "--run", filepath.Join(w.dir, "run"))
			if err := writes(mnt); (leave == "stopped") != (err == nil) {
				t.Errorf("left %s: a write after thaw --stale says %v", leave, err)
			}
			if leave == "frozen" {
				equal(t, loop.File, filepath.Join(marks, "target"))
			}
			w.begin("source")
			w.await("source", "done", is(mover.Done))
			w.past(mnt, "cutover", "rehearsal", "pass")
			w.must(1, "source", "sync", "root")
			w.must(0, "source", "rollback", "root", "--yes")
			if err := writes(mnt); err != nil || stopped() {
				t.Errorf("after the rollback: a write says %v, stopped %v", err, stopped())
			}
			w.must(0, "source", "sync", "root")
			w.must(0, "source", "verify", "root")
			w.past(mnt, "cutover", "rehearsal", "rollback", "verify", "pass", "daemon.start", "daemon.stop")
		})
	}
}

// past wants events of these kinds in the report, and figures that add up; also while the state folder is frozen, and after a restart.
func (w *world) past(mnt string, kinds ...string) {
	w.t.Helper()
	var d report.Document
	if err := json.Unmarshal([]byte(w.must(0, "source", "report", "root", "-o", "json")), &d); err != nil || len(d.Flows) != 1 {
		w.t.Fatalf("report: %v", err)
	}
	f := d.Flows[0]
	seen := map[string]int{}
	for _, e := range append(d.Events, f.Events...) {
		seen[e.Kind]++
	}
	for _, kind := range kinds {
		if seen[kind] == 0 {
			w.t.Errorf("the report does not tell a %s: %v", kind, seen)
		}
	}
	m := f.Moved
	if f.Passes.Full != 1 || f.Status.Size != 64<<20 || f.Status.Identity == "" || m.Looked < 64<<20 || m.Wire <= m.Payload || len(f.Samples) == 0 || d.Audit.Digest == "" {
		w.t.Errorf("report: %+v %+v, %d samples, status %+v", m, f.Passes, len(f.Samples), f.Status)
	}
	if sum := m.Free + m.Zero + m.Same + m.Copied + m.Unreadable + m.Sent; sum != m.Looked {
		w.t.Errorf("%d of %d bytes are told", sum, m.Looked)
	}
	var c cost.Answer
	if err := json.Unmarshal([]byte(w.must(0, "source", "cost", "root", "-o", "json")), &c); err != nil || len(c.Items) != 2 || d.Cost == nil || len(d.Cost.Items) != 2 {
		w.t.Fatalf("cost: %v, %+v", err, c)
	}
	if line := c.Items[0].SoFar; line.Bytes < m.Wire+f.Failed.Wire || line.Cost == nil || math.Abs(line.Cost.Amount-float64(line.Bytes)/1e9) > 1e-4 || c.Saved.Plain < m.Looked || c.Items[1].SoFar.Bytes != 64<<20 {
		w.t.Errorf("cost: %+v, the report has %+v", c, m)
	}
	r := f.Last("cutover")
	if r == nil || !r.OK || r.SourceRoot == "" || r.SourceRoot != r.TargetRoot || r.Pause <= 0 {
		w.t.Fatalf("the report's cutover: %+v", r)
	}
	file := filepath.Join(w.dir, "report.html")
	if out := w.must(0, "source", "report", "root", "--html", file); !strings.Contains(out, file) {
		w.t.Error(out)
	}
	page, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(page, []byte(f.Last("cutover", "verify").SourceRoot)) || !bytes.Contains(page, []byte("audit verify --expect")) {
		w.t.Errorf("page of %d bytes: %v", len(page), err)
	}
	if out := w.must(0, "source", "report"); !strings.Contains(out, "both ends are equal") || !strings.Contains(out, "saved by compression") {
		w.t.Errorf("report:\n%s", out)
	}
}

// writes tries to write to the filesystem at dir: nil, an error, or errFrozen when it would wait for a thaw.
func writes(dir string) error {
	cmd := exec.Command("timeout", "--signal=KILL", "1", "touch", dir+"/probe")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %s", err, said.String())
		}
		return nil
	case <-time.After(1500 * time.Millisecond):
		return unix.EAGAIN // a frozen writer cannot be killed; it ends with the thaw
	}
}

func mkfs(t *testing.T, dev string) string {
	t.Helper()
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("fsfreeze", "-u", dir).Run()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// What must not start does not, with a clear word and the right exit code.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	volume, target := filepath.Join(dir, "volume"), filepath.Join(dir, "target")
	image(t, volume, 1<<20)
	w := newWorld(t, volume, target, "    - {name: gone, volume: "+dir+"/gone}\n")
	w.begin("gateway")
	w.begin("source")
	second := func(role, want string, code int) {
		t.Helper()
		conf, err := config.Load(w.file(role), role)
		if err != nil {
			t.Fatal(err)
		}
		err = daemon.Run(t.Context(), daemon.Options{Role: role, File: w.file(role), Config: conf, Log: daemon.NewLog(io.Discard, slog.LevelError)})
		if err == nil || !strings.Contains(err.Error(), want) || exit.Code(err) != code {
			t.Errorf("%s: exit %d, %v; want exit %d and %q", role, exit.Code(err), err, code, want)
		}
	}
	second("source", "another moverd source runs already (pid ", 1)
	second("gateway", "another moverd gateway runs already (pid ", 1)

	// The volume that is there is moved; the other one says why it is not.
	_, out := w.ctl("source", "status")
	if !strings.Contains(out, "gone") || !strings.Contains(out, "stopped") || !strings.Contains(out, "does not exist") {
		t.Errorf("status:\n%s", out)
	}
	w.must(1, "source", "sync", "gone")
	image(t, dir+"/gone", 1<<20)
	w.must(0, "source", "resume", "gone")

	// A reload takes over limits; a config that is wrong changes nothing.
	w.hup["source"] <- unix.SIGHUP
	w.logged("reload: the config was taken over")
	w.write("source", "source: {}")
	w.hup["source"] <- unix.SIGHUP
	w.logged("reload: the config was not taken over")
	w.must(0, "source", "status")

	w.end("source")
	w.write("source", strings.ReplaceAll(`source:
  state: @/s2
  run: @/r2
  gateway: {address: "127.0.0.1:1", ca: @/pki/ca.pem, cert: @/pki/db1.pem, key: @/pki/db1.key}
  flows: [{name: root, volume: @/nothing}]
`, "@", w.dir))
	second("source", "does not exist", 1)
}

func (w *world) logged(text string) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(w.log.String(), text) {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("the log never said %q:\n%s", text, w.log)
		}
	}
}
