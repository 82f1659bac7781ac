package bos_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
)

// The SDK starts a goroutine for its log when it is linked.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

var alice = objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}

// rig is a store that speaks to an emulator.
type rig struct {
	*bos.Store
	t   *testing.T
	emu *bosemu.Server
	url string
	ctx context.Context

	mu    sync.Mutex
	fault bosemu.Fault
	shift time.Duration
}

func (r *rig) set(f bosemu.Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.shift)
}

func newRig(t *testing.T, edit func(*bosemu.Config)) *rig {
	t.Helper()
	r := &rig{t: t, ctx: t.Context()}
	cfg := bosemu.Config{
		Clock:    r.clock,
		Dir:      t.TempDir(),
		Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}, {ID: "bob", AccessKey: "ak-bob", SecretKey: "sk-bob"}},
		Buckets:  []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}, {Name: "closed", Owner: "alice", ReadOnly: true}},
		Fault: func(bosemu.Request) bosemu.Fault {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.fault
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
		_ = r.emu.Close()
	})
	r.Store = r.store(bos.Config{})
	return r
}

func (r *rig) store(cfg bos.Config) *bos.Store {
	r.t.Helper()
	if cfg.Endpoint == "" {
		cfg.Endpoint = r.url
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "photos"
	}
	if cfg.Credentials == nil {
		cfg.Credentials = alice
	}
	s, err := bos.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (r *rig) put(key, text string) objstore.Written {
	r.t.Helper()
	w, err := r.Put(r.ctx, key, objstore.Bytes([]byte(text)), objstore.PutOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rig) get(key string, o objstore.GetOptions) (string, objstore.Object, error) {
	obj, in, err := r.Get(r.ctx, key, o)
	if err != nil {
		return "", obj, err
	}
	b, err := io.ReadAll(in)
	return string(b), obj, errors.Join(err, in.Close())
}

// stream is a body that can be read from its beginning, but not twice at will.
func stream(size int64) objstore.Body {
	return objstore.Body{Size: size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(rand.NewChaCha8([32]byte{1}), size)), nil
	}}
}

func (r *rig) want(what string, err error, kind error, retry bool) {
	r.t.Helper()
	if !errors.Is(err, kind) || err == nil || objstore.Retryable(err) != retry {
		r.t.Errorf("%s: %v; want %v, again: %v", what, err, kind, retry)
	}
	var e *objstore.Error
	if err != nil && !errors.As(err, &e) {
		r.t.Errorf("%s: %T", what, err)
	}
}

