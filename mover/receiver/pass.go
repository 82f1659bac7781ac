package receiver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// pass is the open pass of a flow, or one that is committed and not finished.
type pass struct {
	catalog.Head
	f       *flow
	began   time.Time
	commit  *catalog.Commit // its commit record is durable
	direct  atomic.Bool
	intents intents
	kick    chan struct{} // capacity 1: something is pending
	ctx     context.Context
	cancel  context.CancelFunc
	ended   sync.WaitGroup // the syncer

	// Changed by holders of the whole gate, roundMu and mu only; any of them suffices to read it.
	redo *catalog.Log

	roundMu sync.Mutex // held through a round of the syncer

	mu       sync.Mutex // guards all below
	ledger   *ledger
	refs     []partRef
	inflight map[uint32]chan struct{} // seqs that a handler is working on
	pending  []doneBatch              // complete, not durable
	pendLen  int64                    // bytes of pending
	first    time.Time                // since when something is pending
	acked    int64                    // bytes, for people
	estimate int64
}

// partRef is one part of a staged batch in the log.
type partRef struct {
	off     uint64 // of the first item, to apply in the order of the target
	seq     uint32
	attempt uint8
	ref     catalog.Ref
}

// doneBatch is a batch that has wholly arrived.
type doneBatch struct {
	conn    *conn // that it came on, and that its ack goes to
	seq     uint32
	attempt uint8
	counts  mover.Counts
	items   []wire.Item // direct mode: what was written
	bytes   int64
}

// intents are the stretches of the target that are known, durably, to be written by a direct pass.
type intents struct {
	mu    sync.Mutex // held through an intent record's fdatasync
	set   *extent.Set
	ahead int64 // stretches to mark beyond the one asked for; grows, so that a sequential pass pays rarely
}

func (f *flow) newPass(h catalog.Head, redo *catalog.Log) *pass {
	p := &pass{Head: h, f: f, began: h.Began, redo: redo, kick: make(chan struct{}, 1), ledger: newLedger(),
		inflight: map[uint32]chan struct{}{}}
	p.intents.set = extent.NewSet(h.VolumeSize, stretch)
	p.intents.ahead = 1
	p.direct.Store(h.Mode == mover.Direct)
	p.ctx, p.cancel = context.WithCancel(f.s.ctx)
	return p
}

func (p *pass) mode() mover.Mode {
	if p.direct.Load() {
		return mover.Direct
	}
	return mover.Staged
}

// start runs the syncer until stop.
func (p *pass) start() {
	p.ended.Add(1)
	p.f.s.bg.Go(func() {
		defer p.ended.Done()
		p.syncer()
	})
}

func (p *pass) stop() {
	p.cancel()
	p.ended.Wait()
}

// enter takes a share of the flow's gate for something that belongs to the open pass.
func (f *flow) enter(ctx context.Context) (*pass, error) {
	if err := f.gate.share(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	p, broken := f.pass, f.broken
	f.mu.Unlock()
	switch {
	case broken != nil:
		f.gate.unshare()
		return nil, broken
	case p == nil:
		f.gate.unshare()
		return nil, fmt.Errorf("no pass is open: %w", sentinel.ErrProtocol)
	}
	return p, nil
}

// begin starts an attempt at a batch; release ends the handler's hold of the seq. Handlers of one seq exclude each other: a batch
// that is sent again must not be overtaken by its earlier self (C10).
func (p *pass) begin(ctx context.Context, seq uint32) (attempt uint8, seen bool, release func(), err error) {
	if release, err = p.hold(ctx, seq); err != nil {
		return 0, false, nil, err
	}
	p.mu.Lock()
	attempt, seen, durable, err := p.ledger.begin(seq)
	p.mu.Unlock()
	if err == nil && durable && p.direct.Load() {
		// A crash from now on must not trust what the table says about this batch's leaves.
		if _, err = p.redo.Append(catalog.Rec{Kind: catalog.RecAgain, Seq: seq, Attempt: uint16(attempt)}); err == nil {
			err = p.redo.Sync()
		}
	}
	if err != nil {
		release()
		return 0, false, nil, err
	}
	return attempt, seen, release, nil
}

// hold waits until no other handler works on seq.
func (p *pass) hold(ctx context.Context, seq uint32) (release func(), err error) {
	for {
		p.mu.Lock()
		busy := p.inflight[seq]
		if busy == nil {
			mine := make(chan struct{})
			p.inflight[seq] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.inflight, seq)
				p.mu.Unlock()
				close(mine)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// current tells whether attempt is still the one that counts.
func (p *pass) current(seq uint32, attempt uint8) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.ledger.at(seq)
	return e != nil && e.attempt == attempt && e.flags&isComplete == 0
}

// complete hands a batch to the syncer.
func (p *pass) complete(d doneBatch) {
	p.mu.Lock()
	p.ledger.complete(d.seq, d.attempt, d.counts)
	if len(p.pending) == 0 {
		p.first = time.Now()
	}
	p.pending = append(p.pending, d)
	p.pendLen += d.bytes
	p.mu.Unlock()
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Limits of a round: it begins when this much is pending, or this much time has passed, or the source waits.
const (
	stagedBytes = 32 << 20
	stagedDelay = 5 * time.Millisecond
	directBytes = 64 << 20
	directDelay = 200 * time.Millisecond
	quietTime   = 500 * time.Microsecond
)

func (p *pass) syncer() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.kick:
		}
		p.gather()
		if p.round() != nil {
			return
		}
	}
}

