package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
)

// No two keys are spelled alike, and each is found again: those that the target refuses, those that look as if they had been spelled, and all others.
func TestEscapeOneToOne(t *testing.T) {
	lim := objstore.Limits{Key: func(key string) error {
		if strings.HasPrefix(key, "/") || slices.Contains(strings.Split(key, "/"), "..") {
			return errors.New("refused")
		}
		return nil
	}}
	c := newCopier(nil, mem.New(mem.Config{Limits: lim}), CopyConfig{Escape: true})
	seen := map[string]string{}
	parts := []string{"", ".", "..", "%2E", "%2E%2E", "%252E", "%252E%252E", "%2F", "%252F", "%25", "%", "a", "%2Ea", "%2F%2E%2E", "a%2Fb"}
	for _, x := range parts {
		for _, y := range parts {
			for _, z := range parts {
				for _, key := range []string{x, x + "/" + y, x + "/" + y + "/" + z, x + y + "/" + z} {
					if key == "" {
						continue
					}
					to, err := c.target(key)
					if err != nil {
						t.Fatalf("%q: %v", key, err)
					}
					if was, ok := seen[to]; ok && was != key {
						t.Errorf("%q and %q are both %q", was, key, to)
					}
					seen[to] = key
					if to != key && unescape(to) != key {
						t.Errorf("%q is %q, which is %q again", key, to, unescape(to))
					}
				}
			}
		}
	}
}

// picky is a target that keeps less than others, as a driver tells by its limits.
func picky(r *rig) *mem.Store {
	l := objstore.Limits{PartLeast: 1 << 20, Parts: 100, Meta: 2048,
		Header: func(name, value string) error {
			if name == "Expires" {
				return errors.New("it keeps no such header")
			}
			return nil
		},
		Pair: func(name, value string) error {
			if strings.Contains(name, "_") {
				return errors.New("a name with _")
			}
			return nil
		}}
	return mem.New(mem.Config{Name: "to", Now: r.clock.Now, Limits: l})
}

// untagged has no tags and no rights.
type untagged struct{ objstore.Store }