func TestObjects(t *testing.T) {
	r := newRig(t, nil)
	attrs := objstore.Attrs{ContentType: "text/x", CacheControl: "false", ContentDisposition: "inline", ContentEncoding: "gzip", ContentLanguage: "de",
		Expires: "Thu, 01 Jan 2032 00:00:00 GMT", Meta: map[string]string{"who-is": "Ä b", "empty": ""}}
	names := []string{"a", "a b+c%d?e#f&g=h", "dir//x", "dir/", "v1/x", "ü/\u4e2d", "a/./b", "...", "~!@$^*()'\"<>\\|", strings.Repeat("k", 1023), "x\x01y"}
	for _, k := range names {
		w, err := r.Put(r.ctx, k, objstore.Bytes([]byte("0123456789")), objstore.PutOptions{Attrs: attrs, Class: "COLD"})
		if err != nil {
			t.Fatal(err)
		}
		for what, read := range map[string]func() (string, objstore.Object, error){
			"get":  func() (string, objstore.Object, error) { return r.get(k, objstore.GetOptions{IfTag: w.ETag}) },
			"head": func() (string, objstore.Object, error) { o, err := r.Head(r.ctx, k); return "0123456789", o, err },
		} {
			text, o, err := read()
			if err != nil || text != "0123456789" || o.Key != k || o.Size != 10 || o.ETag != w.ETag || o.Class != "COLD" || time.Since(o.Modified) > time.Minute {
				t.Errorf("%s %q: %q %+v, %v", what, k, text, o, err)
			}
			if fmt.Sprint(o.Attrs) != fmt.Sprint(attrs) {
				t.Errorf("%s %q: %+v", what, k, o.Attrs)
			}
		}
	}
	p, err := r.List(r.ctx, objstore.Query{})
	slices.Sort(names)
	if err != nil || p.More || len(p.Entries) != len(names) || time.Since(p.Now) > time.Minute {
		t.Fatalf("%+v, %v", p, err)
	}
	for i, e := range p.Entries {
		if e.Key != names[i] || e.Size != 10 || e.Class != "COLD" {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	for _, c := range []struct {
		o    objstore.GetOptions
		want string
	}{{objstore.GetOptions{Off: 3}, "3456789"}, {objstore.GetOptions{Off: 2, Len: 3}, "234"}, {objstore.GetOptions{Len: 10}, "0123456789"}, {objstore.GetOptions{Off: 8, Len: 99}, "89"}} {
		if text, o, err := r.get("a", c.o); err != nil || text != c.want || o.Size != 10 {
			t.Errorf("%+v: %q of %d, %v", c.o, text, o.Size, err)
		}
	}
	_, _, err = r.get("a", objstore.GetOptions{IfTag: "other"})
	r.want("another state", err, objstore.ErrChanged, false)
	_, _, err = r.get("none", objstore.GetOptions{})
	r.want("get", err, objstore.ErrNotFound, false)
	_, err = r.Head(r.ctx, "none")
	r.want("head", err, objstore.ErrNotFound, false)
	_, err = r.Put(r.ctx, "a", objstore.Bytes(nil), objstore.PutOptions{Absent: true})
	r.want("absent", err, objstore.ErrExists, false)
	if _, err := r.Put(r.ctx, "new", objstore.Bytes(nil), objstore.PutOptions{Absent: true}); err != nil {
		t.Error(err)
	}
	if text, o, err := r.get("new", objstore.GetOptions{}); err != nil || text != "" || o.Size != 0 {
		t.Errorf("an empty object: %q %+v, %v", text, o, err)
	}
	left, err := r.Delete(r.ctx, append(names, "new", "none", "\xff", "", "/x")...)
	if err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if p, err := r.List(r.ctx, objstore.Query{}); err != nil || len(p.Entries) > 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// What BOS, or its SDK, does not take is refused with a reason, and no request is made.
func TestRefused(t *testing.T) {
	r := newRig(t, nil)
	for key, want := range map[string]string{
		"": "empty", "/a": "slash", "..": `".."`, "a/../b": `".."`, "v1": `"v1"`, "v1/": `"v1"`, ".": "SDK", "./v1": `"v1"`, "./": "SDK",
		strings.Repeat("k", 1024): "1024 bytes", "\xff": "UTF-8",
	} {
		if err := r.Limits().Key(key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", key, err, want)
		}
		_, err := r.Put(r.ctx, key, objstore.Bytes(nil), objstore.PutOptions{})
		r.want(key, err, objstore.ErrNotSupported, false)
		_, err = r.Begin(r.ctx, key, objstore.PutOptions{})
		r.want(key, err, objstore.ErrNotSupported, false)
	}
	for _, key := range []string{"a", "..a", "a..", "a/..b/c", "v1/a", "a/v1", "...", "a/.", "a//b"} {
		if err := r.Limits().Key(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for name, o := range map[string]objstore.PutOptions{
		"2,049 bytes":  {Attrs: objstore.Attrs{Meta: map[string]string{"k": strings.Repeat("v", 2048)}}},
		"capitals":     {Attrs: objstore.Attrs{Meta: map[string]string{"Key": "v"}}},
		"a space":      {Attrs: objstore.Attrs{Meta: map[string]string{"a key": "v"}}},
		"two lines":    {Attrs: objstore.Attrs{Meta: map[string]string{"k": "a\r\nx-bce-acl: public-read"}}},
		"spaces ahead": {Attrs: objstore.Attrs{Meta: map[string]string{"k": " v"}}},
		"a header":     {Attrs: objstore.Attrs{CacheControl: "a\nb"}},
		"a class":      {Class: "HOT"},
	} {
		_, err := r.Put(r.ctx, "a", objstore.Bytes(nil), o)
		r.want(name, err, objstore.ErrNotSupported, false)
	}
	_, err := r.Put(r.ctx, "a", objstore.Body{Size: 5<<30 + 1}, objstore.PutOptions{})
	r.want("too large", err, objstore.ErrNotSupported, false)
	if n := r.emu.Counts(); len(n) != 0 {
		t.Errorf("requests were made: %v", n)
	}
	if _, err := r.Put(r.ctx, "a", objstore.Bytes(nil), objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"k": strings.Repeat("v", 2047)}}}); err != nil {
		t.Errorf("2,048 bytes of metadata: %v", err)
	}
	closed := r.store(bos.Config{Bucket: "closed"})
	_, err = closed.Put(r.ctx, "a", objstore.Bytes(nil), objstore.PutOptions{})
	r.want("not writable", err, objstore.ErrDenied, false)
	_, err = r.store(bos.Config{Bucket: "missing"}).List(r.ctx, objstore.Query{})
	r.want("no bucket", err, objstore.ErrNotFound, false)
}

// A server or a line that fails is never taken for success.
func TestFaults(t *testing.T) {
	r := newRig(t, nil)
	r.put("a", strings.Repeat("x", 5000))
	small, large := objstore.Bytes([]byte("hello")), stream(2<<20)
	put := func(b objstore.Body) func() error {
		return func() error { _, err := r.Put(r.ctx, "b", b, objstore.PutOptions{}); return err }
	}
	get := func() error { _, _, err := r.get("a", objstore.GetOptions{}); return err }
	head := func() error { _, err := r.Head(r.ctx, "a"); return err }
	list := func() error { _, err := r.List(r.ctx, objstore.Query{}); return err }
	remove := func() error { _, err := r.Delete(r.ctx, "zzz"); return err }
	upload, err := r.Begin(r.ctx, "b", objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part, err := r.PutPart(r.ctx, "b", upload, 1, small)
	if err != nil {
		t.Fatal(err)
	}
	putPart := func() error { _, err := r.PutPart(r.ctx, "b", upload, 2, small); return err }
	complete := func() error {
		_, err := r.Complete(r.ctx, "b", upload, []objstore.Part{{No: 1, ETag: part.ETag}}, objstore.PutOptions{})
		return err
	}
	begin := func() error { _, err := r.Begin(r.ctx, "b", objstore.PutOptions{}); return err }
	again, final, anyKind := true, false, error(nil)
	for name, c := range map[string]struct {
		f     bosemu.Fault
		do    func() error
		kind  error
		retry bool
	}{
		"put, redirect":             {bosemu.Fault{Redirect: "http://su.bcebos.com/"}, put(small), anyKind, final},
		"get, redirect":             {bosemu.Fault{Redirect: "http://su.bcebos.com/"}, get, anyKind, final},
		"list, redirect":            {bosemu.Fault{Redirect: "http://su.bcebos.com/"}, list, anyKind, final},
		"put, no ETag":              {bosemu.Fault{NoETag: true}, put(small), objstore.ErrTransient, again},
		"part, no ETag":             {bosemu.Fault{NoETag: true}, putPart, objstore.ErrTransient, again},
		"get, no ETag":              {bosemu.Fault{NoETag: true}, get, objstore.ErrTransient, again},
		"head, no ETag":             {bosemu.Fault{NoETag: true}, head, objstore.ErrTransient, again},
		"list, no ETag":             {bosemu.Fault{NoETag: true}, list, objstore.ErrTransient, again},
		"put, error inside":         {bosemu.Fault{Code: "InternalError", Inside: true}, put(small), objstore.ErrTransient, again},
		"complete, error inside":    {bosemu.Fault{Code: "InternalError", Inside: true}, complete, objstore.ErrTransient, again},
		"complete, denied inside":   {bosemu.Fault{Code: "AccessDenied", Inside: true}, complete, objstore.ErrDenied, final},
		"list, error inside":        {bosemu.Fault{Code: "InternalError", Inside: true}, list, objstore.ErrTransient, again},
		"delete, error inside":      {bosemu.Fault{Code: "SlowDown", Inside: true}, remove, objstore.ErrSlowDown, again},
		"begin, error inside":       {bosemu.Fault{Code: "InternalError", Inside: true}, begin, objstore.ErrTransient, again},
		"list, cut":                 {bosemu.Fault{CutAnswer: 100}, list, io.ErrUnexpectedEOF, again},
		"list, short":               {bosemu.Fault{Short: 100}, list, objstore.ErrTransient, again},
		"get, cut":                  {bosemu.Fault{CutAnswer: 1000}, get, io.ErrUnexpectedEOF, again},
		"get, short":                {bosemu.Fault{Short: 1000}, get, objstore.ErrCorrupt, final},
		"get, another byte":         {bosemu.Fault{Flip: true}, get, objstore.ErrCorrupt, final},
		"put, another byte":         {bosemu.Fault{FlipSent: true}, put(small), objstore.ErrCorrupt, final},
		"put large, another byte":   {bosemu.Fault{FlipSent: true}, put(large), objstore.ErrCorrupt, final},
		"part, another byte":        {bosemu.Fault{FlipSent: true}, putPart, objstore.ErrCorrupt, final},
		"no digest, another byte":   {bosemu.Fault{FlipSent: true, NoDigest: true}, put(large), objstore.ErrCorrupt, final},
		"put, answer lost":          {bosemu.Fault{LoseAnswer: true}, put(small), objstore.ErrTransient, again},
		"put, cut":                  {bosemu.Fault{CutRequest: 1 << 20}, put(large), objstore.ErrTransient, again},
		"put, 500":                  {bosemu.Fault{Status: 500}, put(small), objstore.ErrTransient, again},
		"put, 503":                  {bosemu.Fault{Status: 503}, put(small), objstore.ErrSlowDown, again},
		"head, 429":                 {bosemu.Fault{Status: 429}, head, objstore.ErrSlowDown, again},
		"head, 502":                 {bosemu.Fault{Status: 502}, head, objstore.ErrTransient, again},
		"get, too many":             {bosemu.Fault{Code: "RequestRateLimitExceeded"}, get, objstore.ErrSlowDown, again},
		"get, archived":             {bosemu.Fault{Code: "InvalidObjectState"}, get, objstore.ErrArchived, final},
		"put, overdue":              {bosemu.Fault{Code: "AccountOverdue"}, put(small), objstore.ErrDenied, final},
		"list, denied without body": {bosemu.Fault{Status: 403}, list, objstore.ErrDenied, final},
	} {
		r.set(c.f)
		err := c.do()
		if c.kind == nil {
			c.kind = err
		}
		r.want(name, err, c.kind, c.retry)
		r.set(bosemu.Fault{})
	}
	if err := put(small)(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	r.set(bosemu.Fault{NoDigest: true})
	for range 2 { // the MD5 is computed afterwards at first, then on the way
		if err := put(large)(); err != nil {
			t.Errorf("no digest: %v", err)
		}
	}
	r.set(bosemu.Fault{})
	if err := complete(); err != nil {
		t.Errorf("complete: %v", err)
	}
}

// A body that has not as many bytes as it says is not stored.
func TestBodies(t *testing.T) {
	r := newRig(t, nil)
	broken := errors.New("the disk is gone")
	text := strings.Repeat("x", 100<<10)
	for name, c := range map[string]struct {
		size int64
		in   io.Reader
		want error
	}{
		"too short":  {int64(len(text)) + 1, strings.NewReader(text), io.ErrUnexpectedEOF},
		"too long":   {int64(len(text)) - 1, struct{ io.Reader }{strings.NewReader(text)}, objstore.ErrCorrupt},
		"not empty":  {0, strings.NewReader("x"), objstore.ErrCorrupt},
		"broken":     {int64(len(text)), io.MultiReader(strings.NewReader(text[:5000]), iotest{broken}), broken},
		"ends wrong": {int64(len(text)), io.MultiReader(strings.NewReader(text), iotest{broken}), broken},
	} {
		closed := 0
		b := objstore.Body{Size: c.size, Open: func() (io.ReadCloser, error) { return counted{c.in, &closed}, nil }}
		_, err := r.Put(r.ctx, "k", b, objstore.PutOptions{})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if closed == 0 {
			t.Errorf("%s: not closed", name)
		}
		if _, err := r.Head(r.ctx, "k"); !errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%s: it is stored (%v)", name, err)
		}
	}
	_, err := r.Put(r.ctx, "k", objstore.Body{Size: 1, Open: func() (io.ReadCloser, error) { return nil, broken }}, objstore.PutOptions{})
	r.want("open", err, broken, false)
}

type iotest struct{ err error }

func (i iotest) Read([]byte) (int, error) { return 0, i.err }

type counted struct {
	io.Reader
	n *int
}

func (c counted) Close() error { *c.n++; return nil }

// renewing gives keys that a test changes.
type renewing struct {
	mu sync.Mutex
	k  objstore.Keys
	n  int
}

func (c *renewing) Keys(context.Context) (objstore.Keys, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.k, nil
}

func TestCredentials(t *testing.T) {
	r := newRig(t, nil)
	r.put("a", "x")
	keys := &renewing{k: objstore.Keys{ID: "tmp1", Secret: "s1", Token: "t1"}}
	r.emu.AddSession("alice", bosemu.Session{AccessKey: "tmp1", SecretKey: "s1", Token: "t1", Expires: time.Now().Add(time.Hour)})
	s := r.store(bos.Config{Credentials: keys})
	try := func() error { _, err := s.List(r.ctx, objstore.Query{}); return err }
	if err := try(); err != nil {
		t.Fatal(err)
	}
	r.emu.AddSession("alice", bosemu.Session{AccessKey: "tmp1", SecretKey: "s1", Token: "t1", Expires: time.Now().Add(-time.Second)})
	r.want("the session has ended", try(), objstore.ErrDenied, false)
	r.emu.AddSession("alice", bosemu.Session{AccessKey: "tmp2", SecretKey: "s2", Token: "t2"})
	keys.mu.Lock()
	keys.k = objstore.Keys{ID: "tmp2", Secret: "s2", Token: "t2"}
	keys.mu.Unlock()
	if err := try(); err != nil || keys.n != 3 {
		t.Errorf("renewed: %v, asked %d times", err, keys.n)
	}
	for name, k := range map[string]objstore.Keys{"wrong secret": {ID: "ak-alice", Secret: "x"}, "wrong key": {ID: "x", Secret: "x"}, "bob": {ID: "ak-bob", Secret: "sk-bob"}, "none": {}} {
		keys.mu.Lock()
		keys.k = k
		keys.mu.Unlock()
		r.want(name, try(), objstore.ErrDenied, false)
	}
	r.mu.Lock()
	r.shift = time.Hour
	r.mu.Unlock()
	_, err := r.List(r.ctx, objstore.Query{})
	r.want("clock", err, objstore.ErrClock, false)
	_, err = r.Head(r.ctx, "a")
	r.want("clock, without a body", err, objstore.ErrClock, false)

	cfg := bos.Config{Endpoint: r.url, Bucket: "photos", Credentials: objstore.Fixed{ID: "ak-alice", Secret: "very-secret", Token: "very-secret"}}
	s = r.store(cfg)
	_, err = s.List(r.ctx, objstore.Query{})
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", cfg.Credentials, cfg, cfg), fmt.Sprintf("%v %+v %#v %s", s, s, s, s), fmt.Sprintf("%v %+v", err, err)} {
		if strings.Contains(text, "very-secret") {
			t.Errorf("the secret is printed: %s", text)
		}
	}
}

func TestAbilities(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Buckets[1].Versioned, c.Buckets[1].ACL = true, "public-read" })
	r.put("a", "x")
	if where, err := r.Location(r.ctx); err != nil || where != "gz" {
		t.Errorf("%q, %v", where, err)
	}
	for _, tags := range []map[string]string{{"a": "b c", "d": ""}, {"e": "f"}, {}} {
		if err := r.SetTags(r.ctx, "a", tags); err != nil {
			t.Fatal(err)
		}
		have, err := r.Tags(r.ctx, "a")
		if err != nil || fmt.Sprint(have) != fmt.Sprint(tags) {
			t.Errorf("%v, %v", have, err)
		}
		if o, err := r.Head(r.ctx, "a"); err != nil || o.Tags != len(tags) && o.Tags != -1 {
			t.Errorf("%+v, %v", o, err)
		}
	}
	r.want("bad tag", r.SetTags(r.ctx, "a", map[string]string{"ü": "x"}), objstore.ErrNotSupported, false)
	_, err := r.Tags(r.ctx, "none")
	r.want("tags", err, objstore.ErrNotFound, false)
	for _, canned := range []string{"private", "public-read"} {
		if err := r.SetGrants(r.ctx, "a", canned); err != nil {
			t.Fatal(err)
		}
		if have, all, err := r.Grants(r.ctx, "a"); err != nil || have != canned || len(all) == 0 {
			t.Errorf("%q %v, %v", have, all, err)
		}
	}
	r.want("grants", r.SetGrants(r.ctx, "a", "public-read-write"), objstore.ErrNotSupported, false)
	r.put("inherits", "x")
	if have, _, err := r.Grants(r.ctx, "inherits"); err != nil || have != "private" {
		t.Errorf("%q, %v", have, err)
	}
	if v, err := r.Versioned(r.ctx); err != nil || v {
		t.Errorf("%v, %v", v, err)
	}
	if v, err := r.store(bos.Config{Bucket: "closed"}).Versioned(r.ctx); err != nil || !v {
		t.Errorf("%v, %v", v, err)
	}
}

