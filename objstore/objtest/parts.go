package objtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moverd/mover/objstore"
)

// size is that of a part that is not the last.
func (s *suite) size() int64 {
	l := s.Store.Limits()
	n := max(l.PartLeast, 1000)
	if a := l.PartAlign; a > 0 {
		n = (n + a - 1) / a * a
	}
	return n
}

func (s *suite) begin(t *testing.T, key string, o objstore.PutOptions) string {
	t.Helper()
	up, err := s.Store.Begin(s.ctx, key, o)
	if err != nil {
		t.Fatalf("begin %q: %v", key, err)
	}
	if up == "" {
		t.Fatal("an upload without a name")
	}
	return up
}

func (s *suite) putPart(t *testing.T, key, up string, no int, b []byte) objstore.Part {
	t.Helper()
	w, err := s.Store.PutPart(s.ctx, key, up, no, objstore.Bytes(b))
	if err != nil {
		t.Fatalf("part %d of %q: %v", no, key, err)
	}
	if w.ETag == "" {
		t.Errorf("part %d of %q: no ETag", no, key)
	}
	return objstore.Part{No: no, Size: int64(len(b)), ETag: w.ETag}
}

// has checks the parts of an upload.
func (s *suite) has(t *testing.T, key, up string, after int, want []objstore.Part) {
	t.Helper()
	var got []objstore.Part
	for {
		p, more, err := s.Store.Parts(s.ctx, key, up, after)
		if err != nil {
			t.Fatalf("parts of %q: %v", key, err)
		}
		if more && len(p) == 0 {
			t.Fatal("no parts, and more of them")
		}
		got = append(got, p...)
		if !more {
			break
		}
		after = p[len(p)-1].No
	}
	if !slices.Equal(got, want) {
		t.Fatalf("parts of %q after %d: %d, want %d: %.300s, want %.300s", key, after, len(got), len(want), fmt.Sprint(got), fmt.Sprint(want))
	}
}

func (s *suite) complete(t *testing.T, key, up string, parts []objstore.Part, o objstore.PutOptions) objstore.Written {
	t.Helper()
	w, err := s.Store.Complete(s.ctx, key, up, parts, o)
	if err != nil {
		t.Fatalf("complete %q: %v", key, err)
	}
	if w.ETag == "" {
		t.Errorf("complete %q: no ETag", key)
	}
	return w
}

// parts uploads in any order, replaces one, and leaves one out.
func (s *suite) parts(t *testing.T) {
	key, n := "up/large \u00e4.bin", s.size()
	o := objstore.PutOptions{Attrs: objstore.Attrs{ContentType: "video/mp4", CacheControl: "no-cache", Meta: map[string]string{"made": "in parts", "n": "3"}}, Class: s.Class}
	one, two, old, tail := content(1, n), content(2, n), content(3, n), content(4, 7)
	up := s.begin(t, key, o)
	s.has(t, key, up, 0, nil)
	s.gone(t, key)
	p3 := s.putPart(t, key, up, 3, tail)
	pOld := s.putPart(t, key, up, 2, old)
	p1 := s.putPart(t, key, up, 1, one)
	s.has(t, key, up, 0, []objstore.Part{p1, pOld, p3})
	p2 := s.putPart(t, key, up, 2, two)
	var rest []objstore.Part // which the object leaves out
	if s.AllParts {
		_, err := s.Store.Complete(s.ctx, key, up, []objstore.Part{p1, p2}, o)
		s.failed(t, err, key, nil)
	} else {
		rest = append(rest, s.putPart(t, key, up, 9, []byte("not in it")))
	}
	if p2.ETag == pOld.ETag {
		t.Error("a part with another content has the same ETag")
	}
	s.has(t, key, up, 0, append([]objstore.Part{p1, p2, p3}, rest...))
	s.has(t, key, up, 2, append([]objstore.Part{p3}, rest...))
	s.has(t, key, up, 8, rest)
	s.has(t, key, up, 9, nil)
	if all := s.allUploads(t, ""); len(all) != 1 || all[0].Key != key || all[0].ID != up {
		t.Errorf("uploads %+v, want %q %q", all, key, up)
	}
	s.gone(t, key)
	s.listed(t, objstore.Query{}, nil)

	before := s.put(t, key, []byte("what is there until the end"))
	w := s.complete(t, key, up, []objstore.Part{p1, p2, p3}, o)
	if w.ETag == before.ETag {
		t.Error("the ETag is that of what was there before")
	}
	h := s.holds(t, key, slices.Concat(one, two, tail), w)
	s.sameAttrs(t, h.Attrs, o.Attrs)
	if h.Class != s.Class {
		t.Errorf("class %q, want %q", h.Class, s.Class)
	}
	if _, b := s.read(t, key, objstore.GetOptions{Off: n - 5, Len: 10, IfTag: w.ETag}); !bytes.Equal(b, slices.Concat(one[n-5:], two[:5])) {
		t.Error("bytes over the edge of parts")
	}
	if all := s.allUploads(t, ""); len(all) != 0 {
		t.Errorf("uploads after the end: %+v", all)
	}
	s.noUpload(t, key, up)
	// Some stores remember what they have completed.
	if again, err := s.Store.Complete(s.ctx, key, up, []objstore.Part{p1, p2, p3}, o); err == nil && again.ETag != w.ETag || err != nil && !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("complete again: %+v, %v", again, err)
	}
	s.holds(t, key, slices.Concat(one, two, tail), w)
}

