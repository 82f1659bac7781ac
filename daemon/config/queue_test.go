package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
)

const goodQueue = `source:
  queue: {listen: ":9467", ca: @@/ca.pem, cert: @@/queue.pem, key: @@/queue.key}
  buckets:
    - {name: photos, from: {dir: {path: @@/a}}, to: {dir: {path: @@/b}}, workers: [acme/w1]}
worker:
  queue: {url: ["nats://source.example:9467"], ca: @@/ca.pem, cert: @@/w1.pem, key: @@/w1.key}
  buckets:
    - {name: photos, from: {dir: {path: @@/a}}, to: {dir: {path: @@/b}}, cutover: {stop-hook: [/of/the/source]}}
`

// What is wrong with a queue or a worker is told with its key.
func TestQueue(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(pki.Init(dir, "test"), pki.IssueGateway(dir, dir, "queue", []string{"source.example"}, time.Hour), pki.IssueHost(dir, dir, "acme", "w1", time.Hour))
	for _, d := range []string{"a", "b"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	if err != nil {
		t.Fatal(err)
	}
	read := func(old, new, role string) error {
		if !strings.Contains(goodQueue, old) {
			t.Fatalf("%q is not there", old)
		}
		_, err := parse("moverd.yaml", []byte(strings.ReplaceAll(strings.Replace(goodQueue, old, new, 1), "@@", dir)), role)
		return err
	}
	for _, role := range []string{"source", "worker", ""} {
		if err := read("source", "source", role); role != "" && err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	for _, c := range []struct{ role, old, new, want string }{
		{"source", `listen: ":9467"`, `listen: "9467"`, `source.queue.listen: "9467" is not host:port`},
		{"source", `listen: ":9467"`, `listen: ":9467", url: ["nats://a:1"]`, "source.queue.url: stands beside listen"},
		{"source", "@@/queue.pem", "@@/w1.pem", "source.queue.cert: "},
		{"source", "cert: @@/queue.pem, ", "", "source.queue.cert: is missing"},
		{"source", `queue: {listen: ":9467", ca: @@/ca.pem, cert: @@/queue.pem, key: @@/queue.key}`, "queue: {}", "source.buckets[0].workers: cannot reach the queue"},
		{"source", "[acme/w1]", "[w1]", `source.buckets[0].workers[0]: "w1" is not TENANT/HOST`},
		{"source", "[acme/w1]", "[acme/W1]", `source.buckets[0].workers[0]: "acme/W1" is not TENANT/HOST`},
		{"worker", `url: ["nats://source.example:9467"]`, `listen: ":1"`, "worker.queue.listen: is for the source"},
		{"worker", `url: ["nats://source.example:9467"], `, "", "worker.queue.url: is missing"},
		{"worker", "nats://source.example:9467", "http://source.example", `worker.queue.url[0]: "http://source.example" is not nats://HOST:PORT`},
		{"worker", "nats://source.example:9467", "nats://me:secret@source.example", "is not nats://HOST:PORT, without a user"},
		{"worker", "@@/w1.pem, key: @@/w1.key", "@@/queue.pem, key: @@/queue.key", "worker.queue.cert: own certificate"},
		{"worker", "@@/w1.key", "@@/nowhere.key", "worker.queue.key: open "},
		{"worker", "{dir: {path: @@/b}}, cutover", "{dir: {path: @@/a}}, cutover", "worker.buckets[0].to: overlaps with worker.buckets[0].from"},
	} {
		if err := read(c.old, c.new, c.role); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s: %v; want %s", c.role, c.new, err, c.want)
		}
	}
	if _, err := parse("moverd.yaml", []byte("worker: {}\n"), "worker"); err == nil || !strings.Contains(err.Error(), "worker.buckets: needs at least one flow") {
		t.Error(err)
	}
}
