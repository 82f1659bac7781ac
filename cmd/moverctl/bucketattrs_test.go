package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/s3"
)

// stores is a world with a real Ceph RGW and an emulated BOS, and keys of both.
type stores struct {
	*world
	ceph *s3test.Ceph
	emu  *bosemu.Server
	web  string
}

func newStores(t *testing.T, emu bosemu.Config) *stores {
	s := &stores{world: bucketWorld(t, "")}
	folder, err := os.MkdirTemp("", "mover-rgw-")
	if err != nil {
		t.Fatal(err)
	}
	if s.ceph, err = s3test.StartCeph(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { errors.Join(s.ceph.Close(), os.RemoveAll(folder)) })
	emu.Accounts = append(emu.Accounts, bosemu.Account{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"})
	if s.emu, err = bosemu.New(emu); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.emu)
	t.Cleanup(func() { web.Close(); s.emu.Close() })
	s.web = web.URL
	s.file2("rgw.keys", "access-key: "+s.ceph.ID+"\nsecret-key: "+s.ceph.Secret+"\n")
	s.file2("bos.keys", "access-key: ak-alice\nsecret-key: sk-alice\n")
	return s
}

func (w *world) file2(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

// end describes an end for the config: "rgw:BUCKET/PREFIX", "bos:...", "dir:NAME".
func (s *stores) end(place string) string {
	kind, rest, _ := strings.Cut(place, ":")
	name, prefix, _ := strings.Cut(rest, "/")
	switch kind {
	case "rgw":
		return fmt.Sprintf("{s3: {endpoint: %q, bucket: %s, prefix: %q, path-style: true, credentials: {file: @/rgw.keys}}}", s.ceph.Endpoint, name, prefix)
	case "bos":
		return fmt.Sprintf("{bos: {endpoint: %q, bucket: %s, prefix: %q, credentials: {file: @/bos.keys}}}", s.web, name, prefix)
	}
	return fmt.Sprintf("{dir: {path: @/%s, prefix: %q}}", name, prefix)
}

// open opens a place as end names it.
func (s *stores) open(place string) objstore.Store {
	s.t.Helper()
	kind, rest, _ := strings.Cut(place, ":")
	name, _, _ := strings.Cut(rest, "/")
	var out objstore.Store
	var err error
	switch kind {
	case "rgw":
		out, err = s3.New(s3.Config{Endpoint: s.ceph.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: s.ceph.ID, Secret: s.ceph.Secret}})
	case "bos":
		out, err = bos.New(bos.Config{Endpoint: s.web, Bucket: name, Credentials: objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}})
	default:
		out, err = dir.Open(dir.Config{Path: filepath.Join(s.dir, name)})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { out.Close() })
	return out
}

// client is the SDK's, for what an application does.
func (s *stores) client() *awss3.Client {
	return awss3.New(awss3.Options{Region: "us-east-1", BaseEndpoint: aws.String(s.ceph.Endpoint), UsePathStyle: true,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.ceph.ID, SecretAccessKey: s.ceph.Secret}, nil
		})})
}

// listed gives the objects that moverctl objects prints, by key: outcome, and what it says.
func (w *world) listed(flow string, flags ...string) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(w.must(0, "source", append([]string{"objects", flow, "-o", "json"}, flags...)...)), "\n") {
		if line == "" {
			continue
		}
		var o mover.BucketObject
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		key := o.Key
		if o.KeyBytes != nil {
			key = string(o.KeyBytes)
		}
		out[key] = o.Outcome + " " + strings.Join(o.Lost, "; ") + o.Why
	}
	return out
}

// thing is an object of the table: what the source has of it.
type thing struct {
	body   string
	attrs  objstore.Attrs
	tags   map[string]string
	canned string
	class  string
}

func zipped(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, text)
	_ = z.Close()
	return b.String()
}

func meta(kv ...string) objstore.Attrs {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return objstore.Attrs{Meta: m}
}

func tagged(n int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprint("t", i)] = fmt.Sprint("v ", i)
	}
	return out
}

