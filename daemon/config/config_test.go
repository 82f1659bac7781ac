package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// certs makes a CA with a host and a gateway, and returns its folder.
func certs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		pki.Init(dir, "test"), pki.IssueHost(dir, dir, "acme", "db1", time.Hour), pki.IssueGateway(dir, dir, "gw", []string{"gw.example"}, time.Hour),
		os.Symlink(filepath.Join(dir, "disk"), filepath.Join(dir, "alias")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := os.ReadFile(filepath.Join(dir, "db1.key"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "open.key"), 0o644, string(key))
	write(t, filepath.Join(dir, "disk"), 0o600, "x")
	return dir
}

func write(t *testing.T, path string, mode os.FileMode, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

const good = `source:
  gateway:
    address: gw.example:9465
    ca: @@/ca.pem
    cert: @@/db1.pem
    key: @@/db1.key
  limits:
    memory: 256MiB
    read-rate: 200Mbit/s
  flows:
    - name: root
      volume: /dev/vda
      cutover:
        limit: 500ms
    - name: data
      volume: @@/disk
      interval: 0s
gateway:
  state: /var/lib/mover/gateway
  tls: {ca: @@/ca.pem, cert: @@/gw.pem, key: @@/gw.key}
  flows:
    - {tenant: acme, host: db1, name: root, target: /dev/vdb}
    - {tenant: acme, host: db1, name: data, target: /srv/data.img, create: true, size: 1GiB}
`

func TestGood(t *testing.T) {
	dir := certs(t)
	c, err := parse("moverd.yaml", []byte(strings.ReplaceAll(good, "@@", dir)), "")
	if err != nil {
		t.Fatal(err)
	}
	s, g := c.Source, c.Gateway
	if s.Limits.ReadRate != 25e6 || s.Limits.Memory != 256<<20 || s.Limits.IOPriority != "idle" {
		t.Errorf("limits %+v", s.Limits)
	}
	if s.Socket != "/run/mover/source.sock" || g.Socket != "/run/mover/gateway.sock" || s.Gateway.Name != "gw.example" {
		t.Errorf("derived %q %q %q", s.Socket, g.Socket, s.Gateway.Name)
	}
	if f := s.Flows[0]; time.Duration(f.Interval) != 30*time.Second || time.Duration(f.Cutover.Limit) != 500*time.Millisecond ||
		time.Duration(f.Cutover.FreezeDeadline) != 10*time.Second || f.Cutover.Leave != "frozen" || f.OnReadError != "stop" {
		t.Errorf("flow %+v", f)
	}
	if s.Flows[1].Interval != 0 || g.Flows[1].Size != 1<<30 {
		t.Errorf("flows %+v %+v", s.Flows[1], g.Flows[1])
	}

	// What is printed as effective reads back as the same.
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := parse("effective.yaml", text, "")
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	text2, err := again.YAML()
	if err != nil || string(text) != string(text2) {
		t.Errorf("effective config changed when read again (%v):\n%s\n%s", err, text, text2)
	}
}

// Each case changes the good file in one place.
func TestBad(t *testing.T) {
	dir := certs(t)
	cases := []struct{ name, old, new, want string }{
		{"unknown key", "  limits:\n", "  limitz:\n", "moverd.yaml:7: source.limitz: unknown key; allowed here: audit, buckets, compression, flows, gateway, groups, limits,"},
		{"dedup scope", "gateway:\n  state", "gateway:\n  dedup: {scope: world}\n  state", `gateway.dedup.scope: "world" is none of host, tenant`},
		{"unknown section", "gateway:\n  state", "gatevay:\n  state", "moverd.yaml:18: gatevay: unknown key; allowed here: gateway, source"},
		{"key twice", "    read-rate: 200Mbit/s\n", "    memory: 1GiB\n", "moverd.yaml:9: source.limits.memory: stands here a second time; the first is on line 8"},
		{"unit", "200Mbit/s", "200Mbps", `moverd.yaml:9: source.limits.read-rate: "200Mbps": unknown unit "Mbps"; write it as in 200Mbit/s`},
		{"no unit", "memory: 256MiB", "memory: 256", `moverd.yaml:8: source.limits.memory: "256" needs a number and a unit`},
		{"no number", "memory: 256MiB", "memory: MiB", `moverd.yaml:8: source.limits.memory: "MiB" needs a number and a unit`},
		{"negative", "memory: 256MiB", "memory: -1MiB", `source.limits.memory: "-1MiB" needs a number and a unit`},
		{"huge", "memory: 256MiB", "memory: 99999999PiB", "is too large"},
		{"little memory", "memory: 256MiB", "memory: 1MiB", "source.limits.memory: 1MiB is less than 64MiB"},
		{"slow", "200Mbit/s", "1B/s", "source.limits.read-rate: is under 64KiB/s"},
		{"duration", "500ms", "500", `moverd.yaml:14: source.flows[0].cutover.limit: "500" is not a duration; write it as in 10s`},
		{"negative duration", "500ms", "-1s", `source.flows[0].cutover.limit: "-1s" is negative`},
		{"limit over deadline", "500ms", "1h", "source.flows[0].cutover.limit: 1h0m0s is longer than freeze-deadline 10s"},
		{"deadline", "limit: 500ms", "freeze-deadline: 1h", "source.flows[0].cutover.freeze-deadline: 1h0m0s is outside 100ms to 10m"},
		{"null", "memory: 256MiB", "memory:", "source.limits.memory: needs one value"},
		{"list for a value", "memory: 256MiB", "memory: [1]", "source.limits.memory: needs one value"},
		{"value for a section", "  limits:\n    memory: 256MiB\n    read-rate: 200Mbit/s\n", "  limits: 3\n", "moverd.yaml:7: source.limits: needs keys and values"},
		{"value for a list", "    - name: root\n      volume: /dev/vda\n      cutover:\n        limit: 500ms\n    - name: data\n      volume: @@/disk\n      interval: 0s\n", "    3\n", "source.flows: needs a list"},
		{"alias", "volume: @@/disk", "volume: *x", "unknown anchor 'x' referenced"},
		{"not a number", "memory: 256MiB", "cpu: two", `source.limits.cpu: "two" is not a whole number`},
		{"not a bool", "create: true", "create: yep", `gateway.flows[1].create: "yep" is neither true nor false`},
		{"queue depth", "memory: 256MiB", "queue-depth: 0", "source.limits.queue-depth: 0 is outside 1 to 256"},
		{"cpu", "memory: 256MiB", "cpu: -1", "source.limits.cpu: -1 is negative"},
		{"io priority", "memory: 256MiB", "io-priority: low", `source.limits.io-priority: "low" is none of idle, best-effort, none`},
		{"compression", "  limits:\n", "  compression: lots\n  limits:\n", `source.compression: "lots" is none of auto`},
		{"tracking", "  limits:\n", "  tracking: {method: magic}\n  limits:\n", `source.tracking.method: "magic" is none of auto, ebpf, scan`},
		{"flow name", "name: root\n", "name: Root Disk\n", `moverd.yaml:11: source.flows[0].name: flow name "Root Disk" may only have`},
		{"flow name with slash", "name: root\n", "name: a/b\n", `"a/b" may only have`},
		{"flow name with dots", "name: root\n", "name: ..\n", `".." may only have`},
		{"flow name missing", "    - name: root\n      volume", "    - volume", "moverd.yaml:11: source.flows[0].name: is missing"},
		{"flow name twice", "name: data\n", "name: root\n", "moverd.yaml:15: source.flows[1].name: is the name of source.flows[0] too"},
		{"volume twice", "/dev/vda", "@@/alias", "moverd.yaml:16: source.flows[1].volume: is the volume of source.flows[0] too"},
		{"volume missing", "      volume: /dev/vda\n", "", "moverd.yaml:11: source.flows[0].volume: is missing"},
		{"relative volume", "/dev/vda", "vda", `source.flows[0].volume: "vda" is not an absolute path`},
		{"on-read-error", "interval: 0s", "on-read-error: ignore", `source.flows[1].on-read-error: "ignore" is none of stop, skip`},
		{"leave", "limit: 500ms", "leave: alone", `"alone" is none of frozen, read-only, stopped`},
		{"leave stopped", "limit: 500ms", "leave: stopped", "source.flows[0].cutover.leave: stopped needs a stop-hook"},
		{"start hook alone", "limit: 500ms", "start-hook: [/bin/true]", "source.flows[0].cutover.start-hook: has no stop-hook"},
		{"hook missing", "limit: 500ms", "stop-hook: [/nonexistent]", "source.flows[0].cutover.stop-hook: /nonexistent cannot be run"},
		{"hook relative", "limit: 500ms", "stop-hook: [true]", `"true" is not an absolute path`},
		{"hook is not a list", "limit: 500ms", "stop-hook: /bin/true", "source.flows[0].cutover.stop-hook: needs a list"},
		{"address missing", "    address: gw.example:9465\n", "", "moverd.yaml:2: source.gateway.address: is missing"},
		{"address", "gw.example:9465", "gw.example", `source.gateway.address: "gw.example" is not host:port`},
		{"address without host", "gw.example:9465", ":9465", `source.gateway.address: ":9465" names no host`},
		{"port", "gw.example:9465", "gw.example:99999", `is not host:port`},
		{"connections", "    address:", "    connections: 17\n    address:", "source.gateway.connections: 17 is outside 1 to 16"},
		{"ca missing", "    ca: @@/ca.pem\n", "", "moverd.yaml:2: source.gateway.ca: is missing"},
		{"ca gone", "    ca: @@/ca.pem\n", "    ca: @@/nope.pem\n", "moverd.yaml:4: source.gateway.ca: open @@/nope.pem: no such file or directory; moverctl pki"},
		{"key gone", "    key: @@/db1.key\n", "    key: @@/nope.pem\n", "moverd.yaml:6: source.gateway.key: open @@/nope.pem"},
		{"key open to others", "    key: @@/db1.key\n", "    key: @@/open.key\n", "moverd.yaml:5: source.gateway.cert: key: key file @@/open.key is open to others (mode 0644): chmod 600"},
		{"cert is not one", "    cert: @@/db1.pem\n", "    cert: @@/disk\n", "moverd.yaml:5: source.gateway.cert: certificate @@/disk with key @@/db1.key: tls: failed to find any PEM data"},
		{"credentials", "    key: @@/db1.key\n", "    key: credential:key\n", `source.gateway.key: "credential:key": $CREDENTIALS_DIRECTORY is not set; only systemd`},
		{"credential's name", "    key: @@/db1.key\n", "    key: credential:../key\n", "a credential has a plain name"},
		{"wrong usage", "    cert: @@/db1.pem\n    key: @@/db1.key\n", "    cert: @@/gw.pem\n    key: @@/gw.key\n", "moverd.yaml:5: source.gateway.cert: "},
		{"other's key", "    key: @@/db1.key\n", "    key: @@/gw.key\n", "moverd.yaml:5: source.gateway.cert: "},
		{"metrics open", "  limits:\n", "  metrics: {listen: 0.0.0.0:9464}\n  limits:\n", `source.metrics.listen: "0.0.0.0:9464" is not a loopback address`},
		{"metrics address", "  limits:\n", "  metrics: {listen: here}\n  limits:\n", `source.metrics.listen: "here" is neither host:port nor off`},
		{"no flows", "  flows:\n    - {tenant: acme, host: db1, name: root, target: /dev/vdb}\n    - {tenant: acme, host: db1, name: data, target: /srv/data.img, create: true, size: 1GiB}\n", "", "moverd.yaml:18: gateway.flows: needs at least one flow"},
		{"one target twice", "/srv/data.img", "/dev/vdb", "moverd.yaml:23: gateway.flows[1].target: is the target of gateway.flows[0] too"},
		{"one target by two paths", "/srv/data.img", "/srv/../dev/vdb", "gateway.flows[1].target: is the target of gateway.flows[0] too"},
		{"one flow twice", "name: data, target", "name: root, target", "gateway.flows[1].name: is the flow of gateway.flows[0] too"},
		{"tenant missing", "{tenant: acme, host: db1, name: root", "{host: db1, name: root", "gateway.flows[0].tenant: is missing"},
		{"host", "host: db1, name: root", "host: DB1, name: root", `gateway.flows[0].host: host name "DB1" may only have`},
		{"target missing", ", target: /dev/vdb", "", "gateway.flows[0].target: is missing"},
		{"size without create", "create: true, ", "", "gateway.flows[1].size: is only for create: true"},
		{"odd size", "1GiB", "1000B", "gateway.flows[1].size: is not a multiple of 512 bytes"},
		{"state shared", "  state: /var/lib/mover/gateway\n", "", "gateway.state: /var/lib/mover is the source's too"},
		{"socket shared", "  state: /var/lib/mover/gateway\n", "  state: /x\n  socket: /run/mover/source.sock\n", "gateway.socket: /run/mover/source.sock is the source's too"},
		{"tab", "  limits:\n", "\tlimits:\n", "moverd.yaml:6: found a tab character that violates indentation"},
		{"two documents", "gateway:\n  state", "---\ngateway:\n  state", "a second document begins here"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if strings.Count(good, c.old) < 1 {
				t.Fatalf("%q is not in the good file", c.old)
			}
			text := strings.ReplaceAll(strings.Replace(good, c.old, c.new, 1), "@@", dir)
			_, err := parse("moverd.yaml", []byte(text), "")
			if err == nil {
				t.Fatal("accepted")
			}
			want := strings.ReplaceAll(c.want, "@@", dir)
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("told   %v\nwanted %s", err, want)
			}
			if !errors.Is(err, sentinel.ErrUsage) {
				t.Error("is not an error of usage")
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml"), ""); err == nil || !strings.Contains(err.Error(), "no such file; write one") {
		t.Errorf("missing file: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "comment": "# nothing\n"} {
		path := filepath.Join(dir, name)
		write(t, path, 0o600, text)
		if _, err := Load(path, ""); err == nil || !strings.Contains(err.Error(), "is empty; it needs a section") {
			t.Errorf("%s: %v", name, err)
		}
	}
	open := filepath.Join(dir, "open.yaml")
	write(t, open, 0o600, "source: {}\n")
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(open, ""); err == nil || !strings.Contains(err.Error(), "may be written by others than its owner (mode 0666)") {
		t.Errorf("open file: %v", err)
	}
	if _, err := parse("x.yaml", []byte("{}"), ""); err == nil || err.Error() != "x.yaml:1: needs a section source:, gateway: or worker:" {
		t.Errorf("no section: %v", err)
	}
}

// Credentials are the unit's: the other role's are not there, and need not be.
func TestCredentials(t *testing.T) {
	dir := certs(t)
	text := strings.Replace(good, "    key: @@/db1.key\n", "    key: credential:db1.key\n", 1)
	raw := []byte(strings.ReplaceAll(text, "@@", dir))
	if _, err := parse("x.yaml", raw, "gateway"); err != nil {
		t.Errorf("gateway without the source's credentials: %v", err)
	}
	if _, err := parse("x.yaml", raw, "source"); err == nil {
		t.Error("source without its credentials was accepted")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	c, err := parse("x.yaml", raw, "source")
	if err != nil || c.Source.Gateway.Key != "credential:db1.key" {
		t.Errorf("source with its credentials: %v", err)
	}
}

func TestRevocationLists(t *testing.T) {
	dir := certs(t)
	for text, want := range map[string]string{
		", crl: @@/none.crl":   "gateway.tls.crl: open @@/none.crl",
		", crl: @@/ca.pem":     "gateway.tls.crl: @@/ca.pem holds a PEM block \"CERTIFICATE\"",
		", crl-strict: true":   "gateway.tls.crl-strict: is only for a crl",
		", crl-strict: 7":      "crl-strict",
		", crl: @@/ca.crl":     "",
		", crls: @@/other.crl": "crls",
	} {
		if _, err := pki.Revoke(dir, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		raw := strings.Replace(good, "key: @@/gw.key", "key: @@/gw.key"+text, 1)
		_, err := parse("x.yaml", []byte(strings.ReplaceAll(raw, "@@", dir)), "gateway")
		want = strings.ReplaceAll(want, "@@", dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("source: {flows: [{name: a}]}"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := parse("x.yaml", raw, ""); err != nil && !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%v is not an error of usage", err)
		}
	})
}
