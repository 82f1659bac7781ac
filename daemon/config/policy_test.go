package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodPolicy = `rules:
  - {tenant: acme, host: db1, targets: [/srv/acme/db1/*, /dev/vdb], volume: 2TiB, total: 3TiB, flows: 4, connections: 32}
  - {tenant: acme, host: "db*", targets: ["/srv/acme/pool/db?.img"]}
  - {tenant: "*", host: "*", targets: [/srv/guests/*/*]}
`

func TestPolicy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(goodPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := LoadPolicy(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tenant, host, target string
		ok                   bool
	}{
		{"acme", "db1", "/srv/acme/db1/a.img", true}, {"acme", "db1", "/dev/vdb", true}, {"acme", "db1", "/dev/vdb1", false},
		{"acme", "db1", "/srv/acme/db1/x/a.img", false}, {"acme", "db1", "/srv/acme/pool/db1.img", false},
		{"acme", "db2", "/srv/acme/pool/db2.img", true}, {"acme", "db2", "/srv/acme/pool/db22.img", false}, {"acme", "db2", "/dev/vdb", false},
		{"acme", "web", "/dev/vdb", false}, {"other", "web", "/srv/guests/a/b", true}, {"other", "web", "/srv/guests/a", false},
	} {
		if r := p.Rule(c.tenant, c.host); r.Allows(c.target) != c.ok {
			t.Errorf("%+v", c)
		}
	}
	if r := p.Rule("acme", "db1"); r.Volume != 2<<40 || r.Total != 3<<40 || r.Flows != 4 || r.Connections != 32 {
		t.Errorf("%+v", r)
	}
	if (&Policy{Rules: p.Rules[:2]}).Rule("evil", "db1") != nil || (&Policy{Rules: p.Rules[:2]}).Rule("acme2", "db1") != nil {
		t.Error("a tenant without a rule has one")
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPolicy(file); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Error(err)
	}
	if _, err := LoadPolicy(file + "x"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

func TestBadPolicies(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "is empty; a policy needs rules"},
		{"rules: []", "p.yaml:1: rules: needs at least one rule"},
		{"rule: []", `p.yaml:1: rule: unknown key; allowed here: rules`},
		{"rules:\n  - {tenant: acme, host: db1, targets: [/a], volumes: 1TiB}", "p.yaml:2: rules[0].volumes: unknown key"},
		{"rules:\n  - {host: db1, targets: [/a]}", "rules[0].tenant: is missing"},
		{"rules:\n  - {tenant: acme, targets: [/a]}", "rules[0].host: is missing"},
		{"rules:\n  - {tenant: acme, host: db1}", "rules[0].targets: is missing"},
		{"rules:\n  - {tenant: acme, host: 'd*b', targets: [/a]}", `rules[0].host: "d*b" is neither`},
		{"rules:\n  - {tenant: acme, host: '**', targets: [/a]}", `rules[0].host: "**" is neither`},
		{"rules:\n  - {tenant: acme, host: db1, targets: [a/*]}", `rules[0].targets[0]: "a/*" is not an absolute path`},
		{"rules:\n  - {tenant: acme, host: db1, targets: [/a/../b]}", "is not an absolute path without .."},
		{"rules:\n  - {tenant: acme, host: db1, targets: ['/a[']}", "is not a pattern"},
		{"rules:\n  - {tenant: acme, host: db1, targets: [/a], volume: many}", "rules[0].volume"},
		{"rules:\n  - {tenant: acme, host: db1, targets: [/a], flows: -1}", "is negative"},
		{"rules:\n  - {tenant: acme, host: 'db*', targets: [/a]}\n  - {tenant: acme, host: db1, targets: [/b]}", "p.yaml:3: rules[1]: is never used"},
		{"rules:\n  - {tenant: '*', host: 'db*', targets: [/a]}\n  - {tenant: 'a*', host: 'db1*', targets: [/b]}", "is never used"},
	} {
		if _, err := parsePolicy("p.yaml", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}
