package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
)

// stsFor is how long the flow is watched while its sessions, of 3 s each, come and go.
const stsFor = 6 * time.Second

// A flow whose keys are those of sessions of 3 s goes on through their ends without one object that failed. While the STS is away the flow waits and says why; when it
// is back, nothing is lost. No secret is told anywhere.
func TestBucketSTS(t *testing.T) {
	var away atomic.Bool
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}, {ID: "bob", AccessKey: "ak-bob", SecretKey: "sk-bob"}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}}, Roles: []bosemu.Role{{Account: "alice", Name: "mover", Trusted: []string{"bob"}}},
		Fault: func(r bosemu.Request) bosemu.Fault {
			if away.Load() && r.Op == "AssumeRole" {
				return bosemu.Fault{Code: "ServiceUnavailable"}
			}
			return bosemu.Fault{}
		}})
	if err != nil {
		t.Fatal(err)
	}
	store, sts := httptest.NewServer(emu), httptest.NewServer(emu.STS())
	t.Cleanup(func() { store.Close(); sts.Close(); emu.Close() })
	w := bucketWorld(t, "")
	from := filepath.Join(w.dir, "from")
	if err := os.WriteFile(filepath.Join(w.dir, "keys"), []byte("access-key: ak-bob\nsecret-key: sk-bob\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flow := func(role string) string {
		return fmt.Sprintf(`source:
  state: @/source
  run: @/run
  metrics: {listen: "off"}
  buckets:
    - name: photos
      from: {dir: {path: @/from}}
      to: {bos: {endpoint: %q, bucket: photos, credentials: {file: @/keys, sts: {action: assume-role, endpoint: %q, account: alice, role: %s, duration: 3s}}}}
      deletes: follow
      interval: 50ms
`, store.URL, sts.URL, role)
	}
	w.write("source", flow("king"))
	if out := w.must(1, "", "check", "-c", w.file("source")); !strings.Contains(out, "RoleNotFound") {
		t.Errorf("check with a role that does not exist:\n%s", out)
	}
	w.write("source", flow("mover"))
	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "ok    bucket flow photos") {
		t.Errorf("check:\n%s", out)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); writer(t, from, stop) }()
	before := emu.Counts()["AssumeRole"]
	w.begin("source")
	for end := time.Now().Add(stsFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		w.await("source", "without a failure", func(s mover.Status) bool {
			if s.Bucket.Failed > 0 || s.State == mover.Stopped || s.State == mover.Connecting && s.Bucket.Pass > 0 || s.LastError != "" {
				t.Fatalf("%+v %+v", s, s.Bucket)
			}
			return true
		})
	}
	s := w.await("source", "with keys", func(s mover.Status) bool { return s.Bucket.Keys["target"].Left > 0 })
	if n, k := emu.Counts()["AssumeRole"]-before, s.Bucket.Keys["target"]; n < int64(stsFor/(3*time.Second)) || n > int64(stsFor/time.Second)+3 || k.Failed > 0 || k.Trouble != "" || k.Renewed == 0 || k.Renewed > uint64(n) {
		t.Errorf("%d sessions in %v: %+v", n, stsFor, k)
	}
	if n := emu.Counts()["PutObject"]; n < 200 {
		t.Errorf("%d objects in %v", n, stsFor)
	} else {
		t.Logf("%d objects in %v", n, stsFor)
	}

	away.Store(true)
	s = w.await("source", "out of keys", func(s mover.Status) bool {
		return s.Bucket.Keys["target"].Left == 0 && strings.Contains(s.Reason, "no keys")
	})
	if !strings.Contains(s.Reason, "ServiceUnavailable") {
		t.Errorf("%+v", s)
	}
	if out := w.must(0, "source", "status"); !strings.Contains(out, "of the target: have ended; NOT RENEWED: ") {
		t.Errorf("status:\n%s", out)
	}
	if err := os.WriteFile(filepath.Join(from, "late"), []byte("written while there were no keys"), 0o600); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-ended
	away.Store(false)
	w.must(0, "source", "sync", "photos")
	w.must(0, "source", "cutover", "photos", "--yes", "--all")
	s = w.await("source", "done", is(mover.Done))
	if s.Bucket.Failed > 0 || s.Bucket.Refused > 0 {
		t.Errorf("%+v", s.Bucket)
	}
	target, err := bos.New(bos.Config{Endpoint: store.URL, Bucket: "photos", Credentials: objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p, err := target.List(t.Context(), objstore.Query{})
	if want := objects(t, from); err != nil || len(p.Entries) != len(want) || len(want) < 100 {
		t.Errorf("%d objects, %d at the target: %v", len(want), len(p.Entries), err)
	}
	_, out := w.ctl("source", "status", "-o", "json")
	_, more := w.ctl("source", "report", "photos", "-o", "json")
	trail := w.must(0, "", "audit", "show", filepath.Join(w.dir, "source", "audit"), "-o", "json")
	if !strings.Contains(trail, `"flow.keys"`) {
		t.Error("the audit trail does not tell that keys were not renewed")
	}
	if all := out + more + trail + w.log.String(); strings.Contains(all, "sk-") || strings.Contains(all, "security-token") {
		t.Error("a secret is told")
	}
}
