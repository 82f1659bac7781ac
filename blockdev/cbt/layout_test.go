package cbt

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/quick"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// TestPartition: a partition is tracked on its disk; writes beside it are counted but not marked.
func TestPartition(t *testing.T) {
	r := newRig(t, 64<<20, rigOptions{})
	const off, size = 3<<20 + 512*7, 20<<20 + 512*3 // aligned to nothing but sectors
	part := openDirect(t, r.loop.Partition(1, off, size))
	o := r.o
	o.Name += "part"
	o.Size = size
	o.Map = extent.Map{{Len: size, Dev: r.o.Map[0].Dev, DevOff: off}}
	tr, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Remove()
	p := &rig{t: t, loop: r.loop, size: size, o: o, tr: tr, f: part}
	p.fresh()
	buf := aligned(t, 8192)
	r.write(0, buf)
	r.write(off-4096-512*7, buf[:4096])
	r.write(off+size+512, buf[:4096])
	if got := exts(p.take()); len(got) != 0 {
		t.Errorf("writes beside the partition marked %v", got)
	}
	p.write(0, buf[:512])
	p.write(4096-512, buf[:1024])
	p.write(size-512, buf[:512])
	want := []extent.Extent{{Off: 0, Len: 8192}, {Off: size / 4096 * 4096, Len: size % 4096}}
	if got := exts(p.take()); !slices.Equal(got, want) {
		t.Errorf("marked %v, want %v", got, want)
	}
	p.prove()
}

// TestLeaves: a volume on two disks, pieces out of order and mirrored, is tracked through its map.
func TestLeaves(t *testing.T) {
	a := looptest.New(t, 32<<20, looptest.Options{DirectIO: true})
	b := looptest.New(t, 32<<20, looptest.Options{DirectIO: true})
	da, db := devOf(t, a.Dev), devOf(t, b.Dev)
	m := extent.Map{
		{Off: 0, Len: 4 << 20, Dev: da, DevOff: 9 << 20},
		{Off: 4 << 20, Len: 8<<20 + 512, Dev: db, DevOff: 1<<20 + 1024},
		{Off: 12<<20 + 512, Len: 2 << 20, Dev: da, DevOff: 1 << 20},
		{Off: 0, Len: 4 << 20, Dev: db, DevOff: 20 << 20}, // mirror of the first
	}
	const size = 14<<20 + 512
	tr, err := Open(Options{Name: t.Name(), Map: m, Size: size, PinDir: testPins()})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Remove()
	r := &rig{t: t, size: size, tr: tr}
	r.fresh()
	buf := aligned(t, 1<<20)
	fa, fb := openDirect(t, a.Dev), openDirect(t, b.Dev)
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		f, dev := fa, da
		if rng.IntN(2) == 0 {
			f, dev = fb, db
		}
		n := int64(1+rng.IntN(64)) * 512
		off := rng.Int64N((32<<20-n)/512) * 512
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			t.Fatal(err)
		}
		set := r.take()
		for _, e := range m.Up(dev, extent.Extent{Off: off, Len: n}) {
			if !set.Contains(e) {
				t.Fatalf("%d+%d on %d is %v on the volume and not marked: %v", off, n, dev, e, exts(set))
			}
			e = extent.Extent{Off: e.Off - 8192, Len: e.Len + 16384} // granules of the disk do not lie as those of the volume
			set.Remove(e)
		}
		if !set.Empty() {
			t.Fatalf("%d+%d marked far more: %v", off, n, exts(set))
		}
		r.retire()
	}
	r.prove()
}

func TestPinName(t *testing.T) {
	injective := func(a, b string) bool { return a == b || pinName(a) != pinName(b) }
	if err := quick.Check(injective, nil); err != nil {
		t.Error(err)
	}
	if got := pinName("db/root.1"); got != "db=2froot=2e1" {
		t.Errorf("got %s", got)
	}
}

func TestGather(t *testing.T) {
	for range 1000 {
		var part [8]uint64
		var want uint64
		for g := range 64 {
			if rand.IntN(2) == 1 {
				part[g/8] |= 1 << (g % 8 * 8)
				want |= 1 << g
			}
		}
		if got, seen := gather(part[:]); got != want || seen != part {
			t.Fatalf("%x gathers to %x, want %x", part, got, want)
		}
	}
}

func TestGranule(t *testing.T) {
	for _, c := range []struct {
		size, memory, per, want int64
	}{
		{1 << 30, 128 << 20, 64, 4096},
		{2 << 40, 128 << 20, 64, 4096},
		{2<<40 + 1, 128 << 20, 64, 8192},
		{64 << 40, 128 << 20, 64, 128 << 10},
		{2 << 40, 128 << 20, 8, 32 << 10},
	} {
		if got := chooseGranule([]extent.Segment{{Len: c.size}}, c.memory/2, c.per); got != c.want {
			t.Errorf("%d bytes in %d: granule %d, want %d", c.size, c.memory, got, c.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	a, busy, err := parseStat([]byte("  1 2 3 4 5 6 70 8 0 10 11 12 13 140 15 16 17\n"))
	if err != nil || busy || a != (account{70 * 512, 140 * 512}) {
		t.Errorf("%+v %v %v", a, busy, err)
	}
	for _, bad := range []string{"", "1 2 3", "1 2 3 4 5 6 x 8 9 10 11 12 13 14 15"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// sparseRig tracks a huge sparse disk: its bitmaps are as large as they get.
func sparseRig(b *testing.B) *rig {
	return newRig(b, 2<<40, rigOptions{})
}

// BenchmarkTake scans the bitmaps of a 2 TiB disk in 4 KiB granules, 64 MiB each, with so many granules dirty.
func BenchmarkTake(b *testing.B) {
	looptest.NeedRoot(b)
	r := sparseRig(b)
	r.fresh()
	for _, n := range []int{0, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				scatter(b, r.tr, n)
				b.StartTimer()
				r.take()
				b.StopTimer()
				r.retire()
				b.StartTimer()
			}
		})
	}
	b.Run("pending", func(b *testing.B) {
		for b.Loop() {
			r.tr.pendingIn = 0
			r.tr.Pending()
		}
	})
}

// scatter sets n bits of dirty, as the program would.
func scatter(b *testing.B, tr *Tracker, n int) {
	b.Helper()
	l := tr.leaves[0]
	all := words(l.plan.granules, 64)
	err := l.windows(func(first int64, _, dirty []uint64) {
		for range int64(n) * int64(len(dirty)) / all {
			g := rand.IntN(len(dirty) * 64)
			dirty[g/64] |= 1 << (g % 64)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestGenerated: no path of the machine that compiled them is in the objects.
func TestGenerated(t *testing.T) {
	for _, f := range []string{"bitmap_bpfel.o", "bytemap_bpfel.o"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		wd, _ := os.Getwd()
		if slices.ContainsFunc([]string{wd, filepath.Dir(wd), "/root", "/home"}, func(s string) bool { return len(s) > 1 && containsBytes(b, s) }) {
			t.Errorf("%s holds a path of this machine", f)
		}
	}
}

func containsBytes(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if string(b[i:i+len(s)]) == s {
			return true
		}
	}
	return false
}
