package sender

import (
	"cmp"
	"slices"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
)

// twins finds leaves with the content of others that are under way. The gateway has those only when they have arrived, so it would answer that it needs both; of
// /usr a tenth of all leaves has a twin within the 100 MB before it. They are offered later, when the other batch is acked. Guarded by run.mu.
type twins struct {
	coming map[digest.Digest]*batch // who brings it: in flight
	later  []*postponed             // all but the last are full
}

// postponed is a batch with what other batches bring.
type postponed struct {
	*batch
	after map[*batch]struct{} // not acked yet
}

func newTwins() twins { return twins{coming: map[digest.Digest]*batch{}} }

// postpone takes those leaves out of b that another batch is bringing; of b itself nothing was sent yet. If nothing is left, b is done. Not where nothing is
// compressed, for there the line is no bottleneck; nor while writers stand still, for there another round trip is nothing for a pause, and what was read
// must not be read again (C13).
func (r *run) postpone(b *batch) {
	if b.seq != 0 || b.late || r.p.frozen || r.p.around || !r.packer.compresses() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all, digests, whole := b.ext, b.digests, b.bytes
	b.ext, b.digests, b.bytes = nil, b.digests[:0], 0 // digests move down in place
	from := 0                                         // in the buffer
	b.n = 0
	for _, e := range all {
		for ; e.Len > 0; digests = digests[1:] {
			leaf := extent.Extent{Off: e.Off, Len: min(chunker.LeafSize, e.Len)}
			n := int(leaf.Len)
			if d := digests[0]; !r.twin(leaf, d, b) {
				if b.n < from {
					copy(b.buf[b.n:], b.buf[from:from+n])
				}
				b.n += n
				b.digests = append(b.digests, d)
				b.add(leaf)
			}
			from += n
			e.Off, e.Len = e.Off+leaf.Len, e.Len-leaf.Len
		}
	}
	r.p.read.Add(b.bytes - whole)
	r.room.Give(whole - b.bytes)
	if len(b.ext) == 0 {
		delete(r.flight, b)
		r.release(b)
	}
	if b.bytes != whole {
		r.nudge()
	}
}

// twin puts a leaf of b off if another batch in flight brings its content, or notes that b does. r.mu is held.
func (r *run) twin(leaf extent.Extent, d digest.Digest, b *batch) bool {
	if d == chunker.ZeroDigest(int(leaf.Len)) {
		return false
	}
	t := &r.twins
	first := t.coming[d]
	if _, ok := r.flight[first]; !ok || first == b { // compression finds twins within a batch
		t.coming[d] = b
		return false
	}
	last := len(t.later) - 1
	if last < 0 || t.later[last].full() {
		l := newBatch(offered)
		l.late = true
		t.later = append(t.later, &postponed{l, map[*batch]struct{}{}})
		last++
	}
	l := t.later[last]
	l.add(leaf)
	l.after[first] = struct{}{}
	return true
}

// full: one more leaf might not have room in a buffer.
func (l *postponed) full() bool { return l.bytes > chunker.BatchSize-chunker.LeafSize }

// arrived tells that b is acked, and returns the full batches that have waited for nothing else.
func (t *twins) arrived(b *batch) []*batch {
	if len(t.coming) == 0 {
		return nil
	}
	for _, d := range b.digests {
		if t.coming[d] == b {
			delete(t.coming, d)
		}
	}
	for _, l := range t.later {
		delete(l.after, b)
	}
	return t.take(func(l *postponed) bool { return l.full() && len(l.after) == 0 })
}

// ripe returns the batches that wait for nothing, full or not; all: whatever they wait for.
func (t *twins) ripe(all bool) []*batch {
	return t.take(func(l *postponed) bool { return all || len(l.after) == 0 })
}

func (t *twins) take(which func(l *postponed) bool) (out []*batch) {
	keep := t.later[:0]
	for _, l := range t.later {
		if which(l) {
			l.sort()
			out = append(out, l.batch)
		} else {
			keep = append(keep, l)
		}
	}
	clear(t.later[len(keep):])
	t.later = keep
	return out
}

// sort brings the extents into order: they come from several workers.
func (l *postponed) sort() {
	all := l.ext
	slices.SortFunc(all, func(a, b extent.Extent) int { return cmp.Compare(a.Off, b.Off) })
	l.ext, l.bytes = nil, 0
	for _, e := range all {
		l.add(e)
	}
}