// What the target does not keep of an object is left out, and told; the rest is there. One byte decides about metadata.
func TestCarry(t *testing.T) {
	meta := func(n int) map[string]string { return map[string]string{"m": strings.Repeat("x", n-1)} }
	for name, c := range map[string]struct {
		a     objstore.Attrs
		tags  map[string]string
		large bool
		copy  CopyConfig
		to    func(s objstore.Store) objstore.Store
		want  objstore.Attrs
		lost  []string // each begins so
	}{
		"all": {a: objstore.Attrs{ContentType: "text/plain; charset=utf-8", CacheControl: "no-cache", ContentDisposition: `attachment; filename="a b"`, ContentEncoding: "gzip",
			ContentLanguage: "de", Meta: map[string]string{"a": "1", "b": "ä"}}, tags: map[string]string{"x": "y"}, want: objstore.Attrs{ContentType: "text/plain; charset=utf-8",
			CacheControl: "no-cache", ContentDisposition: `attachment; filename="a b"`, ContentEncoding: "gzip", ContentLanguage: "de", Meta: map[string]string{"a": "1", "b": "ä"}}},
		"header":       {a: objstore.Attrs{ContentType: "a/b", Expires: "0"}, want: objstore.Attrs{ContentType: "a/b"}, lost: []string{`Expires "0": it keeps no such header`}},
		"header large": {a: objstore.Attrs{ContentType: "a/b", Expires: "0"}, large: true, want: objstore.Attrs{ContentType: "a/b"}, lost: []string{`Expires "0": it keeps no such header`}},
		"name":         {a: objstore.Attrs{Meta: map[string]string{"a_b": "1", "c": "2"}}, want: objstore.Attrs{Meta: map[string]string{"c": "2"}}, lost: []string{`user metadata "a_b": a name with _`}},
		"2047 bytes":   {a: objstore.Attrs{Meta: meta(2047)}, want: objstore.Attrs{Meta: meta(2047)}},
		"2048 bytes":   {a: objstore.Attrs{Meta: meta(2048)}, want: objstore.Attrs{Meta: meta(2048)}},
		"2049 bytes":   {a: objstore.Attrs{Meta: meta(2049), CacheControl: "x"}, want: objstore.Attrs{CacheControl: "x"}, lost: []string{"user metadata m: 2049 bytes, the target takes 2048"}},
		"tags": {tags: map[string]string{"x": "y", "a": "b"}, to: func(s objstore.Store) objstore.Store { return untagged{s} },
			lost: []string{"2 tags (a, x): the target knows none"}},
		"no tags":       {tags: map[string]string{"x": "y"}, copy: CopyConfig{NoTags: true}},
		"modified":      {a: objstore.Attrs{Meta: map[string]string{"a": "1"}}, copy: CopyConfig{Modified: true}, want: objstore.Attrs{Meta: map[string]string{"a": "1", modifiedName: "TIME"}}},
		"modified none": {copy: CopyConfig{Modified: true}, want: objstore.Attrs{Meta: map[string]string{modifiedName: "TIME"}}},
		"modified kept": {a: objstore.Attrs{Meta: map[string]string{modifiedName: "2001-02-03T04:05:06Z"}}, copy: CopyConfig{Modified: true},
			want: objstore.Attrs{Meta: map[string]string{modifiedName: "2001-02-03T04:05:06Z"}}},
		"modified no room": {a: objstore.Attrs{Meta: meta(2040)}, copy: CopyConfig{Modified: true}, want: objstore.Attrs{Meta: meta(2040)}, lost: []string{"last modified 2026-"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.to = picky(r)
			if r.dst = r.to; c.to != nil {
				r.dst = c.to(r.to)
			}
			c.copy.Part, c.copy.Memory = r.copy.Part, r.copy.Memory
			r.copy = c.copy
			n := 10
			if c.large {
				n = 2*objstore.BlockSize + 1
			}
			ctx := t.Context()
			if _, err := r.from.Put(ctx, "k", objstore.Bytes(make([]byte, n)), objstore.PutOptions{Attrs: c.a}); err != nil {
				t.Fatal(err)
			}
			if err := r.from.SetTags(ctx, "k", c.tags); err != nil {
				t.Fatal(err)
			}
			s := r.mustPass(1)
			o, err := r.to.Head(ctx, "k")
			if err != nil || s.Copied != 1 {
				t.Fatalf("%+v %v", s, err)
			}
			if src, err := r.from.Head(ctx, "k"); err != nil || c.want.Meta[modifiedName] == "TIME" {
				c.want.Meta[modifiedName] = src.Modified.Format(time.RFC3339Nano)
			}
			if fmt.Sprintf("%q", o.Attrs) != fmt.Sprintf("%q", c.want) {
				t.Errorf("the target has %q, want %q", o.Attrs, c.want)
			}
			if tags, err := r.to.Tags(ctx, "k"); err != nil || !c.copy.NoTags && len(c.lost) == 0 && !maps.Equal(tags, c.tags) && len(tags)+len(c.tags) > 0 {
				t.Errorf("tags %v, want %v; %v", tags, c.tags, err)
			}
			l := r.ledger()
			defer l.Close()
			rec, _, err := l.record("k")
			if err != nil || len(rec.Lost) != len(c.lost) || s.NowPartly != int64(min(1, len(c.lost))) {
				t.Fatalf("lost %q, want %q; %+v %v", rec.Lost, c.lost, s, err)
			}
			for i, want := range c.lost {
				if !strings.HasPrefix(rec.Lost[i], want) {
					t.Errorf("lost %q, want %q", rec.Lost[i], want)
				}
			}
			for _, read := range []bool{false, true} {
				v, err := l.Verify(ctx, VerifyConfig{To: r.dst, From: r.src, Copy: r.copy, Read: read, Attrs: 10, Differ: func(k, how string) { t.Errorf("%s: %s", k, how) }})
				if err != nil || v.Objects != 1 || v.Attrs != 1 {
					t.Errorf("verify: %+v %v", v, err)
				}
			}
		})
	}
}

