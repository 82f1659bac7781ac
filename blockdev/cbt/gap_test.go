package cbt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// wantGap takes, and wants ErrTrackLost with a cause that has text in it, again and again until Restart.
func (r *rig) wantGap(text string) {
	r.t.Helper()
	for range 2 {
		_, _, err := r.tr.Take(context.Background())
		if !errors.Is(err, sentinel.ErrTrackLost) || !strings.Contains(err.Error(), text) {
			r.t.Fatalf("take gives %v, want a gap that tells of %q", err, text)
		}
	}
	if _, err := r.tr.Prove(context.Background()); !errors.Is(err, sentinel.ErrTrackLost) {
		r.t.Fatalf("prove after a gap: %v", err)
	}
	if err := r.tr.Retire(r.tr.History().Taken); !errors.Is(err, sentinel.ErrTrackLost) {
		r.t.Fatalf("retire after a gap: %v", err)
	}
}

// restart begins anew after a gap and shows that tracking works again.
func (r *rig) restart() {
	r.t.Helper()
	old := r.tr.History()
	if err := r.tr.Restart(); err != nil {
		r.t.Fatal(err)
	}
	if h := r.tr.History(); h.Generation == old.Generation || h.Taken != 0 || h.Retired != 0 {
		r.t.Fatalf("restart went from %+v to %+v", old, h)
	}
	r.fresh()
	r.write(8192, aligned(r.t, 512))
	if s := r.take(); !s.Contains(extent.Extent{Off: 8192, Len: 512}) {
		r.t.Fatal("after a restart a write is not marked")
	}
	r.prove()
}

