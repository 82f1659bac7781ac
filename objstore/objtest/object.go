package objtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/moverd/mover/objstore"
)

func (s *suite) objects(t *testing.T) {
	etags := map[string]int64{}
	for _, n := range []int64{0, 1, 1000, 4096, 1 << 20} {
		b := content(uint64(n), n)
		w := s.put(t, "x/object", b)
		if old, ok := etags[w.ETag]; ok {
			t.Errorf("%d and %d bytes have one ETag", old, n)
		}
		etags[w.ETag] = n
		h := s.holds(t, "x/object", b, w)
		if len(h.Attrs.Meta) != 0 || h.Attrs.CacheControl != "" || h.Attrs.ContentDisposition != "" || h.Attrs.ContentEncoding != "" || h.Attrs.Expires != "" {
			t.Errorf("attributes that nobody gave: %+v", h.Attrs)
		}
		if !slices.Contains([]string{"", "application/octet-stream", "binary/octet-stream"}, h.Attrs.ContentType) {
			t.Errorf("content type %q that nobody gave", h.Attrs.ContentType)
		}
		if h.Tags > 0 {
			t.Errorf("%d tags that nobody gave", h.Tags)
		}
	}
	a, b := s.put(t, "x/object", []byte("one")), s.put(t, "x/object", []byte("two"))
	if a.ETag == b.ETag {
		t.Error("another content of the same size has the same ETag")
	}
	if again := s.put(t, "x/object", []byte("two")); again.ETag == a.ETag {
		t.Error("another content of the same size has the same ETag")
	}
}

// Readers of another kind: no Seeker, small reads, and the end together with the last bytes.
type grudging struct{ r io.Reader }

func (g grudging) Read(p []byte) (int, error) { return g.r.Read(p[:min(len(p), 777)]) }
func (grudging) Close() error                 { return nil }

func (s *suite) attributes(t *testing.T) {
	full := objstore.Attrs{ContentType: `text/html; charset="utf-8"`, CacheControl: "max-age=60, must-revalidate", ContentDisposition: `attachment; filename="a b.txt"`,
		ContentEncoding: "gzip", ContentLanguage: "de, zh-CN", Expires: "Wed, 21 Oct 2099 07:28:00 GMT", Meta: map[string]string{"a": "1", "b-c": "x y", "d": "100%"}}
	v := reflect.ValueOf(&full).Elem()
	for _, name := range s.Without {
		one := objstore.Attrs{}
		reflect.ValueOf(&one).Elem().FieldByName(name).Set(v.FieldByName(name))
		_, err := s.Store.Put(s.ctx, "attr", objstore.Bytes(nil), objstore.PutOptions{Attrs: one})
		s.failed(t, err, "attr", objstore.ErrNotSupported)
		v.FieldByName(name).SetZero()
	}
	s.keepsAttrs(t, full)
	for i := range v.NumField() { // each alone
		one := objstore.Attrs{}
		reflect.ValueOf(&one).Elem().Field(i).Set(v.Field(i))
		if !v.Field(i).IsZero() {
			s.keepsAttrs(t, one)
		}
	}
	w := s.put(t, "attr", []byte("x")) // and none of them stays
	if h := s.holds(t, "attr", []byte("x"), w); len(h.Attrs.Meta) != 0 || h.Attrs.CacheControl != "" || h.Attrs.ContentEncoding != "" {
		t.Errorf("attributes of what was overwritten: %+v", h.Attrs)
	}
	// The content of gzip comes as it was stored, and its length is that of what is stored.
	b := content(3, 5000)
	w, err := s.Store.Put(s.ctx, "attr", objstore.Bytes(b), objstore.PutOptions{Attrs: objstore.Attrs{ContentEncoding: full.ContentEncoding}})
	if err != nil {
		t.Fatal(err)
	}
	s.holds(t, "attr", b, w)
}

func (s *suite) keepsAttrs(t *testing.T, a objstore.Attrs) {
	t.Helper()
	b := []byte("content")
	w, err := s.Store.Put(s.ctx, "attr", objstore.Bytes(b), objstore.PutOptions{Attrs: a})
	if err != nil {
		t.Errorf("put with %+v: %v", a, err)
		return
	}
	s.sameAttrs(t, s.holds(t, "attr", b, w).Attrs, a)
	g, _ := s.read(t, "attr", objstore.GetOptions{})
	s.sameAttrs(t, g.Attrs, a)
	g, _ = s.read(t, "attr", objstore.GetOptions{Off: 1, Len: 2})
	s.sameAttrs(t, g.Attrs, a)
}

func (s *suite) sameAttrs(t *testing.T, got, want objstore.Attrs) {
	t.Helper()
	if want.ContentType == "" { // stores have a default of their own
		got.ContentType = ""
	}
	if !maps.Equal(got.Meta, want.Meta) {
		t.Errorf("metadata %q, want %q", got.Meta, want.Meta)
	}
	got.Meta, want.Meta = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("attributes %+v, want %+v", got, want)
	}
}

