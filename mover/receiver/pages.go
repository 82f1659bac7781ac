package receiver

import (
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// Dedup by pages, for leaves that nobody has as a whole: files of another host lie on other multiples of 4 KiB. The source tells the print of each page;
// what is found by it is read, leaves that are found wholly are copied, and of the others DATA brings the rest. Nothing here is believed: the digest of the
// offer is that of the whole leaf (C7), and one that does not fit makes the source offer the batch again, whose leaves then come whole.

const pageSize = chunker.PageSize

// foundPage is a page of the needed leaves that DATA does not bring.
type foundPage struct {
	slot  int               // number among the pages of the needed leaves
	place catalog.PagePlace // without a flow: zeros
}

// openPrints opens the prints of the target's pages; without them only fewer pages are found. Those of another volume in its place are stale hints.
func (f *flow) openPrints() {
	if f.s.cfg.NoDedup {
		return
	}
	p, err := f.s.index.OpenPrints(filepath.Join(f.dir(), "pages"))
	if err != nil {
		f.log.Warn("no page of this target will be found", "error", err)
	}
	_ = f.prints.Swap(p).Close()
}

// notePages takes in the prints of n leaves from first, which begin b and are on the target now.
func (f *flow) notePages(first int64, b []byte, n int64) {
	b = b[:min(n*leafSize, int64(len(b)))/pageSize*pageSize]
	prints := chunker.Prints(b, make([]uint64, 0, len(b)/pageSize))
	f.prints.Load().Put(first*chunker.LeafPages, prints)
	f.s.index.AddPages(f.dedupScope(), f.record().Number, first*chunker.LeafPages, prints)
}

// printsOf lends another flow's prints of the same scope (C12); nil: there are none.
func (f *flow) printsOf(number uint32) *catalog.Prints {
	key, ok := f.s.cat.ByNumber(number)
	o := f.s.flows[key]
	if !ok || o == nil || o.dedupScope() != f.dedupScope() {
		return nil
	}
	return o.prints.Load()
}

// paying decides whether to ask for prints: as long as they find something, else for a few, for what comes may be more like what is here.
type paying struct {
	mu           sync.Mutex // guards all below
	asked, found int        // pages lately, zeros left out
	batches      int        // since it has not paid
}

const (
	payPages = 4096 // before so many nothing is decided
	payShare = 64   // one page in so many has to be found: prints are 1/512 of what they stand for, and more of what that compresses to
	payTry   = 16   // batches of which one is tried when it does not pay
	payPast  = 16 * payPages
)

func (y *paying) ask() bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.asked < payPages || y.found*payShare >= y.asked {
		return true
	}
	y.batches++
	return y.batches%payTry == 0
}

func (y *paying) note(asked, found int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.asked, y.found = y.asked+asked, y.found+found
	if y.asked > payPast {
		y.asked, y.found = y.asked/2, y.found/2
	}
}

// search is what became of the needed leaves of an offer by their prints.
type search struct {
	f      *flow
	buf    []byte
	whole  offer // leaves that were found: items, leaves and plain
	rest   offer // leaves that are needed still
	answer wire.Pages
}

func (q *search) plain() []byte { return q.buf[:q.whole.plain] }
func (q *search) release()      { q.f.s.plain.Put(q.buf) }

func pagesOf(plain int) int { return (plain + pageSize - 1) / pageSize }

// search looks for the pages of o, reads what it finds, and sorts the leaves.
func (f *flow) search(ctx ctxt, o *offer, prints []uint64) (*search, error) {
	places := make([]catalog.PagePlace, len(prints))
	full := prints[:o.plain/pageSize] // the last page of a volume may be short: it is not looked for
	f.s.index.FindPages(f.dedupScope(), full, places[:len(full)], f.printsOf)
	buf, err := f.s.plain.Get(ctx)
	if err != nil {
		return nil, err
	}
	q := &search{f: f, buf: buf, answer: wire.Pages{N: uint16(len(prints)), Bitmap: make([]byte, wire.BitmapSize(len(prints)))}}
	have := f.readPages(ctx, buf, places, prints)
	zeros := 0
	for i, p := range full {
		if p == chunker.ZeroPrint {
			clear(buf[i*pageSize : (i+1)*pageSize])
			have[i] = true
			zeros++
		}
	}
	q.sort(o, places, have)
	found := -zeros
	for i := range have {
		if have[i] {
			found++
		}
	}
	f.s.metrics.pagesAsked.Add(int64(len(prints)))
	f.s.metrics.pagesFound.Add(int64(found))
	f.paying.note(len(prints)-zeros, found)
	return q, ctx.Err()
}

