package receiver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

// handleReadBack reads leaves from the device and answers with the root (C11).
func (c *conn) handleReadBack(seq uint32, m *wire.ReadBack) error {
	f := c.f
	tell := func(done, total int64, text string) { c.notice(seq, done, total, text) }
	if err := f.exclusive(c.ctx, tell); err != nil {
		return err
	}
	defer f.gate.unwhole()
	if err := f.held(); err != nil {
		return err
	}
	if f.openPass() != nil {
		return fmt.Errorf("read back while a pass is open: %w", sentinel.ErrProtocol)
	}
	root, err := f.readBack(c.ctx, m.Scope == wire.ScopeAll, tell)
	if err != nil {
		return f.serious(err)
	}
	return c.wc.Write(wire.TypeRoot, seq, root)
}

// held tells why there is no target or table to ask.
func (f *flow) held() error {
	if f.target == nil || f.table == nil {
		return fmt.Errorf("flow %s has no target open (%s): %w", f.key, f.record().Phase, sentinel.ErrRefused)
	}
	return nil
}

func (f *flow) setSettling(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settling, f.since = on, time.Now()
}

func (f *flow) readBack(ctx ctxt, all bool, tell func(done, total int64, text string)) (*wire.Root, error) {
	f.setSettling(true)
	defer f.setSettling(false)
	size := f.table.Size()
	all = all || f.allTouched.Load()
	total := f.touched.Bytes()
	if all {
		total = size
	}
	var done atomic.Int64
	stop := every(ctx, time.Second, func() { tell(done.Load(), total, "reading the target back") })
	defer stop()
	err := f.readLeaves(ctx, func(yield func(extent.Extent) bool) {
		if all {
			yield(extent.Extent{Len: size})
			return
		}
		for e := range f.touched.All() {
			if !yield(e) {
				return
			}
		}
		// What nobody has read yet counts as well.
		for e := range f.table.Unknown() {
			for g := range f.touched.Gaps(e) {
				if !yield(g) {
					return
				}
			}
		}
	}, &done)
	if err != nil {
		return nil, err
	}
	f.touched.Clear()
	f.allTouched.Store(false)
	if err := f.table.Sync(); err != nil {
		return nil, diskFull(err)
	}
	root, ok := f.table.Root()
	if !ok {
		return nil, errors.Join(fmt.Errorf("leaves of flow %s are unknown after all were read", f.key), f.table.Err())
	}
	leaves, _, free := f.table.Counts()
	return &wire.Root{Digest: root, Leaves: uint64(leaves), Free: uint64(free), ReadBack: uint64(done.Load() / leafSize)}, nil
}

