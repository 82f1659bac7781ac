package config

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

const grouped = `source:
  gateway: {address: "gw.example:9465", ca: @@/ca.pem, cert: @@/db1.pem, key: @@/db1.key}
  flows:
    - {name: root, volume: /dev/vda}
    - {name: data, volume: @@/disk}
    - name: other
      volume: /dev/vdz
      cutover: {limit: 2s}
  groups:
    - name: server
      flows: [root, data]
      points: {every: 15m}
      hooks: {pre: [/bin/true, pre], post: [/bin/true, post]}
      cutover: {limit: 500ms, freeze-deadline: 5s}
`

func TestGroups(t *testing.T) {
	dir := certs(t)
	c, err := parse("moverd.yaml", []byte(strings.ReplaceAll(grouped, "@@", dir)), "")
	if err != nil {
		t.Fatal(err)
	}
	s := c.Source
	g := s.GroupOf("data")
	if g == nil || g != s.GroupOf("root") || s.GroupOf("other") != nil || g.Name != "server" {
		t.Fatalf("groups %+v", s.Groups)
	}
	if time.Duration(g.Points.Every) != 15*time.Minute || time.Duration(g.Hooks.Timeout) != 30*time.Second || g.Snapshot != "auto" ||
		time.Duration(g.Cutover.Limit) != 500*time.Millisecond || g.Cutover.Leave != "frozen" {
		t.Errorf("group %+v", g)
	}
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := parse("effective.yaml", text, "")
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if text2, err := again.YAML(); err != nil || string(text) != string(text2) {
		t.Errorf("effective config changed when read again (%v):\n%s\n%s", err, text, text2)
	}
}

func TestBadGroups(t *testing.T) {
	dir := certs(t)
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "points:", "pionts:", "moverd.yaml:12: source.groups[0].pionts: unknown key; allowed here: cutover, flows, hooks, name, points, snapshot"},
		{"unknown flow", "[root, data]", "[root, daat]", `moverd.yaml:11: source.groups[0].flows[1]: there is no flow "daat"; there are root data other`},
		{"flow twice", "[root, data]", "[root, root]", `moverd.yaml:11: source.groups[0].flows[1]: flow "root" is in group "server" already`},
		{"flow in two groups", "  groups:\n", "  groups:\n    - {name: first, flows: [data]}\n", `moverd.yaml:12: source.groups[1].flows[1]: flow "data" is in group "first" already`},
		{"two groups of one name", "      cutover: {limit: 2s}\n  groups:\n", "  groups:\n    - {name: server, flows: [other]}\n", "source.groups[1].name: is the name of source.groups[0] too"},
		{"named as a flow", "name: server", "name: other", `moverd.yaml:10: source.groups[0].name: "other" is the name of source.flows[2] too`},
		{"name missing", "    - name: server\n      flows", "    - flows", "moverd.yaml:10: source.groups[0].name: is missing"},
		{"name", "name: server", "name: Server", `source.groups[0].name: group name "Server" may only have`},
		{"no flows", "      flows: [root, data]\n", "", "moverd.yaml:10: source.groups[0].flows: needs at least one flow"},
		{"flows not a list", "[root, data]", "root", "source.groups[0].flows: needs a list"},
		{"own cutover", "{name: root, volume: /dev/vda}", "{name: root, volume: /dev/vda, cutover: {limit: 1s}}", `moverd.yaml:4: source.flows[0].cutover: flow "root" is cut over with its group "server" only`},
		{"every", "15m", "10ms", "moverd.yaml:12: source.groups[0].points.every: 10ms is outside 1s to 168h0m0s"},
		{"every without unit", "15m", "15", `source.groups[0].points.every: "15" is not a duration`},
		{"pre", "[/bin/true, pre]", "[/nonexistent]", "source.groups[0].hooks.pre: /nonexistent cannot be run"},
		{"post alone", "pre: [/bin/true, pre], ", "", "source.groups[0].hooks.post: has no pre that it undoes"},
		{"timeout", "hooks: {", "hooks: {timeout: 1h, ", "source.groups[0].hooks.timeout: 1h0m0s is outside 0s to 10m0s"},
		{"limit", "limit: 500ms", "limit: 50s", "source.groups[0].cutover.limit: 50s is longer than freeze-deadline 5s"},
		{"snapshot", "points:", "snapshot: perhaps\n      points:", `source.groups[0].snapshot: "perhaps" is none of auto, off`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Count(grouped, c.old) < 1 {
				t.Fatalf("%q is not in the good file", c.old)
			}
			_, err := parse("moverd.yaml", []byte(strings.ReplaceAll(strings.Replace(grouped, c.old, c.new, 1), "@@", dir)), "")
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, sentinel.ErrUsage) {
				t.Errorf("told   %v\nwanted %s", err, c.want)
			}
		})
	}
}
