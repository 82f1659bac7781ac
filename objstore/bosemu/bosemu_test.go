package bosemu_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baidubce/bce-sdk-go/auth"
	"github.com/baidubce/bce-sdk-go/bce"
	"github.com/baidubce/bce-sdk-go/services/bos"
	"github.com/baidubce/bce-sdk-go/services/bos/api"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore/bosemu"
)

// rig is an emulator behind a server, and the client of the SDK that its tests go through.
type rig struct {
	*bos.Client
	t   *testing.T
	emu *bosemu.Server
	url string
	dir string

	mu    sync.Mutex
	now   time.Time // zero: the real time
	fault func(bosemu.Request) bosemu.Fault
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now.IsZero() {
		return time.Now()
	}
	return r.now
}

func (r *rig) shift(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = time.Now().Add(d)
}

func newRig(t *testing.T, edit func(*bosemu.Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	cfg := bosemu.Config{
		Clock: r.clock,
		Dir:   r.dir,
		Accounts: []bosemu.Account{
			{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice", Sessions: []bosemu.Session{
				{AccessKey: "tmp", SecretKey: "tmp-sk", Token: "token", Expires: time.Now().Add(time.Hour)}}},
			{ID: "bob", AccessKey: "ak-bob", SecretKey: "sk-bob"},
		},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}, {Name: "old-one", Owner: "alice", ByPath: true}},
		Fault: func(q bosemu.Request) bosemu.Fault {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.fault == nil {
				return bosemu.Fault{}
			}
			return r.fault(q)
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if r.emu, err = bosemu.New(cfg); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r.emu)
	r.url = server.URL
	t.Cleanup(func() {
		server.Close()
		if err := r.emu.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(r.dir); len(left) > 0 {
			t.Errorf("%d entries are left in the folder", len(left))
		}
	})
	r.Client = r.client("ak-alice", "sk-alice", r.url)
	return r
}

// own keeps the SDK from writing its transport into a global variable.
type own struct{ http.RoundTripper }

func (r *rig) client(ak, sk, endpoint string) *bos.Client {
	r.t.Helper()
	// Whatever the host is called, the emulator answers.
	addr := strings.TrimPrefix(r.url, "http://")
	tr := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	cfg := bos.NewBosClientConfig(ak, sk, endpoint).WithRetryPolicy(bce.NewNoRetryPolicy()).WithHttpClient(http.Client{Transport: own{tr}})
	c, err := bos.NewClientWithConfig(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// code is what an error is called; "" is none.
func code(err error) string {
	var s *bce.BceServiceError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &s):
		return s.Code
	}
	return "client: " + err.Error()
}

func (r *rig) want(what string, err error, codes ...string) {
	r.t.Helper()
	if len(codes) == 0 {
		codes = []string{""}
	}
	if have := code(err); !slices.Contains(codes, have) {
		r.t.Errorf("%s: %q, want %q (%v)", what, have, codes, err)
	}
}

func (r *rig) put(key, text string, args *api.PutObjectArgs) string {
	r.t.Helper()
	etag, err := r.PutObjectFromString("photos", key, text, args)
	if err != nil {
		r.t.Fatalf("put %s: %v", key, err)
	}
	return etag
}

func (r *rig) get(key string, ranges ...int64) (string, error) {
	o, err := r.GetObject("photos", key, nil, ranges...)
	if err != nil {
		return "", err
	}
	defer o.Body.Close()
	b, err := io.ReadAll(o.Body)
	return string(b), err
}

