package chunker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// onDisk is the space that the table's file takes, in bytes.
func onDisk(t testing.TB, tab *Table) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(tab.path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestOpenRefuses(t *testing.T) {
	const size = 10 * GroupSize
	whole := func(t *testing.T) []byte {
		path := filepath.Join(t.TempDir(), "table")
		tab := openTable(t, path, size)
		if err := tab.Fill(0, 300, digest.Free); err != nil {
			t.Fatal(err)
		}
		if err := tab.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}(t)
	for _, v := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
		text   string
	}{
		{"empty", func(b []byte) []byte { return nil }, sentinel.ErrCorrupt, "shorter than its header"},
		{"half a header", func(b []byte) []byte { return b[:100] }, sentinel.ErrCorrupt, "shorter than its header"},
		{"truncated", func(b []byte) []byte { return b[:len(b)-1] }, sentinel.ErrCorrupt, "should be"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, sentinel.ErrCorrupt, "should be"},
		{"something else", func(b []byte) []byte { b[0] ^= 1; return b }, sentinel.ErrCorrupt, "not a digest table"},
		{"zeros", func(b []byte) []byte { clear(b); return b }, sentinel.ErrCorrupt, "not a digest table"},
		{"version", func(b []byte) []byte { b[11] = 9; return b }, sentinel.ErrNotSupported, "version 9"},
		{"bit in header", func(b []byte) []byte { b[40] ^= 1; return b }, sentinel.ErrCorrupt, "checksum"},
		{"bit in checksum", func(b []byte) []byte { b[headerSize-1] ^= 1; return b }, sentinel.ErrCorrupt, "checksum"},
		{"other size", func(b []byte) []byte { copy(b, header{}.encode(size-512)); return b }, sentinel.ErrRefused, "for a volume of"},
		{"state", func(b []byte) []byte { b[pageSize+9] = byte(states); return b }, sentinel.ErrCorrupt, "group 9 has state 6"},
		{"fine", func(b []byte) []byte { return b }, nil, ""},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "table")
			was := v.change(slices.Clone(whole))
			if err := os.WriteFile(path, was, 0o600); err != nil {
				t.Fatal(err)
			}
			tab, err := OpenTable(path, size)
			if v.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := tab.Close(); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, v.want) || !strings.Contains(err.Error(), v.text) || !strings.Contains(err.Error(), path) {
				t.Fatalf("%v, want %v with %q", err, v.want, v.text)
			}
			if is, err := os.ReadFile(path); err != nil || !slices.Equal(is, was) {
				t.Fatalf("the refused file was changed (%v)", err)
			}
		})
	}
	for _, size := range []int64{0, -1} {
		if _, err := OpenTable(filepath.Join(t.TempDir(), "table"), size); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := OpenTable(filepath.Join(t.TempDir(), "none", "table"), size); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestOpenAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	tab := openTable(t, path, GroupSize)
	if _, err := OpenTable(path, GroupSize); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("opened twice: %v", err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode is %v, %v", fi.Mode(), err)
	}
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tab.Set(0, []digest.Digest{ZeroLeaf}); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("set after close: %v", err)
	}
	if tab.Get(0) != digest.Unknown {
		t.Fatal("a closed table knows something")
	}
	openTable(t, path, GroupSize)
	left, err := filepath.Glob(path + ".*")
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
}

func TestOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	tab := openTable(t, path, 3*GroupSize)
	if tab.Owner() != [32]byte{} {
		t.Fatal("a new table has an owner")
	}
	if err := tab.Fill(0, tab.leaves, ZeroLeaf); err != nil {
		t.Fatal(err)
	}
	if err := tab.SetOwner([32]byte{7}); err != nil {
		t.Fatal(err)
	}
	if _, known, _ := tab.Counts(); known != 0 {
		t.Fatalf("%d leaves are known after a change of owner", known)
	}
	if err := tab.Set(5, []digest.Digest{{1}}); err != nil {
		t.Fatal(err)
	}
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	tab = openTable(t, path, 3*GroupSize)
	if tab.Owner() != [32]byte{7} || tab.Get(5) != (digest.Digest{1}) {
		t.Fatalf("owner is %x, leaf is %v", tab.Owner(), tab.Get(5))
	}
}

func TestOutOfRange(t *testing.T) {
	tab := openTable(t, filepath.Join(t.TempDir(), "table"), GroupSize+1)
	for _, err := range []error{
		tab.Set(-1, make([]digest.Digest, 1)), tab.Set(257, make([]digest.Digest, 1)), tab.Set(0, make([]digest.Digest, 258)),
		tab.Fill(0, 258, ZeroLeaf), tab.Fill(-1, 1, ZeroLeaf), tab.Fill(1, -1, ZeroLeaf), tab.Fill(1, 1<<62, ZeroLeaf),
		tab.Fill(1<<62, 1<<62, ZeroLeaf),
	} {
		if err == nil {
			t.Error("leaves beyond the volume were taken")
		}
	}
	if tab.Get(-1) != digest.Unknown || tab.Get(257) != digest.Unknown {
		t.Error("a leaf beyond the volume is known")
	}
	if n := len(tab.Digests(250, 100)); n != 7 {
		t.Errorf("%d digests at the end", n)
	}
	if n := len(tab.Digests(300, 100)); n != 0 {
		t.Errorf("%d digests beyond the end", n)
	}
	if _, ok := tab.Group(2); ok {
		t.Error("a group beyond the volume is known")
	}
	if err := tab.Invalidate(extent.Extent{Off: -5, Len: 1 << 62}); err != nil {
		t.Error(err)
	}
}

