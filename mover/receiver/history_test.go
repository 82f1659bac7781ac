package receiver

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// TestHistories runs random passes with cut connections, restarts and power cuts, and compares the medium with a model at every
// point where the invariants say what it holds (C3, C5, C6, C10).
func TestHistories(t *testing.T) {
	n := 12
	if testing.Short() {
		n = 6
	}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newHistory(t, uint64(seed)).run(8)
		})
	}
}

type history struct {
	t     *testing.T
	r     *rig
	rnd   *rand.Rand
	s     *src
	point []byte         // what the target held at its last point; nil: none
	free  map[int64]bool // leaves marked free
	c     *client
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{t: t, rnd: rand.New(rand.NewPCG(seed, 99)), free: map[int64]bool{}}
	h.r = newRig(t, func(c *Config) {
		c.Memory = minMemory
		if seed%3 == 0 {
			c.LogLimit = minLogLimit // staged passes go direct on their way
		}
	})
	size := []int64{groupSize + 77*leafSize + 512*3, 3*groupSize + 7, 200 * leafSize, 17<<20 + 5*leafSize}[seed%4]
	h.s = newSrc(size)
	fill(h.s.b[:size/2], seed)
	return h
}

func (h *history) run(passes int) {
	for range passes {
		h.pass()
	}
	h.verify()
}

func (h *history) connect() *client {
	if h.c != nil {
		h.c.close()
	}
	h.c = h.r.dialPages("acme", "db1", "root")
	h.c.prints = func(plain []byte) []uint64 {
		ps := truth(plain)
		switch h.rnd.IntN(4) {
		case 0: // pages that are somewhere, but not in these leaves
			other := truth(h.s.b)
			for range 1 + h.rnd.IntN(3) {
				ps[h.rnd.IntN(len(ps))] = other[h.rnd.IntN(len(other))]
			}
		case 1:
			return nil
		}
		return ps
	}
	return h.c
}

// mutate changes the source and returns the leaves that differ from the last point.
func (h *history) mutate() map[int64]bool {
	dirty := map[int64]bool{}
	for range 1 + h.rnd.IntN(40) {
		g := h.rnd.Int64N((int64(len(h.s.b)) + 4095) / 4096)
		e := extent.Extent{Off: g * 4096, Len: 4096 * (1 + h.rnd.Int64N(12))}.Intersect(extent.Extent{Len: int64(len(h.s.b))})
		if h.rnd.IntN(4) == 0 {
			clear(h.s.b[e.Off:e.End()])
		} else if h.rnd.IntN(2) == 0 {
			from := h.rnd.Int64N((int64(len(h.s.b))-e.Len)/4096+1) * 4096
			copy(h.s.b[e.Off:e.End()], h.s.b[from:])
		} else {
			fill(h.s.b[e.Off:e.End()], h.rnd.Uint64())
		}
		for l := e.Off / leafSize; l*leafSize < e.End(); l++ {
			dirty[l] = true
		}
	}
	return dirty
}

// batches cuts the dirty leaves into offers and puts.
func (h *history) batches(dirty map[int64]bool) (out []batch) {
	size := int64(len(h.s.b))
	var b batch
	flush := func() {
		if len(b.leaves)+len(b.items) > 0 {
			out = append(out, b)
		}
		b = batch{free: map[int64]bool{}}
	}
	flush()
	for l := range chunker.Leaves(size) {
		if !dirty[l] {
			continue
		}
		if h.rnd.IntN(10) == 0 || len(b.leaves) >= 200 || len(b.items) > 500 {
			flush()
		}
		e := chunker.LeafExtent(size, l)
		isFree := h.rnd.IntN(12) == 0
		if isFree {
			clear(h.s.leaf(l)) // what is there does not matter to anybody
		}
		if wasFree := h.free[l]; wasFree && !isFree {
			delete(h.free, l)
		}
		if len(b.items) == 0 && (len(b.leaves) > 0 || h.rnd.IntN(2) == 0) {
			b.leaves = append(b.leaves, l)
			b.free[l] = isFree
		} else {
			if isFree {
				b.items = append(b.items, item(wire.ItemFree, e))
			} else if chunker.IsZero(h.s.leaf(l)) {
				b.items = append(b.items, item(wire.ItemZero, e))
			} else if cut := int64(4096); e.Len > cut && h.rnd.IntN(2) == 0 {
				b.items = append(b.items, item(wire.ItemData, extent.Extent{Off: e.Off, Len: cut}), item(wire.ItemData, extent.Extent{Off: e.Off + cut, Len: e.Len - cut}))
			} else {
				b.items = append(b.items, item(wire.ItemData, e))
			}
		}
		if isFree {
			h.free[l] = true
		}
	}
	flush()
	return out
}

func all(size int64) map[int64]bool {
	m := map[int64]bool{}
	for l := range chunker.Leaves(size) {
		m[l] = true
	}
	return m
}