// every calls fn in intervals until stop, which waits for it.
func every(ctx ctxt, d time.Duration, fn func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fn()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// nearby extents are read as one: up to so many bytes that need not be read cost less than another read.
const nearby = 64 << 10

// readLeaves reads the leaves that the extents touch, but for free ones, and has the table take what was read.
func (f *flow) readLeaves(ctx ctxt, extents func(yield func(extent.Extent) bool), done *atomic.Int64) error {
	size := f.table.Size()
	g, ctx := errgroup.WithContext(ctx)
	parts := make(chan extent.Extent)
	g.Go(func() error {
		defer close(parts)
		for e := range extent.Merge(extents, nearby) {
			for e = e.Align(leafSize).Intersect(extent.Extent{Len: size}); !e.Empty(); {
				// Whole groups are one read and begin where the group begins.
				part := e.Intersect(extent.Extent{Off: e.Off / groupSize * groupSize, Len: groupSize})
				e = extent.Extent{Off: part.End(), Len: e.End() - part.End()}
				select {
				case parts <- part:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range f.s.cfg.Readers {
		g.Go(func() error {
			for part := range parts {
				if err := f.readPart(ctx, part, done); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// readPart reads the leaves of part, at most a group, that are not free.
func (f *flow) readPart(ctx ctxt, part extent.Extent, done *atomic.Int64) error {
	first := part.Off / leafSize
	n := chunker.Leaves(part.End()) - first
	known := f.table.Digests(first, n)
	buf, err := f.s.plain.Get(ctx)
	if err != nil {
		return err
	}
	defer f.s.plain.Put(buf)
	for a := int64(0); a < n; {
		if known[a] == digest.Free {
			a++
			continue
		}
		b := a + 1
		for b < n && known[b] != digest.Free {
			b++
		}
		e := extent.Extent{Off: (first + a) * leafSize, Len: (b - a) * leafSize}.Intersect(extent.Extent{Len: f.table.Size()})
		if err := f.readRun(buf, e, known[a:b]); err != nil {
			return err
		}
		done.Add((b - a) * leafSize)
		a = b
	}
	return ctx.Err()
}

// readRun reads consecutive leaves and compares them with what the table says of them.
func (f *flow) readRun(buf []byte, e extent.Extent, known []digest.Digest) error {
	p, err := f.read(buf, e)
	if err != nil {
		return err
	}
	var got [chunker.GroupLeaves]digest.Digest
	ds := chunker.Digests(p, got[:0])
	changed := false
	for i := range ds {
		if ds[i] == known[i] {
			continue
		}
		changed = true
		if known[i] != digest.Unknown {
			f.s.metrics.readBackDiffers.Add(1)
			f.log.Error("TARGET DOES NOT HOLD WHAT WAS WRITTEN TO IT", "target", f.cfg.Target, "offset", e.Off+int64(i)*leafSize,
				"written", known[i].Short(), "read", ds[i].Short())
		}
	}
	if !changed {
		return nil
	}
	if err := f.table.Set(e.Off/leafSize, ds); err != nil {
		return fmt.Errorf("note digests: %w", diskFull(err))
	}
	return nil
}

// asked takes a share of the gate for a question about the table.
func (c *conn) asked(seq uint32) error {
	for {
		if err := c.f.settled(c.ctx, func(done, total int64, text string) { c.notice(seq, done, total, text) }); err != nil {
			return err
		}
		if err := c.f.gate.share(c.ctx); err != nil {
			return err
		}
		c.f.mu.Lock()
		busy, broken := c.f.finishing != nil, c.f.broken
		c.f.mu.Unlock()
		err := broken
		if err == nil && !busy {
			err = c.f.held()
		}
		if err == nil && !busy {
			return nil
		}
		c.f.gate.unshare()
		if err != nil {
			return err
		}
	}
}

// handleCheck tells which groups differ. What the table does not know is read.
func (c *conn) handleCheck(seq uint32, m *wire.Check) error {
	if err := c.asked(seq); err != nil {
		return err
	}
	defer c.f.gate.unshare()
	f, n := c.f, int64(len(m.Digests))
	first := int64(m.First)
	if first+n > chunker.Groups(f.table.Size()) {
		return fmt.Errorf("check of groups %d to %d of %d: %w", first, first+n-1, chunker.Groups(f.table.Size()), sentinel.ErrProtocol)
	}
	e := extent.Extent{Off: first * groupSize, Len: n * groupSize}
	if err := f.learn(c, seq, e); err != nil {
		return f.serious(err)
	}
	out := &wire.Differ{N: uint16(n), Bitmap: make([]byte, wire.BitmapSize(int(n)))}
	for i := range n {
		if d, ok := f.table.Group(first + i); !ok || d != m.Digests[i] {
			wire.SetBit(out.Bitmap, int(i))
		}
	}
	return c.wc.Write(wire.TypeDiffer, seq, out)
}

// handleLeaves tells which leaves differ.
func (c *conn) handleLeaves(seq uint32, m *wire.Leaves) error {
	if err := c.asked(seq); err != nil {
		return err
	}
	defer c.f.gate.unshare()
	f, first, n := c.f, int64(m.First), int64(len(m.Digests))
	if first+n > chunker.Leaves(f.table.Size()) {
		return fmt.Errorf("question about leaves %d to %d of %d: %w", first, first+n-1, chunker.Leaves(f.table.Size()), sentinel.ErrProtocol)
	}
	if err := f.learn(c, seq, extent.Extent{Off: first * leafSize, Len: n * leafSize}); err != nil {
		return f.serious(err)
	}
	out := &wire.Differ{N: uint16(n), Bitmap: make([]byte, wire.BitmapSize(int(n)))}
	for i, d := range f.table.Digests(first, n) {
		if d == digest.Unknown || d != m.Digests[i] {
			wire.SetBit(out.Bitmap, i)
		}
	}
	return c.wc.Write(wire.TypeDiffer, seq, out)
}

// learn reads the leaves in e whose digest is unknown.
func (f *flow) learn(c *conn, seq uint32, e extent.Extent) error {
	e = e.Intersect(extent.Extent{Len: f.table.Size()})
	var done atomic.Int64
	stop := every(c.ctx, time.Second, func() { c.notice(seq, done.Load(), e.Len, "reading what is not known of the target") })
	defer stop()
	return f.readLeaves(c.ctx, func(yield func(extent.Extent) bool) {
		for off := e.Off; off < e.End(); off += groupSize {
			part := extent.Extent{Off: off, Len: groupSize}.Intersect(e)
			first := part.Off / leafSize
			for i, d := range f.table.Digests(first, chunker.Leaves(part.End())-first) {
				if d == digest.Unknown && !yield(chunker.LeafExtent(f.table.Size(), first+int64(i))) {
					return
				}
			}
		}
	}, &done)
}