// things are what every source can have.
var things = map[string]thing{
	"headers": {body: zipped("text"), attrs: objstore.Attrs{ContentType: "text/html; charset=utf-8", CacheControl: "max-age=60, public", ContentEncoding: "gzip", ContentLanguage: "de, en",
		ContentDisposition: `attachment; filename="a b.txt"; filename*=UTF-8''%e4%b8%ad.txt`, Expires: "Wed, 21 Oct 2026 07:28:00 GMT"}},
	"expires":         {attrs: objstore.Attrs{ContentType: "a/b", Expires: "0"}},
	"no type":         {body: "x"},
	"odd type":        {body: "x", attrs: objstore.Attrs{ContentType: "x"}},
	"false type":      {body: "x", attrs: objstore.Attrs{ContentType: "false"}},
	"meta 2047":       {attrs: meta("m", strings.Repeat("x", 2046))},
	"meta 2048":       {attrs: meta("m", strings.Repeat("x", 2047))},
	"meta many":       {attrs: meta("a", "1", "b-c", "2", "x.y", "3", "empty", "")},
	"meta unicode":    {attrs: meta("name", "照片 é 😀")},
	"meta like aws":   {attrs: meta("name", "=?UTF-8?B?w6Q=?=")},
	"10 tags":         {body: "x", tags: tagged(10)},
	"odd tags":        {body: "x", tags: map[string]string{"a@b": "ä"}},
	"public":          {body: "x", canned: "public-read"},
	"a/照片/ü &+%?.jpg": {body: "x"},
	"a//b":            {body: "x"},
	"folder/":         {},
}

// fill puts things; those that the store does not take are a mistake of the test.
func fill(t *testing.T, s objstore.Store, all map[string]thing) {
	t.Helper()
	for key, o := range all {
		_, err := s.Put(t.Context(), key, objstore.Bytes([]byte(o.body)), objstore.PutOptions{Attrs: o.attrs, Class: o.class})
		if err == nil && o.tags != nil {
			err = s.(objstore.Tagger).SetTags(t.Context(), key, o.tags)
		}
		if err == nil && o.canned != "" {
			err = s.(objstore.Granter).SetGrants(t.Context(), key, o.canned)
		}
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
	}
}

// look gives what a store has of an object, beside its name.
func look(t *testing.T, s objstore.Store, key string) (body string, o thing, err error) {
	t.Helper()
	obj, r, err := s.Get(t.Context(), key, objstore.GetOptions{})
	if err != nil {
		return "", o, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return "", o, err
	}
	o = thing{attrs: obj.Attrs, class: obj.Class}
	if g, ok := s.(objstore.Tagger); ok {
		if o.tags, err = g.Tags(t.Context(), key); err != nil {
			return "", o, err
		}
	}
	if g, ok := s.(objstore.Granter); ok {
		if o.canned, _, err = g.Grants(t.Context(), key); err != nil {
			return "", o, err
		}
	}
	return string(b), o, nil
}