// pass runs one pass to its commit, whatever happens on the way.
func (h *history) pass() {
	h.t.Helper()
	kind, dirty := mover.Delta, h.mutate()
	if h.point == nil || h.rnd.IntN(5) == 0 {
		kind, dirty = mover.Rescan, all(int64(len(h.s.b)))
		if h.rnd.IntN(2) == 0 {
			h.s.gen, h.s.ep = newID(), 0
		}
		if h.point == nil || h.rnd.IntN(4) == 0 {
			kind = mover.Full
		}
	}
	p := h.s.newPass(kind, h.batches(dirty)...)
	p.est = uint64(len(dirty)) * leafSize
	if h.rnd.IntN(4) == 0 {
		p.est = 1 << 40 // direct
	}
	mode := mover.Staged
	for try := 0; ; try++ {
		if try > 60 {
			h.t.Fatal("pass does not come to its end")
		}
		c := h.connect()
		o, err := c.open(h.s, p)
		must(h.t, err)
		mode = max(mode, mover.Mode(o.Mode))
		if h.part(c, p, o, try) {
			break
		}
	}
	h.s.ep = p.epoch
	h.point = bytes.Clone(h.s.b)
	if h.rnd.IntN(3) == 0 {
		h.disturb() // in the middle of applying (C5)
		h.connect()
	}
	if h.rnd.IntN(3) == 0 {
		h.verify()
	}
}

// part sends some of the rest; it tells whether the pass is committed.
func (h *history) part(c *client, p *spass, o *wire.Opened, try int) bool {
	for _, r := range o.Done {
		c.acked.AddRange(r)
	}
	order := h.rnd.Perm(len(p.batches))
	for _, i := range order {
		if c.acked.Has(uint32(i + 1)) {
			continue
		}
		if h.rnd.IntN(4+try*2) == 0 && h.rnd.IntN(len(p.batches)) < 3 {
			h.disturbStaged(p)
			return false
		}
		must(h.t, c.send(h.s, p, i))
	}
	if h.rnd.IntN(6) == 0 {
		h.disturbStaged(p)
		return false
	}
	must(h.t, c.waitAcks(len(p.batches)))
	if h.rnd.IntN(6) == 0 {
		h.disturbStaged(p) // everything is acked: nothing may be lost (C3)
		return false
	}
	a, err := c.commit(p)
	must(h.t, err)
	if a.Epoch != p.epoch {
		h.t.Fatalf("committed epoch %d, not %d", a.Epoch, p.epoch)
	}
	return true
}

// disturbStaged disturbs, and checks that a pass that was staged all along has left the point alone (C6).
func (h *history) disturbStaged(p *spass) {
	h.t.Helper()
	h.disturb()
	st, err := h.r.s.flow("acme/db1/root")
	must(h.t, err)
	_ = st.settled(context.Background(), nil) // the pass before may still be applied
	if h.point != nil {
		got := h.r.content("/t/a", int64(len(h.point)))
		// A handler of a cut connection may still be at it: what counts is that the record says so before the first write.
		if st.state().Phase == mover.Point && !bytes.Equal(got, h.point) {
			l := int64(firstDiff(got, h.point)) / leafSize
			h.t.Fatalf("target left its point before the commit (pass %v, mode %v) in leaf %d (free %v, new content %v)", p.kind, st.openPass().mode(), l, h.free[l],
				bytes.Equal(h.s.leaf(l), got[l*leafSize:min(int64(len(got)), (l+1)*leafSize)]))
		}
	}
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func (h *history) disturb() {
	switch h.rnd.IntN(3) {
	case 0:
		h.c.close()
	case 1:
		h.r.stop()
		h.r.start()
	case 2:
		h.r.powerCut(h.rnd.Uint64())
	}
}

// verify settles and compares everything with the model: bytes, root, state.
func (h *history) verify() {
	h.t.Helper()
	c := h.connect()
	scope := uint8(wire.ScopeTouched)
	if h.rnd.IntN(2) == 0 {
		scope = wire.ScopeAll
	}
	root, err := c.readBack(scope)
	must(h.t, err)
	if n := h.r.s.Metrics().ReadBackDiffers; n != 0 {
		h.t.Fatalf("the table was wrong about %d leaves", n)
	}
	f, err := h.r.s.flow("acme/db1/root")
	must(h.t, err)
	must(h.t, f.settled(context.Background(), nil))
	got := h.r.content("/t/a", int64(len(h.point)))
	if !bytes.Equal(got, h.point) {
		l := int64(firstDiff(got, h.point)) / leafSize
		h.t.Fatalf("target differs from the point in leaf %d (free %v, zero here %v, there %v), table %s, source %s", l, h.free[l], chunker.IsZero(h.s.leaf(l)),
			chunker.IsZero(got[l*leafSize:min(int64(len(got)), (l+1)*leafSize)]), f.table.Get(l).Short(), chunker.Digests(h.s.leaf(l), nil)[0].Short())
	}
	if want := h.s.root(h.r, h.free); root.Digest != want {
		for l := range chunker.Leaves(int64(len(h.s.b))) {
			want := chunker.Digests(h.s.leaf(l), nil)[0]
			if h.free[l] {
				want = digest.Free
			}
			if got := f.table.Get(l); got != want {
				h.t.Errorf("leaf %d: table %s, source %s", l, got.Short(), want.Short())
			}
		}
		h.t.Fatal("roots differ")
	}
	if s := f.state(); s.Phase != mover.Point || s.Epoch != h.s.ep || s.Generation != mover.ID(h.s.gen) {
		h.t.Fatalf("state %+v, source at epoch %d", s, h.s.ep)
	}
}
