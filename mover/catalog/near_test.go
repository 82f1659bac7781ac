package catalog

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestPages: a run of pages is found by any hook near it, at each offset, also after the index was closed; never by another scope; and what is stale or cut off
// is a wrong hint at most.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index"))
	file, err := x.OpenPrints(filepath.Join(dir, "pages"))
	must(t, err)
	rnd := rand.New(rand.NewPCG(1, 2))
	prints := make([]uint64, 8*nearPages)
	for i := range prints {
		prints[i] = rnd.Uint64() | 1 // no hook
		if i%100 == 0 {
			prints[i] &^= hookEvery - 1
		}
	}
	const first = 5000
	file.Put(first, prints)
	x.AddPages("acme", 7, first, prints)
	lend := func(flow uint32) *Prints {
		if flow != 7 {
			t.Errorf("prints of flow %d are asked for", flow)
		}
		return file
	}
	look := func(scope string, from, n int) (found int) {
		out := make([]PagePlace, n)
		x.FindPages(scope, prints[from:from+n], out, lend)
		for i, p := range out {
			if p.Flow == 0 {
				continue
			}
			if found++; p != (PagePlace{7, int64(first + from + i)}) {
				t.Fatalf("page %d at %+v", from+i, p)
			}
		}
		return found
	}
	for _, scope := range []string{"acm", "acme2", "evil", ""} {
		if n := look(scope, 0, len(prints)); n != 0 {
			t.Errorf("scope %q sees %d pages of another", scope, n)
		}
	}
	if n := look("acme", 1001, 98); n != 0 {
		t.Errorf("%d pages are found without a hook", n)
	}
	for from := 3000; from < 3004; from++ {
		if n := look("acme", from, 1000); n < 995 { // one takes the place of another now and then
			t.Errorf("%d of 1000 pages from %d", n, from)
		}
	}
	for _, scope := range []string{"acm", "evil"} { // also now that they are in memory
		if n := look(scope, 3000, 1000); n != 0 {
			t.Errorf("scope %q sees %d pages of another", scope, n)
		}
	}
	if n := look("acme", 4050, 20); n != 20 { // near, without a hook
		t.Errorf("%d of 20 pages near what was found", n)
	}
	must(t, x.Close())
	x = openIndex(t, filepath.Join(dir, "index"))
	if n := look("acme", 500, 1000); n < 995 { // one takes the place of another now and then
		t.Errorf("%d of 1000 pages after closing", n)
	}
	must(t, file.Close())
	out := make([]PagePlace, 1000)
	x.FindPages("acme", prints[7000:8000], out, func(uint32) *Prints { return file }) // closed
	x.FindPages("acme", prints[7000:8000], out, func(uint32) *Prints { return nil })
	file.Put(0, prints)
	must(t, x.Close())
	x.FindPages("acme", prints[:10], out[:10], func(uint32) *Prints { return nil })
}
