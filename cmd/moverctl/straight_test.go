package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore/bosemu"
)

// A bucket flow that writes to BOS past the gateway has a lease of its line, stands still when the line gives nothing, says why, and goes on when the operator lets
// it; a reload changes its own rate while it moves.
func TestStraightBucket(t *testing.T) {
	t.Parallel() // it waits more than it works
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "acme", AccessKey: "AK", SecretKey: "SK"}}, Buckets: []bosemu.Bucket{{Name: "photos", Owner: "acme", Region: "bj"}}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	w := newWorld(t, "@/none", "@/target", "")
	put := func(name string, n, size int) {
		for i := range n {
			if err := os.WriteFile(filepath.Join(w.dir, "from", fmt.Sprint(name, i)), bytes.Repeat([]byte{byte(i)}, size), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(w.dir, "from"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "keys"), []byte("access-key: AK\nsecret-key: SK\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(w.file("source"))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(source), "  flows:")
	config := func(rate string) {
		w.write("source", head+fmt.Sprintf("  buckets:\n    - {name: photos, from: {dir: {path: @/from}}, to: {bos: {endpoint: %q, bucket: photos, credentials: {file: @/keys}}}, interval: 100ms, limits: {memory: 64MiB, rate: %s}}\n", web.URL, rate))
	}
	config("1MiB/s")
	gateway, err := os.ReadFile(w.file("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("gateway", string(gateway)+"  lines: [{name: idc, rate: 64MiB/s, month: 1TB}]\n  straight: [{tenant: acme, host: db1, name: photos}]\n")
	w.begin("gateway")
	w.must(0, "gateway", "line", "set", "idc", "--month", "1B")
	put("a", 4, 256<<10)
	w.begin("source")
	s := w.await("source", "without a share", func(s mover.Status) bool {
		return strings.Contains(s.Reason, "line idc: the bytes of the month are spent")
	})
	if s.Flow != "photos" || s.State != mover.Passing || !strings.Contains(s.Next, "moverctl line set idc") || len(s.Links) != 1 || !s.Links[0].Leased {
		t.Errorf("status %+v", s)
	}
	if s.Bucket.CopiedBytes > 0 {
		t.Errorf("%d bytes were copied without a share", s.Bucket.CopiedBytes)
	}
	w.must(0, "gateway", "line", "set", "idc", "--reset")
	w.await("source", "in sync", func(s mover.Status) bool { return s.Bucket.Objects == 4 })

	put("b", 8, 1<<20) // 8 s at its rate
	s = w.await("source", "with a lease", func(s mover.Status) bool {
		return s.State == mover.Passing && s.Bucket.CopiedBytes > 0 && s.Links[0].Leased && s.Links[0].Line == "idc"
	})
	if s.Bucket.Objects > 8 {
		t.Errorf("%d objects at 1 MiB/s", s.Bucket.Objects)
	}
	var lines []mover.LineStatus
	if err := json.Unmarshal([]byte(w.must(0, "gateway", "line", "-o", "json")), &lines); err != nil || len(lines) != 1 || len(lines[0].Leases) != 1 || !lines[0].Leases[0].Past || lines[0].Leases[0].Flow != "acme/db1/photos" {
		t.Errorf("lines %+v %v", lines, err)
	}
	if out := w.must(0, "gateway", "line"); !strings.Contains(out, "acme/db1/photos, delta: ") || !strings.Contains(out, "past the gateway") {
		t.Errorf("line:\n%s", out)
	}
	config("0")
	began := time.Now()
	w.hup["source"] <- unix.SIGHUP
	w.await("source", "in sync", func(s mover.Status) bool { return s.Bucket.Objects == 12 })
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("took %v without a rate", d)
	}
}
