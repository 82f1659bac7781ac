package receiver

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

type ctxt = context.Context

// How a leaf of an offer is answered.
type answer uint8

const (
	needed answer = iota
	same
	copied
	zeroed
	freed
	unread // by the table unknown: to be read
)

// resolved is the answer to an offer.
type resolved struct {
	f            *flow
	leaves       []int64 // of the offer, ascending
	digests      []digest.Digest
	answers      []answer
	need         wire.Need
	buf          []byte // plain bytes of the copied leaves, or nil
	n            int    // bytes in buf
	copiedLeaves []digest.Digest
}

func (r *resolved) copied() []byte { return r.buf[:r.n] }

func (r *resolved) release() {
	if r.buf != nil {
		r.f.s.plain.Put(r.buf)
		r.buf = nil
	}
}

// resolve answers an offer: by the table, by reading what the table does not know, by dedup. Of a batch that was seen before
// everything with data is needed, for the earlier attempt may have been cut off anywhere.
func (f *flow) resolve(ctx ctxt, p *pass, m *wire.Offer, seen bool) (*resolved, error) {
	n := len(m.Digests)
	r := &resolved{f: f, digests: m.Digests, leaves: make([]int64, 0, n), answers: make([]answer, n)}
	have := make([]digest.Digest, 0, n)
	for _, run := range m.Runs {
		have = append(have, f.table.Digests(int64(run.First), int64(run.N))...)
		for i := range int64(run.N) {
			r.leaves = append(r.leaves, int64(run.First)+i)
		}
	}
	unknown := false
	for i, d := range m.Digests {
		switch {
		case !seen && have[i] == d:
			r.answers[i] = same
		case d == digest.Free:
			r.answers[i] = freed
		case d == f.zeroDigest(r.leaves[i]):
			r.answers[i] = zeroed
		case !seen && have[i] == digest.Unknown && p.Kind != mover.Full:
			// A full pass expects a target that holds nothing of use: reading it would only take time.
			r.answers[i], unknown = unread, true
		}
	}
	if unknown {
		if err := r.readUnknown(ctx); err != nil {
			r.release()
			return nil, err
		}
	}
	if !seen {
		if err := r.candidates(ctx); err != nil {
			r.release()
			return nil, err
		}
	}
	r.count()
	return r, nil
}

func (f *flow) zeroDigest(leaf int64) digest.Digest {
	if n := chunker.LeafExtent(f.table.Size(), leaf).Len; n != leafSize {
		return chunker.ZeroDigest(int(n))
	}
	return chunker.ZeroLeaf
}

// count fills in NEED.
func (r *resolved) count() {
	r.need = wire.Need{N: uint16(len(r.answers)), Bitmap: make([]byte, wire.BitmapSize(len(r.answers)))}
	for i, a := range r.answers {
		switch a {
		case needed:
			wire.SetBit(r.need.Bitmap, i)
		case same:
			r.need.Same++
			r.f.noteRead(chunker.LeafExtent(r.f.table.Size(), r.leaves[i]))
		case copied:
			r.need.Copied++
		}
	}
}

// offer makes items of the answers.
func (r *resolved) offer(p *pass, attempt uint8) *offer {
	o := &offer{pass: p, attempt: attempt}
	kinds := map[answer]wire.ItemKind{copied: wire.ItemData, zeroed: wire.ItemZero, freed: wire.ItemFree}
	for i, a := range r.answers {
		if k, ok := kinds[a]; ok {
			o.items = addLeaf(o.items, 0, k, chunker.LeafExtent(r.f.table.Size(), r.leaves[i]))
		}
	}
	o.need = len(o.items)
	for i, a := range r.answers {
		if a == needed {
			e := chunker.LeafExtent(r.f.table.Size(), r.leaves[i])
			o.items = addLeaf(o.items, o.need, wire.ItemData, e)
			o.leaves = append(o.leaves, r.digests[i])
			o.plain += int(e.Len)
		}
	}
	o.counts = mover.Counts{Offered: uint64(len(r.answers)), Same: uint64(r.need.Same), Copied: uint64(r.need.Copied), Sent: uint64(len(o.leaves))}
	return o
}

// addLeaf appends e to the last item, if that has an index of at least from, or makes a new one.
func addLeaf(items []wire.Item, from int, k wire.ItemKind, e extent.Extent) []wire.Item {
	if n := len(items); n > from && items[n-1].Kind == k && items[n-1].Off+items[n-1].Len == uint64(e.Off) {
		items[n-1].Len += uint64(e.Len)
		return items
	}
	return append(items, wire.Item{Kind: k, Off: uint64(e.Off), Len: uint64(e.Len)})
}

