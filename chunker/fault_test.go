package chunker

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

var errDead = errors.New("killed")

// memStore is a table file in memory that can die in the middle of a write, run full, or lose pages.
type memStore struct {
	mu      sync.Mutex
	b       []byte
	r       *rand.Rand
	writes  int   // done
	left    int   // writes until it dies, if not negative
	full    error // of every write
	badRead func(off int64) bool
	badSync error
}

func newMemStore(size int64, seed uint64) *memStore {
	m := &memStore{b: make([]byte, newLayout(size).end), r: rand.New(rand.NewPCG(seed, 9)), left: -1}
	copy(m.b, header{}.encode(size))
	return m
}

func (m *memStore) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.badRead != nil && m.badRead(off) {
		return 0, syscall.EIO
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memStore) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full != nil {
		return 0, m.full
	}
	if m.left == 0 {
		n := m.r.IntN(len(p)/512+1) * 512 // a kill may leave a part
		copy(m.b[off:], p[:n])
		m.left = -2
	}
	if m.left == -2 {
		return 0, errDead
	}
	m.left--
	m.left = max(m.left, -1)
	m.writes++
	return copy(m.b[off:], p), nil
}

func (m *memStore) writev(bufs [][]byte, off int64) error {
	_, err := m.WriteAt(slices.Concat(bufs...), off)
	return err
}

func (m *memStore) punch(off, n int64) error {
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}

func (m *memStore) datasync() error { return m.badSync }
func (m *memStore) Close() error    { return nil }