func TestSignatures(t *testing.T) {
	r := newRig(t, nil)
	r.put("a", "hello", nil)
	try := func(c *bos.Client) error { _, err := c.GetObjectAcl("photos", "a"); return err }
	session := func(ak, sk, token string) *bos.Client {
		c := r.client(ak, sk, r.url)
		c.Config.Credentials = &auth.BceCredentials{AccessKeyId: ak, SecretAccessKey: sk, SessionToken: token}
		return c
	}
	r.want("good", try(r.Client))
	r.want("wrong secret", try(r.client("ak-alice", "nope", r.url)), "SignatureDoesNotMatch")
	r.want("wrong key", try(r.client("ak-carol", "sk-alice", r.url)), "InvalidAccessKeyId")
	r.want("nobody", try(r.client("", "", r.url)), "AccessDenied")
	r.want("another account", try(r.client("ak-bob", "sk-bob", r.url)), "AccessDenied")
	r.want("session", try(session("tmp", "tmp-sk", "token")))
	r.want("wrong token", try(session("tmp", "tmp-sk", "nekot")), "InvalidSessionToken")
	r.want("no token", try(r.client("tmp", "tmp-sk", r.url)), "InvalidSessionToken")
	r.want("a token of none", try(session("ak-alice", "sk-alice", "token")), "InvalidSessionToken")
	r.emu.AddSession("alice", bosemu.Session{AccessKey: "tmp2", SecretKey: "s", Token: "x", Expires: time.Now().Add(-time.Second)})
	r.want("token that ended", try(session("tmp2", "s", "x")), "InvalidSessionToken")
	r.shift(16 * time.Minute)
	r.want("clock is late", try(r.Client), "RequestTimeTooSkewed")
	r.shift(-16 * time.Minute)
	r.want("clock is early", try(r.Client), "RequestTimeTooSkewed")
	r.shift(0)
	old := r.client("ak-alice", "sk-alice", r.url)
	old.Config.SignOption = &auth.SignOptions{HeadersToSign: auth.DEFAULT_HEADERS_TO_SIGN, Timestamp: time.Now().Add(-time.Hour).Unix(), ExpireSeconds: 60}
	r.want("signed long ago", try(old), "RequestExpired")
	few := r.client("ak-alice", "sk-alice", r.url)
	few.Config.SignOption = &auth.SignOptions{HeadersToSign: map[string]struct{}{"content-type": {}}, ExpireSeconds: 60}
	r.want("host not signed", try(few), "SignatureDoesNotMatch")
}

func TestSignedAddress(t *testing.T) {
	r := newRig(t, nil)
	r.put("a b+c", "hello", nil)
	get := func(link string) int {
		resp, err := http.Get(link)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode == 200 && string(b) != "hello" {
			t.Errorf("read %q", b)
		}
		return resp.StatusCode
	}
	link := r.BasicGeneratePresignedUrl("photos", "a b+c", 60)
	if code := get(link); code != 200 {
		t.Errorf("%s: %d", link, code)
	}
	if code := get(strings.Replace(link, "a%20b", "a%20c", 1)); code != 403 {
		t.Errorf("another key: %d", code)
	}
	r.shift(2 * time.Minute)
	if code := get(link); code != 400 {
		t.Errorf("too late: %d", code)
	}
	http.DefaultClient.CloseIdleConnections()
}

