package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore/bosemu"
)

// one polls the status of one of several flows until ok.
func (w *world) one(flow, what string, ok func(mover.Status) bool) mover.Status {
	w.t.Helper()
	var last string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		code, out := w.ctl("source", "status", flow, "-o", "json")
		var all []mover.Status
		if last = out; code == 0 && json.Unmarshal([]byte(out), &all) == nil && len(all) == 1 && ok(all[0]) {
			return all[0]
		}
	}
	w.t.Fatalf("%s never was %s; last status:\n%s", flow, what, last)
	return mover.Status{}
}

// stands waits until a flow stands still, for a reason and with a next step that have all of these in them.
func (w *world) stands(flow string, all ...string) {
	w.t.Helper()
	w.one(flow, fmt.Sprintf("stopped with %q", all), func(s mover.Status) bool {
		for _, text := range all {
			if !strings.Contains(s.Reason+"\n"+s.Next, text) {
				return false
			}
		}
		return s.State == mover.Stopped || s.State == mover.Connecting
	})
}

// small mounts a tmpfs of so many MiB, which grow makes larger.
func small(t *testing.T, dir string, mib int) (grow func(mib int)) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o700), unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(mib int) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)); err != nil {
			t.Fatal(err)
		}
	}
}

// The disk of the ledger is full: nothing is copied that could not be recorded, the reason says where room is needed, and when there is some the flow goes on.
func TestBucketLedgerDiskFull(t *testing.T) {
	w := bucketWorld(t, "")
	grow := small(t, filepath.Join(w.dir, "source"), 100)
	w.file2("from/a", "x")
	w.begin("source")
	w.stands("photos", "are free on the disk of "+filepath.Join(w.dir, "source"), "at least 128 MiB are needed", "moverctl resume")
	if b := objects(t, filepath.Join(w.dir, "to")); len(b) > 0 {
		t.Errorf("the target was written: %v", b)
	}
	w.must(1, "source", "sync", "photos")
	grow(400)
	w.must(0, "source", "resume", "photos")
	w.must(0, "source", "sync", "photos")
	if b := objects(t, filepath.Join(w.dir, "to")); b["/a"] != "x" {
		t.Errorf("%v", b)
	}
}

// The target's disk is full: the objects that did not fit are named, a cutover is not done without them, and each pass tries them again.
func TestBucketTargetDiskFull(t *testing.T) {
	w := bucketWorld(t, "")
	grow := small(t, filepath.Join(w.dir, "to"), 5)
	for i := range 8 {
		w.file2(fmt.Sprint("from/", i), string(bytes.Repeat([]byte{byte('0' + i)}, 1<<20)))
	}
	w.begin("source")
	w.must(0, "source", "sync", "photos")
	s := w.await("source", "short of room", func(s mover.Status) bool { return s.Bucket.Failed > 0 })
	if s.Bucket.Objects+s.Bucket.Failed != 8 {
		t.Errorf("%+v", s.Bucket)
	}
	w.await("source", "idle with a next step", func(s mover.Status) bool { return strings.Contains(s.Next, "moverctl objects --failed") })
	if out := w.must(0, "source", "objects", "photos", "--failed"); !strings.Contains(out, "no space left for "+filepath.Join(w.dir, "to")) {
		t.Errorf("objects:\n%s", out)
	}
	if out := w.must(3, "source", "cutover", "photos", "--yes"); !strings.Contains(out, "could not be copied") || !strings.Contains(out, "--failed") {
		t.Errorf("cutover:\n%s", out)
	}
	grow(50)
	w.must(0, "source", "sync", "photos")
	w.must(0, "source", "cutover", "photos", "--yes", "--all")
	if b := objects(t, filepath.Join(w.dir, "to")); len(b) != 8 {
		t.Errorf("%d objects", len(b))
	}
}

// Both ends are one folder by two names, or one lies in the other: nothing is copied. What the names tell is an error of the config.
func TestBucketOnItself(t *testing.T) {
	w := bucketWorld(t, "")
	w.file2("from/a", "x")
	if err := unix.Mount(filepath.Join(w.dir, "from"), filepath.Join(w.dir, "to"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(w.dir, "to"), unix.MNT_DETACH) })
	text, err := os.ReadFile(w.file("source"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("source", string(text)+"      claim: true\n")
	w.begin("source")
	w.stands("photos", "are one bucket", "overlap", "moverctl resume")
	if b := objects(t, filepath.Join(w.dir, "from")); len(b) != 1 {
		t.Errorf("the source was written: %v", b)
	}
	w.end("source")
	for i, to := range []string{"@/from/below", "@/link"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(w.dir, "from/below"), 0o700), os.RemoveAll(filepath.Join(w.dir, "link")), os.Symlink("from", filepath.Join(w.dir, "link"))); err != nil {
			t.Fatal(err)
		}
		w.write("other", strings.Replace(string(text), "path: "+filepath.Join(w.dir, "to"), "path: "+to, 1))
		if out := w.must(2, "", "check", "-c", w.file("other")); !strings.Contains(out, "source.buckets[0].to: overlaps with source.buckets[0].from") {
			t.Errorf("%d:\n%s", i, out)
		}
	}
}

