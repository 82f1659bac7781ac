package objtest

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// lacks tells whether a store lacks an ability, or the one that it wraps does.
func lacks(t *testing.T, has bool, err error, what string) bool {
	t.Helper()
	if !has || errors.Is(err, objstore.ErrNotSupported) {
		t.Logf("left out: %s", what)
		return true
	}
	return false
}

func (s *suite) tags(t *testing.T) {
	w := s.put(t, "tags", []byte("x"))
	g, ok := s.Store.(objstore.Tagger)
	var got map[string]string
	var err error
	if ok {
		got, err = g.Tags(s.ctx, "tags")
	}
	if lacks(t, ok, err, "tags") {
		return
	}
	if err != nil || len(got) != 0 {
		t.Fatalf("tags that nobody gave: %v, %v", got, err)
	}
	sets := []map[string]string{{"team": "storage", "a b+c": "d/e:f=g-h", "empty": ""}, {"other": "1"}, {}}
	if beyond := map[string]string{"\u00e4@": "\u65e5"}; s.PlainTags {
		s.failed(t, g.SetTags(s.ctx, "tags", beyond), "tags", objstore.ErrNotSupported)
	} else {
		sets = append(sets, beyond)
	}
	for _, want := range sets {
		if err := g.SetTags(s.ctx, "tags", want); err != nil {
			t.Errorf("set tags %v: %v", want, err)
			continue
		}
		got, err := g.Tags(s.ctx, "tags")
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("tags %v, %v; want %v", got, err, want)
		}
		if h := s.holds(t, "tags", []byte("x"), w); h.Tags >= 0 && h.Tags != len(want) {
			t.Errorf("head tells of %d tags, want %d", h.Tags, len(want))
		}
	}
	s.put(t, "tags", []byte("another object"))
	if got, err := g.Tags(s.ctx, "tags"); err != nil || len(got) != 0 {
		t.Errorf("tags of what was overwritten: %v, %v", got, err)
	}
	_, err = g.Tags(s.ctx, "none")
	s.failed(t, err, "none", objstore.ErrNotFound)
	s.failed(t, g.SetTags(s.ctx, "none", map[string]string{"a": "b"}), "none", objstore.ErrNotFound)
	s.gone(t, "none")
}

func (s *suite) grants(t *testing.T) {
	w := s.put(t, "grants", []byte("x"))
	g, ok := s.Store.(objstore.Granter)
	var canned string
	var err error
	if ok {
		canned, _, err = g.Grants(s.ctx, "grants")
	}
	if lacks(t, ok, err, "grants") {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if canned != "" && canned != "private" {
		t.Errorf("a new object is %q", canned)
	}
	for _, want := range []string{"public-read", "private"} {
		if err := g.SetGrants(s.ctx, "grants", want); err != nil {
			t.Fatalf("set %s: %v", want, err)
		}
		if got, list, err := g.Grants(s.ctx, "grants"); err != nil || got != want {
			t.Errorf("grants %q (%v), %v; want %s", got, list, err, want)
		}
	}
	s.holds(t, "grants", []byte("x"), w)
	_, _, err = g.Grants(s.ctx, "none")
	s.failed(t, err, "none", objstore.ErrNotFound)
	s.failed(t, g.SetGrants(s.ctx, "none", "private"), "none", objstore.ErrNotFound)
	if err := g.SetGrants(s.ctx, "grants", "whoever"); err == nil {
		t.Error("a canned name that does not exist is taken")
	}
}

func (s *suite) bucket(t *testing.T) {
	v, ok := s.Store.(objstore.Versioner)
	var err error
	if ok {
		_, err = v.Versioned(s.ctx)
	}
	if !lacks(t, ok, err, "versions") && err != nil {
		t.Errorf("versions: %v", err)
	}
	older, ok := s.Store.(objstore.OlderCounter)
	if err = nil; ok {
		var n objstore.Older
		var next string
		s.put(t, "older", []byte("x"))
		n, next, err = older.Older(s.ctx, "", "")
		if !lacks(t, ok, err, "older states") && (err != nil || n != (objstore.Older{}) || next != "") {
			t.Errorf("older states of a bucket that keeps none: %+v %q, %v", n, next, err)
		}
	}
	l, ok := s.Store.(objstore.Locator)
	where := ""
	if err = nil; ok {
		where, err = l.Location(s.ctx)
	}
	if !lacks(t, ok, err, "location") && (err != nil || where == "") {
		t.Errorf("location %q, %v", where, err)
	}
}

// sums asks for digests of what is stored.
func (s *suite) sums(t *testing.T) {
	s.put(t, "sums", nil)
	g, ok := s.Store.(objstore.Summer)
	var err error
	if ok {
		_, _, err = g.Sum(s.ctx, "sums", objstore.GetOptions{})
	}
	if lacks(t, ok, err, "digests without the bytes") {
		return
	}
	b := content(1, objstore.BlockSize+1000)
	w := s.put(t, "sums", b)
	blocks := func(b []byte) []digest.Digest {
		var d objstore.Digester
		_, _ = d.Write(b)
		return d.Blocks()
	}
	for _, c := range []struct {
		o    objstore.GetOptions
		want []byte
	}{
		{objstore.GetOptions{}, b}, {objstore.GetOptions{Len: objstore.BlockSize, IfTag: w.ETag}, b[:objstore.BlockSize]},
		{objstore.GetOptions{Off: objstore.BlockSize, Len: 1 << 40}, b[objstore.BlockSize:]}, {objstore.GetOptions{Len: 10}, b[:10]},
	} {
		obj, sums, err := g.Sum(s.ctx, "sums", c.o)
		if err != nil || obj.Size != int64(len(b)) || obj.ETag != w.ETag || !slices.Equal(sums, blocks(c.want)) {
			t.Errorf("sum %+v: %+v, %d digests, %v", c.o, obj.Entry, len(sums), err)
		}
	}
	s.put(t, "empty", nil)
	if obj, sums, err := g.Sum(s.ctx, "empty", objstore.GetOptions{}); err != nil || obj.Size != 0 || len(sums) != 0 {
		t.Errorf("sum of nothing: %+v, %d digests, %v", obj, len(sums), err)
	}
	for _, o := range []objstore.GetOptions{{Off: 1}, {Off: -1}, {Off: 2 * objstore.BlockSize}, {Len: -1}} {
		_, _, err := g.Sum(s.ctx, "sums", o)
		s.failed(t, err, "sums", nil)
		if objstore.Retryable(err) {
			t.Errorf("sum %+v: %v", o, err)
		}
	}
	_, _, err = g.Sum(s.ctx, "sums", objstore.GetOptions{IfTag: "another"})
	s.failed(t, err, "sums", objstore.ErrChanged)
	_, _, err = g.Sum(s.ctx, "none", objstore.GetOptions{})
	s.failed(t, err, "none", objstore.ErrNotFound)
}