// TestForcedMisses: a write for which no program ran is a gap in every one of 150 tries, at rest and under load (C2).
func TestForcedMisses(t *testing.T) {
	r := newRig(t, 64<<20, rigOptions{})
	buf := aligned(t, 64<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	r.fresh()
	for i := range 150 {
		if err := ForceMiss(r.o.PinDir, r.o.Name, 1+rng.IntN(3)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			n := int64(1+rng.IntN(len(buf)/512)) * 512
			r.write(rng.Int64N((r.size-n)/512)*512, buf[:n])
		}
		if _, _, err := r.tr.Take(context.Background()); !errors.Is(err, sentinel.ErrTrackLost) {
			t.Fatalf("try %d: a missed write was not detected: %v", i, err)
		}
		if err := r.tr.Restart(); err != nil {
			t.Fatal(err)
		}
		r.fresh()
	}
	r.prove()
	for i := range 20 {
		stop := writers(r, 2, uint64(i))
		if err := ForceMiss(r.o.PinDir, r.o.Name, 20+rng.IntN(100)); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil && r.forced().miss > 0 {
			_, _, err = r.tr.Take(context.Background())
		}
		stop()
		if err == nil {
			_, _, err = r.tr.Take(context.Background())
		}
		if !errors.Is(err, sentinel.ErrTrackLost) {
			t.Fatalf("try %d under load: a missed write was not detected: %v", i, err)
		}
		if err := r.tr.Restart(); err != nil {
			t.Fatal(err)
		}
		r.fresh()
	}
}

// forced tells what the program still has to drop.
func (r *rig) forced() (c control) {
	r.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(r.tr.dir, pinOf(0, "control")), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	var v [2]uint64
	if err := m.Lookup(uint32(0), &v); err != nil {
		r.t.Fatal(err)
	}
	return control{v[0], v[1]}
}

// TestSkips: completions for which no program ran lose nothing, because the issue was noted, and both accounts still agree.
func TestSkips(t *testing.T) {
	r := newRig(t, 8<<20, rigOptions{})
	buf := aligned(t, 8192)
	r.fresh()
	if err := ForceSkip(r.o.PinDir, r.o.Name, 1); err != nil {
		t.Fatal(err)
	}
	r.write(1<<20, buf)
	e := extent.Extent{Off: 1 << 20, Len: 8192}
	r.prove()
	for range 3 {
		if s := r.take(); !s.Contains(e) {
			t.Fatal("a write whose completion was skipped is not in the set")
		}
		r.retire()
	}
	f := newFollower(t, r)
	stop := writers(r, 3, 7)
	f.begin(r)
	skipped := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		if r.forced().skip == 0 {
			skipped++
			if err := ForceSkip(r.o.PinDir, r.o.Name, 1+skipped%50); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.follow(r.tr); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := f.follow(r.tr); err != nil {
		t.Fatal(err)
	}
	f.compare(r)
	r.prove()
	t.Logf("%d completions were skipped", skipped)
}

func TestGapCauses(t *testing.T) {
	t.Run("resize", func(t *testing.T) {
		r := newRig(t, 64<<20, rigOptions{})
		r.fresh()
		r.loop.Resize(80 << 20)
		r.wantGap("resized")
		r.restart()
	})
	t.Run("identity", func(t *testing.T) {
		r := newRig(t, 16<<20, rigOptions{})
		id := "a"
		r.o.Identity = func() (string, error) { return id, nil }
		r.reopen()
		r.fresh()
		id = "b"
		r.wantGap(`"b" and was "a"`)
		r.restart()
	})
	t.Run("map", func(t *testing.T) {
		r := newRig(t, 16<<20, rigOptions{})
		now := r.o.Map
		r.o.Remap = func() (extent.Map, error) { return now, nil }
		r.reopen()
		r.fresh()
		m := r.o.Map[0]
		now = extent.Map{{Len: 8 << 20, Dev: m.Dev, DevOff: 8 << 20}, {Off: 8 << 20, Len: 8 << 20, Dev: m.Dev}}
		r.wantGap("elsewhere")
		if err := r.tr.Restart(); err != nil {
			t.Fatal(err)
		}
		r.fresh()
		r.write(0, aligned(t, 4096))
		if got := exts(r.take()); len(got) != 1 || got[0].Off != 8<<20 {
			t.Errorf("by the new map the write is at %v", got)
		}
	})
	t.Run("iostats", func(t *testing.T) {
		r := newRig(t, 16<<20, rigOptions{})
		r.fresh()
		set := func(v string) {
			if err := os.WriteFile(filepath.Join(r.tr.plan.leaves[0].disk.dir, "queue/iostats"), []byte(v), 0); err != nil {
				t.Fatal(err)
			}
		}
		set("0")
		defer set("1")
		r.wantGap("iostats")
		if err := r.tr.Restart(); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("restart without the kernel's account: %v", err)
		}
		set("1")
		r.restart()
		set("0")
		r.write(0, aligned(t, 4096))
		set("1")
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if p, err := r.tr.Prove(ctx); !errors.Is(err, sentinel.ErrTrackLost) {
			t.Errorf("an account that was off for a while proves %v, %v", p, err)
		}
	})
	for _, name := range append(append([]string{}, leafLinks...), "dirty", "taken") {
		t.Run("pin "+name, func(t *testing.T) {
			r := newRig(t, 16<<20, rigOptions{})
			r.fresh()
			if err := os.Remove(filepath.Join(r.tr.dir, pinOf(0, name))); err != nil {
				t.Fatal(err)
			}
			r.wantGap("is gone")
			old := r.tr.History().Generation
			r.reopen() // the gap, and with it the generation, does not survive
			if r.tr.History().Generation == old {
				t.Error("a generation with a lost pin was adopted")
			}
			r.fresh()
			os.Remove(filepath.Join(r.tr.dir, pinOf(0, name)))
			r.wantGap("is gone")
			r.restart()
		})
	}
}

// TestAdoption: what is pinned is taken over only if it is of this very volume and was set up to its end.
func TestAdoption(t *testing.T) {
	r := newRig(t, 16<<20, rigOptions{})
	r.fresh()
	r.write(4096, aligned(t, 4096))
	r.take()
	h := r.tr.History()
	if _, err := Open(r.o); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("a second Open: %v", err)
	}
	r.reopen()
	if got := r.tr.History(); got != h {
		t.Fatalf("adopted %+v, want %+v", got, h)
	}
	if s := r.take(); s.Bytes() != 4096 {
		t.Errorf("adopted %v", exts(s))
	}
	r.prove()

	anew := func(what string) {
		t.Helper()
		old := r.tr.History().Generation
		r.reopen()
		if r.tr.History().Generation == old {
			t.Errorf("%s: adopted", what)
		}
		r.fresh()
		r.prove()
	}
	r.tr.st.Ready = 0
	anew("a restart that did not end")
	r.tr.st.Version++
	anew("another version")
	r.o.Identity = func() (string, error) { return "x", nil }
	anew("another identity")
	r.o.Memory = 256
	anew("another granule")
	if r.tr.Granule() == minGranule {
		t.Error("so little memory gives 4 KiB granules")
	}
	r.o.Size -= 4096
	r.o.Map = wholeMap(r.o.Map[0].Dev, r.o.Size)
	anew("another size")
	r.tr.gap("of a test")
	r.reopen()
	r.wantGap("of a test") // a gap survives the process
	r.restart()
}

