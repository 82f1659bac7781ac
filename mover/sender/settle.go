package sender

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
	"golang.org/x/sync/errgroup"
)

// teller passes news of a long command on.
type teller func(mover.Progress)

func (t teller) say(step, text string, done, total int64) {
	if t == nil {
		return
	}
	t(mover.Progress{Step: step, Text: text, Done: done, Total: total, ETA: -1})
}

// settle reads back whatever is not known, at both ends at the same time, so that roots can be given (C11). It returns the target's
// root; the source's is in the table then.
func (f *Flow) settle(ctx context.Context, scope uint8, tell teller) (mover.Root, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		began := time.Now()
		n, err := f.readUnknown(ctx, tell)
		if d := time.Since(began).Seconds(); n >= chunker.GroupSize && d > 0 {
			f.setPace(func(p *mover.Pace) { p.Source = float64(n) / d })
		}
		return err
	})
	var root mover.Root
	g.Go(func() (err error) {
		began := time.Now()
		root, err = f.readBack(ctx, scope)
		if d, n := time.Since(began).Seconds(), int64(root.ReadBack)*chunker.LeafSize; err == nil && n >= chunker.GroupSize && d > 0 {
			f.setPace(func(p *mover.Pace) { p.Target = float64(n) / d })
		}
		return err
	})
	err := g.Wait()
	return root, err
}

// readUnknown reads every leaf that the source's table does not know and returns the bytes read.
func (f *Flow) readUnknown(ctx context.Context, tell teller) (int64, error) {
	leaves, known, _ := f.table.Counts()
	total := (leaves - known) * chunker.LeafSize
	// The list is made first: reading changes what is unknown.
	todo := slices.Collect(f.together(f.table.Unknown()))
	var done atomic.Int64
	err := f.readLeaves(ctx, slices.Values(todo), func(b *batch) error {
		i := 0
		for _, e := range b.ext {
			n := int(chunker.Leaves(e.Len))
			if err := f.table.Set(e.Off/chunker.LeafSize, b.digests[i:i+n]); err != nil {
				return fmt.Errorf("digest table: %w", err)
			}
			i += n
		}
		tell.say("read-back", "reading the source", done.Add(b.bytes), total)
		return nil
	})
	return done.Load(), err
}

// nearby unknown leaves are read as one with the known ones between them: up to so many bytes cost less than another read.
const nearby = 64 << 10

// together merges nearby extents of unknown leaves. What lies between is read anew, and the table takes what was read, as after any
// reading of a whole leaf. Free leaves keep their marker, so they stay apart.
func (f *Flow) together(unknown iter.Seq[extent.Extent]) iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		for e := range extent.Merge(unknown, nearby) {
			at := e.Off
			for x := range f.freeWithin(e) {
				if x.Off > at && !yield(extent.Extent{Off: at, Len: x.Off - at}) {
					return
				}
				at = x.End()
			}
			if at < e.End() && !yield(extent.Extent{Off: at, Len: e.End() - at}) {
				return
			}
		}
	}
}

// freeWithin yields the free leaves of e.
func (f *Flow) freeWithin(e extent.Extent) iter.Seq[extent.Extent] {
	return func(yield func(extent.Extent) bool) {
		last := chunker.Leaves(e.End())
		for first := e.Off / chunker.LeafSize; first < last; first += chunker.GroupLeaves {
			for i, d := range f.table.Digests(first, min(chunker.GroupLeaves, last-first)) {
				if d == digest.Free && !yield(chunker.LeafExtent(f.table.Size(), first+int64(i))) {
					return
				}
			}
		}
	}
}

