package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/units"
)

// dirtyShare of a volume's pages is rewritten before each delta.
const dirtyShare = 0.01

// delta is what one delta pass took for its changed pages.
type delta struct{ secs, wire float64 } // medians, for each changed byte

// scale moves deltas of 1 % of random pages of volumes of several sizes: figure 4.
func (l *Lines) scale(ctx context.Context, until time.Time) error {
	all := make([]delta, len(l.Sizes))
	var sum, before int64
	for _, size := range l.Sizes {
		sum += size
	}
	for i, size := range l.Sizes {
		// Time goes with the size.
		end := until
		if !until.IsZero() {
			end = time.Now().Add(time.Until(until) * time.Duration(size>>20) / time.Duration((sum-before)>>20))
		}
		before += size
		var err error
		if all[i], err = l.deltas(ctx, size, end); err != nil {
			return fmt.Errorf("%s: %w", units.Size(size), err)
		}
	}
	if len(all) < 2 {
		return nil
	}
	small, large := all[0], all[len(all)-1]
	subject := fmt.Sprintf("%s / %s", units.Size(l.Sizes[len(all)-1]), units.Size(l.Sizes[0]))
	return errors.Join(l.add("line scale", subject, "seconds for each changed byte (at most 1.1)", large.secs/small.secs, "ratio"),
		l.add("line scale", subject, "wire bytes for each changed byte (at most 1.1)", large.wire/small.wire, "ratio"))
}

func (l *Lines) deltas(ctx context.Context, size int64, until time.Time) (d delta, err error) {
	line, err := NewLine(ctx, 0)
	if err != nil {
		return d, err
	}
	r, err := NewRig(ctx, l.Bin, RigOptions{Create: true, Interval: "1h", Conns: 4, Line: line})
	if err != nil {
		return d, errors.Join(err, line.Close())
	}
	defer func() { err = errors.Join(err, r.Close(), line.Close()) }()
	img := filepath.Join(l.Work, "scale.img")
	r.o.Target = filepath.Join(l.Work, "scale-copy.img")
	r.Defer(func() error { return errors.Join(ignoreGone(os.Remove(img)), ignoreGone(os.Remove(r.o.Target))) })
	if r.o.Volume, err = r.Loop(ctx, img, size, 512, true); err != nil {
		return d, err
	}
	// Most of it is holes, and some of it data: what a delta costs must not depend on either.
	if err := touchPages(r.o.Volume, size, min(1<<10, size>>23), 1<<20, 7); err != nil {
		return d, err
	}
	if _, _, err := l.moved(ctx, r); err != nil {
		return d, err
	}
	subject := "mover, " + units.Size(size)
	var secs, wires []float64
	err = l.repeat(until, func(i int) error {
		pages := int64(float64(size/page) * dirtyShare)
		if err := touchPages(r.o.Volume, size, pages, page, uint64(i)+1); err != nil {
			return err
		}
		took, wire, err := l.deltaMover(ctx, r)
		if err != nil {
			return err
		}
		if err := compareSparse(ctx, img, r.o.Target, size); err != nil {
			return fmt.Errorf("after a delta pass: %w", err)
		}
		changed := float64(pages * page)
		secs, wires = append(secs, took/changed), append(wires, float64(wire)/changed)
		return errors.Join(l.add("line scale", subject, "changed bytes", changed, "B"), l.add("line scale", subject, "seconds", took, "s"),
			l.add("line scale", subject, "wire bytes below TLS", float64(wire), "B"))
	})
	d = delta{Median(secs), Median(wires)}
	return d, err
}

// touchPages rewrites count pieces of length bytes of a device with O_DIRECT; which ones, follows from the seed.
func touchPages(dev string, size, count, length int64, seed uint64) error {
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	places := choose(size/length, count, seed)
	const writers = 8
	pool := buffers.New(int(length), writers*length)
	defer pool.Close()
	var next atomic.Int64
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			buf, err := pool.Get(context.Background())
			if err != nil {
				errs[w] = err
				return
			}
			defer pool.Put(buf)
			for {
				i := next.Add(1) - 1
				if i >= int64(len(places)) {
					return
				}
				off := places[i] * length
				for at := int64(0); at < length; at += page {
					churn.Fill(buf[at:at+page], seed, uint64(i), off+at)
				}
				if _, err := f.WriteAt(buf, off); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// choose takes count of n places at random, ascending.
func choose(n, count int64, seed uint64) []int64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	count = min(count, n)
	seen := make(map[int64]bool, count)
	out := make([]int64, 0, count)
	for int64(len(out)) < count {
		if i := rng.Int64N(n); !seen[i] {
			seen[i] = true
			out = append(out, i)
		}
	}
	slices.SortFunc(out, cmp.Compare[int64])
	return out
}
