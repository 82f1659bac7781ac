package chunker

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/moverd/mover/internal/digest"
)

const (
	shards   = 8    // node n is in shard n % shards
	mostSums = 2048 // digests of groups that a shard keeps before it writes them
)

// shard is a part of a table with a lock of its own: every eighth node, and the pages of its groups.
type shard struct {
	t *Table

	mu      sync.Mutex // guards all below and t.nodes of this shard
	cache   cache
	sums    map[int64]digest.Digest // of groups, that the file lacks
	grown   map[int64]leafBits      // of groups: leaves that became known and are not so in the file; with PowerCut
	queue   []int64                 // nodes whose changed is set
	held    bool                    // nothing may be written
	scratch [2][pageSize]byte       // for reading when the cache is full of changes
}

// room makes place for n more pages, by writing if need be.
func (s *shard) room(n int) error {
	c := &s.cache
	if c.evict(n) && len(s.sums) < mostSums || s.held { // held: what does not fit is in excess until Release
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	c.evict(n)
	return nil
}

// view returns page no for reading, until the next view of the same slot. It never writes.
func (s *shard) view(no int64, slot int) (*[pageSize]byte, error) {
	if c := &s.cache; c.pages[no] != nil || c.evict(1) {
		p, err := c.get(no, true)
		if err != nil {
			return nil, err
		}
		return p.buf, nil
	}
	b := &s.scratch[slot]
	if _, err := s.t.file.ReadAt(b[:], no*pageSize); err != nil {
		return nil, fmt.Errorf("read digest table: %w", err)
	}
	return b, nil
}

func (s *shard) node(g int64) (*node, int) { return &s.t.nodes[g/fanOut], int(g % fanOut) }

func (s *shard) state(g int64) state {
	n, i := s.node(g)
	return n.state(i)
}

// change notes that node no has a row to be written.
func (s *shard) change(no int64) *node {
	n := &s.t.nodes[no]
	if !n.changed {
		n.changed = true
		s.queue = append(s.queue, no)
	}
	n.stale = true
	return n
}

// put gives group g a state. pages tells that pages of g were changed.
func (s *shard) put(g int64, st state, pages bool) {
	n, i := s.node(g)
	if !pages && n.state(i) == st {
		return
	}
	e := n.own() // before change: it wants to know whether the row in the file is right
	s.change(g / fanOut)
	if st != known {
		delete(s.sums, g)
	}
	e.state[i] = st
	if pages {
		e.risky[i/64] |= 1 << (i % 64)
	}
}

// leafPage returns the digests of group g, which is mixed or, with fresh set, about to be.
func (s *shard) leafPage(g int64, fresh bool) (*page, error) {
	return s.cache.get(s.t.leafPage(g), !fresh)
}

// digestsIn views a page as the digests that it holds.
func digestsIn(b *[pageSize]byte) *[GroupLeaves]digest.Digest {
	return (*[GroupLeaves]digest.Digest)(unsafe.Pointer(b))
}

func recordAt(g int64) int { return int(g*recordSize) % pageSize }

// readRecord is the record of a mixed group.
func (s *shard) readRecord(g int64) (r record, err error) {
	b, err := s.view(s.t.recordPage(g), 0)
	if err == nil {
		s.decode(&r, g, b)
	}
	return r, err
}

// decode reads the record of group g from its page. Only the state partial gives a meaning to unknown.
func (s *shard) decode(r *record, g int64, b *[pageSize]byte) {
	r.decode(b[recordAt(g):])
	if s.state(g) != partial {
		r.unknown = leafBits{}
	}
}

// record is readRecord for changing it: room has been made.
func (s *shard) record(g int64) (p *page, at int, r record, err error) {
	p, err = s.cache.get(s.t.recordPage(g), true)
	if err != nil {
		return nil, 0, r, err
	}
	at = recordAt(g)
	s.decode(&r, g, p.buf)
	return p, at, r, nil
}

func (s *shard) putRecord(p *page, at int, r *record) {
	r.encode(p.buf[at : at+recordSize])
	s.cache.touch(p, at, at+recordSize)
}

// grow notes which leaves of group g become known when its record changes.
func (s *shard) grow(g int64, old, now *record) {
	if !s.t.powerCut {
		return
	}
	bits := s.grown[g]
	n, i := s.node(g)
	fresh := !n.state(i).mixed() && (n.each != nil && n.each.file[i].mixed() || n.each == nil && n.changed)
	if fresh { // the record in the file is an older one
		bits.span(0, s.t.leavesOf(g), true)
	}
	for w := range bits {
		bits[w] = (bits[w] | old.unknown[w]) &^ now.unknown[w]
	}
	if bits == (leafBits{}) {
		delete(s.grown, g)
	} else {
		s.grown[g] = bits
	}
}

// recount corrects the node's counts when the record of group g, of count leaves, changes.
func (s *shard) recount(g int64, old, now *record) {
	n, _ := s.node(g)
	if n.counted {
		n.known += int32(old.unknown.count() - now.unknown.count())
		n.free += int32(now.free.count() - old.free.count())
	}
}

// setUniform gives all leaves of group g the same special digest.
func (s *shard) setUniform(g int64, st state) error {
	old := s.state(g)
	if old == st {
		return nil
	}
	was := uniformRecord(old, s.t.leavesOf(g))
	if old.mixed() {
		var err error
		if was, err = s.readRecord(g); err != nil {
			n, _ := s.node(g)
			n.counted = false
		}
	}
	now := uniformRecord(st, s.t.leavesOf(g))
	s.recount(g, &was, &now)
	s.put(g, st, false)
	return nil
}

// setAll stores all digests of group g, none unknown; sum is the group's.
func (s *shard) setAll(g int64, ds []digest.Digest, sum digest.Digest) error {
	if err := s.room(2); err != nil {
		return err
	}
	rp, at, was, err := s.record(g)
	if err != nil {
		return err
	}
	if old := s.state(g); !old.mixed() {
		was = uniformRecord(old, len(ds))
	}
	p, err := s.leafPage(g, true)
	if err != nil {
		return err
	}
	copy(digestsIn(p.buf)[:], ds)
	s.cache.touch(p, 0, len(ds)*digest.Size)
	var now record
	for i := range ds {
		if ds[i] == digest.Free {
			now.free.put(i, true)
		}
	}
	s.putRecord(rp, at, &now)
	s.grow(g, &was, &now)
	s.recount(g, &was, &now)
	s.sums[g] = sum
	s.put(g, known, true)
	return nil
}

// setSome stores digests, some of which may be unknown, of leaves of group g from first on.
func (s *shard) setSome(g int64, first int, ds []digest.Digest) error {
	if err := s.room(2); err != nil {
		return err
	}
	rp, at, was, err := s.record(g)
	if err != nil {
		return err
	}
	old := s.state(g)
	p, err := s.leafPage(g, !old.mixed())
	if err != nil {
		return err
	}
	page := digestsIn(p.buf)
	from, to := first, first+len(ds)
	if !old.mixed() {
		count := s.t.leavesOf(g)
		was = uniformRecord(old, count)
		if old == allUnknown {
			*page = [GroupLeaves]digest.Digest{}
		} else {
			for i := range count {
				page[i] = s.t.special(g, i, old)
			}
			from, to = 0, count
		}
	}
	now := was
	for i := range ds {
		page[first+i] = ds[i]
		now.unknown.put(first+i, ds[i] == digest.Unknown)
		now.free.put(first+i, ds[i] == digest.Free)
	}
	s.cache.touch(p, from*digest.Size, to*digest.Size)
	s.putRecord(rp, at, &now)
	s.grow(g, &was, &now)
	s.recount(g, &was, &now)
	s.put(g, mixedState(&now), true)
	return nil
}

func mixedState(r *record) state {
	if r.unknown == (leafBits{}) {
		return stale
	}
	return partial
}

// forget makes leaves [from, to) of group g unknown. Of a mixed group it touches only the record.
func (s *shard) forget(g int64, from, to int) error {
	old := s.state(g)
	if old == allUnknown {
		return nil
	}
	if from == 0 && to == s.t.leavesOf(g) {
		return s.setUniform(g, allUnknown)
	}
	if !old.mixed() {
		var none [GroupLeaves]digest.Digest
		return s.setSome(g, from, none[:to-from])
	}
	if err := s.room(1); err != nil {
		return err
	}
	rp, at, was, err := s.record(g)
	if err != nil {
		return err
	}
	now := was
	now.unknown.span(from, to, true)
	now.free.span(from, to, false)
	if now == was && old == partial { // after a power cut the row may be older than the record
		return nil
	}
	s.putRecord(rp, at, &now)
	s.grow(g, &was, &now)
	s.recount(g, &was, &now)
	s.put(g, partial, true)
	return nil
}

// get is the digest of leaf i of group g.
func (s *shard) get(g int64, i int) (digest.Digest, error) {
	st := s.state(g)
	if !st.mixed() {
		return s.t.special(g, i, st), nil
	}
	if st == partial {
		r, err := s.readRecord(g)
		if err != nil || r.unknown.has(i) {
			return digest.Unknown, err
		}
	}
	b, err := s.view(s.t.leafPage(g), 1)
	if err != nil {
		return digest.Unknown, err
	}
	return digestsIn(b)[i], nil
}

// append appends the digests of leaves [from, to) of group g.
func (s *shard) append(out []digest.Digest, g int64, from, to int) ([]digest.Digest, error) {
	st := s.state(g)
	if !st.mixed() {
		for i := from; i < to; i++ {
			out = append(out, s.t.special(g, i, st))
		}
		return out, nil
	}
	var r record
	if st == partial {
		var err error
		if r, err = s.readRecord(g); err != nil {
			return out, err
		}
	}
	b, err := s.view(s.t.leafPage(g), 1)
	if err != nil {
		return out, err
	}
	if st != partial {
		return append(out, digestsIn(b)[from:to]...), nil
	}
	for i := from; i < to; i++ {
		if r.unknown.has(i) {
			out = append(out, digest.Unknown)
		} else {
			out = append(out, digestsIn(b)[i])
		}
	}
	return out, nil
}

// lost makes group g unknown after its page could not be read: it will be digested again from the volume.
func (s *shard) lost(g int64, err error) {
	n, _ := s.node(g)
	n.counted = false
	s.put(g, allUnknown, false)
	s.t.note(fmt.Errorf("group %d: %w", g, err))
}