// readLeaves reads and digests the leaves that extents touch; each is called from several goroutines.
func (f *Flow) readLeaves(ctx context.Context, ext iter.Seq[extent.Extent], each func(*batch) error) error {
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(f.pipe.workers)
	for b := range leavesOf(f.deps.Volume.Size(), ext) {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			buf, err := f.deps.Buffers.Get(ctx)
			if err != nil {
				return err
			}
			defer f.deps.Buffers.Put(buf)
			if _, err := f.reader.read(ctx, b.ext, buf[:b.bytes]); err != nil {
				return err
			}
			if err := f.gov.wait(ctx); err != nil {
				return err
			}
			b.digests = chunker.Digests(buf[:b.bytes], nil)
			return each(b)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return parent.Err() // then not all was begun
}

// readBack has the gateway read back and give its root. It is asked again when a link breaks.
func (f *Flow) readBack(ctx context.Context, scope uint8) (mover.Root, error) {
	for {
		if err := f.linkUp(ctx); err != nil {
			return mover.Root{}, err
		}
		a, err := f.link.ask(ctx, &wire.ReadBack{Scope: scope})
		if errors.Is(err, errDown) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return mover.Root{}, err
		}
		r, ok := a.(*wire.Root)
		if !ok {
			return mover.Root{}, fmt.Errorf("%w: %T in answer to READBACK", sentinel.ErrProtocol, a)
		}
		return mover.Root{Digest: r.Digest, Leaves: r.Leaves, Free: r.Free, ReadBack: r.ReadBack}, nil
	}
}

// sourceRoot is the root of the source's table, every leaf of which is known after settle.
func (f *Flow) sourceRoot() (mover.Root, error) {
	d, ok := f.table.Root()
	if !ok {
		return mover.Root{}, fmt.Errorf("%w: the source has no root, some leaf is not known", sentinel.ErrCorrupt)
	}
	leaves, _, free := f.table.Counts()
	return mover.Root{Digest: d, Leaves: uint64(leaves), Free: uint64(free)}, nil
}

// walk names the leaves that differ at the gateway: groups first, then their leaves. Both ends are settled.
func (f *Flow) walk(ctx context.Context) (*extent.Set, error) {
	size := f.deps.Volume.Size()
	differ := extent.NewSet(size, chunker.LeafSize)
	groups := chunker.Groups(size)
	for first := int64(0); first < groups; first += wire.MaxGroups {
		n := min(wire.MaxGroups, groups-first)
		m := &wire.Check{First: uint64(first)}
		for g := first; g < first+n; g++ {
			d, ok := f.table.Group(g)
			if !ok {
				return nil, fmt.Errorf("%w: group %d has no digest at the source", sentinel.ErrCorrupt, g)
			}
			m.Digests = append(m.Digests, d)
		}
		bits, err := f.askDiffer(ctx, m, int(n))
		if err != nil {
			return nil, err
		}
		for i := range n {
			if wire.Bit(bits, int(i)) {
				if err := f.walkGroup(ctx, first+i, differ); err != nil {
					return nil, err
				}
			}
		}
	}
	return differ, nil
}

func (f *Flow) walkGroup(ctx context.Context, group int64, differ *extent.Set) error {
	size := f.deps.Volume.Size()
	first := group * chunker.GroupLeaves
	n := min(chunker.GroupLeaves, chunker.Leaves(size)-first)
	digests := f.table.Digests(first, n)
	if slices.Contains(digests, digest.Unknown) {
		return fmt.Errorf("%w: a leaf of group %d has no digest at the source", sentinel.ErrCorrupt, group)
	}
	bits, err := f.askDiffer(ctx, &wire.Leaves{First: uint64(first), Digests: digests}, int(n))
	if err != nil {
		return err
	}
	for i := range n {
		if wire.Bit(bits, int(i)) {
			differ.Add(chunker.LeafExtent(size, first+i))
		}
	}
	return nil
}

// askDiffer asks CHECK or LEAVES, again after a broken link.
func (f *Flow) askDiffer(ctx context.Context, m wire.Message, n int) ([]byte, error) {
	for {
		if err := f.linkUp(ctx); err != nil {
			return nil, err
		}
		a, err := f.link.ask(ctx, m)
		if errors.Is(err, errDown) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		d, ok := a.(*wire.Differ)
		if !ok || int(d.N) != n {
			return nil, fmt.Errorf("%w: %T in answer to %T", sentinel.ErrProtocol, a, m)
		}
		return d.Bitmap, nil
	}
}

// named lists extents for people, the first of many.
func named(s *extent.Set) (out []extent.Extent) {
	for e := range s.All() {
		if out = append(out, e); len(out) == maxNamed {
			break
		}
	}
	return out
}
