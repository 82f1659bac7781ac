package catalog

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/digest"
)

// How a page is found: of one page in sixteen, chosen by its print, the index knows the place: a hook. Around the place of a hook the prints of all pages are
// taken into memory, for whoever has one page of a file mostly has those beside it, and comes for those behind it next.

// PagePlace is where a page with a given print was seen: a hint, to be read back and checked before use.
type PagePlace struct {
	Flow uint32 // Record.Number; 0: nothing was found
	Page int64
}

const (
	hookEvery = 16
	nearPages = chunker.GroupSize / chunker.PageSize // pages whose prints are loaded together
	nearLoads = 64                                   // groups of them, for one batch
)

func isHook(print uint64) bool { return print%hookEvery == 0 && print != chunker.ZeroPrint }

// hookKey spreads a print over the bytes that keys are made of.
func hookKey(print uint64) (d digest.Digest) {
	binary.LittleEndian.PutUint64(d[:], print)
	binary.LittleEndian.PutUint64(d[8:], bits.RotateLeft64(print*odd, 32))
	return d
}

const odd = 0x9e3779b97f4a7c15

// AddPages tells that the pages of the flow's target from first have these prints.
func (x *Index) AddPages(scope string, flow uint32, first int64, prints []uint64) {
	var keys []digest.Digest
	var at []int64
	for i, p := range prints {
		if isHook(p) {
			keys, at = append(keys, hookKey(p)), append(at, first+int64(i))
		}
	}
	if len(keys) > 0 {
		x.add(scope, aboutPage, flow, keys, digest.Free, func(i int) int64 { return at[i] })
	}
	x.near.changed(scope, flow, first, int64(len(prints)))
}

// FindPages fills out[i] with a place of a page with print prints[i], or the zero PagePlace. file lends the prints of another flow of the same scope; nil
// is none.
func (x *Index) FindPages(scope string, prints []uint64, out []PagePlace, file func(flow uint32) *Prints) {
	clear(out)
	if x.bad.Load() {
		return
	}
	n := x.near
	n.mu.Lock()
	id := n.scope(scope)
	n.find(id, prints, out)
	n.mu.Unlock()
	var want []PagePlace
	var keys []digest.Digest
	for i, p := range prints {
		if out[i].Flow != 0 {
			want = append(want, out[i])
		} else if isHook(p) {
			keys = append(keys, hookKey(p))
		}
	}
	places := make([]Place, len(keys))
	x.lookup(scope, aboutPage, keys, places)
	for _, p := range places {
		if p.Flow != 0 {
			want = append(want, PagePlace{p.Flow, p.Leaf})
		}
	}
	n.mu.Lock() // also while reading, so that of connections side by side none looks before the other has loaded
	defer n.mu.Unlock()
	n.load(id, want, file)
	if len(want) > 0 { // another connection may have loaded it since
		n.find(id, prints, out)
	}
}

// near holds prints around places where something was found lately. New ones take the place of others.
type near struct {
	mu      sync.Mutex // guards all below
	buckets [][bucketSize]nearPage
	turn    uint               // whose place is taken next
	scopes  map[string]uint32  // from 1
	loaded  map[group]struct{} // groups whose prints should be there
	order   []group            // in which they were loaded, a ring
	next    int                // in order
	prints  [nearPages]uint64  // scratch
}

const bucketSize = 8

type nearPage struct {
	print       uint64
	page        int64
	flow, scope uint32
}

type group struct {
	scope, flow uint32
	first       int64 // page
}

// newNear makes one of memory bytes.
func newNear(memory int64) *near {
	const size = 24 // of a nearPage
	n := max(nearPages, memory/size)
	return &near{buckets: make([][bucketSize]nearPage, n/bucketSize), scopes: map[string]uint32{}, loaded: map[group]struct{}{},
		order: make([]group, max(4, n/nearPages/2))} // half, for pages do not spread evenly
}

// scope numbers scopes, so that a page of one is never found by another (C12).
func (n *near) scope(name string) uint32 {
	id := n.scopes[name]
	if id == 0 {
		id = uint32(len(n.scopes) + 1)
		n.scopes[name] = id
	}
	return id
}

func (n *near) bucket(scope uint32, print uint64) *[bucketSize]nearPage {
	h := (print ^ uint64(scope)<<32) * odd >> 32
	return &n.buckets[h*uint64(len(n.buckets))>>32]
}

// find fills in what is not found yet.
func (n *near) find(scope uint32, prints []uint64, out []PagePlace) {
	for i, p := range prints {
		if out[i].Flow != 0 || p == 0 || p == chunker.ZeroPrint {
			continue
		}
		for _, e := range n.bucket(scope, p) {
			if e.print == p && e.scope == scope {
				out[i] = PagePlace{e.flow, e.page}
				break
			}
		}
	}
}

func (n *near) insert(e nearPage) {
	b := n.bucket(e.scope, e.print)
	for i := range b {
		if b[i].flow == 0 || b[i].print == e.print && b[i].scope == e.scope {
			b[i] = e
			return
		}
	}
	n.turn++
	b[n.turn%bucketSize] = e
}

// load takes in the groups of places, then those beside them, where they are not there already.
func (n *near) load(scope uint32, places []PagePlace, file func(flow uint32) *Prints) {
	loads := 0
	for _, beside := range []int64{0, nearPages, -nearPages} {
		for _, p := range places {
			g := group{scope, p.Flow, p.Page/nearPages*nearPages + beside}
			if _, ok := n.loaded[g]; ok || g.first < 0 || loads == nearLoads {
				continue
			}
			loads++
			delete(n.loaded, n.order[n.next])
			n.order[n.next], n.loaded[g] = g, struct{}{}
			n.next = (n.next + 1) % len(n.order)
			file(p.Flow).Get(g.first, n.prints[:])
			for i, v := range n.prints {
				if v != 0 && v != chunker.ZeroPrint {
					n.insert(nearPage{v, g.first + int64(i), p.Flow, scope})
				}
			}
		}
	}
}

// changed makes the groups of pages that were written be loaded again when they are next wanted.
func (n *near) changed(scope string, flow uint32, first, count int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.scope(scope)
	for g := first / nearPages * nearPages; g < first+count; g += nearPages {
		delete(n.loaded, group{id, flow, g})
	}
}