func (m *memStore) open(t *testing.T, size int64) *Table {
	t.Helper()
	tab, err := loadTable(m, int64(len(m.b)), "memory", size, TableConfig{Cache: 1})
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// history is a random run over a table, the same for the same seed, with what the file may claim after a kill.
type history struct {
	r       *rand.Rand
	n       *naive
	allowed []map[digest.Digest]bool // of each leaf: what was true at the last flush, and all since
}

func newHistory(size int64, seed uint64) *history {
	h := &history{r: rand.New(rand.NewPCG(seed, 7)), n: newNaive(size)}
	h.flushed()
	return h
}

func (h *history) flushed() {
	h.allowed = make([]map[digest.Digest]bool, len(h.n.ds))
	for i, d := range h.n.ds {
		h.allowed[i] = map[digest.Digest]bool{d: true}
	}
}

func (h *history) changed() {
	for i, d := range h.n.ds {
		h.allowed[i][d] = true
	}
}

// step makes one change; h tells what it would be even when the table does not get to the end of it.
func (h *history) step(tab *Table) error {
	leaves := int64(len(h.n.ds))
	first := h.r.Int64N(leaves)
	count := 1 + h.r.Int64N(min(leaves-first, [...]int64{1, 5, 600, leaves}[h.r.IntN(4)]))
	switch h.r.IntN(8) {
	case 0, 1, 2:
		ds := make([]digest.Digest, count)
		for i := range ds {
			ds[i] = randomDigest(h.r)
		}
		copy(h.n.ds[first:], ds)
		h.changed()
		return tab.Set(first, ds)
	case 3:
		d := randomDigest(h.r)
		h.n.fill(first, count, d)
		h.changed()
		return tab.Fill(first, count, d)
	case 4, 5:
		e := extent.Extent{Off: first * LeafSize, Len: count * LeafSize}
		h.n.invalidate(e)
		h.changed()
		return tab.Invalidate(e)
	case 6:
		_, _ = tab.Root() // computes and may write
		return nil
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	h.flushed()
	return nil
}

// TestKilledAtEveryWrite cuts one history after each of its writes: the file never claims a digest that was wrong when the last
// flush ended, and its counts and sums agree with its leaves.
func TestKilledAtEveryWrite(t *testing.T) {
	for seed, size := range []int64{30*GroupSize + 5*LeafSize + 1, 258 * GroupSize, 18 * GroupSize, 3*GroupSize - 7, 20 * GroupSize} {
		run := func(cut int) (*memStore, *history) {
			m, h := newMemStore(size, uint64(seed)), newHistory(size, uint64(seed))
			tab := m.open(t, size)
			m.left = cut
			for range 60 {
				if err := h.step(tab); err != nil {
					if !errors.Is(err, errDead) {
						t.Fatal(err)
					}
					break
				}
			}
			m.left = -1
			return m, h
		}
		whole, _ := run(-1)
		stride := 1 + whole.writes/50*int(1+size/(100*GroupSize))
		survived := 0
		for cut := 0; cut < whole.writes; cut += stride {
			m, h := run(cut)
			tab := m.open(t, size)
			after := &naive{size, tab.Digests(0, tab.leaves)}
			for i, d := range after.ds {
				if d != digest.Unknown {
					survived++
					if !h.allowed[i][d] {
						t.Fatalf("seed %d cut after %d writes: leaf %d claims %v", seed, cut, i, d.Short())
					}
				}
			}
			agree(t, tab, after)
			for e := range tab.Unknown() {
				if err := tab.Fill(e.Off/LeafSize, Leaves(e.Len), digest.Free); err != nil {
					t.Fatal(err)
				}
			}
			after.ds = tab.Digests(0, tab.leaves)
			agree(t, tab, after)
		}
		if survived == 0 {
			t.Error("nothing survived any kill")
		}
		t.Logf("%d bytes: %d writes, %d leaves survived", size, whole.writes, survived)
	}
}

// A kill while held leaves nothing, whatever was flushed or not.
func TestKilledWhileHeld(t *testing.T) {
	const size = 40 * GroupSize
	m, h := newMemStore(size, 1), newHistory(size, 1)
	tab := m.open(t, size)
	if err := tab.SetOwner([32]byte{1}); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := h.step(tab); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.Hold(); err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(m.b)
	for range 200 {
		if err := h.step(tab); err != nil {
			t.Fatal(err)
		}
	}
	agree(t, tab, h.n)
	if err := tab.Sync(); !errors.Is(err, ErrHeld) {
		t.Fatalf("sync while held: %v", err)
	}
	if err := tab.SetOwner([32]byte{2}); !errors.Is(err, ErrHeld) {
		t.Fatalf("owner while held: %v", err)
	}
	if !slices.Equal(before, m.b) {
		t.Fatal("the file was written while held")
	}
	killed := &memStore{b: slices.Clone(m.b), left: -1}
	again := killed.open(t, size)
	agree(t, again, newNaive(size))
	if again.Owner() != [32]byte{} {
		t.Fatal("the owner outlived a kill while held")
	}
	if err := tab.Release(); err != nil {
		t.Fatal(err)
	}
	for i := range tab.parts {
		if c := &tab.parts[i].cache; len(c.ring) > c.most || c.dirty != 0 {
			t.Fatalf("%d pages, %d of them dirty, after Release; limit %d", len(c.ring), c.dirty, c.most)
		}
	}
	again = (&memStore{b: slices.Clone(m.b), left: -1}).open(t, size)
	agree(t, again, h.n)
	if again.Owner() != [32]byte{1} {
		t.Fatal("the owner was lost by Hold and Release")
	}
}

// With a full disk calls fail by name, each group is as before or as asked for, and nothing is lost when there is space again.
func TestFullDisk(t *testing.T) {
	const size = 120 * GroupSize
	m, h := newMemStore(size, 1), newHistory(size, 3)
	tab := m.open(t, size)
	refused := 0
	for i := range 400 {
		m.full = nil
		if i%4 != 0 {
			m.full = syscall.ENOSPC
		}
		before := slices.Clone(h.n.ds)
		err := h.step(tab)
		if err == nil {
			continue
		}
		refused++
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		for g := range tab.groups {
			from, to := g*GroupLeaves, g*GroupLeaves+int64(tab.leavesOf(g))
			got := tab.Digests(from, to-from)
			if !slices.Equal(got, before[from:to]) && !slices.Equal(got, h.n.ds[from:to]) {
				t.Fatalf("step %d: group %d is half changed", i, g)
			}
			copy(h.n.ds[from:to], got)
		}
	}
	if refused == 0 {
		t.Fatal("the full disk was never met")
	}
	m.full = nil
	if err := tab.Flush(); err != nil {
		t.Fatal(err)
	}
	tab.noted.Store(nil) // Root may have met it
	agree(t, tab, h.n)
	agree(t, m.open(t, size), h.n)
}

// A page that can't be read makes its group unknown, and setting the group heals it.
func TestUnreadablePage(t *testing.T) {
	const size = 3 * GroupSize
	for what, bad := range map[string]func(l *layout) int64{
		"leaves": func(l *layout) int64 { return l.leafPage(1) * pageSize },
		"sums":   func(l *layout) int64 { return l.digestPage(1) * pageSize },
	} {
		t.Run(what, func(t *testing.T) {
			m := newMemStore(size, 1)
			tab, n := m.open(t, size), newNaive(size)
			r := rand.New(rand.NewPCG(1, 1))
			for i := range n.ds {
				n.ds[i] = digest.Digest{byte(r.Uint32()), 1}
			}
			if err := tab.Set(0, n.ds); err != nil {
				t.Fatal(err)
			}
			if err := tab.Close(); err != nil {
				t.Fatal(err)
			}
			tab = m.open(t, size)
			at := bad(&tab.layout)
			m.badRead = func(off int64) bool { return off == at }
			if _, ok := tab.Root(); ok != (what == "leaves") {
				t.Fatalf("root is %v", ok)
			}
			if d := tab.Get(GroupLeaves); what == "leaves" && d != digest.Unknown {
				t.Fatalf("leaf is %v", d)
			}
			if !errors.Is(tab.Err(), syscall.EIO) {
				t.Fatalf("error is %v", tab.Err())
			}
			unknown := slices.Collect(tab.Unknown())
			if len(unknown) == 0 {
				t.Fatal("nothing is unknown")
			}
			m.badRead = nil
			for _, e := range unknown {
				first := e.Off / LeafSize
				if err := tab.Set(first, n.ds[first:first+Leaves(e.Len)]); err != nil {
					t.Fatal(err)
				}
			}
			tab.noted.Store(nil)
			agree(t, tab, n)
		})
	}
}

func TestSyncErrorIsSticky(t *testing.T) {
	m := newMemStore(GroupSize, 1)
	tab := m.open(t, GroupSize)
	if err := tab.Fill(0, 5, ZeroLeaf); err != nil {
		t.Fatal(err)
	}
	m.badSync = syscall.EIO
	if err := tab.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	m.badSync = nil
	for what, err := range map[string]error{
		"sync": tab.Sync(), "flush": tab.Flush(), "set": tab.Set(0, []digest.Digest{ZeroLeaf}), "fill": tab.Fill(0, 1, ZeroLeaf),
		"invalidate": tab.Invalidate(extent.Extent{Len: 1}), "err": tab.Err(),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s after a failed sync: %v", what, err)
		}
	}
	if d := tab.Get(0); d != digest.Unknown {
		t.Errorf("leaf is %v after a failed sync", d)
	}
	if _, ok := tab.Root(); ok {
		t.Error("root after a failed sync")
	}
	if err := tab.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
}