func TestUploads(t *testing.T) {
	r := newRig(t, func(c *bosemu.Config) { c.Limits.Page = 3 })
	attrs := objstore.PutOptions{Attrs: objstore.Attrs{ContentType: "text/x", ContentLanguage: "de", Meta: map[string]string{"k": "v"}}, Class: "COLD", Absent: true}
	upload, err := r.Begin(r.ctx, "big", attrs)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
	var want []objstore.Part
	for no := 1; no <= 8; no++ {
		w, err := r.PutPart(r.ctx, "big", upload, no, objstore.Bytes(data))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, objstore.Part{No: no, Size: int64(len(data)), ETag: w.ETag})
	}
	var have []objstore.Part
	for more, after := true, 0; more; after = have[len(have)-1].No {
		var page []objstore.Part
		if page, more, err = r.Parts(r.ctx, "big", upload, after); err != nil {
			t.Fatal(err)
		}
		have = append(have, page...)
	}
	if !slices.Equal(have, want) {
		t.Errorf("parts %v, want %v", have, want)
	}
	_, _, err = r.Parts(r.ctx, "big", "none", 0)
	r.want("parts", err, objstore.ErrNotFound, false)
	_, err = r.PutPart(r.ctx, "big", "none", 1, objstore.Bytes(data))
	r.want("part", err, objstore.ErrNotFound, false)
	_, err = r.PutPart(r.ctx, "big", upload, 10_001, objstore.Bytes(data))
	r.want("part", err, objstore.ErrNotSupported, false)
	if _, err := r.Complete(r.ctx, "big", upload, want, attrs); err != nil {
		t.Fatal(err)
	}
	_, err = r.Complete(r.ctx, "big", upload, want, attrs)
	r.want("complete again", err, objstore.ErrNotFound, false)
	text, o, err := r.get("big", objstore.GetOptions{})
	if err != nil || text != strings.Repeat(string(data), 8) || o.Attrs.Meta["k"] != "v" || o.Attrs.ContentType != "text/x" || o.Attrs.ContentLanguage != "de" || o.Class != "COLD" {
		t.Errorf("%d bytes, %+v, %v", len(text), o, err)
	}
	second, err := r.Begin(r.ctx, "big", attrs)
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.PutPart(r.ctx, "big", second, 1, objstore.Bytes(data))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Complete(r.ctx, "big", second, []objstore.Part{{No: 1, ETag: w.ETag}}, attrs)
	r.want("absent", err, objstore.ErrExists, false)
	for range 2 {
		if err := r.Abort(r.ctx, "big", second); err != nil {
			t.Errorf("abort: %v", err)
		}
	}

	// Pages break between keys, not between the uploads of one.
	made := map[string]bool{}
	for _, key := range []string{"a", "b", "b", "c", "c", "d", "x/e"} {
		id, err := r.Begin(r.ctx, key, objstore.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made[id] = true
	}
	list := func(prefix string) (found []objstore.Upload, err error) {
		var page []objstore.Upload
		for at := (&objstore.UploadPlace{}); at != nil; {
			if page, at, err = r.Uploads(r.ctx, prefix, *at); err != nil {
				return found, err
			}
			found = append(found, page...)
		}
		return found, nil
	}
	found, err := list("")
	if err != nil || len(found) != len(made) {
		t.Errorf("%d uploads, want %d: %v", len(found), len(made), err)
	}
	for _, u := range found {
		if !made[u.ID] || time.Since(u.Begun) > time.Minute {
			t.Errorf("%+v", u)
		}
	}
	if found, err := list("x/"); err != nil || len(found) != 1 || found[0].Key != "x/e" {
		t.Errorf("%v, %v", found, err)
	}
	for range 2 {
		if _, err := r.Begin(r.ctx, "c", objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = list(""); err == nil || !strings.Contains(err.Error(), "abort some") {
		t.Errorf("more than a page of one key: %v", err)
	}
}

// https is what an endpoint without a scheme means; the bucket goes into the name of the host; and whose certificate nobody knows is not spoken to.
func TestTLS(t *testing.T) {
	r := newRig(t, nil)
	server := httptest.NewUnstartedServer(r.emu)
	server.Config.ErrorLog = quiet
	server.StartTLS()
	defer server.Close()
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	for i, pool := range []*x509.CertPool{pool, x509.NewCertPool()} {
		tr := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}}
		defer tr.CloseIdleConnections()
		s := r.store(bos.Config{Endpoint: "gz.bcebos.com", Transport: tr})
		if s.String() != "bos://photos at https://gz.bcebos.com" {
			t.Error(s)
		}
		_, err := s.Put(r.ctx, "k", stream(2<<20), objstore.PutOptions{})
		if i == 0 && err != nil {
			t.Errorf("put: %v", err)
		} else if i == 1 {
			r.want("an unknown certificate", err, err, false)
		}
	}
	// The transport of its own.
	s := r.store(bos.Config{Endpoint: "https://" + server.Listener.Addr().String(), RootCAs: pool})
	if _, _, err := get(r.ctx, s, "k"); err != nil {
		t.Errorf("get: %v", err)
	}
	_, _, err := get(r.ctx, r.store(bos.Config{Endpoint: server.Listener.Addr().String()}), "k")
	r.want("an unknown certificate", err, err, false)
}