// readUnknown reads leaves that the table does not know, and tells it.
func (r *resolved) readUnknown(ctx ctxt) error {
	var want []int
	for i, a := range r.answers {
		if a == unread {
			want = append(want, i)
		}
	}
	buf, err := r.f.s.plain.Get(ctx)
	if err != nil {
		return err
	}
	defer r.f.s.plain.Put(buf)
	size := r.f.table.Size()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.f.s.cfg.Readers)
	for a := 0; a < len(want); {
		b := a + 1
		for b < len(want) && r.leaves[want[b]] == r.leaves[want[b-1]]+1 {
			b++
		}
		from, slot := want[a:b], buf[a*leafSize:]
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			first := r.leaves[from[0]]
			e := extent.Extent{Off: first * leafSize, Len: int64(len(from)) * leafSize}.Intersect(extent.Extent{Len: size})
			p, err := r.f.read(slot, e)
			if err != nil {
				return err
			}
			ds := chunker.Digests(p, make([]digest.Digest, 0, len(from)))
			if err := r.f.table.Set(first, ds); err != nil {
				return err
			}
			for k, i := range from {
				r.answers[i] = needed
				if ds[k] == r.digests[i] {
					r.answers[i] = same
				}
			}
			return nil
		})
		a = b
	}
	return g.Wait()
}

// read reads e of the volume from the target into buf, which needs 512 bytes beyond e.
func (f *flow) read(buf []byte, e extent.Extent) ([]byte, error) {
	n := f.padded(e).Len
	if m, err := f.target.ReadAt(buf[:n], e.Off); int64(m) < e.Len {
		if err == nil {
			err = fmt.Errorf("%d of %d bytes", m, e.Len)
		}
		return nil, f.opError("read", e, err)
	}
	f.s.metrics.read.Add(e.Len)
	return buf[:e.Len], nil
}

// padded grows an extent that ends at the end of an odd-sized volume to whole sectors, if the target has them.
func (f *flow) padded(e extent.Extent) extent.Extent {
	if odd := e.Len % 512; odd != 0 && e.End()+512-odd <= f.target.Size() {
		e.Len += 512 - odd
	}
	return e
}

// candidate is a place where the content of a needed leaf may be.
type candidate struct {
	i     int // in the offer
	place catalog.Place
	ok    bool
}

// candidates asks the dedup index for the needed leaves, reads what it names, and keeps what has the right digest.
func (r *resolved) candidates(ctx ctxt) error {
	var cs []candidate
	var ds []digest.Digest
	for i, a := range r.answers {
		// The volume's short last leaf is not worth special cases.
		if a == needed && r.leaves[i]*leafSize+leafSize <= r.f.table.Size() {
			cs, ds = append(cs, candidate{i: i}), append(ds, r.digests[i])
		}
	}
	if len(cs) == 0 || r.f.s.cfg.NoDedup {
		return nil
	}
	places := make([]catalog.Place, len(cs))
	r.f.s.index.Lookup(r.f.dedupScope(), ds, places)
	own := r.f.record().Number
	found := cs[:0]
	for k, c := range cs {
		if c.place = places[k]; c.place.Flow != 0 && (c.place.Flow != own || c.place.Leaf != r.leaves[c.i]) {
			found = append(found, c)
		}
	}
	r.f.s.metrics.misses.Add(int64(len(places) - len(found)))
	if len(found) == 0 {
		return nil
	}
	buf, err := r.f.s.plain.Get(ctx)
	if err != nil {
		return err
	}
	r.buf = buf
	r.readCandidates(ctx, found)
	r.keep(found)
	return ctx.Err()
}

// readCandidates reads found[k] into slot k of the buffer, neighbours together. What cannot be read is no candidate.
func (r *resolved) readCandidates(ctx ctxt, found []candidate) {
	var g errgroup.Group
	g.SetLimit(r.f.s.cfg.Readers)
	for a := 0; a < len(found); {
		b := a + 1
		for b < len(found) && found[b].place.Flow == found[a].place.Flow && found[b].place.Leaf == found[b-1].place.Leaf+1 {
			b++
		}
		group, slot := found[a:b], r.buf[a*leafSize:b*leafSize]
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			t, done := r.f.targetOf(group[0].place.Flow)
			if t == nil {
				return nil
			}
			defer done()
			off := group[0].place.Leaf * leafSize
			if off < 0 || off+int64(len(slot)) > t.Size() {
				return nil
			}
			if n, _ := t.ReadAt(slot, off); n < len(slot) {
				return nil
			}
			r.f.s.metrics.read.Add(int64(len(slot)))
			for k := range group {
				// Never trust the index: the leaf may have been overwritten since.
				d := digest.Sum(slot[k*leafSize : (k+1)*leafSize])
				group[k].ok = d == r.digests[group[k].i]
			}
			return nil
		})
		a = b
	}
	_ = g.Wait()
}

// keep moves the good candidates together and answers their leaves.
func (r *resolved) keep(found []candidate) {
	for k, c := range found {
		if !c.ok {
			r.f.s.metrics.mismatches.Add(1)
			continue
		}
		r.f.s.metrics.hits.Add(1)
		if r.n != k*leafSize {
			copy(r.buf[r.n:], r.buf[k*leafSize:(k+1)*leafSize])
		}
		r.n += leafSize
		r.answers[c.i] = copied
		r.copiedLeaves = append(r.copiedLeaves, r.digests[c.i])
	}
}
