package sender

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// pass is one pass over one epoch. It outlives links: what is acked stays acked, what is planned and not acked is done again.
type pass struct {
	id          mover.ID
	kind        mover.PassKind
	why         string
	generation  mover.ID
	epoch       uint64
	consistency mover.Consistency
	frozen      bool // writers stand still until the verdict, or until it is sealed
	proven      bool // sealed: the tracker's witness was exact within the freeze
	around      bool // delta: leaves are read whole where parts are dirty, so that settling need not read them again
	reclaim     bool
	dirty       *extent.Set // delta: what was taken
	free        *extent.Set // full and rescan: free leaves, or nil
	whole       *extent.Set // delta: leaves that are free at the target and no longer here; sent whole, unknown after the commit
	started     time.Time
	total       int64 // bytes to look at
	wireAt      int64 // bytes on the wire before it

	read, acked, resent atomic.Int64 // bytes
	sealed              atomic.Bool  // everything was read and the writers may go on: what is read from here on is of another moment (C13)

	next func() (*batch, bool) // the plan; called by one run at a time
	stop func()
	end  bool // the plan is at its end

	asked     bool // COMMIT was sent, and may have been carried out
	committed bool // COMMITTED was heard, in answer to COMMIT or to OPEN

	mu      sync.Mutex // guards all below; one run and the status read them
	mode    mover.Mode
	lastSeq uint32
	done    wire.SeqSet       // acked, where anything was sent
	open    map[uint32]*batch // sent once at least, not acked
	again   []*batch          // planned and in no run's hands: to do again
	counts  mover.Counts      // of acked batches
	moved   mover.Moved       // the same in bytes, with groups that were equal as a whole
}

// weakest is the level of compression that p gets at least. The bytes of deltas are what the line is paid for, day after day, and the
// fastest level costs little; stronger ones where the line is what the writers wait for (mover.Levels), as under a cutover they are not
// to make a delta slower than what it chases.
func (p *pass) weakest() int {
	if p.kind == mover.Delta {
		return 1
	}
	return 0
}

// begun tells whether anything was sent.
func (p *pass) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastSeq > 0
}

// plan sets what the pass walks.
func (p *pass) plan(seq iter.Seq[*batch]) {
	p.open = map[uint32]*batch{}
	p.next, p.stop = iter.Pull(seq)
}

// resume takes in what the gateway says is durable. false: bytes that were acked are missing, the pass is worth nothing. Offers of
// which nothing was needed are not listed; those that were acked stand all the same. A batch that is durable but whose NEED was
// lost on the way is offered again: its counts are not known. No run may be under way.
func (p *pass) resume(m *wire.Opened) bool {
	var have wire.SeqSet
	last := uint32(math.MaxUint32)
	for _, r := range m.Done {
		have.AddRange(r)
	}
	if len(m.Done) >= wire.MaxOpened {
		last = m.Done[len(m.Done)-1].Last // the rest had no room
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = mover.Mode(m.Mode)
	for _, r := range p.done.Ranges(p.done.Len()) {
		for seq := r.First; seq <= min(r.Last, last) && seq != 0; seq++ {
			if !have.Has(seq) {
				return false
			}
		}
	}
	p.again = slices.DeleteFunc(p.again, func(b *batch) bool {
		if b.seq == 0 || !b.final || !have.Has(b.seq) {
			return false
		}
		p.settle(b)
		return true
	})
	return true
}

// settle counts a batch that is durable. mu is held.
func (p *pass) settle(b *batch) {
	delete(p.open, b.seq)
	if b.counts.Offered == 0 || b.counts.Sent > 0 {
		p.done.Add(b.seq)
	}
	p.counts.Add(b.counts)
	p.moved.Add(b.moved())
	p.acked.Add(b.bytes)
}

// equal counts a group that the target has.
func (p *pass) equal(bytes int64) {
	p.acked.Add(bytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved.Add(mover.Moved{Looked: bytes, Same: bytes})
}

// event tells how p ended; wire is what its link has sent since it began.
func (p *pass) event(wire int64, err error) mover.Event {
	p.mu.Lock()
	m := p.moved
	p.mu.Unlock()
	m.Wire = wire
	if p.free != nil && err == nil {
		m.Looked, m.Free = m.Looked+p.free.Bytes(), p.free.Bytes()
	}
	e := mover.Event{Time: time.Now(), Began: p.started, Kind: mover.PassEvent, Pass: &mover.EndedPass{Kind: p.kind.String(), Passes: 1, Why: p.why,
		Epoch: p.epoch, Generation: fmt.Sprintf("%x", p.generation[:]), Consistency: p.consistency.String(), Moved: m}}
	if err != nil {
		e.Error = err.Error()
	}
	return e
}

// view is what Status shows.
func (p *pass) view(rate float64) *mover.Pass {
	p.mu.Lock()
	counts, mode := p.counts, p.mode
	p.mu.Unlock()
	acked := p.acked.Load()
	return &mover.Pass{Kind: p.kind.String(), Mode: mode.String(), Epoch: p.epoch, Started: p.started, Total: p.total, Read: p.read.Load(),
		Acked: acked, ETA: mover.Seconds(p.total-acked, rate), Counts: counts}
}

// close ends the plan. No run may be under way.
func (p *pass) close() {
	if p.stop != nil {
		p.stop()
	}
}
