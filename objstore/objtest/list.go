package objtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moverd/mover/objstore"
)

// odd are keys that have led programs astray.
var odd = []string{
	"a", "a/", "a/b", "a//b", "a/b/", "a/b/c", "a-b", "a.b", "a0", "a!", "A", "a b", "a  b", "a+b", "a%2Fb", "a%2fb", "a%", "%", "%00", "%25", "%2E%2E", "a&b", "a&amp;b",
	"a<b>", "]]>", `a"b`, "a'b", `a\b`, `\`, "a?b#c", "a?x=y", "a;b", "a=b", "a,b", "a:b", "a@b", "a|b", "a*b", "a~b", "~", "$HOME", "$(id)", "(a)", "[a]", "{a}", "{{a}}",
	"^", "`", "-rf", "--", " ", " a", "a ", "a/ ", "+", "/", "//", "///", "/a", "//a", "/a/", ".", "..", "../a", "a/..", "a/../b", "a/..b", "./a", "a/.", "a/./b", "...",
	"....//", "..../x", ".a", "b/.", "b/..", ".git/config", ".mover", ".mover/x", ".mover=a", ".mover=%25", ".mover=%", ".mover+a", "x/.mover", "x/.mover=/y",
	"v1", "v1/a", "null", "CON", "a.", "index.html", "NaN", "0", "00", "\u00e4", "a\u0308", "\u65e5\u672c\u8a9e/\u5199\u771f.jpg", "\U0001f600", "\uff21", "\ue000", "\u00a0", "\u202e", "\ufeff",
	"\ufffd", "\U0010ffff", "\u2028", "\u0085", "\x01", "\x1f", "\x7f", "a\tb", "a\nb", "a\rb", "a\r\nb", "a\x00b", "\x00", "\xff", "a\xffb", "\xc0\xaf", "\xed\xa0\x80",
	strings.Repeat("k", 255), strings.Repeat("k", 256), strings.Repeat("m", 255) + "/x", strings.Repeat("m", 256) + "/x", strings.Repeat("m", 256), strings.Repeat("m", 256) + "-",
	strings.Repeat("k", 1023), strings.Repeat("k", 1024), strings.Repeat("\u00e4", 512), strings.Repeat("%", 1024), strings.Repeat("\u65e5", 341), strings.Repeat("d/", 511) + "x",
	strings.Repeat("/", 300), strings.Repeat("../", 20) + "tmp/objtest-outside", "/tmp/objtest-outside", strings.Repeat(".", 300),
}

func (s *suite) keys(t *testing.T) {
	var kept []string
	for _, key := range odd {
		if why := s.Store.Limits().Key(key); why == nil {
			kept = append(kept, key)
		} else {
			t.Logf("left out: the key %.40q: %v", key, why)
			s.refused(t, key)
		}
	}
	for _, key := range []string{"", strings.Repeat("k", 1025)} {
		if s.Store.Limits().Key(key) != nil {
			s.refused(t, key)
		}
	}
	s.putAll(t, kept)
	want := slices.Sorted(slices.Values(kept))
	s.listed(t, objstore.Query{}, want)
	s.listed(t, objstore.Query{Max: 7}, want)
	s.each(len(kept), func(i int) {
		h, err := s.Store.Head(s.ctx, kept[i])
		if err != nil || h.Key != kept[i] || h.Size != int64(len(kept[i])) {
			t.Errorf("head %q: %+v, %v", kept[i], h, err)
		}
	})
	for _, key := range kept {
		if _, b := s.read(t, key, objstore.GetOptions{}); string(b) != key {
			t.Errorf("%q has %q", key, b)
		}
	}
	for i, key := range kept { // half of them one by one: the others stay
		if i%2 == 0 {
			if left, err := s.Store.Delete(s.ctx, key); err != nil || len(left) != 0 {
				t.Fatalf("delete %q: %v, %v", key, left, err)
			}
		}
	}
	var rest []string
	for i, key := range kept {
		if i%2 == 1 {
			rest = append(rest, key)
		}
	}
	slices.Sort(rest)
	s.listed(t, objstore.Query{}, rest)
	s.putAll(t, kept) // beside those that are there still
	s.listed(t, objstore.Query{}, want)
}

// refused checks that a key that the limits refuse is refused.
func (s *suite) refused(t *testing.T, key string) {
	t.Helper()
	_, err := s.Store.Put(s.ctx, key, objstore.Bytes([]byte("x")), objstore.PutOptions{})
	s.failed(t, err, key, objstore.ErrNotSupported)
	_, err = s.Store.Begin(s.ctx, key, objstore.PutOptions{})
	s.failed(t, err, key, objstore.ErrNotSupported)
}

