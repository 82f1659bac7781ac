package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
)

// A folder goes by the gateway to BOS, which is an emulator, while it is written to; the gateway goes away and comes back; the source has no keys of the cloud. After the
// cutover every object is there, behind the prefix that the gateway sets, and verifying has read them without bringing their bytes back over the line.
func TestBucketByGateway(t *testing.T) {
	w := bucketWorld(t, "")
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}, {Name: "other", Owner: "alice", Region: "gz"}}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	for _, args := range []string{"pki init --dir @/pki", "pki gateway --dir @/pki --out @/pki --name gw --address 127.0.0.1", "pki host --dir @/pki --out @/pki --tenant acme --host db1"} {
		w.must(0, "", strings.Fields(strings.ReplaceAll(args, "@", w.dir))...)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "bos"), []byte("access-key: ak-alice\nsecret-key: sk-alice\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway := fmt.Sprintf(`gateway:
  listen: %s
  state: @/gateway
  run: @/run
  metrics: {listen: "off"}
  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}
  buckets:
    - {tenant: acme, host: db1, name: photos, store: {bos: {endpoint: %q, bucket: photos, prefix: acme/, credentials: {file: @/bos}}}}
`, addr, web.URL)
	w.write("gateway", gateway)
	source := fmt.Sprintf(`source:
  state: @/source
  run: @/run
  metrics: {listen: "off"}
  gateway: {address: %q, ca: @/pki/ca.pem, cert: @/pki/db1.pem, key: @/pki/db1.key}
  buckets:
    - name: photos
      from: {dir: {path: @/from}}
      to: {gateway: {prefix: new/}}
      deletes: follow
      interval: 50ms
