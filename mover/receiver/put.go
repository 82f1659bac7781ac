package receiver

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/wire"
)

// writers is how many writes of one batch run at once: scattered small writes need depth, whole groups are one write.
const writers = 8

// putDirect writes a batch of a direct pass, after its stretches are marked (C6).
func (p *pass) putDirect(ctx ctxt, items []wire.Item, plain []byte, leaves []digest.Digest) error {
	for _, it := range items {
		if err := p.intend(extentOf(it)); err != nil {
			return err
		}
	}
	if err := p.f.putData(ctx, items, plain, leaves); err != nil {
		return err
	}
	for _, it := range items {
		if it.Kind != wire.ItemData {
			if err := p.f.putZeros(it.Kind, extentOf(it)); err != nil {
				return err
			}
		}
	}
	return nil
}

// write is one contiguous piece of plain bytes on its way to the target.
type write struct {
	off int64
	b   []byte
}

// putData writes the data items, whose bytes are plain, in order. leaves, if given, are the digests of all their leaves, which then
// are whole; else digests are computed for the leaves that are whole. The table never has an old digest over new bytes: leaves
// are unknown while they are written.
func (f *flow) putData(ctx ctxt, items []wire.Item, plain []byte, leaves []digest.Digest) error {
	var ws []write
	at := int64(0)
	for _, it := range items {
		if it.Kind != wire.ItemData {
			continue
		}
		e := extentOf(it)
		if at+e.Len > int64(len(plain)) {
			return fmt.Errorf("items ask for more than the %d bytes of their batch", len(plain))
		}
		if err := f.unknown(e); err != nil {
			return err
		}
		if n := len(ws); n > 0 && ws[n-1].off+int64(len(ws[n-1].b)) == e.Off {
			ws[n-1].b = plain[at-int64(len(ws[n-1].b)) : at+e.Len]
		} else {
			ws = append(ws, write{e.Off, plain[at : at+e.Len]})
		}
		at += e.Len
	}
	if err := f.writeAll(ctx, ws); err != nil {
		return err
	}
	for _, w := range ws {
		f.noteRead(extent.Extent{Off: w.off, Len: int64(len(w.b))})
		first, n := f.wholeLeaves(extent.Extent{Off: w.off, Len: int64(len(w.b))})
		if n == 0 {
			continue
		}
		ds := leaves
		if leaves != nil {
			ds, leaves = leaves[:n], leaves[n:]
		} else {
			b := w.b[first*leafSize-w.off:]
			ds = chunker.Digests(b[:min(n*leafSize, int64(len(b)))], make([]digest.Digest, 0, n))
		}
		if err := f.table.Set(first, ds); err != nil {
			return fmt.Errorf("note digests: %w", diskFull(err))
		}
		if !f.s.cfg.NoDedup {
			f.s.index.Add(f.dedupScope(), f.record().Number, first, ds, chunker.ZeroLeaf)
			f.notePages(first, w.b[first*leafSize-w.off:], n)
		}
	}
	return nil
}

// unknown notes that e is about to change.
func (f *flow) unknown(e extent.Extent) error {
	f.touch(e)
	if err := f.table.Invalidate(e); err != nil {
		return fmt.Errorf("note changed leaves: %w", diskFull(err))
	}
	return nil
}

// wholeLeaves are the leaves that lie wholly in e; the volume's last counts as whole at its end.
func (f *flow) wholeLeaves(e extent.Extent) (first, n int64) {
	first = (e.Off + leafSize - 1) / leafSize
	last := e.End() / leafSize
	if e.End() == f.table.Size() {
		last = chunker.Leaves(e.End())
	}
	return first, max(0, last-first)
}

func (f *flow) writeAll(ctx ctxt, ws []write) error {
	if len(ws) == 1 {
		return f.write(ws[0])
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, w := range ws {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return f.write(w)
		})
	}
	return g.Wait()
}

func (f *flow) write(w write) error {
	e := extent.Extent{Off: w.off, Len: int64(len(w.b))}
	b := w.b
	if pad := f.padded(e); pad != e {
		// The end of an odd-sized volume: the rest of the target's sector is nobody's.
		whole := len(b) - len(b)%512
		tail := make([]byte, 512)
		copy(tail, b[whole:])
		if err := f.writeAt(tail, e.Off+int64(whole)); err != nil {
			return err
		}
		b = b[:whole]
	}
	if len(b) == 0 {
		return nil
	}
	return f.writeAt(b, w.off)
}

func (f *flow) writeAt(b []byte, off int64) error {
	n, err := f.target.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = errors.New("short write")
	}
	f.s.metrics.written.Add(int64(n))
	if err != nil {
		return f.opError("write", extent.Extent{Off: off, Len: int64(len(b))}, err)
	}
	return nil
}

// putZeros zeroes e and marks its whole leaves by kind.
func (f *flow) putZeros(k wire.ItemKind, e extent.Extent) error {
	if err := f.unknown(e); err != nil {
		return err
	}
	if err := f.target.Zero(f.padded(e)); err != nil {
		return f.opError("zero", e, err)
	}
	f.s.metrics.zeroed.Add(e.Len)
	return f.markZeros(k, e)
}

func (f *flow) markZeros(k wire.ItemKind, e extent.Extent) error {
	d := chunker.ZeroLeaf
	if k == wire.ItemFree {
		d = digest.Free
	}
	if first, n := f.wholeLeaves(e); n > 0 {
		if err := f.table.Fill(first, n, d); err != nil {
			return fmt.Errorf("note digests: %w", diskFull(err))
		}
	}
	if k == wire.ItemUnreadable {
		f.noteUnreadable(e)
	} else {
		f.noteRead(e)
	}
	return nil
}

// zeroAll zeroes many items of a log, merging what touches, then marks each.
func (f *flow) zeroAll(ctx ctxt, items []wire.Item) error {
	slices.SortFunc(items, func(a, b wire.Item) int {
		if a.Off < b.Off {
			return -1
		}
		return 1
	})
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := 0; i < len(items); {
		e := extentOf(items[i])
		from := i
		for i++; i < len(items) && int64(items[i].Off) <= e.End(); i++ {
			e.Len = max(e.Len, extentOf(items[i]).End()-e.Off)
		}
		part := items[from:i]
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.unknown(e); err != nil {
				return err
			}
			if err := f.target.Zero(f.padded(e)); err != nil {
				return f.opError("zero", e, err)
			}
			f.s.metrics.zeroed.Add(e.Len)
			for _, it := range part {
				if err := f.markZeros(it.Kind, extentOf(it)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
