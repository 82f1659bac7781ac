package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/shape"
)

const lined = `source:
  gateway:
    address: gw.example:9465
    ca: @@/ca.pem
    cert: @@/db1.pem
    key: @@/db1.key
  links:
    - {name: dedicated-1, source-address: 10.1.2.3, interface: eth1, dscp: 10, price: 1, rate: 200Mbit/s, safe-rate: 5Mbit/s}
    - {name: vpn, kind: vpn, address: "10.9.0.1:9465", price: 2}
  flows:
    - {name: root, volume: /dev/vda}
gateway:
  state: /var/lib/mover/gateway
  tls: {ca: @@/ca.pem, cert: @@/gw.pem, key: @@/gw.key}
  lines:
    - name: idc-bj
      from: [10.0.0.0/8, 192.0.2.7]
      rate: 200Mbit/s
      zone: Asia/Shanghai
      timetable:
        - {days: mon-fri, from: "08:00", to: "20:00", rate: 50Mbit/s}
        - {days: "sat,sun", from: "22:00", to: "06:00", rate: 0}
      month: 20TB
      billing: {model: "95", peak: 60Mbit/s, keep: 12}
    - name: rest
  flows:
    - {tenant: acme, host: db1, name: root, target: /dev/vdb}
`

func TestLines(t *testing.T) {
	dir := certs(t)
	c, err := parse("moverd.yaml", []byte(strings.ReplaceAll(lined, "@@", dir)), "")
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Source.Links[1]; l.Kind != "vpn" || l.Address != "10.9.0.1:9465" || c.Source.Links[0].Kind != "dedicated" {
		t.Errorf("links %+v", c.Source.Links)
	}
	if w := c.Source.Links[0].Way(); w.Source.String() != "10.1.2.3" || w.Device != "eth1" || w.DSCP != 10 {
		t.Errorf("way %+v", w)
	}
	s := c.Gateway.Lines[0].Shape()
	monday := time.Date(2026, 11, 23, 9, 0, 0, 0, s.Timetable.Zone)
	for at, want := range map[time.Time]int64{monday: 50e6 / 8, monday.Add(-2 * time.Hour): 200e6 / 8, monday.AddDate(0, 0, 5).Add(14 * time.Hour): 0, monday.AddDate(0, 0, 7).Add(-4 * time.Hour): 0} {
		if got := s.Timetable.At(at); got != want {
			t.Errorf("%v: %d, want %d", at, got, want)
		}
	}
	if b := s.Billing; b.Model != shape.Plain95 || b.Peak != 60e6/8 || b.Sample != 5*time.Minute || b.Keep != 12 || s.Month != 20e12 {
		t.Errorf("shape %+v", s)
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

func TestBadLines(t *testing.T) {
	dir := certs(t)
	for _, c := range []struct{ name, old, new, want string }{
		{"address", "10.1.2.3", "10.1.2.300", `source.links[0].source-address: "10.1.2.300" is not an IP address`},
		{"kind", "kind: vpn", "kind: internet", `source.links[1].kind: "internet" is none of dedicated, vpn`},
		{"no way", `kind: vpn, address: "10.9.0.1:9465", `, "", "source.links[1]: needs source-address, interface or address"},
		{"dscp", "dscp: 10", "dscp: 64", "source.links[0].dscp: 64 is outside 0 to 63"},
		{"price", "price: 2", "price: -2", "source.links[1].price: -2 is negative"},
		{"safe", "safe-rate: 5Mbit/s", "safe-rate: 5kbit/s", "source.links[0].safe-rate: is under 64KiB/s"},
		{"link twice", "name: vpn", "name: dedicated-1", "source.links[1].name: is the name of source.links[0] too"},
		{"link's name", "name: vpn", "name: V P N", `source.links[1].name: link name "V P N" may only have`},
		{"too many", "    address: gw", "    connections: 15\n    address: gw", "source.gateway.connections: 15 and one for each of 2 links are more than 16"},
		{"interface", "eth1", `"eth1/x"`, `source.links[0].interface: "eth1/x" is not the name of an interface`},
		{"network", "10.0.0.0/8", "10.0.0.1/8", `gateway.lines[0].from[0]: "10.0.0.1/8" has bits behind its mask; the network is 10.0.0.0/8`},
		{"no network", "10.0.0.0/8", "ten", `"ten" is not a network`},
		{"zone", "Asia/Shanghai", "Beijing", `gateway.lines[0].zone: "Beijing" is not a time zone`},
		{"days", "mon-fri", "mon-fry", `gateway.lines[0].timetable[0].days: "mon-fry" is not days of the week`},
		{"clock", `"08:00"`, `"8"`, `gateway.lines[0].timetable[0].from: "8" is not a time of the day; write it as in "08:00"`},
		{"clock's minutes", `"08:00"`, `"08:60"`, `is not a time of the day`},
		{"begin at the end", `"22:00"`, `"24:00"`, "gateway.lines[0].timetable[1].from: 24:00 is the end of a day"},
		{"slow span", "rate: 50Mbit/s", "rate: 1kbit/s", "gateway.lines[0].timetable[0].rate: is under 64KiB/s"},
		{"rate for the rest", "      rate: 200Mbit/s\n      zone", "      zone", "gateway.lines[0].rate: is missing"},
		{"model", `"95"`, "percent", `gateway.lines[0].billing.model: "percent" is none of flat, 95, enhanced-95`},
		{"peak missing", "peak: 60Mbit/s, ", "", "gateway.lines[0].billing.peak: is missing"},
		{"peak of flat", `"95"`, "flat", "gateway.lines[0].billing.peak: is only for 95 and enhanced-95"},
		{"sample", "keep: 12", "sample: 2h", "gateway.lines[0].billing.sample: 2h0m0s is outside 1s to 1h"},
		{"keep", `model: "95"`, "model: enhanced-95", "gateway.lines[0].billing.keep: 12 is outside 0 to 4"},
		{"period", "keep: 12", "period: 10m", "gateway.lines[0].billing.period: 10m0s is not at least 20 samples"},
		{"hidden line", "      from: [10.0.0.0/8, 192.0.2.7]\n", "", "gateway.lines[0].from: is missing: without it the line takes every source"},
		{"line twice", "name: rest", "name: idc-bj", "gateway.lines[1].name: is the name of gateway.lines[0] too"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(lined, c.old) {
				t.Fatalf("%q is not in the good file", c.old)
			}
			_, err := parse("moverd.yaml", []byte(strings.ReplaceAll(strings.Replace(lined, c.old, c.new, 1), "@@", dir)), "")
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, sentinel.ErrUsage) {
				t.Errorf("told   %v\nwanted %s", err, c.want)
			}
		})
	}
}

