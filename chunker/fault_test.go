package chunker

import (
	"errors"
	"flag"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

var errDead = errors.New("killed")

// memStore is a table file in memory that can die in the middle of a write, lose unsynced sectors, run full, or lose pages.
type memStore struct {
	mu       sync.Mutex
	b        []byte
	r        *rand.Rand
	writes   int                // done
	left     int                // writes until it dies, if not negative
	unsynced map[int64][][]byte // sectors: what each held at the last sync, and all that was written since; nil: not noted
	full     error              // of every write
	badRead  func(off int64) bool
	badSync  error
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
		m.store(p[:m.r.IntN(len(p)/512+1)*512], off) // a kill may leave a part
		m.left = -2
	}
	if m.left == -2 {
		return 0, errDead
	}
	m.left = max(m.left-1, -1)
	m.writes++
	m.store(p, off)
	return len(p), nil
}

func (m *memStore) store(p []byte, off int64) {
	if m.unsynced == nil || len(p) == 0 {
		copy(m.b[off:], p)
		return
	}
	for at := off / 512 * 512; at < off+int64(len(p)); at += 512 {
		sector := m.b[at:min(at+512, int64(len(m.b)))]
		if m.unsynced[at] == nil {
			m.unsynced[at] = [][]byte{slices.Clone(sector)}
		}
		from := max(at, off)
		copy(sector[from-at:], p[from-off:])
		m.unsynced[at] = append(m.unsynced[at], slices.Clone(sector))
	}
}

// loseSectors leaves of each sector that was written since the last sync any of its selves.
func (m *memStore) loseSectors() {
	for _, at := range slices.Sorted(maps.Keys(m.unsynced)) {
		selves := m.unsynced[at]
		copy(m.b[at:], selves[m.r.IntN(len(selves))])
	}
}

func (m *memStore) writev(bufs [][]byte, off int64) error {
	_, err := m.WriteAt(slices.Concat(bufs...), off)
	return err
}

func (m *memStore) punch(off, n int64) error {
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}

func (m *memStore) datasync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == -2 {
		return errDead
	}
	clear(m.unsynced)
	return m.badSync
}

func (m *memStore) Close() error { return nil }