// What the SDK does not send, the emulator has to refuse all the same.
func TestBadRequests(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		auth string
		code int
	}{
		{"", 403}, {"AWS4-HMAC-SHA256 x", 400}, {"bce-auth-v1/ak-alice/yesterday/1800/host/0", 400}, {"bce-auth-v1/ak-alice/2026-01-01T00:00:00Z/-1/host/0", 400},
		{"bce-auth-v1/ak-alice/" + time.Now().UTC().Format("2006-01-02T15:04:05Z") + "/1800/host/00", 400},
	} {
		req, _ := http.NewRequest("GET", r.url+"/photos/a", nil)
		if c.auth != "" {
			req.Header.Set("Authorization", c.auth)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || !bytes.Contains(b, []byte(`"requestId":"`+resp.Header.Get("x-bce-request-id"))) || resp.Header.Get("x-bce-debug-id") == "" {
			t.Errorf("%q: %d %s", c.auth, resp.StatusCode, b)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestAddressing(t *testing.T) {
	r := newRig(t, nil)
	r.put("dir/a b+c%", "x", nil)
	gz := r.client("ak-alice", "sk-alice", "gz.bcebos.com")
	o, err := gz.GetObject("photos", "dir/a b+c%", nil)
	if err != nil {
		t.Fatal(err)
	}
	o.Body.Close()
	_, err = gz.GetObjectAcl("photos", "dir/a b+c%")
	r.want("virtual host", err)
	_, err = r.client("ak-alice", "sk-alice", "bj.bcebos.com").GetBucketLocation("photos")
	r.want("another region", err, "NoSuchBucket")
	byPath := r.client("ak-alice", "sk-alice", "gz.bcebos.com")
	byPath.BosContext.PathStyleEnable = true
	_, err = byPath.GetBucketLocation("photos")
	r.want("by path", err, "AccessDenied")
	old := r.client("ak-alice", "sk-alice", "bj.bcebos.com")
	old.BosContext.PathStyleEnable = true
	where, err := old.GetBucketLocation("old-one")
	if r.want("an old bucket by path", err); where != "bj" {
		t.Errorf("it is in %q", where)
	}
	where, err = gz.GetBucketLocation("photos")
	if r.want("location", err); where != "gz" {
		t.Errorf("it is in %q", where)
	}
	_, err = r.GetBucketLocation("nowhere")
	r.want("no bucket", err, "NoSuchBucket")
}

func TestObjects(t *testing.T) {
	r := newRig(t, nil)
	args := &api.PutObjectArgs{ContentType: "text/x", CacheControl: "no-cache", ContentDisposition: "inline", ContentEncoding: "gzip", Expires: "Thu, 01 Jan 2032 00:00:00 GMT",
		UserMeta: map[string]string{"Who": "Ä"}, StorageClass: "COLD", ObjectTagging: "a=b c"}
	etag := r.put("k", "0123456789", args)
	m, err := r.GetObjectMeta("photos", "k")
	if err != nil {
		t.Fatal(err)
	}
	crc := strconv.FormatUint(crc64.Checksum([]byte("0123456789"), crc64.MakeTable(crc64.ECMA)), 10)
	if m.ETag != etag || m.ContentLength != 10 || m.ContentType != "text/x" || m.CacheControl != "no-cache" || m.ContentDisposition != "inline" ||
		m.ContentEncoding != "gzip" || m.Expires != args.Expires || m.UserMeta["Who"] != "Ä" || m.StorageClass != "COLD" || m.ContentCrc64ECMA != crc {
		t.Errorf("%+v", m.ObjectMeta)
	}
	for _, c := range []struct {
		ranges []int64
		want   string
	}{{nil, "0123456789"}, {[]int64{3}, "3456789"}, {[]int64{2, 4}, "234"}, {[]int64{8, 99}, "89"}} {
		if have, err := r.get("k", c.ranges...); err != nil || have != c.want {
			t.Errorf("range %v: %q, %v", c.ranges, have, err)
		}
	}
	_, err = r.get("k", 10)
	r.want("behind the end", err, "InvalidRange")
	_, err = r.get("nope")
	r.want("no key", err, "NoSuchKey")
	_, err = r.GetObjectMeta("photos", "nope")
	r.want("head of no key", err, "NotFound")

	_, err = r.GetObjectWithArgs(t.Context(), "photos", "k", &api.GetObjectArgs{IfMatch: `"other"`})
	r.want("If-Match", err, "PreconditionFailed")
	o, err := r.GetObjectWithArgs(t.Context(), "photos", "k", &api.GetObjectArgs{IfMatch: etag})
	if r.want("If-Match", err); err == nil {
		o.Body.Close()
	}
	_, err = r.PutObjectFromString("photos", "k", "new", &api.PutObjectArgs{ForbidOverwrite: true})
	r.want("forbid overwrite", err, "PreconditionFailed")
	_, err = r.PutObjectFromString("photos", "k", "new", &api.PutObjectArgs{IfNoneMatch: "*"})
	r.want("If-None-Match", err, "PreconditionFailed")
	_, err = r.PutObjectFromString("photos", "k", "new", &api.PutObjectArgs{IfMatch: "other"})
	r.want("If-Match", err, "PreconditionFailed")
	_, err = r.PutObjectFromString("photos", "k2", "new", &api.PutObjectArgs{ContentMD5: "1B2M2Y8AsgTpgAmY7PhCfg=="})
	r.want("Content-MD5", err, "BadDigest")
	_, err = r.PutObjectFromString("photos", "k2", "new", &api.PutObjectArgs{ContentSha256: strings.Repeat("0", 64)})
	r.want("SHA-256", err, "BadDigest")
	_, err = r.PutObjectFromString("photos", "k2", "new", &api.PutObjectArgs{ContentCrc32: strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte("new"))), 10)})
	r.want("CRC-32", err)
	_, err = r.PutObjectFromString("photos", "k2", "new", &api.PutObjectArgs{UserMeta: map[string]string{"x": strings.Repeat("y", 2047)}})
	r.want("2,048 bytes of metadata", err)
	_, err = r.PutObjectFromString("photos", "k2", "new", &api.PutObjectArgs{UserMeta: map[string]string{"x": strings.Repeat("y", 2048)}})
	r.want("2,049 bytes of metadata", err, "MetadataTooLarge")
	_, err = r.PutObjectFromString("photos", strings.Repeat("k", 1023), "", nil)
	r.want("1,023 bytes", err)
	_, err = r.PutObjectFromString("photos", strings.Repeat("k", 1024), "", nil)
	r.want("1,024 bytes", err, "InvalidObjectName")
	_, err = r.PutObjectFromString("photos", "/k", "", nil)
	r.want("a slash first", err, "InvalidObjectName")

	res, err := r.CopyObject("photos", "k3", "photos", "k", nil)
	if r.want("copy", err); err == nil && res.ETag != etag {
		t.Errorf("the copy has %s", res.ETag)
	}
	if m, err := r.GetObjectMeta("photos", "k3"); err != nil || m.UserMeta["Who"] != "Ä" {
		t.Errorf("the copy: %+v, %v", m, err)
	}
	_, err = r.CopyObject("photos", "k3", "photos", "k", &api.CopyObjectArgs{IfMatch: "other"})
	r.want("copy of another state", err, "PreconditionFailed")
	del, err := r.DeleteMultipleObjectsFromKeyList("photos", []string{"k", "k2", "none"})
	if r.want("delete", err); err == nil && (len(del.Errors) != 1 || del.Errors[0].Code != "NoSuchKey") {
		t.Errorf("delete: %+v", del)
	}
	r.want("delete", r.DeleteObject("photos", "k3"))
	r.want("delete again", r.DeleteObject("photos", "k3"), "NoSuchKey")
}

