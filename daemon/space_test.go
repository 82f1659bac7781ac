package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// A leaf is free only when every byte of it is, whatever lies between the filesystem and the volume: a leaf that is wrongly called free would be
// zeroed at the target.
func TestAddIsExact(t *testing.T) {
	const size = 200*chunker.LeafSize + 5000
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		// The filesystem lies in pieces on two disks; the volume is the first of them, from some offset on.
		var from extent.Map
		for off := int64(0); off < size; {
			n := min(size-off, 512*(1+r.Int64N(2000)))
			from = append(from, extent.Segment{Off: off, Len: n, Dev: 1 + r.Uint64N(2), DevOff: off + 512*r.Int64N(3)})
			off += n
		}
		to := extent.Map{{Off: 0, Len: size, Dev: 1, DevOff: 512 * r.Int64N(3)}}
		out := extent.NewSet(size, chunker.LeafSize)
		free := make([]bool, size/512+1) // sectors of the volume
		for range 20 {
			e := extent.Extent{Off: 512 * r.Int64N(size/512), Len: 512 * (1 + r.Int64N(100))}
			e.Len = min(e.Len, size-e.Off)
			if err := add(t.Context(), out, from, to, e); err != nil {
				t.Fatal(err)
			}
			for _, s := range from.Down(e) {
				for _, x := range to.Up(s.Dev, extent.Extent{Off: s.DevOff, Len: s.Len}) {
					for i := (x.Off + 511) / 512; i < (x.End()+511)/512; i++ {
						free[i] = true
					}
				}
			}
		}
		for e := range out.All() {
			for i := e.Off / 512; i < e.End()/512; i++ {
				if !free[i] {
					t.Fatalf("seed %d: sector %d is called free and is in use", seed, i)
				}
			}
		}
	}
}

// A disk that was a filesystem before it was partitioned, or that somebody has open, is all in use.
func TestUnmounted(t *testing.T) {
	looptest.NeedRoot(t)
	loop := looptest.New(t, 64<<20, looptest.Options{})
	mkfs := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mkfs.ext4", append(args, "-q", "-F", "-b", "4096", loop.Dev)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	free := func() int64 {
		t.Helper()
		v, err := disk.OpenVolume(loop.Dev)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		set, err := space{v, slog.New(slog.DiscardHandler)}.free(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return set.Bytes()
	}
	if n := free(); n != 0 {
		t.Errorf("a blank disk: %d bytes are called free", n)
	}
	mkfs()
	if n := free(); n < 40<<20 {
		t.Errorf("a clean filesystem: only %d bytes are called free", n)
	}
	fd, err := unix.Open(loop.Dev, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "60")
	other.ExtraFiles = append(other.ExtraFiles, fileOf(fd))
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if n := free(); n != 0 {
		t.Errorf("a filesystem that another process has open: %d bytes are called free", n)
	}
	other.Process.Kill()
	other.Wait()
	unix.Close(fd)

	// An old superblock lies before the first partition; the data in the partition is not its free space.
	if out, err := exec.Command("sh", "-c", "echo ',,L' | sfdisk -q --no-reread -w never "+loop.Dev).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := free(); n != 0 {
		t.Errorf("a disk with a partition table over an old filesystem: %d bytes are called free", n)
	}
}

func TestFreeEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := extent.Map{{Off: 0, Len: 1 << 20, Dev: 1}}
	if err := add(ctx, extent.NewSet(1<<20, chunker.LeafSize), m, m, extent.Extent{Len: 1 << 20}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
