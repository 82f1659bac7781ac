package cbt

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

const (
	blkDiscard    = 0x1277
	blkZeroOut    = 0x127f
	blkSecDiscard = 0x127d
)

func (r *rig) rangeIoctl(op uintptr, off, n int64) {
	r.t.Helper()
	arg := [2]uint64{uint64(off), uint64(n)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, r.f.Fd(), op, uintptr(unsafe.Pointer(&arg))); e != 0 {
		r.t.Fatalf("ioctl %#x at %d+%d: %v", op, off, n, e)
	}
}

// variants lists what this kernel takes: where BPF has atomics, a byte map works too.
func variants() []string {
	if Probe().Variant == VariantBitmap {
		return []string{VariantBitmap, VariantBytemap}
	}
	return []string{VariantBytemap}
}

// TestProbe wants a kernel on which the privileged tests mean something.
func TestProbe(t *testing.T) {
	looptest.NeedRoot(t)
	s := Probe()
	t.Logf("%+v", s)
	if s.Method != MethodEBPF || (s.Variant == VariantBitmap) != (s.Reason == "") {
		t.Errorf("probe says %+v", s)
	}
}

// TestRawOps: each kind of request marks exactly the granules that it touches, and is counted to the byte.
func TestRawOps(t *testing.T) {
	for _, variant := range variants() {
		for _, sector := range []int{512, 4096} {
			t.Run(variant+map[int]string{512: "512", 4096: "4Kn"}[sector], func(t *testing.T) {
				r := newRig(t, 64<<20, rigOptions{sector: sector, variant: variant})
				buf := aligned(t, 1<<20)
				s := int64(sector)
				g := r.tr.Granule()
				for _, c := range []struct {
					name string
					do   func()
					want extent.Extent
				}{
					{"first sector", func() { r.write(0, buf[:s]) }, extent.Extent{Len: s}},
					{"last sector", func() { r.write(r.size-s, buf[:s]) }, extent.Extent{Off: r.size - s, Len: s}},
					{"across granules", func() { r.write(3*g-s, buf[:2*s]) }, extent.Extent{Off: 3*g - s, Len: 2 * s}},
					{"1 MiB", func() { r.write(5<<20+s, buf) }, extent.Extent{Off: 5<<20 + s, Len: 1 << 20}},
					{"zero out", func() { r.rangeIoctl(blkZeroOut, 7<<20+s, 333*s) }, extent.Extent{Off: 7<<20 + s, Len: 333 * s}},
					{"discard", func() { r.rangeIoctl(blkDiscard, 9<<20, 3<<20+4096) }, extent.Extent{Off: 9 << 20, Len: 3<<20 + 4096}},
					{"discard all", func() { r.rangeIoctl(blkDiscard, 0, r.size) }, extent.Extent{Len: r.size}},
					{"zero out most", func() { r.rangeIoctl(blkZeroOut, 20<<20+s, 41<<20) }, extent.Extent{Off: 20<<20 + s, Len: 41 << 20}},
				} {
					r.fresh()
					c.do()
					want := []extent.Extent{c.want.Align(g)}
					if p := r.tr.Pending(); p != want[0].Len {
						t.Errorf("%s: %d bytes pending, want %d", c.name, p, want[0].Len)
					}
					if got := exts(r.take()); !slices.Equal(got, want) {
						t.Errorf("%s: dirty %v, want %v", c.name, got, want)
					}
					r.prove()
				}
				r.fresh()
				r.f.ReadAt(buf, 0)
				if got := exts(r.take()); len(got) != 0 {
					t.Errorf("a read marked %v", got)
				}
			})
		}
	}
}

// TestTakenStays: what was taken comes again until it is retired (C1, C4).
func TestTakenStays(t *testing.T) {
	r := newRig(t, 16<<20, rigOptions{})
	buf := aligned(t, 4096)
	r.fresh()
	r.write(0, buf)
	r.take()
	r.write(1<<20, buf)
	want := []extent.Extent{{Off: 0, Len: 4096}, {Off: 1 << 20, Len: 4096}}
	for range 2 {
		if got := exts(r.take()); !slices.Equal(got, want) {
			t.Fatalf("dirty or taken: %v, want %v", got, want)
		}
	}
	if err := r.tr.Retire(r.tr.History().Taken - 1); err == nil {
		t.Error("an epoch before the last was retired")
	}
	r.retire()
	r.retire() // again: nothing
	if got := exts(r.take()); len(got) != 0 {
		t.Errorf("after retire: %v", got)
	}
}

