package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/fsmap"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/buffers"
)

// cmpUsed compares every byte that is not in a leaf of free space, reading the disk past the page cache. The filesystem on dir is frozen.
func cmpUsed(ctx context.Context, dir, dev, target string, size int64) error {
	free := extent.NewSet(size, chunker.LeafSize)
	if _, err := fsmap.Free(dir, func(e extent.Extent) error {
		first, last := (e.Off+chunker.LeafSize-1)/chunker.LeafSize, e.End()/chunker.LeafSize // leaves that are free in whole
		free.Add(extent.Extent{Off: first * chunker.LeafSize, Len: max(0, last-first) * chunker.LeafSize})
		return nil
	}); err != nil {
		return err
	}
	a, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(target)
	if err != nil {
		return err
	}
	defer b.Close()
	pool := buffers.New(chunker.GroupSize, 2*chunker.GroupSize)
	pa, err := pool.Get(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	defer pool.Put(pa)
	pb := make([]byte, len(pa))
	for used := range free.Gaps(extent.Extent{Len: size}) {
		for off := used.Off; off < used.End(); off += int64(len(pa)) {
			n := min(int64(len(pa)), used.End()-off)
			if _, err := a.ReadAt(pa[:n], off); err != nil {
				return err
			}
			if _, err := b.ReadAt(pb[:n], off); err != nil {
				return err
			}
			if !bytes.Equal(pa[:n], pb[:n]) {
				i := 0
				for pa[i] == pb[i] {
					i++
				}
				return fmt.Errorf("source and target differ at byte %d, which is in use", off+int64(i))
			}
		}
	}
	return nil
}
