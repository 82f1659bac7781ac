// Package objtest is the conformance suite of objstore.Store. Every driver and every decorator passes it.
package objtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moverd/mover/objstore"
)

// Subject is a store under test, and what its backend cannot do. Each switch is for a backend that lacks something, never for a driver that does: what is
// left out is refused with ErrNotSupported, which the suite then asks for, and the suite logs it.
type Subject struct {
	Store objstore.Store // empty; the suite closes it

	NoAbsent      bool     // Put cannot be told to overwrite nothing (PutOptions.Absent)
	NoAbsentParts bool     // nor can an upload in parts: Begin or Complete refuses
	AllParts      bool     // an upload is completed with all parts that it has, or not at all
	NoUnderscore  bool     // no name of metadata has an underscore
	ASCII         bool     // the values of metadata are ASCII only
	PlainTags     bool     // tags are letters, digits, spaces and +-=._:/ only
	Without       []string // fields of Attrs that the backend does not keep, such as "Expires"
	Class         string   // a storage class beside the standard that the backend takes; "": it has none
	Secrets       []string // what must never be printed
}

// Run runs the suite. open is called once.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	s := &suite{Subject: open(t), ctx: t.Context()}
	t.Cleanup(func() { s.Store.Close() })
	s.leftOut(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"describe", s.describe}, {"keys", s.keys}, {"pages", s.pages}, {"long list", s.longList}, {"list meets changes", s.listChanges},
		{"objects", s.objects}, {"attributes", s.attributes}, {"metadata", s.metadata}, {"class", s.class}, {"ranges", s.ranges}, {"states", s.states},
		{"absent", s.absent}, {"delete", s.deletes}, {"bodies", s.bodies}, {"cancel", s.cancel}, {"errors", s.notThere},
		{"parts", s.parts}, {"part numbers", s.partNumbers}, {"part bodies", s.partBodies}, {"complete", s.completes}, {"absent parts", s.absentParts},
		{"abort", s.aborts}, {"many parts", s.manyParts}, {"uploads", s.uploads},
		{"tags", s.tags}, {"grants", s.grants}, {"bucket", s.bucket}, {"sums", s.sums},
		{"concurrent", s.concurrent}, {"history", s.history},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer s.clear(t) // also after a failure: the next one begins with nothing
			c.run(t)
		})
	}
	t.Run("close", s.close)
}

type suite struct {
	Subject
	ctx context.Context
}

func (s *suite) leftOut(t *testing.T) {
	for what, out := range map[string]bool{"Put with Absent": s.NoAbsent, "Complete with Absent": s.NoAbsentParts, "Complete with some of the parts": s.AllParts,
		"names of metadata with an underscore": s.NoUnderscore, "metadata beyond ASCII": s.ASCII, "tags of any characters": s.PlainTags,
		"storage classes": s.Class == ""} {
		if out {
			t.Logf("left out: %s", what)
		}
	}
	for _, name := range s.Without {
		t.Logf("left out: Attrs.%s", name)
	}
}

func (s *suite) describe(t *testing.T) {
	name, l := s.Store.String(), s.Store.Limits()
	if name == "" || strings.ContainsAny(name, "\n\x00") || name != s.Store.String() {
		t.Errorf("name %q", name)
	}
	s.clean(t, fmt.Sprintf("%s %v %+v %#v", name, s.Store, s.Store, s.Store))
	if l.List < 1 || l.Batch < 1 || l.Key == nil || l.Put < 0 || l.Object < 0 || l.Parts < 0 || l.PartLeast < 0 || l.PartAlign < 0 || l.Meta < 0 {
		t.Errorf("limits %+v", l)
	}
	if l.PartAlign > 0 && l.PartLeast%l.PartAlign != 0 || l.PartMost > 0 && l.PartMost < l.PartLeast || l.Object > 0 && l.Object < l.Put {
		t.Errorf("limits that contradict each other: %+v", l)
	}
	if l.Key("a") != nil || l.Key("a/b.c") != nil {
		t.Error("plain keys are refused")
	}
	if l.Key("") == nil {
		t.Error("the empty key is not refused")
	}
}

// content makes n bytes by seed.
func content(seed uint64, n int64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	r.Read(b)
	return b
}

func (s *suite) put(t *testing.T, key string, b []byte) objstore.Written {
	t.Helper()
	w, err := s.Store.Put(s.ctx, key, objstore.Bytes(b), objstore.PutOptions{})
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	if w.ETag == "" {
		t.Errorf("put %q: no ETag", key)
	}
	return w
}