func TestListing(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Limits.Page = 7 })
	var want []string
	for i := range 40 {
		k := fmt.Sprintf("d%d/%02d", i%3, i)
		r.put(k, "x", nil)
		want = append(want, k)
	}
	slices.Sort(want)
	var have []string
	marker := ""
	for {
		p, err := r.ListObjects("photos", &api.ListObjectsArgs{Marker: marker, MaxKeys: 5000})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range p.Contents {
			have = append(have, o.Key)
		}
		if marker = p.NextMarker; !p.IsTruncated {
			break
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("listed %v", have)
	}
	p, err := r.ListObjects("photos", &api.ListObjectsArgs{Delimiter: "/", MaxKeys: 2})
	if err != nil || len(p.CommonPrefixes) != 2 || !p.IsTruncated || p.NextMarker != "d1/" {
		t.Fatalf("%+v, %v", p, err)
	}
	p, err = r.ListObjects("photos", &api.ListObjectsArgs{Delimiter: "/", Marker: p.NextMarker})
	if err != nil || len(p.CommonPrefixes) != 1 || p.CommonPrefixes[0].Prefix != "d2/" || p.IsTruncated {
		t.Fatalf("%+v, %v", p, err)
	}
	p, err = r.ListObjects("photos", &api.ListObjectsArgs{Prefix: "d1/", Marker: "d1/30"})
	if err != nil || len(p.Contents) != 3 || p.Contents[0].Key != "d1/31" {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestUploads(t *testing.T) {
	r := newRig(t, nil)
	data := make([]byte, 300<<10)
	_, _ = rand.Read(data)
	begin := func() string {
		u, err := r.InitiateMultipartUpload("photos", "big", "text/big", &api.InitiateMultipartUploadArgs{StorageClass: "COLD"})
		if err != nil {
			t.Fatal(err)
		}
		return u.UploadId
	}
	id := begin()
	part := func(no int, b []byte) api.UploadInfoType {
		etag, err := r.UploadPartFromBytes("photos", "big", id, no, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		return api.UploadInfoType{PartNumber: no, ETag: etag}
	}
	p1, p3, p7 := part(1, data[:100<<10]), part(3, data[100<<10:200<<10]), part(7, data[200<<10:])
	small := part(2, data[:10])
	done := func(args *api.CompleteMultipartUploadArgs) error {
		_, err := r.CompleteMultipartUploadFromStruct("photos", "big", id, args)
		return err
	}
	list := func(p ...api.UploadInfoType) *api.CompleteMultipartUploadArgs {
		return &api.CompleteMultipartUploadArgs{Parts: p}
	}
	r.want("order", done(list(p3, p1)), "InvalidPartOrder")
	r.want("ETag", done(list(p1, api.UploadInfoType{PartNumber: 3, ETag: p1.ETag})), "InvalidPart")
	r.want("no such part", done(list(p1, api.UploadInfoType{PartNumber: 4, ETag: p1.ETag})), "InvalidPart")
	r.want("a small part", done(list(p1, small, p3)), "EntityTooSmall")
	r.want("none", done(list()), "InappropriateJSON")
	_, err := r.UploadPartFromBytes("photos", "big", id, 10_001, data, nil)
	r.want("part 10,001", err, "InvalidArgument")
	_, err = r.UploadPartFromBytes("photos", "big", "no", 1, data, nil)
	r.want("no upload", err, "NoSuchUpload")
	l, err := r.ListParts("photos", "big", id, &api.ListPartsArgs{MaxParts: 2, PartNumberMarker: "1"})
	if err != nil || len(l.Parts) != 2 || !l.IsTruncated || l.NextPartNumberMarker != 3 {
		t.Errorf("%+v, %v", l, err)
	}
	other := begin()
	u, err := r.ListMultipartUploads("photos", &api.ListMultipartUploadsArgs{MaxUploads: 1})
	if err != nil || len(u.Uploads) != 1 || !u.IsTruncated || u.NextKeyMarker != "big" {
		t.Errorf("%+v, %v", u, err)
	}
	r.want("abort", r.AbortMultipartUpload("photos", "big", other))
	r.want("abort again", r.AbortMultipartUpload("photos", "big", other), "NoSuchUpload")

	good := list(p1, p3, p7)
	good.UserMeta = map[string]string{"Who": "me"}
	good.IfMatch = "*"
	r.want("If-Match without an object", done(good), "PreconditionFailed")
	good.IfMatch, good.IfNoneMatch = "", "*"
	r.want("complete", done(good))
	r.want("complete again", done(good), "NoSuchUpload")
	m, err := r.GetObjectMeta("photos", "big")
	if err != nil {
		t.Fatal(err)
	}
	if m.ContentCrc64ECMA != strconv.FormatUint(crc64.Checksum(data, crc64.MakeTable(crc64.ECMA)), 10) ||
		m.ContentCrc32 != strconv.FormatUint(uint64(crc32.ChecksumIEEE(data)), 10) || m.UserMeta["Who"] != "me" || m.ContentType != "text/big" || m.StorageClass != "COLD" {
		t.Errorf("%+v", m.ObjectMeta)
	}
	if have, err := r.get("big"); err != nil || have != string(data) {
		t.Errorf("%d bytes, %v", len(have), err)
	}
	if have, err := r.get("big", 90<<10, 210<<10); err != nil || have != string(data[90<<10:210<<10+1]) {
		t.Errorf("over parts: %d bytes, %v", len(have), err)
	}
	id = begin()
	pc, err := r.UploadPartCopy("photos", "big", "photos", "big", id, 1, &api.UploadPartCopyArgs{SourceRange: "bytes=10-200009"})
	if r.want("part copy", err); err == nil {
		r.want("complete", done(list(api.UploadInfoType{PartNumber: 1, ETag: pc.ETag})))
	}
	if have, err := r.get("big"); err != nil || have != string(data[10:200010]) {
		t.Errorf("copied: %d bytes, %v", len(have), err)
	}
	if n := r.emu.Pending("photos"); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
	r.want("delete", r.DeleteObject("photos", "big"))
	if files, _ := os.ReadDir(firstDir(t, r.dir)); len(files) != 0 {
		t.Errorf("%d files are left of objects that are gone", len(files))
	}
}

func firstDir(t *testing.T, dir string) string {
	t.Helper()
	in, err := os.ReadDir(dir)
	if err != nil || len(in) != 1 {
		t.Fatalf("%v, %v", in, err)
	}
	return dir + "/" + in[0].Name()
}

func TestArchive(t *testing.T) {
	r := newRig(t, nil)
	r.put("a", "cold", &api.PutObjectArgs{StorageClass: "ARCHIVE"})
	r.put("b", "warm", nil)
	thaw := func(key, tier string, days int) error { return r.RestoreObject("photos", key, days, tier) }
	state := func() string {
		m, err := r.GetObjectMeta("photos", "a")
		if err != nil {
			t.Fatal(err)
		}
		return m.BceRestore
	}
	_, err := r.get("a")
	r.want("archived", err, "InvalidObjectState")
	r.want("not archived", thaw("b", "Standard", 1), "InvalidObjectState")
	r.want("too long", thaw("a", "Standard", 31), "InvalidArgument")
	r.want("tier", thaw("a", "Now", 1), "InvalidArgument", "client: invalid restore tier")
	r.want("restore", thaw("a", "Expedited", 1))
	r.want("restore again", thaw("a", "Expedited", 1), "RestoreAlreadyInProgress")
	if have := state(); have != `ongoing-request="true"` {
		t.Errorf("state %s", have)
	}
	// The clock of the server goes on; that of the client cannot follow, so requests must be good for long.
	r.Config.SignOption.ExpireSeconds = 1 << 20
	r.mu.Lock()
	r.now = time.Now().Add(14 * time.Minute)
	r.mu.Unlock()
	_, err = r.get("a")
	r.want("not yet", err, "InvalidObjectState")
}

func TestArchiveThaws(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Limits.Skew = 1000 * time.Hour })
	r.Config.SignOption.ExpireSeconds = 1 << 24
	r.put("a", "cold", &api.PutObjectArgs{StorageClass: "ARCHIVE"})
	for _, c := range []struct {
		tier  string
		after time.Duration
	}{{"Expedited", 30 * time.Minute}, {"Standard", 5 * time.Hour}, {"LowCost", 12 * time.Hour}} {
		r.shift(0)
		r.put("a", "cold", &api.PutObjectArgs{StorageClass: "ARCHIVE"})
		r.want("restore", r.RestoreObject("photos", "a", 2, c.tier))
		r.shift(c.after - time.Minute)
		_, err := r.get("a")
		r.want("before", err, "InvalidObjectState")
		r.shift(c.after + time.Minute)
		have, err := r.get("a")
		if r.want("after", err); have != "cold" {
			t.Errorf("read %q", have)
		}
		if m, err := r.GetObjectMeta("photos", "a"); err != nil || !strings.HasPrefix(m.BceRestore, `ongoing-request="false", expiry-date="`) {
			t.Errorf("%+v, %v", m, err)
		}
		r.shift(c.after + 49*time.Hour)
		_, err = r.get("a")
		r.want("frozen again", err, "InvalidObjectState")
	}
}

func TestAccessLists(t *testing.T) {
	r := newRig(t, nil)
	r.put("a", "x", nil)
	bob, nobody := r.client("ak-bob", "sk-bob", r.url), r.client("", "", r.url)
	try := func(c *bos.Client) error {
		_, err := c.GetObjectMeta("photos", "a")
		return err
	}
	r.want("bob", try(bob), "AccessDenied")
	r.want("list for one", r.PutObjectAclFromStruct("photos", "a", &api.PutObjectAclArgs{AccessControlList: []api.GrantType{
		{Grantee: []api.GranteeType{{Id: "bob"}}, Permission: []string{"READ"}}}}))
	r.want("bob", try(bob))
	r.want("nobody", try(nobody), "AccessDenied")
	r.want("public", r.PutObjectAclFromCanned("photos", "a", "public-read"))
	r.want("nobody", try(nobody))
	l, err := r.GetObjectAcl("photos", "a")
	if err != nil || len(l.AccessControlList) != 2 {
		t.Errorf("%+v, %v", l, err)
	}
	r.want("delete", r.DeleteObjectAcl("photos", "a"))
	r.want("nobody", try(nobody), "AccessDenied")
	r.want("bucket", r.PutBucketAclFromCanned("photos", "public-read-write"))
	r.want("nobody", try(nobody))
	_, err = nobody.PutObjectFromString("photos", "n", "x", nil)
	r.want("nobody writes", err)
	b, err := r.GetBucketAcl("photos")
	if err != nil || b.Owner.Id != "alice" || len(b.AccessControlList) != 2 {
		t.Errorf("%+v, %v", b, err)
	}

	r.want("tags", r.PutObjectTag("photos", "a", &api.PutObjectTagArgs{ObjectTags: []api.ObjectTags{{TagInfo: []api.ObjectTag{{Key: "k", Value: "v 1"}}}}}))
	tags, err := r.GetObjectTag("photos", "a")
	if err != nil || tags["k"] != "v 1" {
		t.Errorf("%v, %v", tags, err)
	}
	r.want("bad tags", r.PutObjectTag("photos", "a", &api.PutObjectTagArgs{ObjectTags: []api.ObjectTags{{TagInfo: []api.ObjectTag{{Key: "k", Value: "ü"}}}}}), "InvalidArgument")
	r.want("no tags", r.DeleteObjectTag("photos", "a"))
}

func TestLimitsAndFaults(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Limits.Put, c.Limits.Memory = 1<<20, 10 })
	_, err := r.PutObjectFromString("photos", "a", strings.Repeat("x", 1<<20), nil)
	r.want("at the limit", err)
	_, err = r.PutObjectFromString("photos", "a", strings.Repeat("x", 1<<20+1), nil)
	r.want("above the limit", err, "EntityTooLarge")

	var f bosemu.Fault
	r.fault = func(bosemu.Request) bosemu.Fault { return f }
	set := func(n bosemu.Fault) { r.mu.Lock(); f = n; r.mu.Unlock() }
	set(bosemu.Fault{Code: "InternalError"})
	_, err = r.get("a")
	r.want("500", err, "InternalError")
	set(bosemu.Fault{CutAnswer: 1000})
	if have, err := r.get("a"); !errors.Is(err, io.ErrUnexpectedEOF) || len(have) > 1000 {
		t.Errorf("cut: %d bytes, %v", len(have), err)
	}
	set(bosemu.Fault{Short: 1000})
	if have, err := r.get("a"); err != nil || len(have) != 1000 {
		t.Errorf("short: %d bytes, %v", len(have), err)
	}
	set(bosemu.Fault{Flip: true})
	if have, err := r.get("a"); err != nil || len(have) != 1<<20 || have[0] == 'x' {
		t.Errorf("flip: %d bytes, %v", len(have), err)
	}
	set(bosemu.Fault{CutRequest: 1000})
	if _, err := r.PutObjectFromString("photos", "b", strings.Repeat("x", 1<<20), nil); !strings.HasPrefix(code(err), "client: ") {
		t.Errorf("cut request: %v", err)
	}
	set(bosemu.Fault{LoseAnswer: true})
	if _, err := r.PutObjectFromString("photos", "c", "x", nil); !strings.HasPrefix(code(err), "client: ") {
		t.Errorf("lost answer: %v", err)
	}
	set(bosemu.Fault{})
	_, err = r.get("b")
	r.want("cut request", err, "NoSuchKey")
	have, err := r.get("c")
	if r.want("lost answer", err); have != "x" {
		t.Errorf("%q", have)
	}
	// The traps of the SDK: no ETag and no error.
	for name, n := range map[string]bosemu.Fault{"redirect": {Redirect: "http://127.0.0.1:1/"}, "no ETag": {NoETag: true}} {
		set(n)
		if etag, err := r.PutObjectFromString("photos", "d", "x", nil); etag != "" || err != nil {
			t.Errorf("%s: %q, %v", name, etag, err)
		}
	}
	if n := r.emu.Counts()["PutObject"]; n != 6 {
		t.Errorf("%d puts were counted", n)
	}
}

func TestRate(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Limits.Rate, c.Limits.RateStatus = 5, 503 })
	r.shift(0) // the clock stands still
	var slow int
	for range 8 {
		if _, err := r.GetBucketLocation("photos"); code(err) == "RequestRateLimitExceeded" {
			slow++
		}
	}
	if slow != 3 {
		t.Errorf("%d of 8 requests were too many", slow)
	}
	r.shift(time.Second)
	_, err := r.GetBucketLocation("photos")
	r.want("a second later", err)
}

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]bosemu.Config{
		"Accounts[0]":      {Accounts: []bosemu.Account{{ID: "a"}}},
		"Buckets[0].Name":  {Buckets: []bosemu.Bucket{{Name: "No"}}},
		"Buckets[0].ACL":   {Buckets: []bosemu.Bucket{{Name: "abc", ACL: "open"}}},
		"Buckets[0].Class": {Buckets: []bosemu.Bucket{{Name: "abc", Class: "HOT"}}},
		"Dir":              {Dir: "/nowhere/at/all"},
	} {
		if _, err := bosemu.New(cfg); !errors.Is(err, sentinel.ErrUsage) || !strings.HasPrefix(err.Error(), "usage: "+want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