// sort tells the leaves that are wholly there from the others. Pages that do not make their leaf are taken out of have.
func (q *search) sort(o *offer, places []catalog.PagePlace, have []bool) {
	page, leaf := 0, 0
	for _, it := range o.items[o.need:] {
		for e := extentOf(it); e.Len > 0; leaf++ {
			l := extent.Extent{Off: e.Off, Len: min(leafSize, e.Len)}
			e.Off, e.Len = l.End(), e.Len-l.Len
			from, n := page, pagesOf(int(l.Len))
			page += n
			all := true
			for i := from; i < page; i++ {
				all = all && have[i]
			}
			b := q.buf[from*pageSize:][:l.Len]
			if all && digest.Sum(b) == o.leaves[leaf] {
				copy(q.buf[q.whole.plain:], b)
				q.whole.take(l, o.leaves[leaf])
				continue
			}
			if all { // two pages with one print
				q.f.s.metrics.pageMismatches.Add(1)
				clear(have[from:page])
			}
			slot := pagesOf(q.rest.plain)
			q.rest.take(l, o.leaves[leaf])
			for i := from; i < page; i++ {
				if have[i] {
					q.rest.found = append(q.rest.found, foundPage{slot + i - from, places[i]})
				} else {
					wire.SetBit(q.answer.Bitmap, i)
				}
			}
		}
	}
}

// take appends a leaf to what is needed.
func (o *offer) take(l extent.Extent, d digest.Digest) {
	o.items = addLeaf(o.items, 0, wire.ItemData, l)
	o.leaves = append(o.leaves, d)
	o.plain += int(l.Len)
}

// readPages reads the page at places[i] into slot i of buf, neighbours together, and tells which were read and have the print that they should, if prints
// are given.
func (f *flow) readPages(ctx ctxt, buf []byte, places []catalog.PagePlace, prints []uint64) (have []bool) {
	have = make([]bool, len(places))
	var g errgroup.Group
	g.SetLimit(f.s.cfg.Readers)
	for a := 0; a < len(places); {
		p, b := places[a], a+1
		if p.Flow == 0 {
			a = b
			continue
		}
		for b < len(places) && places[b] == (catalog.PagePlace{Flow: p.Flow, Page: p.Page + int64(b-a)}) {
			b++
		}
		from, slots := a, buf[a*pageSize:b*pageSize]
		g.Go(func() error {
			if ctx.Err() != nil || !f.readPlace(p.Flow, p.Page*pageSize, slots) {
				return nil
			}
			for k := 0; k*pageSize < len(slots); k++ {
				have[from+k] = prints == nil || chunker.Print(slots[k*pageSize:(k+1)*pageSize]) == prints[from+k]
			}
			return nil
		})
		a = b
	}
	_ = g.Wait()
	return have
}

// readPlace reads from the target of a flow of the same scope.
func (f *flow) readPlace(number uint32, off int64, b []byte) bool {
	t, done := f.targetOf(number)
	if t == nil {
		return false
	}
	defer done()
	if off < 0 || off+int64(len(b)) > t.Size() {
		return false
	}
	if n, _ := t.ReadAt(b, off); n < len(b) {
		return false
	}
	f.s.metrics.read.Add(int64(len(b)))
	return true
}

func (c *conn) handlePrints(seq uint32, m *wire.Prints) error {
	o := c.offers[seq]
	if o == nil || !o.asked {
		return fmt.Errorf("prints of batch %d, for which nobody asked: %w", seq, sentinel.ErrProtocol)
	}
	if want := pagesOf(o.plain); len(m.Prints) != want {
		return fmt.Errorf("%d prints of batch %d, of which %d pages were needed: %w", len(m.Prints), seq, want, sentinel.ErrProtocol)
	}
	c.forget(seq)
	o.asked = false
	return c.inPass(func(p *pass) error {
		if p != o.pass {
			return fmt.Errorf("prints of batch %d belong to an earlier pass: %w", seq, sentinel.ErrProtocol)
		}
		hold, err := p.hold(c.ctx, seq)
		if err != nil {
			return err
		}
		defer hold()
		if !p.current(seq, o.attempt) {
			return nil // offered again on another connection meanwhile
		}
		q, err := c.f.search(c.ctx, o, m.Prints)
		if err != nil {
			return err
		}
		defer q.release()
		left := q.left(o)
		if err := p.putFound(c.ctx, seq, left, q); err != nil {
			return err
		}
		if left.plain > 0 {
			if err := c.remember(seq, left); err != nil {
				return err
			}
		}
		if err := c.wc.Write(wire.TypePages, seq, &q.answer); err != nil {
			return &lineError{err}
		}
		if left.plain == 0 { // after PAGES, so that the ack follows it
			p.complete(doneBatch{conn: c, seq: seq, attempt: left.attempt, counts: left.counts, items: left.items, bytes: left.bytes()})
		}
		return nil
	})
}