// A proxy is spoken to in place of the host.
func TestProxy(t *testing.T) {
	r := newRig(t, nil)
	proxy, err := url.Parse(r.url) // what the emulator is asked by its full address it answers too
	if err != nil {
		t.Fatal(err)
	}
	s := r.store(bos.Config{Endpoint: "http://gz.bcebos.com", Proxy: proxy})
	if where, err := s.Location(r.ctx); err != nil || where != "gz" {
		t.Errorf("%q, %v", where, err)
	}
}

func get(ctx context.Context, s *bos.Store, key string) ([]byte, objstore.Object, error) {
	o, in, err := s.Get(ctx, key, objstore.GetOptions{})
	if err != nil {
		return nil, o, err
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	return b, o, err
}

func TestConfig(t *testing.T) {
	good := bos.Config{Endpoint: "bj.bcebos.com", Bucket: "photos", Credentials: alice}
	for want, edit := range map[string]func(*bos.Config){
		"Endpoint: is needed":     func(c *bos.Config) { c.Endpoint = "" },
		`Endpoint: "ftp://"`:      func(c *bos.Config) { c.Endpoint = "ftp://x" },
		"Endpoint: keys do not":   func(c *bos.Config) { c.Endpoint = "https://ak:sk@x" },
		"Endpoint: \"https://x/y": func(c *bos.Config) { c.Endpoint = "x/y" },
		`Endpoint: "photos.bj.`:   func(c *bos.Config) { c.Endpoint = "photos.bj.bcebos.com" },
		"Bucket: ":                func(c *bos.Config) { c.Bucket = "Photos" },
		"Credentials: ":           func(c *bos.Config) { c.Credentials = nil },
		"Timeouts: ":              func(c *bos.Config) { c.Timeouts.Stall = -1 },
		"Transport: ":             func(c *bos.Config) { c.Transport, c.RootCAs = http.DefaultTransport, x509.NewCertPool() },
	} {
		cfg := good
		edit(&cfg)
		if _, err := bos.New(cfg); !errors.Is(err, sentinel.ErrUsage) || !strings.HasPrefix(err.Error(), "usage: "+want) || strings.Contains(err.Error(), "ak:sk") {
			t.Errorf("%s: %v", want, err)
		}
	}
	for in, out := range map[string]string{"bj.bcebos.com": "https://bj.bcebos.com", "HTTP://127.0.0.1:80/": "http://127.0.0.1:80", "[::1]:8080": "https://[::1]:8080"} {
		cfg := good
		cfg.Endpoint = in
		if s, err := bos.New(cfg); err != nil || s.String() != "bos://photos at "+out {
			t.Errorf("%s: %v, %v", in, s, err)
		}
	}
}
