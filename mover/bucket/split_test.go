package bucket

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

// keyspaces of shapes that buckets have.
func keyspaces() map[string][]string {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := map[string][]string{}
	add := func(name, key string) { out[name] = append(out[name], key) }
	for i := range 20_000 {
		add("counted", fmt.Sprintf("data/part-%08d", i))
		add("hex", fmt.Sprintf("%016x", rnd.Uint64()))
		add("dates", fmt.Sprintf("logs/2024/%02d/%02d/host-%03d.log.gz", i/1700+1, i%28+1, i%331))
		add("one folder, others small", fmt.Sprintf("%s/%06d", []string{"a", "b", "bulk", "z"}[min(3, max(0, 2-i%700/698))], i))
		add("unicode", fmt.Sprintf("照片/%c/%05d", rune(0x4e00+i%3000), i))
		add("one long run", fmt.Sprintf("%0900d/%05d", 7, i))
		add("nested prefixes", string(slices.Repeat([]byte("a"), i%30+1))+fmt.Sprint(i))
	}
	out["few"] = []string{"a", "b"}
	out["one"] = []string{"a"}
	out["none"] = nil
	for name, keys := range out {
		sort.Strings(keys)
		out[name] = slices.Compact(keys)
	}
	return out
}

// However keys are spread, cutting the span with the most keys again and again gives spans that lists side by side, cover all, and are cut in the middle often enough.
func TestSplit(t *testing.T) {
	for name, keys := range keyspaces() {
		t.Run(name, func(t *testing.T) {
			asked := 0
			first := func(after string) (string, bool, error) {
				asked++
				i, ok := slices.BinarySearch(keys, after)
				if ok {
					i++
				}
				if i == len(keys) {
					return "", false, nil
				}
				return keys[i], true, nil
			}
			count := func(s span) int {
				from := sort.Search(len(keys), func(i int) bool { return keys[i] > s.after })
				return sort.Search(len(keys)-from, func(i int) bool { return !s.has(keys[from+i]) })
			}
			spans := []span{{}}
			if len(keys) > 50 {
				spans[0].after = keys[50] // a page was listed
			}
			want := count(spans[0])
			splits := 0
			for range 40 {
				slices.SortFunc(spans, func(a, b span) int { return count(b) - count(a) })
				s := spans[0]
				n := count(s)
				mid, to, err := split(s, first)
				if err != nil {
					t.Fatal(err)
				}
				if count(span{s.after, to}) != n {
					t.Fatalf("%v ends at %q, which leaves keys out", s, to)
				}
				spans[0].to = to
				if mid == "" {
					if n > 300 {
						t.Fatalf("%d keys after %q are not parted", n, s.after)
					}
					break
				}
				left, right := span{s.after, mid}, span{mid, to}
				if mid <= s.after || to != "" && mid >= to || count(left)+count(right) != n || count(right) == 0 {
					t.Fatalf("%v is cut at %q, up to %q: %d and %d of %d", s, mid, to, count(left), count(right), n)
				}
				spans[0] = left
				spans = append(spans, right)
				splits++
			}
			all, most := 0, 0
			for _, s := range spans {
				all += count(s)
				most = max(most, count(s))
			}
			if all != want {
				t.Fatalf("%d keys in all spans, not %d", all, want)
			}
			if want > 1000 && most > want/5 {
				t.Errorf("after 40 cuts one span has %d of %d keys", most, want)
			}
			if splits > 0 && asked > splits*24 {
				t.Errorf("%d questions for %d cuts", asked, splits)
			}
		})
	}
}
