package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/mover"
)

// trail is the records of an event in a role's trail.
func (w *world) trail(role, event string) (all []audit.Record) {
	w.t.Helper()
	if _, err := audit.Verify(filepath.Join(w.dir, role, "audit"), func(r audit.Record) error {
		if r.Event == event {
			all = append(all, r)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func edit(t *testing.T, path, old, now string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), old, now)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEnrolledUnderPolicy: a host that enrolled by token replicates, renews without a restart of anything, and goes on as far as the policy lets it.
func TestEnrolledUnderPolicy(t *testing.T) {
	dir := t.TempDir()
	volume, target := filepath.Join(dir, "volume"), filepath.Join(dir, "target")
	image(t, volume, 1<<20)
	w := newWorld(t, volume, target, "")
	edit(t, w.file("source"), "/pki/db1", "/host/host")
	edit(t, w.file("source"), w.dir+"/pki/ca.pem", w.dir+"/host/ca.pem")
	policy := filepath.Join(w.dir, "policy.yaml")
	rule := func(targets, more string) {
		t.Helper()
		if err := os.WriteFile(policy, []byte("rules:\n  - {tenant: acme, host: 'db*', targets: ["+targets+"]"+more+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rule(dir+"/*", "")
	edit(t, w.file("gateway"), "  log-limit:", "  policy: "+policy+"\n  log-limit:")

	ca, host := filepath.Join(w.dir, "pki"), filepath.Join(w.dir, "host")
	addr := serveCA(t, ca)
	code, token, errs := moverctl(t.Context(), "", "pki", "token", "--dir", ca, "--tenant", "acme", "--host", "db1")
	if code != 0 {
		t.Fatal(errs)
	}
	w.must(0, "", "pki", "enrol", "--dir", host, "--address", addr, "--token", strings.TrimSpace(token))
	if out := w.must(0, "", "check", "-c", w.file("gateway")); !strings.Contains(out, "ok    policy") || strings.Contains(out, "is refused") {
		t.Errorf("check:\n%s", out)
	}
	w.begin("gateway")
	w.begin("source")
	point := func(s mover.Status) bool { return s.PointEpoch > 0 }
	w.await("source", "at a point", point)
	equal(t, volume, target)

	// The next connections have the new certificate.
	w.must(0, "", "pki", "renew", "--dir", host, "--address", addr)
	w.end("gateway")
	w.begin("gateway")
	w.await("source", "connected", func(s mover.Status) bool { return s.Conns > 0 })

	// A policy that is wrong changes nothing; one that does not allow the target ends the link and says so; then it is allowed again.
	rule(dir+"/*", ", colour: blue")
	w.hup["gateway"] <- unix.SIGHUP
	w.logged("reload: the config was not taken over")
	w.must(0, "source", "sync", "root")
	rule("/srv/other/*", "")
	if out := w.must(0, "", "check", "-c", w.file("gateway")); !strings.Contains(out, "is refused: the gateway's policy does not let acme/db1") {
		t.Errorf("check:\n%s", out)
	}
	w.hup["gateway"] <- unix.SIGHUP
	st := w.await("source", "stopped", is(mover.Stopped))
	if !strings.Contains(st.Reason, "policy") || strings.Contains(st.Reason, "/srv/other") || strings.Contains(st.Reason, target) {
		t.Errorf("reason %q", st.Reason)
	}
	w.must(1, "source", "sync", "root")
	rule(dir+"/*", ", volume: 1MiB, total: 1MiB, flows: 1, connections: 16")
	const taken = "reload: the config was taken over"
	before := strings.Count(w.log.String(), taken)
	w.hup["gateway"] <- unix.SIGHUP
	for end := time.Now().Add(10 * time.Second); strings.Count(w.log.String(), taken) == before && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) // or the source is there before the new policy
	}
	w.must(0, "source", "resume", "root")
	overwrite(t, volume, 1<<19, "written under the new policy")
	w.must(0, "source", "sync", "root")
	equal(t, volume, target)
	edit(t, policy, "1MiB", "512KiB")
	w.hup["gateway"] <- unix.SIGHUP
	if st := w.await("source", "stopped", is(mover.Stopped)); !strings.Contains(st.Reason, "volumes of 512KiB, flow root has 1MiB") {
		t.Errorf("reason %q", st.Reason)
	}
	w.end("gateway")
	ended, accepted := w.trail("gateway", "link.ended"), w.trail("gateway", "link.accepted")
	if len(ended) != 2 || ended[0].Details["kind"] != "policy" || ended[0].Actor != "mover://acme/db1" {
		t.Errorf("ended %+v", ended)
	}
	if n := len(accepted); n < 2 || accepted[0].Actor != "mover://acme/db1" || accepted[0].Flow != "acme/db1/root" || accepted[0].Details["serial"] == accepted[n-1].Details["serial"] {
		t.Errorf("accepted %+v", accepted)
	}
	if err := os.Chmod(policy, 0o666); err != nil {
		t.Fatal(err)
	}
	w.must(2, "", "check", "-c", w.file("gateway"))
}