// Everything that an object has is at the target, or moverctl objects says that it is not: for each pair of real stores, as docs/objects.md has it in its table.
func TestBucketAttributes(t *testing.T) {
	began := time.Now()
	s := newStores(t, bosemu.Config{Buckets: []bosemu.Bucket{{Name: "from-bos", Owner: "alice"}, {Name: "to-bos", Owner: "alice"}, {Name: "to-bos-2", Owner: "alice"}}})
	for _, name := range []string{"from", "target"} {
		if err := s.ceph.MakeBucket(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ceph.User(t.Context(), "other", "OTHERKEY", "other-secret"); err != nil {
		t.Fatal(err)
	}
	rgw, folder, bce := s.open("rgw:from"), s.open("dir:from"), s.open("bos:from-bos")

	all := maps.Clone(things)
	fill(t, rgw, all)
	client := s.client()
	put := func(key string, acl types.ObjectCannedACL, owner, grant *string) {
		t.Helper()
		if _, err := rgw.Put(t.Context(), key, objstore.Bytes(nil), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.PutObjectAcl(t.Context(), &awss3.PutObjectAclInput{Bucket: aws.String("from"), Key: &key, ACL: acl, GrantRead: grant, GrantFullControl: owner}); err != nil {
			t.Fatal(err)
		}
	}
	put("users may read", types.ObjectCannedACLAuthenticatedRead, nil, nil)
	put("another may read", "", aws.String(`id="mover"`), aws.String(`id="other"`))

	delete(all, "odd tags") // no BOS has them
	fill(t, bce, all)
	fill(t, bce, map[string]thing{"archived": {body: "x", class: "ARCHIVE"}, "cold": {body: "x", class: "COLD"}})

	all = maps.Clone(things)
	delete(all, "public")
	fill(t, folder, all)
	long := func(n int) string { return strings.Repeat("k/", n/2)[:n-1] + "k" }
	fill(t, folder, map[string]thing{"11 tags": {body: "x", tags: tagged(11)}, "meta 2049": {body: "x", attrs: meta("m", strings.Repeat("x", 2048))},
		"meta odd names": {body: "x", attrs: meta("user_name", "1", "User Name", "2", "ok", "3")}, "meta odd values": {body: "x", attrs: meta("line", "a\nb", "space", " x ", "ok", "3")},
		"odd header": {body: "x", attrs: objstore.Attrs{ContentType: "a\nb", CacheControl: "x"}},
		"/slash":     {body: "x"}, "a/../b": {body: "x"}, "..": {body: "x"}, "%2Fslash": {body: "other"}, "v1": {body: "x"}, "\xff": {body: "x"}, "a\x00b": {body: "x"}, "tab\tline\n": {body: "x"},
		long(1023): {body: "x"}, long(1024): {body: "x"}})
	if err := os.WriteFile(filepath.Join(s.dir, "from", "plain file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	text := "source:\n  state: @/source\n  run: @/run\n  metrics: {listen: \"off\"}\n  buckets:\n"
	flows := []struct {
		name, from, to, more string
		lost                 map[string]string // by key: what moverctl objects says begins so; every other object has all
		spelled              map[string]string // keys that are others at the target
	}{
		{name: "rgw-bos", from: "rgw:from", to: "bos:to-bos/rgw/", lost: map[string]string{"odd tags": "partly 1 tags (a@b):", "users may read": "partly grants ",
			"another may read": "partly grants "}},
		{name: "rgw-dir", from: "rgw:from", to: "dir:to/rgw/", lost: map[string]string{"public": "partly grants ", "users may read": "partly grants ", "another may read": "partly grants "}},
		{name: "rgw-rgw", from: "rgw:from", to: "rgw:target/rgw/", lost: map[string]string{"another may read": "partly grants "}},
		{name: "dir-bos", from: "dir:from", to: "bos:to-bos/dir/", more: "class: COLD, ", lost: map[string]string{"odd tags": "partly 1 tags (a@b):", "11 tags": "partly 11 tags (t0, t1, t10,",
			"meta 2049": "partly user metadata m: 2049 bytes, the target takes 2048", "meta odd names": `partly user metadata "User Name":`,
			"meta odd values": `partly user metadata "line": it has a control character, or a space at an end; user metadata "space":`, "odd header": `partly Content-Type "a\nb": it has a control`,
			"a/../b": "refused a key with", "..": "refused a key with", "\xff": "refused a key that is no UTF-8", long(1023): "refused a key of 1027 bytes", long(1024): "refused a key of 1028 bytes"}},
		{name: "dir-bos-escaped", from: "dir:from", to: "bos:to-bos-2", more: "escape-keys: true, exclude: [\"k/**\"], ", lost: map[string]string{"odd tags": "partly", "11 tags": "partly", "meta 2049": "partly", "meta odd names": "partly", "meta odd values": "partly",
			"odd header": "partly", "\xff": "refused a key that is no UTF-8", "v1": "refused a key that means"},
			spelled: map[string]string{"/slash": "%2Fslash", "a/../b": "a/%2E%2E/b", "..": "%2E%2E", "%2Fslash": "%252Fslash"}},
		{name: "dir-rgw", from: "dir:from", to: "rgw:target/dir/", more: "keep-modified: true, ", lost: map[string]string{"11 tags": "partly 11 tags", "meta 2049": "partly user metadata m: 2049 bytes", "meta odd values": "partly",
			"meta odd names": `partly user metadata "User Name": `, "odd header": "partly", "meta 2047": "partly last modified ", "meta 2048": "partly last modified ",
			"\xff": "refused the key is no UTF-8", "a\x00b": "refused the key has a zero byte", long(1023): "refused the key has 1027 bytes", long(1024): "refused the key has 1028 bytes"}},
		{name: "bos-dir", from: "bos:from-bos", to: "dir:to/bos/", lost: map[string]string{"public": "partly grants ", "archived": "refused "}},
		{name: "bos-rgw", from: "bos:from-bos", to: "rgw:target/bos/", lost: map[string]string{"archived": "refused "}},
	}
	for _, f := range flows {
		text += fmt.Sprintf("    - {name: %s, from: %s, to: %s, %sgrants: true, interval: 1h, limits: {memory: 64MiB}}\n", f.name, s.end(f.from), s.end(f.to), f.more)
	}
	for name, end := range map[string]string{"wrong-secret": "rgw:from", "unknown-key": "rgw:from", "no-bucket": "rgw:none"} { // what a real RGW says to these
		if name != "no-bucket" {
			end = strings.Replace(s.end(end), "rgw.keys", name, 1)
		} else {
			end = s.end(end)
		}
		text += fmt.Sprintf("    - {name: %s, from: %s, to: {dir: {path: @/to, prefix: %s/}}, interval: 1h}\n", name, end, name)
	}
	s.file2("wrong-secret", "access-key: "+s.ceph.ID+"\nsecret-key: not-the-secret\n")
	s.file2("unknown-key", "access-key: nobody\nsecret-key: not-the-secret\n")
	s.write("source", text)
	s.begin("source")
	t.Log("ready", time.Since(began))
	s.stands("wrong-secret", "denied: 403 ", "look at the credentials", "moverctl resume")
	s.stands("unknown-key", "denied: 403 ", "look at the credentials", "moverctl resume")
	s.stands("no-bucket", "NoSuchBucket", "look at the bucket's", "moverctl resume")
	if strings.Contains(s.log.String(), "not-the-secret") {
		t.Error("a secret is told")
	}
	for _, f := range flows {
		s.must(0, "source", "sync", f.name)
		from, to := s.open(f.from), s.open(f.to)
		_, rest, _ := strings.Cut(f.to, ":")
		_, prefix, _ := strings.Cut(rest, "/")
		said := s.listed(f.name)
		page, err := from.List(t.Context(), objstore.Query{})
		if err != nil || page.More {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			want, lacks := f.lost[e.Key]
			if got := said[e.Key]; lacks && want != "" && !strings.HasPrefix(got, want) || !lacks && got != "" && !strings.HasPrefix(e.Key, "k/") {
				t.Errorf("%s: %.50q: %q, want %q", f.name, e.Key, got, want)
			}
			key := e.Key
			if other := f.spelled[key]; other != "" {
				key = other
			}
			if strings.HasPrefix(want, "refused") || f.name == "dir-bos-escaped" && strings.HasPrefix(e.Key, "k/") {
				continue
			}
			a, x, err := look(t, from, e.Key)
			if err != nil {
				t.Fatal(err)
			}
			b, y, err := look(t, to, prefix+key)
			if err != nil || a != b {
				t.Errorf("%s: %.50q: other bytes: %v", f.name, e.Key, err)
				continue
			}
			if !lacks || want == "" {
				compare(t, f.name, e, x, y)
			}
		}
	}
	var wg sync.WaitGroup // each waits for the stores' clocks
	for _, f := range flows {
		wg.Go(func() {
			code, out := s.ctl("source", "cutover", f.name, "--yes", "--all", "--without-refused")
			if code != 0 || !strings.Contains(out, "attributes         compared of ") || strings.Contains(out, "differ") {
				t.Errorf("%s: exit %d\n%s", f.name, code, out)
			}
		})
	}
	wg.Wait()
	t.Log("done", time.Since(began))
	manifest := s.must(0, "source", "manifest", "bos-dir", "--to", filepath.Join(s.dir, "manifest"))
	lines, err := os.ReadFile(filepath.Join(s.dir, "manifest"))
	if err != nil || !strings.Contains(string(lines), `"class":"ARCHIVE"`) || !strings.Contains(string(lines), `"not_carried":["the time of last modification`) {
		t.Errorf("%s\n%s\n%v", manifest, lines, err)
	}
}

// compare holds what the target has against the source.
func compare(t *testing.T, flow string, e objstore.Entry, x, y thing) {
	t.Helper()
	if x.attrs.ContentType == "" || x.attrs.ContentType == "binary/octet-stream" { // the target has a name of its own for what has none
		x.attrs.ContentType, y.attrs.ContentType = "", ""
	}
	if flow == "dir-rgw" {
		if y.attrs.Meta["mover-modified"] != e.Modified.Format(time.RFC3339Nano) {
			t.Errorf("%s: %.50q: it was modified %s, not %s", flow, e.Key, y.attrs.Meta["mover-modified"], e.Modified)
		}
		delete(y.attrs.Meta, "mover-modified")
	}
	if got, want := fmt.Sprintf("%q", y.attrs), fmt.Sprintf("%q", x.attrs); got != want && !(len(x.attrs.Meta) == 0 && len(y.attrs.Meta) == 0 && strings.ReplaceAll(got, "map[]", "") == strings.ReplaceAll(want, "map[]", "")) {
		t.Errorf("%s: %.50q: %s at the target, %s at the source", flow, e.Key, got, want)
	}
	if !maps.Equal(x.tags, y.tags) && len(x.tags)+len(y.tags) > 0 {
		t.Errorf("%s: %.50q: tags %q, %q at the source", flow, e.Key, y.tags, x.tags)
	}
	if x.canned != "" && y.canned != "" && x.canned != y.canned {
		t.Errorf("%s: %.50q: %s, %s at the source", flow, e.Key, y.canned, x.canned)
	}
	class := ""
	if flow == "dir-bos" {
		class = "COLD"
	}
	if y.class != class {
		t.Errorf("%s: %.50q: class %q", flow, e.Key, y.class)
	}
}

// What changes beside the bytes: metadata shows in the listing by its time; what does not is found by --all. A bucket that keeps versions is told of before anything
// is copied.
func TestBucketAttributesChange(t *testing.T) {
	s := newStores(t, bosemu.Config{Buckets: []bosemu.Bucket{{Name: "to-bos", Owner: "alice"}}})
	if err := s.ceph.MakeBucket(t.Context(), "from"); err != nil {
		t.Fatal(err)
	}
	client := s.client()
	bucket := aws.String("from")
	if err := s.ceph.KeepVersions(t.Context(), "from"); err != nil {
		t.Fatal(err)
	}
	from, to := s.open("rgw:from"), s.open("bos:to-bos")
	keys := []string{"a", "b c+%", "d", "gone"}
	for _, v := range []string{"1", "2"} {
		for _, key := range keys {
			if _, err := from.Put(t.Context(), key, objstore.Bytes([]byte("same")), objstore.PutOptions{Attrs: meta("v", v)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := from.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	s.write("source", fmt.Sprintf("source:\n  state: @/source\n  run: @/run\n  metrics: {listen: \"off\"}\n  buckets:\n    - {name: photos, from: %s, to: %s, interval: 1h}\n", s.end("rgw:from"), s.end("bos:to-bos")))
	const versions = "keeps 5 older versions (20 B) and 1 delete markers, which are not carried"
	if out := s.must(0, "", "check", "-c", s.file("source")); !strings.Contains(out, "note  bucket flow photos") || !strings.Contains(out, versions) {
		t.Errorf("check:\n%s", out)
	}
	s.begin("source")
	s.must(0, "source", "sync", "photos")
	if out := s.must(0, "source", "status"); !strings.Contains(out, versions) {
		t.Errorf("status:\n%s", out)
	}
	const settled = 3100 * time.Millisecond // the clock of the listing, whole seconds, is 2 s ahead: what is younger is copied again later anyway
	time.Sleep(settled)
	s.must(0, "source", "sync", "photos")
	copied := func() int64 {
		return s.await("source", "idle", is(mover.Idle)).Bucket.Copied
	}
	s.must(0, "source", "sync", "photos")
	if n := copied(); n != 0 {
		t.Errorf("%d objects were copied although nothing has changed", n)
	}
	// Metadata alone: as an application does it, by copying an object onto itself.
	if _, err := client.CopyObject(t.Context(), &awss3.CopyObjectInput{Bucket: bucket, Key: aws.String("a"), CopySource: aws.String("from/a"), MetadataDirective: types.MetadataDirectiveReplace,
		Metadata: map[string]string{"v": "3"}}); err != nil {
		t.Fatal(err)
	}
	s.must(0, "source", "sync", "photos")
	if o, err := to.Head(t.Context(), "a"); err != nil || copied() != 1 || o.Attrs.Meta["v"] != "3" {
		t.Errorf("metadata alone: %d copied, %+v %v", copied(), o, err)
	}
	time.Sleep(settled)
	s.must(0, "source", "sync", "photos")
	// Tags alone do not show where RGW keeps versions, as on AWS: a comparison of all finds them, and the next pass copies.
	has := func(want string) {
		t.Helper()
		if tags, err := to.(objstore.Tagger).Tags(t.Context(), "d"); err != nil || tags["x"] != want {
			t.Errorf("tags of the target are %v, want %q; %v", tags, want, err)
		}
	}
	tag := func(s objstore.Store, tags map[string]string) {
		t.Helper()
		if err := s.(objstore.Tagger).SetTags(t.Context(), "d", tags); err != nil {
			t.Fatal(err)
		}
	}
	tag(from, map[string]string{"x": "1"})
	s.must(0, "source", "sync", "photos")
	has("")
	s.must(0, "source", "verify", "photos")
	if out := s.must(3, "source", "verify", "photos", "--all"); !strings.Contains(out, `"d": its tags were changed at the source`) {
		t.Errorf("verify:\n%s", out)
	}
	s.must(0, "source", "sync", "photos")
	has("1")
	tag(to, nil)
	if out := s.must(3, "source", "verify", "photos"); !strings.Contains(out, `"d": its tags are not those that were stored`) {
		t.Errorf("verify:\n%s", out)
	}
	s.must(0, "source", "sync", "photos")
	has("1")
	tag(from, map[string]string{"x": "2"})
	out := s.must(0, "source", "cutover", "photos", "--yes", "--all")
	if !strings.Contains(out, versions[:20]) {
		t.Errorf("cutover:\n%s", out)
	}
	has("2")
}