func (s *suite) pages(t *testing.T) {
	var all []string
	for _, key := range []string{"a", "a/", "a/b", "a/b/c", "a/c", "a-", "a--b", "a.", "a0", "a0/x", "b", "b/b", "b/b/b", "c%2F", "c+d", "c d", "\u00e4", "\u00e4/\u00f6", "z"} {
		if s.Store.Limits().Key(key) == nil {
			all = append(all, key)
		}
	}
	s.putAll(t, all)
	slices.Sort(all)
	for most := range len(all) + 2 {
		s.listed(t, objstore.Query{Max: most}, all)
	}
	afters := []string{"", "!", "a/b/", "a/bb", "a/~", "a~", "~~", "\u00e4/", "\xf4\x8f\xbf\xbf", "zz"}
	for _, key := range all {
		afters = append(afters, key, key[:len(key)-1], key+"!", key+"/")
	}
	for _, after := range afters {
		if utf8.ValidString(after) || s.Store.Limits().Key("\xff") == nil {
			s.listed(t, objstore.Query{After: after, Max: 5}, behind(all, "", after))
		}
	}
	prefixes := []string{"a", "a/", "a/b", "a/b/", "a-", "b", "b/", "b/b/b", "b/b/b/", "c", "c%", "c+", "c ", "\u00e4", "no", "a/b/c/d"}
	for _, prefix := range prefixes {
		s.listed(t, objstore.Query{Prefix: prefix, Max: 2}, behind(all, prefix, ""))
		for _, after := range []string{"a/b", "a-", "a", "b/b", "0", "zzz"} {
			s.listed(t, objstore.Query{Prefix: prefix, After: after, Max: 3}, behind(all, prefix, after))
		}
	}
	// A page that is full may say that there are more, or not; an empty one never does.
	p, err := s.Store.List(s.ctx, objstore.Query{Prefix: "a/b/c/d"})
	if err != nil || len(p.Entries) != 0 || p.More {
		t.Errorf("list of nothing: %+v, %v", p, err)
	}
	s.put(t, "now", nil)
	p, err = s.Store.List(s.ctx, objstore.Query{Prefix: "now"})
	if err != nil || len(p.Entries) != 1 {
		t.Fatal(p, err)
	}
	if m := p.Entries[0].Modified; !p.Now.IsZero() && (p.Now.Before(m.Add(-2*time.Second)) || p.Now.After(m.Add(10*time.Minute))) {
		t.Errorf("listed at %v, but modified at %v", p.Now, m)
	}
}

// behind is what of all, ascending, a query has to give.
func behind(all []string, prefix, after string) (out []string) {
	for _, key := range all {
		if key > after && strings.HasPrefix(key, prefix) {
			out = append(out, key)
		}
	}
	return out
}

// longList has more keys than a page can.
func (s *suite) longList(t *testing.T) {
	n := s.Store.Limits().List
	if n > 1000 {
		t.Logf("left out: lists of more than %d keys", n)
		return
	}
	var all []string
	for i := range n + 3 {
		all = append(all, fmt.Sprintf("long/%04d", i))
	}
	s.putAll(t, all)
	for _, most := range []int{0, n, n + 1, n + 100} {
		p, err := s.Store.List(s.ctx, objstore.Query{Max: most})
		if err != nil || len(p.Entries) == 0 || len(p.Entries) > n || !p.More {
			t.Errorf("list at most %d: %d entries, more %v, %v", most, len(p.Entries), p.More, err)
		}
		s.listed(t, objstore.Query{Max: most}, all)
	}
	s.listed(t, objstore.Query{Prefix: "long/", After: all[1], Max: n}, all[2:])
}

// listChanges changes what lies behind a page before the next one.
func (s *suite) listChanges(t *testing.T) {
	s.putAll(t, []string{"a", "b/1", "b/2", "b/3", "c", "d/1"})
	page := func(after string, want ...string) {
		t.Helper()
		p, err := s.Store.List(s.ctx, objstore.Query{After: after, Max: 2})
		var got []string
		for _, e := range p.Entries {
			got = append(got, e.Key)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("page after %q: %q, want %q, %v", after, got, want, err)
		}
	}
	page("", "a", "b/1")
	s.putAll(t, []string{"b/11", "b/0", "aa"})
	if _, err := s.Store.Delete(s.ctx, "b/3"); err != nil {
		t.Fatal(err)
	}
	page("b/1", "b/11", "b/2")
	w := s.put(t, "c", []byte("another"))
	s.putAll(t, []string{"b", "bb", "c/x"})
	page("b/2", "bb", "c")
	p, err := s.Store.List(s.ctx, objstore.Query{After: "bb", Max: 1})
	if err != nil || len(p.Entries) != 1 || p.Entries[0].ETag != w.ETag || p.Entries[0].Size != 7 {
		t.Errorf("an object that was overwritten is listed as %+v, %v", p, err)
	}
	if _, err := s.Store.Delete(s.ctx, "d/1"); err != nil {
		t.Fatal(err)
	}
	page("c", "c/x")
	s.putAll(t, []string{"d/1", "e"})
	page("c/x", "d/1", "e")
}