const straightFlows = `source:
  gateway: {address: "gw.example:9465", ca: @@/ca.pem, cert: @@/db1.pem, key: @@/db1.key}
  links:
    - {name: dedicated, source-address: 10.1.2.3, price: 1, safe-rate: 6Mbit/s}
    - {name: vpn, kind: vpn, address: "10.9.0.1:9465", price: 2}
  buckets:
    - name: photos
      from: {dir: {path: /srv}}
      to: {bos: {endpoint: bj.bcebos.com, bucket: photos-bj, credentials: {file: @@/keys}}}
      link: vpn
    - name: near
      from: {dir: {path: /srv}}
      to: {s3: {endpoint: "https://rgw.example", bucket: near, credentials: {file: @@/keys}}}
      line: off
    - name: films
      from: {dir: {path: /srv}}
      to: {bos: {endpoint: bj.bcebos.com, bucket: films-bj, credentials: {file: @@/keys}}}
gateway:
  state: /var/lib/mover/gateway
  tls: {ca: @@/ca.pem, cert: @@/gw.pem, key: @@/gw.key}
  lines: [{name: idc, rate: 200Mbit/s}]
  straight:
    - {tenant: acme, host: db1, name: photos}
    - {tenant: acme, host: db1, name: films}
`

func TestStraight(t *testing.T) {
	dir := certs(t)
	write(t, filepath.Join(dir, "keys"), 0o600, "access-key: AK\nsecret-key: very-secret\n")
	read := func(text string) (*Config, error) {
		return parse("moverd.yaml", []byte(strings.ReplaceAll(text, "@@", dir)), "")
	}
	c, err := read(straightFlows)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Source
	if !s.Straight(s.Buckets[0]) || s.Straight(s.Buckets[1]) || !s.Straight(s.Buckets[2]) || s.Sharing() != 2 {
		t.Errorf("%d share the line", s.Sharing())
	}
	if len(c.Gateway.Straight) != 2 || c.Gateway.Straight[1].Name != "films" {
		t.Errorf("gateway %+v", c.Gateway.Straight)
	}
	for _, b := range []struct{ name, old, new, want string }{
		{"link", "link: vpn", "link: vpm", `source.buckets[0].link: "vpm" is not the name of one of source.links`},
		{"link of no use", "line: off", "line: off\n      link: vpn", "source.buckets[1].link: is of no use: the requests of this flow go over no line of the gateway"},
		{"line", "line: off", "line: no", `source.buckets[1].line: "no" is none of auto, off`},
		{"certificate", "cert: @@/db1.pem", "cert: @@/none.pem", "source.gateway.cert: open " + dir + "/none.pem: no such file"},
		{"twice", "name: films}", "name: photos}", "gateway.straight[1].name: is the flow of gateway.straight[0] too; each flow may stand once"},
		{"a volume's", "  straight:", "  flows: [{tenant: acme, host: db1, name: photos, target: /dev/vdb}]\n  straight:", "gateway.straight[0].name: is the flow of gateway.flows[0] too"},
		{"name", "host: db1, name: films", "host: D B, name: films", `gateway.straight[1].host: `},
	} {
		if !strings.Contains(straightFlows, b.old) {
			t.Fatalf("%q is not in the good file", b.old)
		}
		_, err := read(strings.Replace(straightFlows, b.old, b.new, 1))
		if err == nil || !strings.Contains(err.Error(), b.want) || !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("%s: told   %v\nwanted %s", b.name, err, b.want)
		}
	}
}