func (s *suite) metadata(t *testing.T) {
	s.keepsAttrs(t, objstore.Attrs{Meta: map[string]string{"percent": "%E4%BD%A0 100%", "encoded": "=?UTF-8?B?5L2g?=", "quotes": `"a" 'b' \c`, "list": "a, b; c=d",
		"plus": "a+b", "amz": "1", "bce-meta": "2", "colon": "a: b", "equals": "a=b&c"}})
	if underscore := (objstore.Attrs{Meta: map[string]string{"x-1_2": "v"}}); s.NoUnderscore {
		s.refusedAttrs(t, underscore)
	} else {
		s.keepsAttrs(t, underscore)
	}
	beyond := objstore.Attrs{Meta: map[string]string{"u": "\u65e5\u672c \u00e4 \U0001f600"}}
	if s.ASCII {
		s.refusedAttrs(t, beyond)
	} else {
		s.keepsAttrs(t, beyond)
	}
	// What a header cannot carry is kept or refused, never bent.
	for _, v := range []string{" a", "a ", "a\nb", "a\rb: c", "a\x00b", "a\tb", "a  b", "a\x7f", "\xff"} {
		a := objstore.Attrs{Meta: map[string]string{"v": v}}
		w, err := s.Store.Put(s.ctx, "attr", objstore.Bytes([]byte("x")), objstore.PutOptions{Attrs: a})
		if err != nil {
			s.failed(t, err, "attr", objstore.ErrNotSupported)
			continue
		}
		s.sameAttrs(t, s.holds(t, "attr", []byte("x"), w).Attrs, a)
	}
	for _, k := range []string{"a b", "a:b", "a\nb", "", "\u00e4"} {
		a := objstore.Attrs{Meta: map[string]string{k: "v"}}
		w, err := s.Store.Put(s.ctx, "attr", objstore.Bytes([]byte("x")), objstore.PutOptions{Attrs: a})
		if err != nil {
			s.failed(t, err, "attr", objstore.ErrNotSupported)
			continue
		}
		s.sameAttrs(t, s.holds(t, "attr", []byte("x"), w).Attrs, a)
	}
	n := s.Store.Limits().Meta
	if n == 0 {
		t.Log("left out: the limit of metadata, which the store does not know")
		return
	}
	of := func(n int) objstore.Attrs { // n bytes in all
		m := map[string]string{}
		for i := 0; n > 0; i++ {
			k := fmt.Sprintf("key%04d", i)
			v := min(700, n-len(k))
			if rest := n - len(k) - v; rest > 0 && rest < 20 {
				v -= 20
			}
			m[k], n = strings.Repeat("v", v), n-len(k)-v
		}
		return objstore.Attrs{Meta: m}
	}
	s.keepsAttrs(t, of(n-1))
	s.keepsAttrs(t, of(n))
	s.refusedAttrs(t, of(n+1))
	s.refusedAttrs(t, of(10*n))
}

// refusedAttrs checks that attributes are refused and that what was there stays.
func (s *suite) refusedAttrs(t *testing.T, a objstore.Attrs) {
	t.Helper()
	w := s.put(t, "attr", []byte("before"))
	_, err := s.Store.Put(s.ctx, "attr", objstore.Bytes([]byte("x")), objstore.PutOptions{Attrs: a})
	s.failed(t, err, "attr", objstore.ErrNotSupported)
	s.holds(t, "attr", []byte("before"), w)
}

func (s *suite) class(t *testing.T) {
	if s.Class == "" {
		return
	}
	w, err := s.Store.Put(s.ctx, "class", objstore.Bytes([]byte("x")), objstore.PutOptions{Class: s.Class})
	if err != nil {
		t.Fatal(err)
	}
	if h := s.holds(t, "class", []byte("x"), w); h.Class != s.Class {
		t.Errorf("class %q, want %q", h.Class, s.Class)
	}
	w = s.put(t, "class", []byte("y"))
	if h := s.holds(t, "class", []byte("y"), w); h.Class != "" {
		t.Errorf("class %q, want the standard", h.Class)
	}
}

func (s *suite) ranges(t *testing.T) {
	const n = 100_000
	b := content(5, n)
	w := s.put(t, "range", b)
	for _, r := range [][2]int64{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {0, n}, {0, n + 1}, {n - 1, 0}, {n - 1, 1}, {n - 1, 5}, {4096, 4096}, {777, 65_536}, {50_000, 1 << 40}} {
		o := objstore.GetOptions{Off: r[0], Len: r[1]}
		end := int64(n)
		if r[1] > 0 {
			end = min(n, r[0]+r[1])
		}
		obj, got := s.read(t, "range", o)
		if !bytes.Equal(got, b[r[0]:end]) {
			t.Errorf("%d bytes from %d: got %d others", r[1], r[0], len(got))
		}
		if obj.Size != n || obj.ETag != w.ETag || obj.Key != "range" {
			t.Errorf("a range tells of the object %+v", obj.Entry)
		}
	}
	for _, o := range []objstore.GetOptions{{Off: n}, {Off: n, Len: 1}, {Off: n + 1}, {Off: 1 << 40, Len: 5}, {Off: -1}, {Off: 0, Len: -1}} {
		_, body, err := s.Store.Get(s.ctx, "range", o)
		if err == nil {
			body.Close()
		}
		s.failed(t, err, "range", nil)
		if objstore.Retryable(err) || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("a range that is not there: %v", err)
		}
	}
	_, body, err := s.Store.Get(s.ctx, "range", objstore.GetOptions{}) // Close in the middle
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := body.Close(); err != nil {
		t.Errorf("close in the middle: %v", err)
	}
}