// noUpload checks that an upload is not there.
func (s *suite) noUpload(t *testing.T, key, up string) {
	t.Helper()
	_, _, err := s.Store.Parts(s.ctx, key, up, 0)
	s.failed(t, err, key, objstore.ErrNotFound)
	_, err = s.Store.PutPart(s.ctx, key, up, 1, objstore.Bytes([]byte("late")))
	s.failed(t, err, key, objstore.ErrNotFound)
	if err := s.Store.Abort(s.ctx, key, up); err != nil {
		t.Errorf("abort what is not there: %v", err)
	}
}

func (s *suite) partNumbers(t *testing.T) {
	up := s.begin(t, "no", objstore.PutOptions{})
	most := s.Store.Limits().Parts
	nos := []int{0, -1}
	if most > 0 {
		nos = append(nos, most+1)
	} else {
		most = 1000
	}
	for _, no := range nos {
		_, err := s.Store.PutPart(s.ctx, "no", up, no, objstore.Bytes([]byte("x")))
		s.failed(t, err, "no", nil)
		if objstore.Retryable(err) {
			t.Errorf("part %d: %v", no, err)
		}
	}
	b, tail := content(1, s.size()), []byte("the last")
	p5 := s.putPart(t, "no", up, 5, b)
	p := s.putPart(t, "no", up, most, tail)
	s.has(t, "no", up, 0, []objstore.Part{p5, p})
	w := s.complete(t, "no", up, []objstore.Part{p5, p}, objstore.PutOptions{})
	s.holds(t, "no", slices.Concat(b, tail), w)

	up = s.begin(t, "no", objstore.PutOptions{}) // one alone
	p = s.putPart(t, "no", up, 1, []byte("alone"))
	w = s.complete(t, "no", up, []objstore.Part{p}, objstore.PutOptions{})
	s.holds(t, "no", []byte("alone"), w)
}

func (s *suite) partBodies(t *testing.T) {
	up := s.begin(t, "up", objstore.PutOptions{})
	old := content(1, s.size())
	p := s.putPart(t, "up", up, 2, old)
	for name, b := range wrong(100_000) {
		for _, no := range []int{1, 2} {
			_, err := s.Store.PutPart(s.ctx, "up", up, no, b)
			s.wrongBody(t, err, "up", name)
			s.has(t, "up", up, 0, []objstore.Part{p})
		}
	}
	w := s.complete(t, "up", up, []objstore.Part{p}, objstore.PutOptions{})
	s.holds(t, "up", old, w)
}

// completes asks for objects that cannot be made of the parts that there are.
func (s *suite) completes(t *testing.T) {
	n := s.size()
	up := s.begin(t, "up", objstore.PutOptions{})
	p1, p2 := s.putPart(t, "up", up, 1, content(1, n)), s.putPart(t, "up", up, 2, content(2, n))
	other := p1
	other.ETag = p2.ETag
	missing := objstore.Part{No: 3, Size: 5, ETag: p1.ETag}
	bad := map[string][]objstore.Part{"none": nil, "another ETag": {other, p2}, "not there": {p1, p2, missing}, "backwards": {p2, p1}, "twice": {p1, p1, p2}}
	if least := s.Store.Limits().PartLeast; least > 0 {
		p4 := s.putPart(t, "up", up, 4, content(4, least-1))
		p5 := s.putPart(t, "up", up, 5, []byte("last"))
		bad["small in the middle"] = []objstore.Part{p1, p2, p4, p5}
	}
	for name, parts := range bad {
		_, err := s.Store.Complete(s.ctx, "up", up, parts, objstore.PutOptions{})
		if err == nil {
			t.Errorf("%s: completed", name)
			return
		}
		s.failed(t, err, "up", nil)
		if objstore.Retryable(err) {
			t.Errorf("%s: another try of %v", name, err)
		}
		s.gone(t, "up")
	}
	if _, _, err := s.Store.Parts(s.ctx, "up", up, 0); err != nil {
		t.Errorf("the upload is lost: %v", err)
	}
	if s.AllParts { // and this one has others
		up = s.begin(t, "up", objstore.PutOptions{})
		p1, p2 = s.putPart(t, "up", up, 1, content(1, n)), s.putPart(t, "up", up, 2, content(2, n))
	}
	w := s.complete(t, "up", up, []objstore.Part{p1, p2}, objstore.PutOptions{})
	s.holds(t, "up", slices.Concat(content(1, n), content(2, n)), w)
}