// gather waits for more to be worth a round, but not while the source waits for us.
func (p *pass) gather() {
	bytes, delay := int64(stagedBytes), stagedDelay
	if p.direct.Load() {
		bytes, delay = directBytes, directDelay
	}
	t := time.NewTimer(quietTime)
	defer t.Stop()
	for quiet := 0; quiet < 2; {
		p.mu.Lock()
		enough := p.pendLen >= bytes || time.Since(p.first) >= delay
		p.mu.Unlock()
		if enough {
			return
		}
		if l := p.f.currentLink(); l == nil || l.busy.Load() == 0 {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-t.C:
			t.Reset(quietTime)
		case <-p.ctx.Done():
			return
		}
	}
}

// round makes everything pending durable and acks it (C3). After an error the flow is broken: batches count as complete that nobody made
// durable and nobody would ack.
func (p *pass) round() error {
	p.roundMu.Lock()
	defer p.roundMu.Unlock()
	p.mu.Lock()
	batches, bytes := p.pending, p.pendLen
	p.pending, p.pendLen = nil, 0
	p.mu.Unlock()
	if len(batches) == 0 {
		return nil
	}
	var err error
	if p.direct.Load() {
		err = p.settleDirect(batches)
	}
	if err == nil {
		err = p.redo.Sync()
	}
	if err != nil {
		p.f.fail(err)
		return err
	}
	acks := map[*conn]*wire.SeqSet{}
	p.mu.Lock()
	for _, d := range batches {
		p.ledger.durable(d.seq, d.attempt)
		if acks[d.conn] == nil {
			acks[d.conn] = new(wire.SeqSet)
		}
		acks[d.conn].Add(d.seq)
	}
	p.acked += bytes
	p.mu.Unlock()
	for c, set := range acks {
		c.ack(set.Ranges(set.Len()))
	}
	return nil
}

// settleDirect makes written batches durable on the target and in the table, and then says so in the log.
func (p *pass) settleDirect(batches []doneBatch) error {
	if err := p.f.syncTarget(); err != nil {
		return err
	}
	for _, d := range batches {
		m := catalog.Batch{Counts: d.counts, Items: d.items}
		r := catalog.Rec{Kind: catalog.RecDone, Final: true, Seq: d.seq, Attempt: uint16(d.attempt), Meta: m.Append(nil)}
		if _, err := p.redo.Append(r); err != nil {
			return err
		}
	}
	return nil
}

// syncTarget makes target and table durable, both at once.
func (f *flow) syncTarget() error {
	table := make(chan error, 1)
	go func() { table <- f.table.Sync() }()
	err := f.timedSync()
	if terr := <-table; terr != nil {
		err = errors.Join(err, fmt.Errorf("write the digest table: %w", diskFull(terr)))
	}
	return err
}

func (f *flow) timedSync() error {
	began := time.Now()
	err := f.target.Sync()
	f.s.metrics.sync(began)
	if err != nil {
		return f.opError("sync", extent.Extent{}, err)
	}
	return nil
}

// intend makes durable that e is going to be written, before it is (C6). What is marked after a crash and not known to be durable
// counts as unknown.
func (p *pass) intend(e extent.Extent) error {
	e = e.Align(stretch)
	if p.intents.set.Contains(e) {
		return nil
	}
	p.intents.mu.Lock()
	defer p.intents.mu.Unlock()
	if p.intents.set.Contains(e) {
		return nil
	}
	if err := p.f.markIncomplete(p); err != nil {
		return err
	}
	e.Len += p.intents.ahead * stretch
	p.intents.ahead = min(2*p.intents.ahead, 64)
	r := catalog.Rec{Kind: catalog.RecIntent, Meta: catalog.AppendIntent(nil, e.Off/stretch, e.Len/stretch)}
	if _, err := p.redo.Append(r); err != nil {
		return err
	}
	if err := p.redo.Sync(); err != nil {
		return err
	}
	p.intents.set.Add(e)
	return nil
}

// markIncomplete records that the target leaves its point for pass p (C6).
func (f *flow) markIncomplete(p *pass) error {
	r := f.record()
	if r.Phase == mover.Incomplete && r.Open != nil && blockdev.ID(r.Open.ID) == p.Pass {
		return nil
	}
	return f.update(func(r *catalog.Record) {
		r.Phase = mover.Incomplete
		r.Open = &catalog.OpenPass{ID: catalog.ID(p.Pass), Kind: p.Kind, Generation: catalog.ID(p.Generation), Epoch: p.Epoch, Began: p.began}
	})
}