func (s *suite) states(t *testing.T) {
	one, two := content(1, 3000), content(2, 3000)
	w := s.put(t, "state", one)
	if _, b := s.read(t, "state", objstore.GetOptions{IfTag: w.ETag}); !bytes.Equal(b, one) {
		t.Error("other bytes under the same ETag")
	}
	if _, b := s.read(t, "state", objstore.GetOptions{IfTag: w.ETag, Off: 10, Len: 10}); !bytes.Equal(b, one[10:20]) {
		t.Error("other bytes under the same ETag in a range")
	}
	w2 := s.put(t, "state", two)
	for _, o := range []objstore.GetOptions{{IfTag: w.ETag}, {IfTag: w.ETag, Off: 10, Len: 10}, {IfTag: "0123456789abcdef0123456789abcdef"}} {
		_, body, err := s.Store.Get(s.ctx, "state", o)
		if err == nil {
			body.Close()
		}
		s.failed(t, err, "state", objstore.ErrChanged)
	}
	s.holds(t, "state", two, w2)
	s.remove(t, "state")
	_, _, err := s.Store.Get(s.ctx, "state", objstore.GetOptions{IfTag: w2.ETag})
	s.failed(t, err, "state", objstore.ErrNotFound)
}

func (s *suite) remove(t *testing.T, keys ...string) {
	t.Helper()
	if most := s.Store.Limits().Batch; len(keys) > most {
		s.remove(t, keys[most:]...)
		keys = keys[:most]
	}
	if left, err := s.Store.Delete(s.ctx, keys...); err != nil || len(left) != 0 {
		t.Fatalf("delete %q: %v, %v", keys, left, err)
	}
}

func (s *suite) absent(t *testing.T) {
	o := objstore.PutOptions{Absent: true}
	if s.NoAbsent {
		_, err := s.Store.Put(s.ctx, "absent", objstore.Bytes(nil), o)
		s.failed(t, err, "absent", objstore.ErrNotSupported)
		s.gone(t, "absent")
		return
	}
	w, err := s.Store.Put(s.ctx, "absent", objstore.Bytes([]byte("one")), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"two", "one"} {
		_, err = s.Store.Put(s.ctx, "absent", objstore.Bytes([]byte(b)), o)
		s.failed(t, err, "absent", objstore.ErrExists)
	}
	s.holds(t, "absent", []byte("one"), w)
	s.remove(t, "absent")
	if _, err = s.Store.Put(s.ctx, "absent", objstore.Bytes([]byte("three")), o); err != nil {
		t.Error(err)
	}
	var won atomic.Int64 // of many at once, one
	s.each(16, func(i int) {
		_, err := s.Store.Put(s.ctx, "race", objstore.Bytes(fmt.Appendf(nil, "%d", i)), o)
		switch {
		case err == nil:
			won.Add(1)
		case !errors.Is(err, objstore.ErrExists) && !objstore.Retryable(err):
			t.Errorf("one of many: %v", err)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d of 16 found no object", won.Load())
	}
}

func (s *suite) deletes(t *testing.T) {
	s.remove(t, "never/was")
	s.remove(t, "never", "was", "never/was")
	s.remove(t)
	s.putAll(t, []string{"d/1", "d/2", "d/3", "d", "d/2/x", "e"})
	s.remove(t, "d/2", "no", "d", "d/2")
	s.listed(t, objstore.Query{}, []string{"d/1", "d/2/x", "d/3", "e"})
	s.gone(t, "d/2")
	_, _, err := s.Store.Get(s.ctx, "d", objstore.GetOptions{})
	s.failed(t, err, "d", objstore.ErrNotFound)
	s.put(t, "d/2", []byte("again"))
	s.listed(t, objstore.Query{}, []string{"d/1", "d/2", "d/2/x", "d/3", "e"})
	n := s.Store.Limits().Batch
	if n > 1000 {
		t.Logf("left out: the limit of %d keys of one delete", n)
		return
	}
	keys := make([]string, n+1)
	for i := range keys {
		keys[i] = fmt.Sprintf("batch/%d", i)
	}
	keys[0] = "e"
	_, err = s.Store.Delete(s.ctx, keys...)
	s.failed(t, err, "", nil)
	if _, err := s.Store.Head(s.ctx, "e"); err != nil {
		t.Errorf("a delete that was refused has deleted: %v", err)
	}
	s.remove(t, keys[:n]...)
	s.gone(t, "e")
}