// A file that is written to while it is read is never copied half old and half new; when that ends it is copied.
func TestBucketSourceChanges(t *testing.T) {
	w := bucketWorld(t, "")
	path := filepath.Join(w.dir, "from", "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := f.Write(line[:1+i%len(line)]); err != nil {
				t.Error(err)
				return
			}
			if i%50 == 49 {
				if err := errors.Join(f.Truncate(0), func() error { _, err := f.Seek(0, 0); return err }()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	w.begin("source")
	for range 4 {
		w.must(0, "source", "sync", "photos")
	}
	close(stop)
	<-ended
	w.must(0, "source", "cutover", "photos", "--yes", "--all")
	a, b := objects(t, filepath.Join(w.dir, "from")), objects(t, filepath.Join(w.dir, "to"))
	if a["/log"] != b["/log"] || len(b) != 1 {
		t.Errorf("%d bytes, %d at the target", len(a["/log"]), len(b["/log"]))
	}
}

// A source whose listing breaks in the middle, clocks that differ, a prefix that nothing has, a bucket in another region than its endpoint says: each is named with
// what to do, nothing is deleted or lost, and each goes on when it is mended.
func TestBucketBadStores(t *testing.T) {
	var broken, skewed atomic.Bool
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}}, Limits: bosemu.Limits{Page: 50},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice"}, {Name: "hongkong", Owner: "alice", Region: "hkg"}},
		Clock: func() time.Time {
			if skewed.Load() {
				return time.Now().Add(time.Hour)
			}
			return time.Now()
		},
		Fault: func(r bosemu.Request) bosemu.Fault {
			if broken.Load() && r.Op == "ListObjects" && r.Count%3 == 0 {
				return bosemu.Fault{Code: "AccessDenied"}
			}
			return bosemu.Fault{}
		}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	w := bucketWorld(t, "")
	w.file2("keys", "access-key: ak-alice\nsecret-key: sk-alice\n")
	const n = 400
	for i := range n {
		w.file2(fmt.Sprintf("from/%03d", i), fmt.Sprint(i))
	}
	bos := func(bucket, prefix string) string {
		return fmt.Sprintf("{bos: {endpoint: %q, bucket: %s, prefix: %q, credentials: {file: @/keys}}}", web.URL, bucket, prefix)
	}
	text := "source:\n  state: @/source\n  run: @/run\n  metrics: {listen: \"off\"}\n  buckets:\n" +
		"    - {name: up, from: {dir: {path: @/from}}, to: " + bos("photos", "p/") + ", interval: 1h}\n" +
		"    - {name: down, from: " + bos("photos", "p/") + ", to: {dir: {path: @/to}}, deletes: follow, interval: 1h}\n" +
		"    - {name: typo, from: " + bos("photos", "q/") + ", to: {dir: {path: @/typo}}, interval: 1h}\n" +
		"    - {name: all-out, from: {dir: {path: @/from}}, to: {dir: {path: @/out}}, exclude: [\"**\"], interval: 1h}\n" +
		"    - {name: far, from: " + bos("hongkong", "") + ", to: {dir: {path: @/far}}, interval: 1h}\n"
	for _, d := range []string{"typo", "far", "out"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.write("source", text)
	w.begin("source")
	w.must(0, "source", "sync", "up")
	w.must(0, "source", "sync", "down")
	w.must(0, "source", "sync", "typo")
	if got := objects(t, filepath.Join(w.dir, "to")); len(got) != n {
		t.Fatalf("%d objects", len(got))
	}
	w.one("typo", "told of its prefix", func(s mover.Status) bool { return strings.Contains(s.Next, `lists nothing below the prefix "q/"`) })
	w.must(0, "source", "sync", "all-out")
	w.one("all-out", "told of its patterns", func(s mover.Status) bool {
		return strings.Contains(s.Next, fmt.Sprintf("leave out all of the %d objects", n))
	})
	w.stands("far", `is in region "hkg"; source.regions allows bj,`)
	if out := w.must(1, "", "check", "-c", w.file("source")); !strings.Contains(out, `BAD   bucket flow far`) || !strings.Contains(out, `is in region "hkg"`) ||
		!strings.Contains(out, `lists nothing: if there should be something, look at the bucket's name and the prefix "q/"`) {
		t.Errorf("check:\n%s", out)
	}

	broken.Store(true)
	if out := w.must(1, "source", "sync", "down"); !strings.Contains(out, "list ") || !strings.Contains(out, "AccessDenied") {
		t.Errorf("sync:\n%s", out)
	}
	w.stands("down", "AccessDenied", "look at the credentials", "moverctl resume")
	if got := objects(t, filepath.Join(w.dir, "to")); len(got) != n {
		t.Errorf("%d objects are left at the target", len(got))
	}
	broken.Store(false)
	w.must(0, "source", "sync", "down")

	skewed.Store(true)
	w.file2("from/new", "x")
	w.must(1, "source", "sync", "up")
	w.stands("up", "clock", "NTP", "moverctl resume")
	if out := w.must(1, "", "check", "-c", w.file("source")); !strings.Contains(out, "BAD   bucket flow up") || !strings.Contains(out, "clock") {
		t.Errorf("check:\n%s", out)
	}
	skewed.Store(false)
	w.must(0, "source", "resume", "up")
	w.must(0, "source", "sync", "up")
	w.must(0, "source", "cutover", "down", "--yes", "--all")
	if got := objects(t, filepath.Join(w.dir, "to")); len(got) != n+1 {
		t.Errorf("%d objects", len(got))
	}
}