// left is what remains of o after the search. A leaf of which DATA brings a part counts as sent.
func (q *search) left(o *offer) *offer {
	x := &offer{pass: o.pass, attempt: o.attempt, leaves: q.rest.leaves, plain: q.rest.plain, found: q.rest.found, counts: o.counts}
	x.items = append(append(append(x.items, o.items[:o.need]...), q.whole.items...), q.rest.items...)
	x.need = o.need + len(q.whole.items)
	x.counts.Copied += uint64(len(q.whole.leaves))
	x.counts.Sent -= uint64(len(q.whole.leaves))
	return x
}

// putFound logs or writes the leaves that were found as a whole. When nothing else is needed the record is the batch's last.
func (p *pass) putFound(ctx ctxt, seq uint32, left *offer, q *search) error {
	switch {
	case len(q.whole.leaves) == 0:
		return nil
	case p.direct.Load():
		return p.putDirect(ctx, q.whole.items, q.plain(), q.whole.leaves)
	}
	b := catalog.Batch{Counts: left.counts, Items: q.whole.items, Leaves: q.whole.leaves, Parts: []catalog.Part{plainPart(q.plain())}}
	return p.stage(seq, left.attempt, left.plain == 0, &b, q.plain())
}

// data is how many bytes DATA has to bring. A page that was found is never short.
func (o *offer) data() int { return o.plain - len(o.found)*pageSize }

// assemble returns the plain bytes of the needed leaves, from DATA and from where pages were found.
func (c *conn) assemble(o *offer, m *wire.Data) (plain []byte, release func(), err error) {
	if len(o.found) == 0 {
		return c.s.decode(c.ctx, m.Codec, m.Plain, m.Payload)
	}
	buf, err := c.s.plain.Get(c.ctx)
	if err != nil {
		return nil, nil, err
	}
	release = func() { c.s.plain.Put(buf) }
	if m.Codec == wire.CodecPlain {
		copy(buf, m.Payload)
	} else if _, err := c.s.codec.Decompress(buf[:0], m.Payload, int(m.Plain)); err != nil {
		release()
		return nil, nil, err
	}
	places := make([]catalog.PagePlace, pagesOf(o.plain))
	from, found := int(m.Plain), o.found
	for slot := len(places) - 1; slot >= 0; slot-- { // from the end: pages only move up, over nothing that has to move yet
		b := buf[slot*pageSize : min((slot+1)*pageSize, o.plain)]
		if n := len(found); n > 0 && found[n-1].slot == slot {
			places[slot] = found[n-1].place
			clear(b)
			found = found[:n-1]
			continue
		}
		from -= len(b)
		copy(b, buf[from:from+len(b)])
	}
	c.f.readPages(c.ctx, buf, places, nil) // what cannot be read does not have the digest
	return buf[:o.plain], release, nil
}

// check compares each leaf with what was announced. again: pages that were found are not those of their leaf any more, or were never.
func (o *offer) check(plain []byte) (again bool, err error) {
	if len(o.found) == 0 {
		return false, checkLeaves(plain, o.leaves)
	}
	made := make([]bool, len(o.leaves)) // of found pages
	for _, p := range o.found {
		made[p.slot/chunker.LeafPages] = true
	}
	var got [wire.MaxLeaves]digest.Digest
	for i, d := range chunker.Digests(plain, got[:0]) {
		if d == o.leaves[i] {
			continue
		}
		if !made[i] {
			return false, fmt.Errorf("leaf %d of %d has digest %s, announced was %s: %w", i+1, len(o.leaves), d.Short(), o.leaves[i].Short(), sentinel.ErrCorrupt)
		}
		again = true
	}
	return again, nil
}