func (m *memStore) open(t *testing.T, size int64) *Table {
	t.Helper()
	tab, err := loadTable(m, int64(len(m.b)), "memory", size, TableConfig{Cache: 1, PowerCut: m.unsynced != nil})
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// history is a random run over a table, the same for the same seed, with what the file may claim after a crash.
type history struct {
	r     *rand.Rand
	n     *naive
	power bool                     // a loss of power is to come, not a kill
	base  []digest.Digest          // at the last flush, or sync
	since []map[digest.Digest]bool // of each leaf that was changed since: what it had and has got
}

func newHistory(size int64, seed uint64) *history {
	h := &history{r: rand.New(rand.NewPCG(seed, 7)), n: newNaive(size)}
	h.settled()
	return h
}

func (h *history) settled() {
	h.base, h.since = slices.Clone(h.n.ds), make([]map[digest.Digest]bool, len(h.n.ds))
}

func (h *history) changed(first, count int64) {
	for i := first; i < first+count; i++ {
		if h.since[i] == nil {
			h.since[i] = map[digest.Digest]bool{h.base[i]: true}
		}
		h.since[i][h.n.ds[i]] = true
	}
}

// step makes one change; h tells what it would be even when the table does not get to the end of it.
func (h *history) step(tab *Table) error {
	leaves := int64(len(h.n.ds))
	first := h.r.Int64N(leaves)
	count := 1 + h.r.Int64N(min(leaves-first, [...]int64{1, 5, 600, leaves}[h.r.IntN(4)]))
	if h.r.IntN(5) == 0 { // a whole group
		first = first / GroupLeaves * GroupLeaves
		count = min(GroupLeaves, leaves-first)
	}
	switch h.r.IntN(9) {
	case 0, 1, 2:
		ds := make([]digest.Digest, count)
		for i := range ds {
			ds[i] = randomDigest(h.r)
		}
		copy(h.n.ds[first:], ds)
		h.changed(first, count)
		return tab.Set(first, ds)
	case 3:
		d := randomDigest(h.r)
		h.n.fill(first, count, d)
		h.changed(first, count)
		return tab.Fill(first, count, d)
	case 4, 5:
		e := extent.Extent{Off: first * LeafSize, Len: count * LeafSize}
		h.n.invalidate(e)
		h.changed(first, count)
		return tab.Invalidate(e)
	case 6:
		_, _ = tab.Root() // computes and may write
		return nil
	case 7:
		if err := tab.Flush(); err != nil {
			return err
		}
		if !h.power {
			h.settled()
		}
		return nil
	}
	if err := tab.Sync(); err != nil {
		return err
	}
	h.settled()
	return nil
}

// verify checks a table that was opened after a crash: leaves that did not change are as they were, others claim nothing that was
// not theirs. Then these are set or invalidated again, as a caller does, and everything must agree.
func (h *history) verify(t *testing.T, tab *Table) (survived int) {
	t.Helper()
	after := &naive{tab.size, tab.Digests(0, tab.leaves)}
	for i, d := range after.ds {
		if h.since[i] == nil && d != h.base[i] {
			t.Fatalf("leaf %d did not change, was %v, is %v", i, h.base[i].Short(), d.Short())
		}
		if h.since[i] != nil && d != digest.Unknown && !h.since[i][d] {
			t.Fatalf("leaf %d claims %v, had %v, state %d", i, d.Short(), h.since[i], tab.part(int64(i/256)).state(int64(i/256)))
		}
	}
	for g := range tab.groups {
		if d, ok := tab.Group(g); ok && !h.power {
			if want, wok := after.group(g); d != want || !wok {
				t.Fatalf("group %d claims %v, its leaves are %v %v", g, d.Short(), want.Short(), wok)
			}
		}
	}
	for i, since := range h.since {
		if since == nil {
			survived++
			continue
		}
		leaf := int64(i)
		var err error
		if after.ds[i] = digest.Unknown; h.r.IntN(3) == 0 {
			after.ds[i] = randomDigest(h.r)
			err = tab.Set(leaf, after.ds[i:i+1])
		} else {
			err = tab.Invalidate(LeafExtent(tab.size, leaf))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	agree(t, tab, after)
	for e := range tab.Unknown() {
		if err := tab.Fill(e.Off/LeafSize, Leaves(e.Len), digest.Free); err != nil {
			t.Fatal(err)
		}
		after.fill(e.Off/LeafSize, Leaves(e.Len), digest.Free)
	}
	agree(t, tab, after)
	return survived
}

var crashSeed = flag.Uint64("crashseed", 0, "first seed of TestCrashAtEveryWrite")

// TestCrashAtEveryWrite cuts histories short in each of their writes: by a kill, and by a loss of power that leaves of each sector
// any of the selves that it had since the last sync.
func TestCrashAtEveryWrite(t *testing.T) {
	for _, power := range []bool{false, true} {
		for i, size := range []int64{30*GroupSize + 5*LeafSize + 1, 258 * GroupSize, 18 * GroupSize, 3*GroupSize - 7, 20 * GroupSize} {
			seed := *crashSeed + uint64(i)
			whole, _ := crash(t, size, seed, power, -1)
			stride := 1 + whole.writes/20*int(1+size/(60*GroupSize))
			survived := 0
			for cut := 0; cut < whole.writes; cut += stride {
				m, h := crash(t, size, seed, power, cut)
				survived += h.verify(t, m.open(t, size))
			}
			if survived == 0 {
				t.Error("nothing survived any crash")
			}
			t.Logf("power %v, seed %d, %d bytes: %d writes, %d leaves survived", power, seed, size, whole.writes, survived)
		}
	}
}

// TestCrashSmall does the same with many short histories of two groups, where every group has several lives.
func TestCrashSmall(t *testing.T) {
	r := rand.New(rand.NewPCG(*crashSeed, 3))
	for range 60 {
		const size = 2*GroupSize - 3*LeafSize
		seed, power := r.Uint64(), r.IntN(4) != 0
		whole, _ := crash(t, size, seed, power, -1)
		for range 3 {
			m, h := crash(t, size, seed, power, r.IntN(whole.writes+1))
			h.verify(t, m.open(t, size))
		}
	}
}

// crash runs a history until the write numbered cut.
func crash(t *testing.T, size int64, seed uint64, power bool, cut int) (*memStore, *history) {
	t.Helper()
	m, h := newMemStore(size, seed), newHistory(size, seed)
	if h.power = power; power {
		m.unsynced = map[int64][][]byte{}
	}
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
	m.loseSectors()
	clear(m.unsynced)
	return m, h
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
		if err := h.step(tab); err != nil && !errors.Is(err, ErrHeld) {
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
