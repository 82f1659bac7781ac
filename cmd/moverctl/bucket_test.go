package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/s3"
)

// bucketWorld is a source that moves one folder to another, and nothing else: no gateway, no volumes.
func bucketWorld(t *testing.T, more string) *world {
	t.Helper()
	t.Parallel() // they wait more than they work
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
	for _, dir := range []string{"from", "to"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.write("source", `source:
  state: @/source
  run: @/run
  metrics: {listen: "off"}
  buckets:
    - name: photos
      from: {dir: {path: @/from}}
      to: {dir: {path: @/to}}
      deletes: follow
      interval: 50ms
      limits: {memory: 64MiB}
`+more)
	return w
}

// objects reads the objects of a folder: what people would see there.
func objects(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != dir {
			return fs.SkipDir
		}
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out[strings.TrimPrefix(path, dir)] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// writer changes, makes and removes objects until stop.
func writer(t *testing.T, dir string, stop chan struct{}) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := filepath.Join(dir, "live", fmt.Sprint(rnd.IntN(300)))
		if i%7 == 6 {
			os.Remove(name)
			continue
		}
		b := bytes.Repeat([]byte{byte(i)}, rnd.IntN(40_000))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(dir+"/.w", b, 0o600), os.Rename(dir+"/.w", name)); err != nil {
			t.Error(err)
			return
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// A folder is moved while it is written to; the daemon is killed in the middle, more than once; after the cutover both ends are equal, and the manifest says so.
func TestBucketFlow(t *testing.T) {
	w := bucketWorld(t, "      claim: false\n")
	from, to := filepath.Join(w.dir, "from"), filepath.Join(w.dir, "to")
	for i := range 400 {
		name := filepath.Join(from, "old", fmt.Sprint(i%10), fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, i*50), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 3<<20)
	if err := os.WriteFile(filepath.Join(from, "large"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "ok    bucket flow photos") {
		t.Errorf("check:\n%s", out)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); writer(t, from, stop) }()
	for i := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asSource+"="+w.file("source"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.await("source", "moving", func(s mover.Status) bool { return s.Bucket.Objects > int64(100*i) })
		cmd.Process.Kill()
		cmd.Wait()
	}
	w.begin("source")
	w.must(0, "source", "sync", "photos")
	if out := w.must(1, "source", "finish", "photos", "--yes"); !strings.Contains(out, "was not cut over") {
		t.Errorf("finish:\n%s", out)
	}
	w.must(1, "source", "rollback", "photos", "--yes")
	w.must(2, "source", "cutover", "photos", "--yes", "--leave", "stopped")
	w.must(2, "source", "thaw", "photos")
	w.must(2, "source", "objects", "nope")
	w.must(0, "source", "pause", "photos")
	w.await("source", "paused", is(mover.Paused))
	w.must(1, "source", "sync", "photos")
	w.must(1, "source", "cutover", "photos", "--yes")
	w.must(0, "source", "resume", "photos")
	close(stop)
	<-ended
	report := filepath.Join(w.dir, "report.json")
	if out := w.must(0, "source", "cutover", "photos", "--yes", "--all", "--report", report); !strings.Contains(out, "the target has what the source had") {
		t.Errorf("cutover:\n%s", out)
	}
	a, b := objects(t, from), objects(t, to)
	for name, text := range a {
		if b[name] != text {
			t.Errorf("%s: %d bytes, %d at the target", name, len(text), len(b[name]))
		}
	}
	if len(a) != len(b) || len(a) < 400 {
		t.Errorf("%d objects, %d at the target", len(a), len(b))
	}
	var r mover.Report
	text, err := os.ReadFile(report)
	if err != nil || json.Unmarshal(text, &r) != nil || r.Bucket == nil || r.Bucket.Objects != int64(len(a)) || r.Bucket.Others != 0 {
		t.Errorf("report %s, %v", text, err)
	}
	manifest, err := os.ReadFile(r.Bucket.Manifest)
	if err != nil || bytes.Count(manifest, []byte("\n")) != len(a)+1 || !bytes.Contains(manifest, []byte(r.Bucket.Root)) {
		t.Errorf("manifest: %d lines, %v", bytes.Count(manifest, []byte("\n")), err)
	}

	// The report tells of it, in each form.
	page := filepath.Join(w.dir, "report.html")
	w.must(0, "source", "report", "photos", "--html", page)
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for form, out := range map[string]string{"text": w.must(0, "source", "report", "photos"), "json": w.must(0, "source", "report", "photos", "-o", "json"), "html": string(html)} {
		for _, want := range []string{r.Bucket.Root, map[bool]string{true: `"first"`, false: "first pass"}[form == "json"], map[bool]string{true: `"final"`, false: "final pass"}[form == "json"]} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not tell %s:\n%s", form, want, out)
			}
		}
	}

	// It stays cut over, whatever is written to the source; and it is known who did that.
	w.end("source")
	if err := os.WriteFile(filepath.Join(from, "late"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.begin("source")
	w.await("source", "done", is(mover.Done))
	w.must(1, "source", "sync", "photos")
	again := filepath.Join(w.dir, "manifest.jsonl")
	w.must(0, "source", "manifest", "photos", "--to", again)
	if b, err := os.ReadFile(again); err != nil || !bytes.Equal(b, manifest) {
		t.Errorf("the manifest is another one: %v", err)
	}
	w.must(2, "source", "manifest", "photos", "--to", again)
	if out := w.must(0, "source", "objects", "photos"); out != "no such objects\n" {
		t.Errorf("objects:\n%s", out)
	}
	w.must(0, "source", "rollback", "photos", "--yes")
	w.must(0, "source", "sync", "photos")
	if b := objects(t, to); b["/late"] != "x" {
		t.Error("after the rollback the flow does not go on")
	}
	w.must(0, "source", "cutover", "photos", "--yes")
	w.must(0, "source", "finish", "photos", "--yes")
	w.must(1, "source", "rollback", "photos", "--yes")
	if out := w.must(0, "", "audit", "show", filepath.Join(w.dir, "source", "audit"), "-o", "json"); !strings.Contains(out, r.Bucket.Root) || !strings.Contains(out, `"cutover.end"`) {
		t.Errorf("audit trail:\n%s", out)
	}
}

// A target that is not empty is refused before the first byte, and says what to do.
func TestBucketClaim(t *testing.T) {
	w := bucketWorld(t, "")
	for name, text := range map[string]string{"from/a": "new", "to/a": "precious"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.begin("source")
	s := w.await("source", "stopped", is(mover.Stopped))
	if !strings.Contains(s.Reason, "claim: true") || !strings.Contains(s.Next, "moverctl resume") {
		t.Errorf("%+v", s)
	}
	w.must(1, "source", "sync", "photos")
	if b := objects(t, filepath.Join(w.dir, "to")); b["/a"] != "precious" || len(b) != 1 {
		t.Errorf("the target was written: %v", b)
	}
}

// Flows to BOS: one that works, and those that must not; each says why, nothing is written where it must not be, and no secret is told.
func TestBucketBOS(t *testing.T) {
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice",
		Sessions: []bosemu.Session{{AccessKey: "ak-old", SecretKey: "sk-old", Token: "tk-old", Expires: time.Now().Add(-time.Hour)}}}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}, {Name: "far", Owner: "alice", Region: "hkg"}, {Name: "closed", Owner: "alice", ReadOnly: true}}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	w := bucketWorld(t, "")
	for name, text := range map[string]string{"keys": "access-key: ak-alice\nsecret-key: sk-alice\n", "wrong": "access-key: ak-alice\nsecret-key: sk-wrong\n",
		"old": "access-key: ak-old\nsecret-key: sk-old\ntoken: tk-old\n", "from/empty": "", "from/a b/照片": "picture"} {
		path := filepath.Join(w.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	text := "source:\n  state: @/source\n  run: @/run\n  metrics: {listen: \"off\"}\n  buckets:\n"
	want := map[string]string{ // what the flow stands still for; empty: nothing
		"good": "", "far": `is in region "hkg"; source.regions allows bj, bd`, "closed": "the target cannot be written", "none": "not found", "wrong": "denied", "old": "denied",
	}
	for _, name := range []string{"good", "far", "closed", "none", "wrong", "old"} {
		bucket, keys := name, "keys"
		switch name {
		case "good":
			bucket = "photos"
		case "wrong", "old":
			bucket, keys = "photos", name
		}
		text += fmt.Sprintf("    - {name: %s, from: {dir: {path: @/from}}, to: {bos: {endpoint: %q, bucket: %s, prefix: %s/, credentials: {file: @/%s}}}}\n", name, web.URL, bucket, name, keys)
	}
	w.write("source", text)
	w.begin("source")
	for name, why := range want {
		var all []mover.Status
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			all = nil
			if _, out := w.ctl("source", "status", name, "-o", "json"); json.Unmarshal([]byte(out), &all) == nil && len(all) == 1 &&
				(all[0].State == mover.Stopped || why == "" && all[0].Bucket.Objects == 2) {
				break
			}
		}
		if s := all[0]; why != "" && (s.State != mover.Stopped || !strings.Contains(s.Reason, why) || !strings.Contains(s.Next, "moverctl resume")) || why == "" && s.Bucket.Objects != 2 {
			t.Errorf("%s: %+v %+v", name, s, s.Bucket)
		}
	}
	w.must(0, "source", "sync", "good")
	w.must(1, "source", "sync", "far")
	w.must(0, "source", "cutover", "good", "--yes", "--all")
	if out := w.must(0, "source", "report", "good"); !strings.Contains(out, "2 objects, 7 B, by digest; 0 differ") || strings.Contains(out, "volume") {
		t.Errorf("report:\n%s", out)
	}
	keys := objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}
	for bucket, n := range map[string]int{"photos": 2, "far": 0, "closed": 0} {
		s, err := bos.New(bos.Config{Endpoint: web.URL, Bucket: bucket, Credentials: keys})
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.List(t.Context(), objstore.Query{})
		if err != nil || len(p.Entries) != n || n > 0 && p.Entries[0].Key != "good/a b/照片" {
			t.Errorf("%s: %+v %v", bucket, p.Entries, err)
		}
		s.Close()
	}

	// Keys that are mended are taken without a restart.
	if err := os.WriteFile(filepath.Join(w.dir, "wrong"), []byte("access-key: ak-alice\nsecret-key: sk-alice\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(0, "source", "resume", "wrong")
	w.must(0, "source", "sync", "wrong")
	code, out := w.ctl("source", "status", "-o", "json")
	trail, err := os.ReadFile(filepath.Join(w.dir, "source", "buckets", "good", "flow.json"))
	if all := out + string(trail) + w.log.String(); code != 0 || err != nil || strings.Contains(all, "sk-") || strings.Contains(all, "tk-old") {
		t.Errorf("a secret is told: %d %v", code, err)
	}
}

// The stop hook stops the writers of a cutover. They go on when the daemon is killed on the way, and at a rollback.
func TestBucketHooks(t *testing.T) {
	w := bucketWorld(t, "      cutover: {stop-hook: [@/stop], start-hook: [@/start]}\n")
	said := filepath.Join(w.dir, "said")
	for _, name := range []string{"stop", "start"} {
		script := fmt.Sprintf("#!/bin/sh\necho %s $MOVER_FLOW >> %s\n", name, said)
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	hooks := func(want string) {
		t.Helper()
		b, _ := os.ReadFile(said)
		if got := strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", "); got != want {
			t.Errorf("hooks ran: %s, want %s", got, want)
		}
		os.Remove(said)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "from", "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asSource+"="+w.file("source"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.await("source", "copied", func(s mover.Status) bool { return s.Bucket.Objects == 1 })
	ended := make(chan int)
	go func() {
		code, _ := w.ctl("source", "cutover", "photos", "--yes")
		ended <- code
	}()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile(said); len(b) > 0 {
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if code := <-ended; code != 1 {
		t.Errorf("cutover of a daemon that was killed: exit %d", code)
	}
	w.begin("source")
	hooks("stop photos, start photos")
	w.must(0, "source", "sync", "photos")
	w.must(0, "source", "cutover", "photos", "--yes")
	hooks("stop photos")
	w.end("source")
	w.begin("source")
	hooks("")
	w.await("source", "done", is(mover.Done))
	w.must(0, "source", "rollback", "photos", "--yes")
	hooks("start photos")
	w.must(0, "source", "sync", "photos")
	if b := objects(t, filepath.Join(w.dir, "to")); b["/a"] != "x" {
		t.Error("after the rollback the target is not what it was")
	}
}

// A bucket of a real Ceph RGW moves to BOS while it is written to: puts, overwrites, deletes, uploads in parts. After the cutover both have the same bytes.
func TestBucketRGW(t *testing.T) {
	dir, err := os.MkdirTemp("", "mover-rgw-")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ceph, err := s3test.StartCeph(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { errors.Join(ceph.Close(), os.RemoveAll(dir)) })
	t.Log("ceph", time.Since(began))
	if err := ceph.MakeBucket(t.Context(), "photos"); err != nil {
		t.Fatal(err)
	}
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	w := bucketWorld(t, "")
	for name, text := range map[string]string{"rgw": "access-key: " + ceph.ID + "\nsecret-key: " + ceph.Secret + "\n", "bos": "access-key: ak-alice\nsecret-key: sk-alice\n"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.write("source", fmt.Sprintf(`source:
  state: @/source
  run: @/run
  metrics: {listen: "off"}
  buckets:
    - name: photos
      from: {s3: {endpoint: %q, bucket: photos, path-style: true, credentials: {file: @/rgw}}}
      to: {bos: {endpoint: %q, bucket: photos, credentials: {file: @/bos}}}
      deletes: follow
      interval: 100ms
      grants: true
`, ceph.Endpoint, web.URL))
	from, err := s3.New(s3.Config{Endpoint: ceph.Endpoint, Bucket: "photos", PathStyle: true, Credentials: objstore.Fixed{ID: ceph.ID, Secret: ceph.Secret}})
	if err != nil {
		t.Fatal(err)
	}
	to, err := bos.New(bos.Config{Endpoint: web.URL, Bucket: "photos", Credentials: objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	rnd := rand.New(rand.NewPCG(3, 4))
	put := func(i int) {
		b := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(30_000))
		a := objstore.Attrs{ContentType: "image/jpeg", Meta: map[string]string{"n": fmt.Sprint(i)}}
		if _, err := from.Put(t.Context(), fmt.Sprintf("%d/照片 %d", i%5, i), objstore.Bytes(b), objstore.PutOptions{Attrs: a}); err != nil {
			t.Error(err)
		}
	}
	for i := range 200 {
		put(i)
	}
	if _, err := from.Put(t.Context(), "large", objstore.Bytes(bytes.Repeat([]byte("0123456789abcdef"), 2<<20)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if i := rnd.IntN(250); rnd.IntN(4) > 0 {
				put(i)
			} else if _, err := from.Delete(t.Context(), fmt.Sprintf("%d/照片 %d", i%5, i)); err != nil {
				t.Error(err)
			}
		}
	}()
	w.begin("source")
	for range 3 {
		w.must(0, "source", "sync", "photos")
	}
	close(stop)
	<-ended
	out := w.must(0, "source", "cutover", "photos", "--yes", "--all")
	t.Log(out)
	all := func(s objstore.Store) map[string]string {
		out := map[string]string{}
		p, err := s.List(t.Context(), objstore.Query{})
		if err != nil || p.More {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			o, body, err := s.Get(t.Context(), e.Key, objstore.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			body.Close()
			if err != nil {
				t.Fatal(err)
			}
			out[e.Key] = fmt.Sprint(o.Attrs, digest.Sum(b))
		}
		return out
	}
	a, b := all(from), all(to)
	for k := range a {
		if k != "large" && a[k] != b[k] || k == "large" && b[k] == "" { // BOS has a type for what has none
			t.Errorf("%s: %s, %s at the target", k, a[k], b[k])
		}
	}
	if len(a) != len(b) || len(a) < 100 {
		t.Errorf("%d objects, %d at the target", len(a), len(b))
	}
	if ups, _, err := to.Uploads(t.Context(), "", objstore.UploadPlace{}); err != nil || len(ups) > 0 {
		t.Errorf("uploads are left: %v %v", ups, err)
	}
}
