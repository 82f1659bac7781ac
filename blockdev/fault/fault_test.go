package fault_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
)

var sizes = []int64{4096, 5 << 20, 5<<20 + 512, 3<<20 + 777}

func fill(t *testing.T, m *fault.Mem, content []byte) *fault.Mem {
	t.Helper()
	if _, err := m.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestVolumes(t *testing.T) {
	for _, size := range sizes {
		devtest.Volume(t, size, func(t *testing.T, c []byte) blockdev.Volume { return fill(t, fault.NewMem(size), c) })
		devtest.Volume(t, size, func(t *testing.T, c []byte) blockdev.Volume {
			return fault.NewVolume(fill(t, fault.NewMem(size), c), new(fault.Plan))
		})
	}
}

func TestTargets(t *testing.T) {
	for _, size := range sizes {
		for name, wrap := range map[string]func(blockdev.Target) blockdev.Target{
			"mem":   func(d blockdev.Target) blockdev.Target { return d },
			"plan":  func(d blockdev.Target) blockdev.Target { return fault.NewTarget(d, new(fault.Plan)) },
			"crash": func(d blockdev.Target) blockdev.Target { return fault.NewCrash(d) },
		} {
			t.Run(name, func(t *testing.T) {
				m := fault.NewMem(size)
				devtest.Target(t, size,
					func(*testing.T) blockdev.Target { return wrap(m) },
					func(*testing.T) blockdev.Target { return wrap(m.Reopen()) })
			})
		}
	}
}

func TestFail(t *testing.T) {
	var p fault.Plan
	m := fault.NewMem(1 << 20)
	d, v := fault.NewTarget(m, &p), fault.NewVolume(m, &p)
	p.Fail(fault.Read|fault.Write, extent.Extent{Off: 8192, Len: 512}, nil)
	buf := bytes.Repeat([]byte{1}, 16<<10)
	if n, err := d.WriteAt(buf, 0); n != 8192 || !errors.Is(err, unix.EIO) {
		t.Errorf("write over the bad place: %d, %v", n, err)
	}
	if n, err := v.ReadAt(buf, 4096); n != 4096 || !errors.Is(err, unix.EIO) {
		t.Errorf("read over the bad place: %d, %v", n, err)
	}
	if _, err := d.WriteAt(buf, 16<<10); err != nil {
		t.Errorf("write elsewhere: %v", err)
	}
	p.Clear()
	p.FailTimes(fault.Sync, 2, unix.EIO)
	for i := range 3 {
		if err := d.Sync(); (err != nil) != (i < 2) {
			t.Errorf("sync %d: %v", i, err)
		}
	}
	p.Clear()
	p.Full(20 << 10)
	if _, err := d.WriteAt(buf, 0); err != nil {
		t.Error(err)
	}
	if n, err := d.WriteAt(buf, 0); n != 4<<10 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write on a full disk: %d, %v", n, err)
	}
	p.Vanish()
	if _, err := v.ReadAt(buf, 0); !errors.Is(err, unix.ENXIO) {
		t.Errorf("read of what vanished: %v", err)
	}
	if err := v.Check(); err == nil {
		t.Error("check of what vanished is fine")
	}
	if p.Ops(fault.Sync) != 3 {
		t.Errorf("%d syncs, want 3", p.Ops(fault.Sync))
	}
}

func TestRandom(t *testing.T) {
	run := func(seed uint64) (out []int) {
		var p fault.Plan
		p.Random(seed, fault.Write, 0.2)
		p.Short(seed, 0.2)
		d := fault.NewTarget(fault.NewMem(1<<20), &p)
		for range 200 {
			n, _ := d.WriteAt(make([]byte, 16<<10), 0)
			out = append(out, n)
		}
		return out
	}
	a, b, c := run(1), run(1), run(2)
	failed, short, same := 0, 0, 0
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("write %d differs between runs of one seed", i)
		}
		if a[i] == c[i] {
			same++
		}
		if a[i] == 0 {
			failed++
		} else if a[i] < 16<<10 {
			short++
		}
	}
	if failed < 10 || short < 10 || same == len(a) {
		t.Errorf("%d failed, %d short, %d equal under another seed", failed, short, same)
	}
}

func TestHookAndDelay(t *testing.T) {
	var p fault.Plan
	entered, release := make(chan struct{}), make(chan struct{})
	p.Hook(func(op fault.Op, e extent.Extent) error {
		close(entered)
		<-release
		return nil
	})
	d := fault.NewTarget(fault.NewMem(4096), &p)
	done := make(chan error)
	go func() { _, err := d.WriteAt(make([]byte, 512), 0); done <- err }()
	<-entered
	select {
	case <-done:
		t.Error("a held write returned")
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	p.Clear()
	p.Delay(fault.Sync, 20*time.Millisecond)
	if begin := time.Now(); d.Sync() != nil || time.Since(begin) < 20*time.Millisecond {
		t.Error("the sync was not slow")
	}
}

// TestCrash: every sector is, after a power cut, what it was at the last sync or what one of the later writes made of it, and over many
// seeds each of these is seen, torn writes too.
func TestCrash(t *testing.T) {
	const size = 64 << 10
	page := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	var old, first, second, zero, torn, synced int
	for seed := range uint64(200) {
		c := fault.NewCrash(fault.NewMem(size))
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must := func(_ int, err error) { check(err) }
		must(c.WriteAt(page(1, size), 0))
		check(c.Sync())
		must(c.WriteAt(page(2, 16<<10), 0))
		must(c.WriteAt(page(3, 16<<10), 0))
		check(c.Zero(extent.Extent{Off: 32 << 10, Len: 16 << 10}))
		got := make([]byte, size)
		must(c.ReadAt(got, 0))
		if got[0] != 3 || got[32<<10] != 0 || got[48<<10] != 1 {
			t.Fatal("pending writes are not read back")
		}
		medium, err := c.Crash(seed)
		check(err)
		if _, err := c.ReadAt(got, 0); !errors.Is(err, fault.ErrCrashed) {
			t.Fatalf("read after the power cut: %v", err)
		}
		must(medium.ReadAt(got, 0))
		kinds := map[byte]bool{}
		for s := 0; s < size; s += 512 {
			b := got[s]
			if !bytes.Equal(got[s:s+512], page(b, 512)) {
				t.Fatalf("seed %d: sector %d is torn", seed, s/512)
			}
			switch {
			case s < 16<<10 && b >= 1 && b <= 3:
				kinds[b] = true
				old, first, second = old+count(b == 1), first+count(b == 2), second+count(b == 3)
			case s >= 32<<10 && s < 48<<10 && b <= 1:
				zero += count(b == 0)
			case b == 1:
				synced++
			default:
				t.Fatalf("seed %d: sector %d holds %d", seed, s/512, b)
			}
		}
		torn += count(len(kinds) > 1)
	}
	if old == 0 || first == 0 || second == 0 || zero == 0 || torn == 0 || synced == 0 {
		t.Errorf("never seen: old %d, first %d, second %d, zero %d, torn %d, synced %d", old, first, second, zero, torn, synced)
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestMemIsSparse(t *testing.T) {
	const size = 64 << 40
	m := fault.NewMem(size)
	if _, err := m.WriteAt([]byte("end"), size-3); err != nil {
		t.Fatal(err)
	}
	if err := m.Zero(extent.Extent{Off: 0, Len: size - 1}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := m.ReadAt(got, size-3); err != nil || string(got) != "\x00\x00d" {
		t.Errorf("%q, %v", got, err)
	}
}