// putAll stores keys, each with itself as content, several at a time.
func (s *suite) putAll(t *testing.T, keys []string) {
	t.Helper()
	s.each(len(keys), func(i int) {
		if _, err := s.Store.Put(s.ctx, keys[i], objstore.Bytes([]byte(keys[i])), objstore.PutOptions{}); err != nil {
			t.Errorf("put %q: %v", keys[i], err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// each calls f with 0 to n-1, 16 at a time.
func (s *suite) each(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(16, n) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// read gives an object and what o asks for of it.
func (s *suite) read(t *testing.T, key string, o objstore.GetOptions) (objstore.Object, []byte) {
	t.Helper()
	obj, body, err := s.Store.Get(s.ctx, key, o)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	b, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil {
		t.Fatalf("read %q: %v", key, err)
	}
	return obj, b
}

// holds checks that an object is there as w says, with b, in Head, Get and the listing alike.
func (s *suite) holds(t *testing.T, key string, b []byte, w objstore.Written) objstore.Object {
	t.Helper()
	h, err := s.Store.Head(s.ctx, key)
	if err != nil {
		t.Fatalf("head %q: %v", key, err)
	}
	g, got := s.read(t, key, objstore.GetOptions{})
	if !bytes.Equal(got, b) {
		t.Errorf("%q has %d bytes that are not the %d that were put", key, len(got), len(b))
	}
	p, err := s.Store.List(s.ctx, objstore.Query{Prefix: key, Max: 1})
	if err != nil || len(p.Entries) != 1 {
		t.Fatalf("list %q: %v, %v", key, p, err)
	}
	for from, e := range map[string]objstore.Entry{"head": h.Entry, "get": g.Entry, "list": p.Entries[0]} {
		if e.Key != key || e.Size != int64(len(b)) || e.ETag != w.ETag || e.Class != h.Class {
			t.Errorf("%s of %q tells %+v, want %d bytes and ETag %s", from, key, e, len(b), w.ETag)
		}
		if e.Modified.IsZero() || e.Modified.Location().String() != "UTC" || e.Modified.Unix() != h.Modified.Unix() {
			t.Errorf("%s of %q: modified %v, and %v by head", from, key, e.Modified, h.Modified)
		}
	}
	return h
}

func (s *suite) gone(t *testing.T, key string) {
	t.Helper()
	_, err := s.Store.Head(s.ctx, key)
	s.failed(t, err, key, objstore.ErrNotFound)
}

// list gives the keys of all pages of a query.
func (s *suite) list(t *testing.T, q objstore.Query) (keys []string) {
	t.Helper()
	for {
		p, err := s.Store.List(s.ctx, q)
		if err != nil {
			t.Fatalf("list %+v: %v", q, err)
		}
		most := s.Store.Limits().List
		if q.Max > 0 {
			most = min(most, q.Max)
		}
		if len(p.Entries) > most || p.More && len(p.Entries) == 0 {
			t.Fatalf("list %+v: %d entries, more %v", q, len(p.Entries), p.More)
		}
		for _, e := range p.Entries {
			if e.Key <= q.After || !strings.HasPrefix(e.Key, q.Prefix) {
				t.Fatalf("list %+v: %q comes after %q", q, e.Key, q.After)
			}
			if e.ETag == "" || strings.Contains(e.ETag, `"`) {
				t.Errorf("list: ETag %q of %q", e.ETag, e.Key)
			}
			keys, q.After = append(keys, e.Key), e.Key
		}
		if !p.More {
			return keys
		}
	}
}

func (s *suite) listed(t *testing.T, q objstore.Query, want []string) {
	t.Helper()
	got := s.list(t, q)
	if slices.Equal(got, want) {
		return
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("list %+v: %d keys, want %d; from key %d on %.300q, want %.300q", q, len(got), len(want), i, got[min(i, len(got)):], want[min(i, len(want)):])
		}
	}
}

// failed checks an error: its form, its kind if one is given, and that it tells no secret.
func (s *suite) failed(t *testing.T, err error, key string, kind error) {
	t.Helper()
	var e *objstore.Error
	switch {
	case err == nil:
		t.Errorf("%q: no error, want %v", key, kind)
		return
	case !errors.As(err, &e):
		t.Errorf("%q: %T is no *objstore.Error: %v", key, err, err)
		return
	case e.Op == "" || e.Store != s.Store.String() || e.Key != key:
		t.Errorf("an error of %q tells op %q, store %q, key %q", key, e.Op, e.Store, e.Key)
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%q: %v is not %v", key, err, kind)
	}
	if kind != nil && objstore.Retryable(err) != objstore.Retryable(kind) {
		t.Errorf("%q: whether to try again is %v of %v", key, objstore.Retryable(err), err)
	}
	s.clean(t, fmt.Sprintf("%v %+v %#v", err, err, err))
}

// clean checks that text has no secret.
func (s *suite) clean(t *testing.T, text string) {
	t.Helper()
	for _, secret := range s.Secrets {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("a secret was printed: %s", strings.ReplaceAll(text, secret, "SECRET"))
		}
	}
}

// clear removes everything.
func (s *suite) clear(t *testing.T) {
	t.Helper()
	ups := s.allUploads(t, "")
	s.each(len(ups), func(i int) {
		if err := s.Store.Abort(s.ctx, ups[i].Key, ups[i].ID); err != nil {
			t.Errorf("abort %+v: %v", ups[i], err)
		}
	})
	s.remove(t, s.list(t, objstore.Query{})...)
	s.listed(t, objstore.Query{}, nil)
	if left := s.allUploads(t, ""); len(left) != 0 {
		t.Fatalf("uploads are left: %v", left)
	}
}

func (s *suite) close(t *testing.T) {
	s.put(t, "open", content(1, 1<<20))
	_, body, err := s.Store.Get(s.ctx, "open", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := s.Store.Delete(s.ctx, "open"); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
	for range 2 {
		if err := s.Store.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := body.Close(); err != nil {
		t.Errorf("close a body after its store: %v", err)
	}
	_, err = s.Store.Head(s.ctx, "open")
	s.failed(t, err, "open", nil)
	if objstore.Retryable(err) || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("head after close: %v", err)
	}
	_, err = s.Store.Put(s.ctx, "open", objstore.Bytes(nil), objstore.PutOptions{})
	s.failed(t, err, "open", nil)
	_, err = s.Store.List(s.ctx, objstore.Query{})
	s.failed(t, err, "", nil)
}
