package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
)

const page = 4096

// compare reads a disk, past the page cache, and its copy. Pages have to be equal, or zeros in the copy: those held nothing but old bytes
// when they were copied, in space that the filesystem had freed. It returns how many bytes of such pages there are; whether they were
// really free is for others to judge (compare the files). Anything else is an error.
func compare(ctx context.Context, dev, target string, size int64) (old int64, err error) {
	a, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := os.Open(target)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	pool := buffers.New(chunker.BatchSize, 2*chunker.BatchSize)
	pa, err := pool.Get(ctx)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	defer pool.Put(pa)
	pb := make([]byte, len(pa))
	for off := int64(0); off < size; off += int64(len(pa)) {
		n := min(int64(len(pa)), size-off)
		if _, err := a.ReadAt(pa[:n], off); err != nil {
			return old, err
		}
		if _, err := b.ReadAt(pb[:n], off); err != nil {
			return old, err
		}
		for i := int64(0); i < n; i += page {
			x, y := pa[i:min(i+page, n)], pb[i:min(i+page, n)]
			if bytes.Equal(x, y) {
				continue
			}
			if !chunker.IsZero(y) {
				return old, fmt.Errorf("source and target differ in the page at byte %d, and the target's is not zero", off+i)
			}
			old += int64(len(x))
		}
		if ctx.Err() != nil {
			return old, ctx.Err()
		}
	}
	return old, nil
}