// TestFilesystem: buffered, mapped and punched writes through filesystems, and fstrim, are all in the set: every granule that differs
// between two readings of the disk is.
func TestFilesystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, 400<<20, rigOptions{})
			looptest.Mkfs(t, r.loop.Dev, kind)
			dir := looptest.Mount(t, r.loop.Dev)
			unix.Sync()
			old := readAll(t, r.f, r.size)
			r.fresh()
			// what differs from here on must be marked; the readings are not atomic, so writers rest during them
			exerciseFiles(t, dir)
			set := r.take()
			checkDiffer(t, old, readAll(t, r.f, r.size), set)
			r.retire()

			old = readAll(t, r.f, r.size)
			if err := os.Remove(filepath.Join(dir, "big")); err != nil {
				t.Fatal(err)
			}
			looptest.Run(t, "sync", "-f", dir)
			looptest.Run(t, "fstrim", dir)
			set = r.take()
			checkDiffer(t, old, readAll(t, r.f, r.size), set)
			if set.Bytes() < 100<<20 {
				t.Errorf("fstrim marked only %d bytes", set.Bytes())
			}
			looptest.Unmount(t, dir)
			r.prove()
		})
	}
}

func exerciseFiles(t *testing.T, dir string) {
	t.Helper()
	looptest.Run(t, "dd", "if=/dev/urandom", "of="+filepath.Join(dir, "big"), "bs=1M", "count=50", "status=none")
	path := filepath.Join(dir, "mapped")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 8<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(mem); i += 37 << 10 {
		mem[i] = byte(i>>10) | 1
	}
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		t.Fatal(err)
	}
	unix.Munmap(mem)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 1<<20, 3<<20); err != nil && err != unix.EOPNOTSUPP {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, "sync", "-f", dir)
}

func readAll(t testing.TB, f *os.File, size int64) []byte {
	t.Helper()
	b := aligned(t, int(size))
	for off := int64(0); off < size; {
		n, err := f.ReadAt(b[off:min(size, off+8<<20)], off)
		if n == 0 {
			t.Fatalf("read at %d: %v", off, err)
		}
		off += int64(n)
	}
	return b
}

// checkDiffer reports granules that differ and are not in the set.
func checkDiffer(t testing.TB, old, now []byte, set *extent.Set) {
	t.Helper()
	g, lost, differ := set.Granule(), 0, 0
	for off := int64(0); off < int64(len(old)); off += g {
		end := min(off+g, int64(len(old)))
		if string(old[off:end]) != string(now[off:end]) {
			differ++
			if !set.Contains(extent.Extent{Off: off, Len: end - off}) {
				lost++
			}
		}
	}
	if lost > 0 || differ == 0 {
		t.Errorf("%d of %d changed granules are not in the set", lost, differ)
	}
}

// TestDiscardStorm discards small pieces at random from many threads, which a driver with several ranges per command merges though they do
// not touch. CBT_DISK names a scratch disk of at least 64 MiB that does so; otherwise it is a loop device, which does not.
func TestDiscardStorm(t *testing.T) {
	r := &rig{t: t, size: 64 << 20}
	if disk := os.Getenv("CBT_DISK"); disk != "" {
		r.o = Options{Name: t.Name(), Map: wholeMap(devOf(t, disk), r.size), Size: r.size, PinDir: testPins()}
		r.f = openDirect(t, disk)
		r.open()
		defer r.tr.Remove()
	} else {
		r = newRig(t, r.size, rigOptions{})
	}
	r.fresh()
	want := extent.NewSet(r.size, r.tr.Granule())
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(i)))
			for range 100 {
				e := extent.Extent{Off: rng.Int64N(r.size/4096-4) * 4096, Len: (1 + rng.Int64N(4)) * 4096}
				arg := [2]uint64{uint64(e.Off), uint64(e.Len)}
				if _, _, errno := unix.Syscall(unix.SYS_IOCTL, r.f.Fd(), blkDiscard, uintptr(unsafe.Pointer(&arg))); errno != 0 {
					t.Errorf("discard %v: %v", e, errno)
					return
				}
				want.Add(e)
			}
		})
	}
	wg.Wait()
	got := r.take()
	for e := range want.All() {
		if !got.Contains(e) {
			t.Errorf("%v was discarded and is not marked", e)
		}
	}
	if got.Bytes() != want.Bytes() {
		t.Errorf("%d bytes are marked, %d were discarded", got.Bytes(), want.Bytes())
	}
	r.prove()
	stat, _ := r.tr.plan.leaves[0].disk.text("stat")
	t.Logf("%s discards were merged", strings.Fields(stat)[12])
}