// Uniform groups cost nothing in the file but their state; what became uniform again gives its space back.
func TestSparse(t *testing.T) {
	const size = 64 * tib
	tab := openTable(t, filepath.Join(t.TempDir(), "table"), size)
	if n := onDisk(t, tab); n > 64<<10 {
		t.Fatalf("a new table takes %d bytes", n)
	}
	for _, d := range fills {
		start := time.Now()
		if err := tab.Fill(0, tab.leaves, d); err != nil {
			t.Fatal(err)
		}
		if err := tab.Flush(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("filling 64 TiB took %v", took)
		}
		for i := range tab.parts {
			if n := len(tab.parts[i].cache.ring); n != 0 {
				t.Fatalf("%d pages were read", n)
			}
		}
	}
	if n := onDisk(t, tab); n > 17<<20 {
		t.Fatalf("64 TiB of one kind take %d bytes", n)
	}
	small := openTable(t, filepath.Join(t.TempDir(), "table"), 4*gib)
	r := rand.New(rand.NewPCG(1, 1))
	for g := range small.groups {
		var ds [GroupLeaves]digest.Digest
		for i := range ds {
			binary.LittleEndian.PutUint64(ds[i][:], r.Uint64()|1)
		}
		if err := small.Set(g*GroupLeaves, ds[:]); err != nil {
			t.Fatal(err)
		}
	}
	if err := small.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := onDisk(t, small); n < small.groups*pageSize {
		t.Fatalf("full, it takes %d bytes", n)
	}
	if err := small.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := small.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := onDisk(t, small); n > 64<<10 {
		t.Fatalf("after a reset it takes %d bytes", n)
	}
}

// A real full filesystem: the error is clear, and the table goes on when there is space.
func TestFullFilesystem(t *testing.T) {
	looptest.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	tab, n := openTable(t, filepath.Join(dir, "table"), 4*gib), newNaive(4*gib)
	var ds [GroupLeaves]digest.Digest
	var full error
	g := int64(0)
	for ; g < tab.groups && full == nil; g++ {
		for i := range ds {
			ds[i] = digest.Digest{byte(g), byte(i), 1}
		}
		if full = tab.Set(g*GroupLeaves, ds[:]); full == nil {
			copy(n.ds[g*GroupLeaves:], ds[:])
		}
	}
	if full == nil {
		full = tab.Flush()
	}
	if !errors.Is(full, syscall.ENOSPC) || !strings.Contains(full.Error(), "write digest table") {
		t.Fatalf("full filesystem: %v", full)
	}
	agree(t, tab, n)
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := tab.Sync(); err != nil {
		t.Fatal(err)
	}
	agree(t, tab, n)
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	agree(t, openTable(t, filepath.Join(dir, "table"), 4*gib), n)
}

// Under -race: writers on disjoint leaves, readers, invalidations, roots, holds, all at once.
func TestConcurrent(t *testing.T) {
	const writers, each = 4, 70 * GroupLeaves
	size := int64(writers * each * LeafSize)
	path := filepath.Join(t.TempDir(), "table")
	tab, n := openTable(t, path, size), newNaive(size)
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			mine := n.ds[w*each : (w+1)*each]
			for range 150 {
				first := r.Int64N(each)
				ds := make([]digest.Digest, 1+r.Int64N(min(600, each-first)))
				for i := range ds {
					ds[i] = randomDigest(r)
				}
				var err error
				switch r.IntN(4) {
				case 0:
					clear(mine[first : first+int64(len(ds))])
					err = tab.Invalidate(extent.Extent{Off: (w*each + first) * LeafSize, Len: int64(len(ds)) * LeafSize})
				default:
					copy(mine[first:], ds)
					err = tab.Set(w*each+first, ds)
				}
				if err != nil {
					t.Error(err)
				}
				if got := tab.Digests(w*each+first, int64(len(ds))); !slices.Equal(got, mine[first:first+int64(len(ds))]) {
					t.Error("read back something else")
				}
			}
		})
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	for i := range 2 {
		others.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				var err error
				switch r.IntN(7) {
				case 0:
					err = tab.Flush()
				case 1:
					if err = tab.Sync(); errors.Is(err, ErrHeld) {
						err = nil
					}
				case 2:
					err = tab.Hold()
				case 3:
					err = tab.Release()
				case 4:
					tab.Root()
				case 5:
					tab.Counts()
				case 6:
					for range tab.Unknown() {
					}
				}
				if err != nil {
					t.Error(err)
				}
				runtime.Gosched()
			}
		})
	}
	wg.Wait()
	close(stop)
	others.Wait()
	if err := tab.Release(); err != nil {
		t.Fatal(err)
	}
	agree(t, tab, n)
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	agree(t, openTable(t, path, size), n)
}

// Memory stays within the cache's bound for a volume of 4 TiB with 20 GiB of data that are spread.
func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tab := filled(t, 4*tib, 20*gib/GroupSize)
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes in memory, %d on disk", used, onDisk(t, tab))
	if used > 20<<20 {
		t.Errorf("%d bytes in memory", used)
	}
	runtime.KeepAlive(tab)
}

func ExampleTable() {
	dir, err := os.MkdirTemp("", "table")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	tab, err := OpenTable(filepath.Join(dir, "table"), 1<<40)
	if err != nil {
		panic(err)
	}
	defer tab.Close()
	_ = tab.Fill(0, Leaves(tab.Size()), digest.Free)
	_ = tab.Invalidate(extent.Extent{Off: 4096, Len: 16384})
	for e := range tab.Unknown() {
		fmt.Println("read", e)
		_ = tab.Set(e.Off/LeafSize, []digest.Digest{digest.Sum([]byte("first leaf")), ZeroLeaf})
	}
	root, ok := tab.Root()
	fmt.Println(root.Short(), ok)
	// Output:
	// read [0,32768)
	// cd6d531ec0f16de4 true
}
