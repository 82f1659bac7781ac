package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

const goodBuckets = `source:
  regions: [bj, gz]
  buckets:
    - name: photos
      from: {s3: {endpoint: "https://rgw.example:7480", bucket: photos, path-style: true, credentials: {file: @@/keys}}}
      to: {bos: {endpoint: bj.bcebos.com, bucket: photos-bj, prefix: new/, credentials: {env: MOVER_TEST_BOS}}}
      include: ["**"]
      exclude: ["tmp/**"]
      deletes: follow
      limits: {rate: 100Mbit/s}
    - name: files
      from: {dir: {path: @@/files}}
      to: {bos: {endpoint: "https://gz.bcebos.com", bucket: files-gz, credentials: {systemd: bos}}}
`

// bucketFiles makes what goodBuckets names.
func bucketFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "keys"), 0o600, "access-key: AK\nsecret-key: very-secret\n")
	write(t, filepath.Join(dir, "open"), 0o644, "access-key: AK\nsecret-key: very-secret\n")
	write(t, filepath.Join(dir, "half"), 0o600, "access-key: AK\n")
	write(t, filepath.Join(dir, "odd"), 0o600, "access-key: AK\nsecret-key: very-secret\nvery-secret-too: x\n")
	write(t, filepath.Join(dir, "bos"), 0o600, "access-key: AK\nsecret-key: very-secret\ntoken: t\n")
	if err := os.MkdirAll(filepath.Join(dir, "files", "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("MOVER_TEST_BOS_ACCESS_KEY", "AK")
	t.Setenv("MOVER_TEST_BOS_SECRET_KEY", "very-secret")
	return dir
}

func TestBuckets(t *testing.T) {
	dir := bucketFiles(t)
	c, err := parse("moverd.yaml", []byte(strings.ReplaceAll(goodBuckets, "@@", dir)), "source")
	if err != nil {
		t.Fatal(err)
	}
	f := c.Source.Buckets[0]
	if f.From.S3.Bucket != "photos" || f.To.Prefix() != "new/" || time.Duration(f.Interval) != 5*time.Minute || f.Limits.Memory != 128<<20 || f.Limits.Rate != 12_500_000 || f.Claim {
		t.Errorf("%+v", f)
	}
	text, err := c.YAML()
	if err != nil || strings.Contains(string(text), "very-secret") {
		t.Errorf("%v:\n%s", err, text)
	}
	if again, err := parse("effective", text, "source"); err != nil || fmt.Sprint(again.Source.Buckets[1].Limits) != fmt.Sprint(c.Source.Buckets[1].Limits) {
		t.Errorf("what is printed as effective reads back as %v", err)
	}
	for i, e := range []End{f.From, f.To} {
		var c Credentials
		if i == 0 {
			c = e.S3.Credentials
		} else {
			c = e.BOS.Credentials
		}
		k, err := c.Keys().Keys(t.Context())
		if err != nil || k.ID != "AK" || k.Secret != "very-secret" {
			t.Errorf("%v %v", k, err)
		}
		if s := fmt.Sprintf("%v %+v %#v %v", k, k, k, c.Keys()); strings.Contains(s, "very-secret") {
			t.Error("a secret is printed")
		}
	}
}

// The examples can be used as they are, but for their names.
func TestBucketExample(t *testing.T) {
	dir := bucketFiles(t)
	for _, name := range []string{"buckets.yaml", "buckets-try.yaml"} {
		text, err := os.ReadFile("../../docs/examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse(name, []byte(strings.ReplaceAll(string(text), "/etc/mover/rgw.keys", dir+"/keys")), "source"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// So can that of a gateway in between.
func TestGatewayExample(t *testing.T) {
	dir := bucketFiles(t)
	certs := filepath.Join(dir, "pki")
	if err := errors.Join(pkiOf(certs)...); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/examples/buckets-gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := parse("buckets-gateway.yaml", []byte(strings.NewReplacer("/etc/mover/rgw.keys", dir+"/keys", "/etc/mover/pki", certs).Replace(string(text))), "")
	if err != nil {
		t.Fatal(err)
	}
	if b := c.Gateway.Buckets[0]; b.Key() != "acme/db1/photos" || b.Store.Target() != "bos:photos-bj/db1" || c.Source.Buckets[0].To.Prefix() != "photos/" || !c.Source.Leased(c.Source.Buckets[0]) {
		t.Errorf("%+v", b)
	}
	p, err := parsePolicy("p.yaml", []byte("rules: [{tenant: acme, host: db1, targets: ['bos:photos-bj/*']}]"))
	if err != nil || !p.Rule("acme", "db1").Allows("bos:photos-bj/db1") || p.Rule("acme", "db1").Allows("bos:photos-bj") || p.Rule("acme", "db1").Allows("/bos") {
		t.Errorf("policy %+v, %v", p, err)
	}
}

// pkiOf makes the certificates that examples name.
func pkiOf(dir string) []error {
	return []error{pki.Init(dir, "test CA"), pki.IssueGateway(dir, dir, "gw", []string{"gw.example.com"}, time.Hour), pki.IssueHost(dir, dir, "acme", "host", time.Hour)}
}

// What is wrong is named with its key, and no secret is told.
func TestBadBuckets(t *testing.T) {
	dir := bucketFiles(t)
	s3 := `{s3: {endpoint: "https://rgw.example:7480", bucket: photos, path-style: true, credentials: {file: @@/keys}}}`
	for _, c := range []struct{ name, old, new, want string }{
		{"nothing", goodBuckets, "source: {}\n", "source.flows: needs at least one flow, or source.buckets one"},
		{"no name", "name: photos", "deletes: keep", "source.buckets[0].deletes: stands here a second time"},
		{"name twice", "name: files", "name: photos", "source.buckets[1].name: is the name of source.buckets[0] too"},
		{"strange name", "name: files", "name: a/b", "source.buckets[1].name: "},
		{"no end", s3, "{}", "source.buckets[0].from: needs exactly one of dir, s3, bos, gateway; it has 0"},
		{"two ends", s3, "{dir: {path: /a}, bos: {endpoint: bj.bcebos.com, bucket: x, credentials: {file: @@/keys}}}", "source.buckets[0].from: needs exactly one of dir, s3, bos, gateway; it has 2"},
		{"unknown driver", s3, "{azure: {}}", "source.buckets[0].from.azure: unknown key; allowed here: bos, dir, gateway, s3"},
		{"no endpoint", `endpoint: "https://rgw.example:7480", `, "", "source.buckets[0].from.s3.endpoint: is missing"},
		{"no bucket", "bucket: photos,", "", "source.buckets[0].from.s3.bucket: is missing"},
		{"region", "bj.bcebos.com", "hkg.bcebos.com", `source.buckets[0].to.bos.endpoint: "hkg.bcebos.com" is in region "hkg", which is not among source.regions: bj, gz`},
		{"region not listed", "[bj, gz]", "[bj]", `source.buckets[1].to.bos.endpoint: "https://gz.bcebos.com" is in region "gz"`},
		{"region of AWS", `endpoint: "https://rgw.example:7480"`, "region: us-east-1", `source.buckets[0].from.s3.region: "us-east-1" is not among source.regions`},
		{"region's name", "[bj, gz]", "[bj, GZ]", `source.regions[1]: "GZ" is no name of a region`},
		{"no credentials", "{file: @@/keys}", "{}", "source.buckets[0].from.s3.credentials: needs exactly one of file, env, systemd, instance; it has 0"},
		{"two credentials", "{file: @@/keys}", "{file: @@/keys, env: X}", "source.buckets[0].from.s3.credentials: needs exactly one of file, env, systemd, instance; it has 2"},
		{"file that others read", "@@/keys", "@@/open", "source.buckets[0].from.s3.credentials.file: @@/open can be read or written by others than its owner (mode 0644); chmod 600"},
		{"file missing", "@@/keys", "@@/none", "source.buckets[0].from.s3.credentials.file: open @@/none: no such file"},
		{"half a file", "@@/keys", "@@/half", "source.buckets[0].from.s3.credentials.file: @@/half: secret-key is missing"},
		{"odd file", "@@/keys", "@@/odd", "source.buckets[0].from.s3.credentials.file: @@/odd:3: cannot be read as the keys access-key"},
		{"env missing", "env: MOVER_TEST_BOS", "env: MOVER_TEST_NONE", "source.buckets[0].to.bos.credentials.env: $MOVER_TEST_NONE_ACCESS_KEY is missing"},
		{"credential's name", "systemd: bos", "systemd: ../bos", "source.buckets[1].to.bos.credentials.systemd: \"../bos\": a credential has a plain name"},
		{"instance of S3", "{file: @@/keys}", "{instance: true}", "source.buckets[0].from.s3.credentials.instance: is for bos"},
		{"instance and STS", "{systemd: bos}", "{instance: true, sts: {action: session-token}}", "source.buckets[1].to.bos.credentials.sts: an instance's keys are those of a session already"},
		{"STS's action", "{systemd: bos}", "{systemd: bos, sts: {action: login}}", `source.buckets[1].to.bos.credentials.sts.action: "login" is none of assume-role, session-token`},
		{"STS without master keys", "{systemd: bos}", "{sts: {action: session-token}}", "source.buckets[1].to.bos.credentials: needs exactly one of file, env, systemd, instance; it has 0"},
		{"STS's role", "{systemd: bos}", "{systemd: bos, sts: {action: assume-role, account: a}}", "source.buckets[1].to.bos.credentials.sts.role: is missing; assume-role needs it"},
		{"STS's account", "{systemd: bos}", "{systemd: bos, sts: {action: session-token, account: a}}", "source.buckets[1].to.bos.credentials.sts.account: is not for session-token of Baidu"},
		{"STS too long", "{systemd: bos}", "{systemd: bos, sts: {action: assume-role, account: a, role: r, duration: 3h}}", "source.buckets[1].to.bos.credentials.sts.duration: 3h0m0s is not whole seconds from 1s to 2h0m0s"},
		{"STS too short", "{file: @@/keys}", "{file: @@/keys, sts: {action: session-token, duration: 1m}}", "source.buckets[0].from.s3.credentials.sts.duration: 1m0s is not whole seconds from 15m0s"},
		{"STS's region", "{systemd: bos}", "{systemd: bos, sts: {action: session-token, endpoint: sts.hkg.baidubce.com}}", `source.buckets[1].to.bos.credentials.sts.endpoint: "sts.hkg.baidubce.com" is in region "hkg", which is not among source.regions: bj, gz`},
		{"STS of AWS", "{file: @@/keys}", "{file: @@/keys, sts: {action: session-token, endpoint: sts.amazonaws.com}}", `source.buckets[0].from.s3.credentials.sts.endpoint: "sts.amazonaws.com" is in region "us-east-1"`},
		{"STS without TLS", "{systemd: bos}", `{systemd: bos, sts: {action: session-token, endpoint: "http://sts.bj.baidubce.com"}}`, "is not TLS, and its answers have keys in them"},
		{"STS's ARN", "{file: @@/keys}", "{file: @@/keys, sts: {action: assume-role, role: mover}}", `source.buckets[0].from.s3.credentials.sts.role: "mover" is no ARN`},
		{"STS's policy", "{systemd: bos}", "{systemd: bos, sts: {action: session-token, policy: @@/keys}}", "source.buckets[1].to.bos.credentials.sts.policy: @@/keys is no JSON"},
		{"path", "path: @@/files", "path: files", `source.buckets[1].from.dir.path: "files" is not an absolute path`},
		{"no folder", "path: @@/files", "path: @@/keys", "source.buckets[1].from.dir.path: @@/keys is no folder"},
		{"one folder", `{bos: {endpoint: "https://gz.bcebos.com", bucket: files-gz, credentials: {systemd: bos}}}`, "{dir: {path: @@/files/below}}", "source.buckets[1].to: overlaps with source.buckets[1].from"},
		{"one target", `bucket: files-gz`, "bucket: photos-bj", "source.buckets[1].to: overlaps with source.buckets[0].to: each target has one flow"},
		{"deletes", "follow", "all", `source.buckets[0].deletes: "all" is none of keep, follow`},
		{"pattern", `exclude: ["tmp/**"]`, `exclude: [""]`, "source.buckets[0].exclude[0]: an empty pattern"},
		{"rate", "rate: 100Mbit/s", "rate: 1KiB/s", "source.buckets[0].limits.rate: is under 64KiB/s"},
		{"memory", "rate: 100Mbit/s", "memory: 1MiB", "source.buckets[0].limits.memory: 1MiB is less than 32MiB"},
		{"objects", "rate: 100Mbit/s", "objects: 1", "source.buckets[0].limits.objects: 1 is outside 2 to 4096"},
		{"class", "deletes: follow", "class: GLACIER", `source.buckets[0].class: "GLACIER" is none of STANDARD, STANDARD_IA, COLD, ARCHIVE`},
		{"prefix", "prefix: new/", "prefix: /new/", `source.buckets[0].to.bos.prefix: "/new/" begins with a slash`},
		{"hook", "deletes: follow", "cutover: {start-hook: [/bin/true]}", "source.buckets[0].cutover.start-hook: has no stop-hook that it undoes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Count(goodBuckets, c.old) < 1 {
				t.Fatalf("%q is not in the good file", c.old)
			}
			_, err := parse("moverd.yaml", []byte(strings.ReplaceAll(strings.Replace(goodBuckets, c.old, c.new, 1), "@@", dir)), "source")
			if err == nil {
				t.Fatal("accepted")
			}
			if want := strings.ReplaceAll(c.want, "@@", dir); !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "very-secret") {
				t.Errorf("told   %v\nwanted %s", err, want)
			}
			if !errors.Is(err, sentinel.ErrUsage) {
				t.Error("is not an error of usage")
			}
		})
	}
}