// TestFirstTake: nothing is proven before the first Take, and misses before it do no harm.
func TestFirstTake(t *testing.T) {
	r := newRig(t, 16<<20, rigOptions{})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if p, err := r.tr.Prove(ctx); p != blockdev.Unproven || err != nil {
		t.Errorf("prove before the first take: %v, %v", p, err)
	}
	if err := ForceMiss(r.o.PinDir, r.o.Name, 1); err != nil {
		t.Fatal(err)
	}
	r.write(0, aligned(t, 4096))
	r.fresh()
	r.prove()
	if err := r.tr.Retire(7); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("retire an epoch that never was: %v", err)
	}
}

// TestBusyBase: a base that is taken on a disk that is never quiet is right.
func TestBusyBase(t *testing.T) {
	r := newRig(t, 64<<20, rigOptions{})
	stop := writers(r, 4, 11)
	for range 5 {
		if err := r.tr.Restart(); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			r.take()
		}
	}
	stop()
	r.take()
	r.prove()
}

func TestRefusals(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 32<<20, looptest.Options{})
	part := l.Partition(1, 1<<20, 8<<20)
	open := func(dev uint64, size int64) error {
		tr, err := Open(Options{Name: "refused", Map: wholeMap(dev, size), Size: size, PinDir: testPins()})
		if err == nil {
			tr.Remove()
		} else {
			os.Remove(filepath.Join(testPins(), "refused"))
		}
		return err
	}
	if err := open(devOf(t, part), 8<<20); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), "partition") {
		t.Errorf("a partition: %v", err)
	}
	if err := open(1<<40, 8<<20); !errors.Is(err, sentinel.ErrNotFound) {
		t.Errorf("no disk: %v", err)
	}
	if err := open(devOf(t, l.Dev), 64<<20); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("a map beyond the disk: %v", err)
	}
	for _, c := range []struct{ name, dir, files, want string }{
		{"dm-0", "/virtual/block/dm-0", "", "device-mapper"},
		{"zram0", "/virtual/block/zram0", "", "zram"},
		{"nvme0n1", "/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "", "multipath"},
		{"x", "x", "mq queue/dax=1", "DAX"},
		{"x", "x", "mq queue/dax=0 queue/zoned=host-managed", "zoned"},
		{"x", "x", "mq queue/zoned=none queue/iostats=0", "echo 1 >"},
		{"x", "x", "mq queue/zoned=none", "iostats"},
	} {
		dir := filepath.Join(t.TempDir(), c.dir)
		os.MkdirAll(filepath.Join(dir, "queue"), 0o700)
		for _, f := range strings.Fields(c.files) {
			name, v, _ := strings.Cut(f, "=")
			os.WriteFile(filepath.Join(dir, name), []byte(v+"\n"), 0o600)
		}
		err := disk{name: c.name, dir: dir}.refuse()
		if !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s with %q: %v, want %q", c.name, c.files, err, c.want)
		}
	}
	_, err := Open(Options{Name: "x", Map: wholeMap(devOf(t, l.Dev), 8<<20), Size: 8 << 20, PinDir: t.TempDir()})
	if !errors.Is(err, sentinel.ErrUsage) || !strings.Contains(err.Error(), "bpffs") {
		t.Errorf("pins on another filesystem: %v", err)
	}
}