func (s *suite) absentParts(t *testing.T) {
	o := objstore.PutOptions{Absent: true}
	try := func() (w objstore.Written, up string, err error) {
		if up, err = s.Store.Begin(s.ctx, "absent", o); err != nil {
			return w, up, err
		}
		p := s.putPart(t, "absent", up, 1, []byte("in parts"))
		w, err = s.Store.Complete(s.ctx, "absent", up, []objstore.Part{p}, o)
		return w, up, err
	}
	if s.NoAbsentParts {
		_, _, err := try()
		s.failed(t, err, "absent", objstore.ErrNotSupported)
		s.gone(t, "absent")
		return
	}
	w, _, err := try()
	if err != nil {
		t.Fatal(err)
	}
	s.holds(t, "absent", []byte("in parts"), w)
	w = s.put(t, "absent", []byte("another"))
	_, _, err = try()
	s.failed(t, err, "absent", objstore.ErrExists)
	s.holds(t, "absent", []byte("another"), w)
}

func (s *suite) aborts(t *testing.T) {
	up, other := s.begin(t, "a", objstore.PutOptions{}), s.begin(t, "a", objstore.PutOptions{})
	if up == other {
		t.Fatal("two uploads have one name")
	}
	p, q := s.putPart(t, "a", up, 1, []byte("x")), s.putPart(t, "a", other, 1, []byte("other"))
	if err := s.Store.Abort(s.ctx, "a", up); err != nil {
		t.Fatal(err)
	}
	s.noUpload(t, "a", up)
	_, err := s.Store.Complete(s.ctx, "a", up, []objstore.Part{p}, objstore.PutOptions{})
	s.failed(t, err, "a", objstore.ErrNotFound)
	s.gone(t, "a")
	s.has(t, "a", other, 0, []objstore.Part{q})
	for _, key := range []string{"b", "a/"} { // another key's
		if s.Store.Limits().Key(key) == nil {
			s.noUpload(t, key, other)
		}
	}
	for _, id := range []string{"x", "../" + other, strings.ToUpper(other) + "0", "00000000000000000000000000000000"} {
		s.noUpload(t, "a", id)
	}
	w := s.complete(t, "a", other, []objstore.Part{q}, objstore.PutOptions{})
	s.holds(t, "a", []byte("other"), w)
}

// manyParts has more parts than a page of them.
func (s *suite) manyParts(t *testing.T) {
	n := min(1000, s.Store.Limits().List) + 3
	if most := s.Store.Limits().Parts; most > 0 {
		n = min(n, most)
	}
	up, parts := s.begin(t, "many", objstore.PutOptions{}), make([]objstore.Part, n)
	s.each(n, func(i int) {
		b := fmt.Appendf(nil, "part %d", i)
		w, err := s.Store.PutPart(s.ctx, "many", up, i+1, objstore.Bytes(b))
		if err != nil {
			t.Errorf("part %d: %v", i+1, err)
		}
		parts[i] = objstore.Part{No: i + 1, Size: int64(len(b)), ETag: w.ETag}
	})
	if t.Failed() {
		t.FailNow()
	}
	s.has(t, "many", up, 0, parts)
	s.has(t, "many", up, n/2, parts[n/2:])
}

func (s *suite) allUploads(t *testing.T, prefix string) (all []objstore.Upload) {
	t.Helper()
	var after objstore.UploadPlace
	for {
		us, next, err := s.Store.Uploads(s.ctx, prefix, after)
		if err != nil {
			t.Fatalf("uploads: %v", err)
		}
		all = append(all, us...)
		if next == nil {
			return all
		}
		if *next == after {
			t.Fatalf("uploads go on at %+v again", after)
		}
		after = *next
	}
}

// uploads lists more of them than a page has, and several of one key.
func (s *suite) uploads(t *testing.T) {
	n := min(1000, s.Store.Limits().List) + 3
	ids := make([]string, n)
	key := func(i int) string { return fmt.Sprintf("up %c/%04d", 'a'+i%2, i/3) }
	s.each(n, func(i int) {
		var err error
		if ids[i], err = s.Store.Begin(s.ctx, key(i), objstore.PutOptions{}); err != nil {
			t.Errorf("begin: %v", err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	for _, prefix := range []string{"", "up ", "up a/", "up b/00", "up c"} {
		want := map[string]string{}
		for i, id := range ids {
			if strings.HasPrefix(key(i), prefix) {
				want[id] = key(i)
			}
		}
		all := s.allUploads(t, prefix)
		if len(all) != len(want) {
			t.Errorf("%d uploads under %q, want %d", len(all), prefix, len(want))
		}
		for i, u := range all {
			if want[u.ID] != u.Key {
				t.Errorf("upload %+v, want key %q", u, want[u.ID])
			}
			delete(want, u.ID)
			if i > 0 && u.Key < all[i-1].Key {
				t.Errorf("upload of %q comes after that of %q", u.Key, all[i-1].Key)
			}
		}
	}
	for _, odd := range []string{"a%2Fb c+d", "a&<b>", "\u00e4", "a//b"} {
		if s.Store.Limits().Key(odd) == nil {
			id := s.begin(t, odd, objstore.PutOptions{})
			if all := s.allUploads(t, odd); len(all) != 1 || all[0].Key != odd || all[0].ID != id {
				t.Errorf("uploads of %q: %+v", odd, all)
			}
		}
	}
	s.listed(t, objstore.Query{}, nil)
}
