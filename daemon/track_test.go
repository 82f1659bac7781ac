package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/mover"
)

// sourceOf writes a source's config for volumes, and reads it for the role.
func sourceOf(t *testing.T, dir, role, volumes string) *config.Config {
	t.Helper()
	pins := "/sys/fs/bpf/" + filepath.Base(dir)
	t.Cleanup(func() { os.RemoveAll(pins) })
	file := filepath.Join(dir, "moverd.yaml")
	text := strings.NewReplacer("@", dir, "PINS", pins).Replace(`source:
  state: @/state
  run: @/run
  metrics: {listen: "off"}
  tracking: {pin-dir: PINS}
  gateway: {address: "127.0.0.1:1", ca: @/ca.pem, cert: @/db1.pem, key: @/db1.key}
  flows: ` + volumes + "\n")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file, role)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A tracker that was attached early, without certificates and without a daemon, is the one that the source goes on with; a volume that is missing
// holds nothing up for longer than asked, and one that comes late is waited for.
func TestTrack(t *testing.T) {
	looptest.NeedRoot(t)
	dir := looptest.Dir(t)
	l := looptest.New(t, 8<<20, looptest.Options{})
	late := filepath.Join(dir, "late")
	c := sourceOf(t, dir, "track", "[{name: root, volume: "+l.Dev+"}, {name: late, volume: "+late+"}, {name: never, volume: /nonexistent}]")
	go func() {
		time.Sleep(200 * time.Millisecond)
		os.WriteFile(late, make([]byte, 1<<20), 0o600) // an image file has no tracker; it has come
	}()
	var said strings.Builder
	began := time.Now()
	if err := Track(t.Context(), c, time.Second, slog.New(slog.NewTextHandler(&said, nil))); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if out := said.String(); !strings.Contains(out, `msg="tracked from now on" flow=root`) || !strings.Contains(out, "flow=never") || strings.Contains(out, `not there yet; the source will look for it" flow=late`) {
		t.Errorf("said:\n%s", out)
	}
	looptest.Run(t, "dd", "if=/dev/urandom", "of="+l.Dev, "bs=64K", "count=1", "conv=fsync,notrunc")

	v, err := disk.OpenVolume(l.Dev)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	p := &slot{c: c.Source, f: c.Source.Flows[0]}
	tr, err := p.ebpf(v)
	if err != nil {
		t.Fatal(err)
	}
	first := tr.History().Generation
	if _, dirty, err := tr.Take(t.Context()); err != nil || dirty.Bytes() == 0 {
		t.Errorf("what was written between is not dirty: %v, %v", dirty, err)
	}
	// A second call, as by hand while no source runs, changes nothing.
	if err := errors.Join(tr.Close(), Track(t.Context(), c, 0, slog.New(slog.DiscardHandler))); err != nil {
		t.Fatal(err)
	}
	if tr, err = p.ebpf(v); err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if tr.History().Generation != first {
		t.Error("a second track began a new history")
	}
	// Beside a running source it does nothing.
	unlock, err := lock(filepath.Join(string(c.Source.Run), "source.lock"), Source)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	said.Reset()
	if err := Track(t.Context(), c, 0, slog.New(slog.NewTextHandler(&said, nil))); err != nil || !strings.Contains(said.String(), "a source runs, and tracks already") {
		t.Errorf("beside a source: %v\n%s", err, &said)
	}
}

// A copy of the server's disks that boots on another machine opens no volume, dials nobody, and says why; it is not started again and again.
func TestForeign(t *testing.T) {
	looptest.NeedRoot(t)
	dir := looptest.Dir(t)
	l := looptest.New(t, 8<<20, looptest.Options{})
	if err := errors.Join(pki.Init(dir, "test"), pki.IssueHost(dir, dir, "acme", "db1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	uuid := filepath.Join(dir, "product_uuid")
	places := hardwarePlaces
	hardwarePlaces = []string{uuid}
	t.Cleanup(func() { hardwarePlaces = places })
	boot := func(name string) *source {
		t.Helper()
		if err := os.WriteFile(uuid, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		c := sourceOf(t, dir, Source, "[{name: root, volume: "+l.Dev+"}]")
		if err := errors.Join(os.MkdirAll(string(c.Source.State), 0o700), os.MkdirAll(string(c.Source.Run), 0o700)); err != nil {
			t.Fatal(err)
		}
		r, err := openSource(t.Context(), Options{Role: Source, Config: c, Log: NewLog(t.Output(), nil)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.close(); err != nil {
				t.Error(err)
			}
		})
		return r.(*source)
	}
	server := boot("a4d4a8c8-0001-0000-0000-000000000001")
	if flow, why := server.slots[0].current(); flow == nil {
		t.Fatalf("the server itself: %v", why)
	}
	server.slots[0].close()
	pins := "/sys/fs/bpf/" + filepath.Base(dir)
	if err := os.RemoveAll(pins); err != nil { // a boot
		t.Fatal(err)
	}

	foreign := boot("a4d4a8c8-0002-0000-0000-000000000002")
	s := foreign.Status()[0]
	if s.State != mover.Stopped || !strings.Contains(s.Reason, "not the machine that was enrolled") || !strings.Contains(s.Reason, "rm "+filepath.Join(dir, "state", "machine.json")) {
		t.Errorf("status %+v", s)
	}
	if _, err := foreign.Do(t.Context(), "cutover", control.Request{Flow: "root"}, nil); err == nil || !strings.Contains(err.Error(), "not the machine that was enrolled") {
		t.Errorf("cutover: %v", err)
	}
	c := sourceOf(t, dir, "track", "[{name: root, volume: "+l.Dev+"}]")
	if err := Track(t.Context(), c, 0, slog.New(slog.DiscardHandler)); !errors.Is(err, errForeign) {
		t.Errorf("track: %v", err)
	}
	if _, err := os.Stat(pins); err == nil {
		t.Error("a foreign machine's disk is tracked")
	}

	// The operator says that it is the server itself.
	if err := os.Remove(filepath.Join(dir, "state", "machine.json")); err != nil {
		t.Fatal(err)
	}
	if err := foreign.slots[0].open(t.Context()); err != nil {
		t.Error(err)
	}
	if err := foreign.slots[0].machine.check(); err != nil {
		t.Error(err)
	}
}