`, addr)
	w.write("source", source)
	from := filepath.Join(w.dir, "from")
	text := strings.Repeat("a line of a text that is like many others\n", 200)
	for i := range 300 {
		name := filepath.Join(from, "old", fmt.Sprint(i%10), fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(fmt.Sprint(i, text[:i*20])), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	large := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{1}).Read(large)
	for _, name := range []string{"large", "large again"} {
		if err := os.WriteFile(filepath.Join(from, name), large, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out := w.must(1, "", "check", "-c", w.file("source")); !strings.Contains(out, "connection refused") {
		t.Errorf("check without a gateway:\n%s", out)
	}
	w.begin("gateway")
	if out := w.must(0, "", "check", "-c", w.file("source")); !strings.Contains(out, "ok    bucket flow photos") {
		t.Errorf("check:\n%s", out)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); writer(t, from, stop) }()
	w.begin("source")
	w.await("source", "moving", func(s mover.Status) bool { return s.Bucket.Objects > 50 })
	w.end("gateway")
	w.begin("gateway")
	w.must(0, "source", "resume", "photos")
	w.must(0, "source", "sync", "photos")
	close(stop)
	<-ended
	if out := w.must(0, "source", "cutover", "photos", "--yes", "--all"); !strings.Contains(out, "the target has what the source had") {
		t.Errorf("cutover:\n%s", out)
	}
	to, err := bos.New(bos.Config{Endpoint: web.URL, Bucket: "photos", Credentials: objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	have, bytesThere := map[string]bool{}, int64(0)
	for q := (objstore.Query{}); ; {
		p, err := to.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			have[e.Key] = true
			bytesThere += e.Size
			q.After = e.Key
		}
		if !p.More {
			break
		}
	}
	files := objects(t, from)
	for name, want := range files {
		key := "acme/new" + name
		if !have[key] {
			t.Errorf("%s is missing", key)
			continue
		}
		_, body, err := to.Get(t.Context(), key, objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(body); err != nil || b.String() != want {
			t.Errorf("%s: %d bytes, want %d; %v", key, b.Len(), len(want), err)
		}
		body.Close()
	}
	if len(files) != len(have) || len(files) < 300 {
		t.Errorf("%d objects, %d at the target", len(files), len(have))
	}
	var all []mover.Status
	if err := json.Unmarshal([]byte(w.must(0, "source", "status", "-o", "json")), &all); err != nil || len(all) != 1 || all[0].Relay == nil {
		t.Fatalf("status: %v %+v", err, all)
	}
	// The large content is there twice, and crosses the line once, or a bit more where the gateway went away in the middle.
	if s := all[0]; s.WireOut > 45<<20 || s.Relay.Bodies < 40<<20 || s.WireIn > bytesThere/4 {
		t.Errorf("%d bytes went out and %d came in for %d; %+v", s.WireOut, s.WireIn, bytesThere, s.Relay)
	}
	if out := w.must(0, "gateway", "status"); !strings.Contains(out, "acme/db1/photos") || !strings.Contains(out, "bos://photos/acme/") {
		t.Errorf("status of the gateway:\n%s", out)
	}

	// Another bucket behind the gateway is not taken for the one that the ledger is about.
	w.must(0, "source", "rollback", "photos", "--yes")
	w.end("source")
	w.end("gateway")
	w.write("gateway", strings.Replace(gateway, "bucket: photos", "bucket: other", 1))
	w.begin("gateway")
	w.begin("source")
	if s := w.await("source", "stopped", is(mover.Stopped)); !strings.Contains(s.Reason, "its ledger is about bos://photos") {
		t.Errorf("%+v", s)
	}
}

// What the config says wrong about a gateway in between is told with its key.
func TestBadBucketByGateway(t *testing.T) {
	w := bucketWorld(t, "")
	for _, args := range []string{"pki init --dir @/pki", "pki gateway --dir @/pki --out @/pki --name gw --address 127.0.0.1"} {
		w.must(0, "", strings.Fields(strings.ReplaceAll(args, "@", w.dir))...)
	}
	for _, c := range []struct{ role, text, want string }{
		{"source", "source:\n  buckets: [{name: a, from: {dir: {path: @/from}}, to: {gateway: {}}}]\n", "source.gateway.address: is missing"},
		{"source", "source:\n  gateway: {address: \"127.0.0.1:1\"}\n  buckets: [{name: a, from: {gateway: {}}, to: {dir: {path: @/to}}}]\n", "source.buckets[0].from: a gateway is where objects are moved to"},
		{"source", "source:\n  buckets: [{name: a, from: {dir: {path: @/from}}, to: {gateway: {bucket: x}}}]\n", "source.buckets[0].to.gateway.bucket: unknown key"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  buckets: [{tenant: acme, host: db1, name: a, store: {gateway: {}}}]\n", "gateway.buckets[0].store: a gateway cannot be behind a gateway"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  buckets: [{host: db1, name: a, store: {dir: {path: @/to}}}]\n", "gateway.buckets[0].tenant: is missing"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  dedup: {cache: 1MiB}\n  buckets: [{tenant: acme, host: db1, name: a, store: {dir: {path: @/to}}}]\n", "gateway.dedup.cache: 1MiB is less than 256MiB"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  memory: 300MiB\n  buckets: [{tenant: acme, host: db1, name: a, store: {dir: {path: @/to}}}]\n", "gateway.memory: 300MiB is less than"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  buckets: [{tenant: acme, host: db1, name: a, store: {bos: {endpoint: hkg.bcebos.com, bucket: x, credentials: {instance: true}}}}]\n",
			"gateway.buckets[0].store.bos.endpoint: \"hkg.bcebos.com\" is in region \"hkg\", which is not among gateway.regions"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  buckets: [{tenant: acme, host: db1, name: a, store: {dir: {path: @/to}}}, {tenant: acme, host: db2, name: a, store: {dir: {path: @/to, prefix: x/}}}]\n",
			"gateway.buckets[1].store: overlaps with gateway.buckets[0].store"},
		{"gateway", "gateway:\n  tls: {ca: @/pki/ca.pem, cert: @/pki/gw.pem, key: @/pki/gw.key}\n  flows: [{tenant: acme, host: db1, name: a, target: /dev/null}]\n  buckets: [{tenant: acme, host: db1, name: a, store: {dir: {path: @/to}}}]\n",
			"gateway.buckets[0].name: acme/db1/a is gateway.flows[0] too"},
	} {
		w.write(c.role, c.text)
		if out := w.must(2, "", "check", "-c", w.file(c.role)); !strings.Contains(out, c.want) {
			t.Errorf("%s\nsays\n%s", c.text, out)
		}
	}
}
