package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/sentinel"
)

// Misses makes the tracker really miss writes, one in each try, and counts how many are detected.
func (p *Perf) Misses(ctx context.Context) (err error) {
	const tries = 120
	r, err := NewRig(ctx, p.Bin, RigOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	dev, err := r.Loop(ctx, filepath.Join(r.Dir, "miss.img"), 64<<20, 512, true)
	if err != nil {
		return err
	}
	v, err := disk.OpenVolume(dev)
	if err != nil {
		return err
	}
	defer v.Close()
	t, err := cbt.Open(cbt.Options{Name: "misses", Map: v.Map(), Size: v.Size(), PinDir: r.pinDir()})
	if err != nil {
		return err
	}
	defer os.RemoveAll(r.pinDir())
	defer t.Remove()
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	pool := buffers.New(4096, 2*4096)
	defer pool.Close()
	b, err := pool.Get(ctx)
	if err != nil {
		return err
	}
	defer pool.Put(b)
	rng := rand.New(rand.NewPCG(1, 1))
	detected := 0
	for range tries {
		if _, _, err := t.Take(ctx); err != nil {
			return fmt.Errorf("before a miss: %w", err)
		}
		n := 1 + rng.IntN(20)
		if err := cbt.ForceMiss(r.pinDir(), "misses", 1+rng.IntN(n)); err != nil {
			return err
		}
		for range n {
			if _, err := f.WriteAt(b, rng.Int64N(v.Size()/4096)*4096); err != nil {
				return err
			}
		}
		if _, err := t.Prove(ctx); errors.Is(err, sentinel.ErrTrackLost) {
			detected++
		} else if err != nil {
			return err
		}
		if err := t.Restart(); err != nil {
			return err
		}
	}
	return errors.Join(p.add("misses", "mover", "forced tracker misses", tries, "tries"), p.add("misses", "mover", "detected (all)", float64(detected), "tries"),
		func() error {
			if detected != tries {
				return fmt.Errorf("%d of %d forced misses were detected", detected, tries)
			}
			return nil
		}())
}