func (r *rig) ledger() *Ledger {
	r.t.Helper()
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// Who may read an object is carried where the target has a name for it, said where not, and made explicit where the target's own rule is another one.
func TestCarryGrants(t *testing.T) {
	r := newRig(t)
	r.copy.Grants = true
	ctx := t.Context()
	for _, k := range []string{"a-private", "b-public-read", "c-public-read-write"} {
		r.put(k, 5, 1)
		if err := r.from.SetGrants(ctx, k, k[2:]); err != nil {
			t.Fatal(err)
		}
	}
	r.dst = opened{r.to}
	r.mustPass(1)
	for _, k := range []string{"a-private", "b-public-read"} {
		if got, _, err := r.to.Grants(ctx, k); err != nil || got != k[2:] {
			t.Errorf("%s is %s: %v", k, got, err)
		}
	}
	l := r.ledger()
	defer l.Close()
	rec, _, err := l.record("c-public-read-write")
	if err != nil || len(rec.Lost) != 1 || !strings.HasPrefix(rec.Lost[0], "grants public-read-write: ") {
		t.Errorf("%+v %v", rec, err)
	}
	found := map[string]string{}
	verify := func() {
		t.Helper()
		clear(found)
		if _, err := l.Verify(ctx, VerifyConfig{To: r.dst, From: r.src, Copy: r.copy, Read: true, Differ: func(k, how string) { found[k] = how }}); err != nil {
			t.Fatal(err)
		}
	}
	if verify(); len(found) > 0 {
		t.Errorf("%v", found)
	}
	if err := errors.Join(r.to.SetGrants(ctx, "a-private", "public-read"), r.from.SetGrants(ctx, "b-public-read", "private")); err != nil {
		t.Fatal(err)
	}
	if verify(); len(found) != 2 || !strings.Contains(found["a-private"], `"public-read"`) || !strings.Contains(found["b-public-read"], "at the source") {
		t.Errorf("%v", found)
	}
}

// opened is a bucket that all may read where an object says nothing else, and that knows two names only.
type opened struct{ *mem.Store }

func (o opened) Put(ctx context.Context, key string, b objstore.Body, p objstore.PutOptions) (objstore.Written, error) {
	w, err := o.Store.Put(ctx, key, b, p)
	if err == nil {
		err = o.Store.SetGrants(ctx, key, "public-read")
	}
	return w, err
}

func (o opened) SetGrants(ctx context.Context, key, canned string) error {
	if canned == "public-read-write" {
		return objstore.ErrNotSupported
	}
	return o.Store.SetGrants(ctx, key, canned)
}

// Attributes that were changed alone, at either end, are found: at the target always (of a sample, or of all), at the source where all are compared.
func TestChangedBeside(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for i := range 40 {
		r.put(fmt.Sprint("k", i), 100, uint64(i))
	}
	for _, k := range []string{"k1", "k2", "k3"} {
		if err := r.from.SetTags(ctx, k, map[string]string{"a": "1"}); err != nil {
			t.Fatal(err)
		}
	}
	r.mustPass(1)
	content := func(s *mem.Store, key string) objstore.Body {
		_, body, err := s.Get(ctx, key, objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return objstore.Bytes(b)
	}
	if _, err := r.to.Put(ctx, "k5", content(r.to, "k5"), objstore.PutOptions{Attrs: objstore.Attrs{ContentType: "text/plain"}}); err != nil { // the same bytes and ETag
		t.Fatal(err)
	}
	if err := errors.Join(r.to.SetTags(ctx, "k1", nil), r.from.SetTags(ctx, "k2", map[string]string{"a": "2"}), r.from.SetTags(ctx, "k7", map[string]string{"a": "2"}),
		r.from.SetTags(ctx, "k3", nil)); err != nil {
		t.Fatal(err)
	}
	if s := r.mustPass(1); s.Planned != 0 {
		t.Errorf("a listing shows tags: %+v", s)
	}
	l := r.ledger()
	defer l.Close()
	for _, c := range []struct {
		cfg  VerifyConfig
		want string
	}{{VerifyConfig{}, ""}, {VerifyConfig{Attrs: 1000}, "k1 k5"}, {VerifyConfig{Read: true}, "k1 k5"}, {VerifyConfig{Read: true, From: r.from}, "k1 k2 k3 k5 k7"}} {
		found := map[string]string{}
		c.cfg.To, c.cfg.Copy, c.cfg.Differ = r.to, r.copy, func(k, how string) { found[k] = how }
		v, err := l.Verify(ctx, c.cfg)
		if got := strings.Join(slices.Sorted(maps.Keys(found)), " "); err != nil || got != c.want || v.Objects+v.Differ != 40 || v.Differ != int64(len(found)) {
			t.Errorf("found %v, want %s: %+v %v", found, c.want, v, err)
		}
	}
	found := map[string]string{}
	if v, err := l.Beside(ctx, VerifyConfig{To: r.to, From: r.from, Copy: r.copy, Differ: func(k, how string) { found[k] = how }}); err != nil || v.Differ != 3 || len(found) != 3 {
		t.Errorf("%+v %v %v", v, found, err)
	}
}

// A change of metadata alone leaves the ETag as it was, and is copied for its time.
func TestMetadataAlone(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for _, v := range []string{"1", "2"} {
		if _, err := r.from.Put(ctx, "k", objstore.Bytes([]byte("same")), objstore.PutOptions{Attrs: objstore.Attrs{Meta: map[string]string{"v": v}}}); err != nil {
			t.Fatal(err)
		}
		if s := r.mustPass(1); s.Copied != 1 {
			t.Errorf("%+v", s)
		}
		r.equal()
	}
}

// frozen is a source whose archive has to be restored.
type frozen struct {
	objstore.Store
	ice *atomic.Bool
}

func (f frozen) Get(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	if f.ice.Load() && strings.HasPrefix(key, "old") {
		return objstore.Object{}, nil, &objstore.Error{Op: "get", Store: "from", Key: key, Kind: objstore.ErrArchived}
	}
	return f.Store.Get(ctx, key, o)
}

// What was refused is tried again when somebody asks for a pass: an archive shows no sign of having been restored. Until then it costs nothing, and no upload stays.
func TestRestored(t *testing.T) {
	l := newLife(t)
	var ice atomic.Bool
	ice.Store(true)
	l.src = frozen{l.from, &ice}
	l.put("old small", 100, 1)
	l.put("old large", 2*objstore.BlockSize+5, 2)
	l.put("new", 100, 3)
	l.clock.pass(time.Minute)
	l.cfg.Interval = 20 * time.Millisecond
	f := l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	objects, _, err := f.Objects(t.Context(), nil, nil)
	if err != nil || len(objects) != 2 || objects[0].Outcome != "refused" || !strings.Contains(objects[0].Why, "restore it at the source") {
		t.Fatalf("%+v %v", objects, err)
	}
	if ups, _, err := l.to.Uploads(t.Context(), "", objstore.UploadPlace{}); err != nil || len(ups) > 0 {
		t.Errorf("uploads are left: %v %v", ups, err)
	}
	ice.Store(false)
	for before := f.Status().Passes; f.Status().Passes < before+2; time.Sleep(5 * time.Millisecond) {
	}
	if b := f.Status().Bucket; b.Refused != 2 {
		t.Errorf("passes that nobody has asked for try again: %+v", b)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if b := f.Status().Bucket; b.Refused != 0 || b.Objects != 3 || b.Failed != 0 {
		t.Errorf("%+v", b)
	}
	l.equal()
}

// A restart with another config takes what an earlier one refused.
func TestRefusedThenEscaped(t *testing.T) {
	l := newLife(t)
	lim := objstore.Limits{PartLeast: 1 << 20, Parts: 100, Key: func(key string) error {
		if strings.HasPrefix(key, "/") {
			return fmt.Errorf("a slash: %w", objstore.ErrNotSupported)
		}
		return nil
	}}
	l.to = mem.New(mem.Config{Name: "to", Now: l.clock.Now, Limits: lim})
	l.dst = l.to
	l.put("/a", 3, 1)
	l.put("%2Fa", 4, 1)
	l.clock.pass(time.Minute)
	f := l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if b := f.Status().Bucket; b.Refused != 1 {
		t.Errorf("%+v", b)
	}
	l.end()
	l.cfg.Copy.Escape = true
	f = l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if b := f.Status().Bucket; b.Refused != 0 || b.Objects != 2 {
		t.Errorf("%+v", b)
	}
	// "%2Fa" itself is spelled otherwise now, and its old place was taken.
	if r, err := f.Verify(t.Context(), VerifyOptions{}, untold); !errors.Is(err, sentinel.ErrDiffer) || r.Bucket.Differ != 1 {
		t.Errorf("%+v %v", r.Bucket, err)
	}
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Verify(t.Context(), VerifyOptions{}, untold); err != nil || r.Bucket.Objects != 2 || r.Bucket.Others != 0 {
		t.Errorf("%+v %v", r.Bucket, err)
	}
	if b := all(t, l.to); len(b) != 2 || b["%2Fa"] == "" || b["%252Fa"] == "" {
		t.Errorf("%v", b)
	}
}

// An upload that was begun with other attributes is not gone on with: stores take them at its beginning.
func TestResumeWithOtherAttributes(t *testing.T) {
	r := newRig(t)
	r.clock.pass(time.Minute)
	ctx := t.Context()
	for i, v := range []string{"1", "2"} {
		b := make([]byte, 3*objstore.BlockSize)
		if _, err := r.from.Put(ctx, "large", objstore.Bytes(b), objstore.PutOptions{Attrs: objstore.Attrs{ContentType: v}}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			stopped, cancel := context.WithCancel(ctx)
			r.dst = halfway{r.to, cancel}
			if _, err := r.pass(stopped, false, 1); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			r.dst = r.to
		}
	}
	for range 2 {
		r.mustPass(1)
	}
	r.equal()
}

// halfway stops everything at the third part.
type halfway struct {
	objstore.Store
	stop func()
}

func (h halfway) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	if no == 3 {
		time.Sleep(50 * time.Millisecond) // the others are told
		h.stop()
		<-ctx.Done()
		return objstore.Written{}, ctx.Err()
	}
	return h.Store.PutPart(ctx, key, upload, no, b)
}

// Records of before marks are read, and nothing is said of what they do not know.
func TestRecordWithoutMarks(t *testing.T) {
	r := Record{Outcome: Copied, Sure: true, Size: 7, Modified: time.Unix(1, 2).UTC(), ETag: "e", Target: "t", Lost: []string{"a"}, Why: "w"}
	b := r.append(nil)
	old := append([]byte{1}, b[1:len(b)-len(Marks{}.append(nil))]...)
	got, err := decodeRecord(old)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(r) {
		t.Errorf("%+v %v", got, err)
	}
	if how, err := got.Marks.differ(t.Context(), nil, objstore.Object{}); how != "" || err != nil {
		t.Errorf("%s %v", how, err)
	}
	r.Marks = Marks{Known: true, Set: 5, Attrs: 1 << 63, Tags: 3, TagsLost: true, Canned: "private"}
	if got, err := decodeRecord(r.append(nil)); err != nil || got.Marks != r.Marks {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := decodeRecord(append([]byte{3}, b[1:]...)); err == nil {
		t.Error("a record of a later version is read")
	}
}

// How AWS tells what is not ASCII counts as what was sent.
func TestPlainText(t *testing.T) {
	for in, want := range map[string]string{"=?UTF-8?B?w6Q=?=": "ä", "=?x": "=?x", "a": "a", "=?UTF-8?Q?a=20b?=": "a b"} {
		if got := plainText(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

// Parts of objects of any size that a store can have are within its limits; a larger object is refused before its first byte.
func TestHugeObjects(t *testing.T) {
	bos := objstore.Limits{Put: 5 << 30, PartLeast: 5 << 20, PartAlign: 1 << 20, PartMost: 5 << 30, Parts: 10_000, Object: 10_000 * (5 << 30)}
	c := newCopier(nil, mem.New(mem.Config{Limits: bos}), CopyConfig{})
	for _, size := range []int64{5<<30 - 1, 5 << 30, 5<<30 + 1, 1 << 40, 5 << 40, bos.Object - 1, bos.Object} {
		n := c.partSize(size)
		if n > bos.PartMost || n < bos.PartLeast || n%bos.PartAlign != 0 || (size+n-1)/n > int64(bos.Parts) {
			t.Errorf("%d bytes in parts of %d", size, n)
		}
	}
	out, err := c.copy(t.Context(), Item{Entry: objstore.Entry{Key: "k", ETag: "e", Size: bos.Object + 1}}, nil)
	if err != nil || out.Record.Outcome != Refused || !strings.Contains(out.Record.Why, "bytes") {
		t.Errorf("%+v %v", out, err)
	}
}

// older is a source that keeps older versions.
type older struct {
	objstore.Store
	pages int
	err   error
}

func (o older) Close() error                            { return nil }
func (o older) Versioned(context.Context) (bool, error) { return true, nil }
func (o older) Older(_ context.Context, _, place string) (objstore.Older, string, error) {
	next := place + "x"
	if len(next) == o.pages {
		next = ""
	}
	return objstore.Older{Versions: 2, Bytes: 10, Markers: 1}, next, o.err
}

// What a versioned source keeps is counted, within bounds, and told in status, report and manifest.
func TestOlderVersions(t *testing.T) {
	for _, c := range []struct {
		s    objstore.Store
		want string
	}{
		{mem.New(mem.Config{}), ""},
		{older{pages: 3}, "the source keeps 6 older versions (30 B) and 3 delete markers, which are not carried"},
		{older{pages: 30}, "the source keeps at least 10 older versions (50 B) and 5 delete markers, which are not carried"},
		{older{err: objstore.ErrNotSupported}, "the source keeps older versions of objects, which are not carried; it cannot be asked how many"},
		{older{err: objstore.ErrDenied}, "the source keeps older versions of objects, which are not carried; it cannot be asked how many"},
	} {
		v, err := CountVersions(t.Context(), c.s, "", versionsSoon)
		if err != nil || v.String() != c.want {
			t.Errorf("%q %v, want %q", v, err, c.want)
		}
	}
	if _, err := CountVersions(t.Context(), older{err: objstore.ErrTransient}, "", 1); !errors.Is(err, objstore.ErrTransient) {
		t.Error(err)
	}
	l := newLife(t)
	l.cfg.Open = func(context.Context) (from, to End, err error) {
		return End{Store: older{Store: l.from, pages: 30}}, End{Store: unclosed{l.dst}}, nil
	}
	l.put("a", 1, 1)
	l.clock.pass(time.Minute)
	f := l.start()
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if s := f.Status().Bucket.Versions; !strings.Contains(s, "at least 10 older") {
		t.Errorf("status: %s", s)
	}
	r, err := f.Cutover(t.Context(), VerifyOptions{}, untold)
	if err != nil || !strings.Contains(r.Bucket.Versions, " 60 older") {
		t.Errorf("%+v %v", r, err)
	}
	var c Closing
	if c, _, err = f.Manifest(t.TempDir() + "/m"); err != nil || !strings.Contains(c.Versions, " 60 older") || len(c.NotCarried) != 3 {
		t.Errorf("%+v %v", c, err)
	}
}

// closed is a source that does not give some of its objects, or nothing at all.
type closed struct {
	objstore.Store
	all *atomic.Bool
}

var errClosed = &objstore.Error{Op: "get", Store: "from", Kind: objstore.ErrDenied}

func (c closed) Get(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	if c.all.Load() || strings.HasPrefix(key, "x") {
		return objstore.Object{}, nil, errClosed
	}
	return c.Store.Get(ctx, key, o)
}

func (c closed) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	if c.all.Load() && q.Max == 1 {
		return objstore.Page{}, errClosed
	}
	return c.Store.List(ctx, q)
}

// Objects that the source does not give, however many in a row, fail by themselves, and all others are copied. Keys that nothing accepts any more end the pass.
func TestObjectsOfOthers(t *testing.T) {
	r := newRig(t)
	var all atomic.Bool
	for i := range 200 {
		r.put(fmt.Sprintf("a%03d", i), 10, 1)
		r.put(fmt.Sprintf("x%03d", i), 10, 1)
		r.put(fmt.Sprintf("z%03d", i), 10, 1)
	}
	r.src = closed{r.from, &all}
	if s := r.mustPass(1); s.Copied != 400 || s.Failed != 200 {
		t.Errorf("%+v", s)
	}
	all.Store(true)
	if _, err := r.pass(t.Context(), false, 1); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "64 objects in a row could not be read") {
		t.Errorf("%v", err)
	}
}
