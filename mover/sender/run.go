package sender

// A run sends what is left of a pass over the link, until everything is acked or the link is down:
//
//	planner ─▶ workers ─▶ (link) ─▶ packers ─▶ (link)
//
//	planner  takes room in the window and a batch from the plan, or one that has to be done again
//	workers  lease a buffer, read, digest; leave out what another batch is bringing (twins); then CHECK or OFFER, or straight on to the packers
//	         with what is put
//	link     NEED, PAGES, DIFFER and ACK come back on the readers of connections, which only mark and queue
//	packers  tell prints of what is needed where that may pay and wait for PAGES; or move what is needed together, compress, write
//	         DATA or PUT, release the buffer
//
// Batches need no order (C10). A batch is in one pair of hands at a time, told by its stage; a connection that breaks gives back
// those that were with the link. Room in the window is given back at the ack, the buffer when its bytes are on the socket.

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"golang.org/x/sync/errgroup"
)

// pipeline is what all runs of a flow share.
type pipeline struct {
	link    *link
	reader  *reader
	table   *chunker.Table
	buffers *buffers.Pool
	packer  *packer
	gov     *governor
	window  int64
	workers int
}

// run is one run.
type run struct {
	*pipeline
	p     *pass
	queue chan *batch // to the packers; holds every batch that has a buffer, so readers of connections never wait
	work  chan *batch // to the workers

	mu     sync.Mutex // guards all below, and the stage of batches
	wake   chan struct{}
	room   mover.Window
	flight map[*batch]struct{} // all batches of this run that are not done
	checks map[uint32]*batch   // by the seq of their CHECK
	twins  twins
}

// maxBare bounds batches without bytes that are under way; the window does not see them.
const maxBare = 4096

// send runs p until all is acked. errDown: the link is down, the pass goes on with another run.
func (pl *pipeline) send(ctx context.Context, p *pass) error {
	window := pl.window
	if w := pl.link.view().window; w > 0 {
		window = min(window, w)
	}
	r := &run{pipeline: pl, p: p, queue: make(chan *batch, pl.buffers.Limit()/int64(pl.buffers.Size())+1), work: make(chan *batch),
		wake: make(chan struct{}, 1), room: mover.Window{Limit: window}, flight: map[*batch]struct{}{}, checks: map[uint32]*batch{},
		twins: newTwins()}
	pl.link.handle(r)
	g, ctx := errgroup.WithContext(ctx)
	packed, finish := context.WithCancel(ctx) // ends the packers when all is acked
	g.Go(func() error {
		defer finish()
		defer close(r.work)
		return r.planner(ctx)
	})
	for range pl.workers {
		g.Go(func() error { return r.worker(ctx) })
	}
	for range pl.packer.workers {
		g.Go(func() error { return r.pack(packed) })
	}
	g.Go(func() error { return r.watch(packed) })
	ended := make(chan struct{})
	var cut sync.WaitGroup
	cut.Go(func() { r.cut(ctx, ended) })
	err := g.Wait()
	close(ended)
	cut.Wait()
	finish()
	pl.link.handle(nil)
	r.giveBack()
	return err
}

// watch ends the run when there is no connection left.
func (r *run) watch(ctx context.Context) error {
	var fatal error
	err := r.link.Until(ctx, func(s uplink.State) bool {
		fatal = s.Fatal
		return fatal != nil || s.Conns == 0
	})
	if err != nil {
		return nil
	}
	if fatal != nil {
		return fatal
	}
	return errDown
}

// cutAfter is how long frames that are under way may take to end when nobody waits for them any more.
const cutAfter = 2 * time.Second

// cut closes the connections on which frames still crawl along when the run was told to end: at what a halted line bears they would take minutes, and whoever
// has to thaw, to pause or to stop would wait for them.
func (r *run) cut(ctx context.Context, ended <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-ended:
		return
	}
	t := time.NewTimer(cutAfter)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ended:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := range r.flight {
		if b.writing > 0 && b.conn != nil {
			go b.conn.Close()
		}
	}
}

// giveBack puts everything that is not acked back into the pass. All goroutines of the run have ended, and no reader calls any more.
func (r *run) giveBack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	for _, b := range r.p.again { // these wait there already
		delete(r.flight, b)
	}
	for b := range r.flight {
		r.release(b)
		r.detach(b)
		b.stage = queued
		r.p.again = append(r.p.again, b)
	}
	clear(r.flight)
	clear(r.checks)
	r.p.again = append(r.p.again, r.twins.ripe(true)...)
}

// planner hands out batches until all are acked.
func (r *run) planner(ctx context.Context) error {
	for {
		b, all := r.nextBatch()
		if all {
			return nil
		}
		if b == nil {
			select {
			case <-r.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case r.work <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// nextBatch takes the next batch if there is room for it. all: everything is acked.
func (r *run) nextBatch() (b *batch, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.again) == 0 && !p.end {
		next, ok := p.next()
		if p.end = !ok; ok {
			p.again = append(p.again, next)
		}
	}
	if len(p.again) == 0 { // the plan is at its end
		p.again = append(p.again, r.twins.ripe(len(r.flight) == 0)...)
	}
	if len(p.again) == 0 {
		return nil, len(r.flight) == 0
	}
	// From the end: what has its room already is there, and must not wait for what has none.
	for i := len(p.again) - 1; i >= 0; i-- {
		b = p.again[i]
		if _, mine := r.flight[b]; !mine {
			if len(r.flight) >= maxBare || !r.room.Take(b.bytes) {
				continue
			}
			r.flight[b] = struct{}{}
		}
		p.again = slices.Delete(p.again, i, i+1)
		return b, false
	}
	return nil, false
}

// nudge wakes the planner.
func (r *run) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// release gives the lease back. Only the owner of b calls it.
func (r *run) release(b *batch) {
	if b.buf != nil {
		r.buffers.Put(b.buf)
		b.buf = nil
	}
}

// detach takes b off its connection. r.mu is held.
func (r *run) detach(b *batch) {
	r.move(b, nil)
	delete(r.checks, b.ask)
	b.ask = 0
}

// move puts b on another connection, or none. r.mu is held.
func (r *run) move(b *batch, c *conn) {
	if b.conn != nil {
		b.conn.Load.Add(-b.bytes)
	}
	if b.conn = c; c != nil {
		c.Load.Add(b.bytes)
	}
}

// redo queues b to be done again from its reading. The caller owns b.
func (r *run) redo(b *batch) {
	r.release(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.redoLocked(b)
}

func (r *run) redoLocked(b *batch) {
	r.detach(b)
	b.stage = queued
	r.p.mu.Lock()
	r.p.again = append(r.p.again, b)
	r.p.mu.Unlock()
	r.nudge()
}

// attach puts b on a connection in stage s, and gives it a seq when it begins its way. false: the connection is gone. The caller
// writes the frame next and then calls wrote; until then nobody else takes b away.
func (r *run) attach(b *batch, c *conn, s stage, withSeq bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-c.Gone:
		return false
	default:
	}
	r.move(b, c)
	b.stage, b.early, b.retry = s, false, false
	b.writing++
	if withSeq {
		r.p.mu.Lock()
		if b.seq == 0 {
			r.p.lastSeq++
			b.seq = r.p.lastSeq
		}
		r.p.open[b.seq] = b
		r.p.mu.Unlock()
		if b.times++; b.times > 1 {
			r.p.resent.Add(b.bytes)
		}
	}
	return true
}

// wrote ends what attach began, with the error of the write. The answer may have been dealt with already, up to the ack; and b may be on
// another connection by then, whose write came back before this one: who comes back last does what is left to do.
func (r *run) wrote(b *batch, c *conn, err error) {
	if err != nil {
		c.Close() // its reader gives back the other batches
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b.writing--
	if _, alive := r.flight[b]; !alive || b.conn == nil || b.writing > 0 {
		return
	}
	lost := err != nil && b.conn == c
	select {
	case <-b.conn.Gone:
		lost = true
	default: // if it goes later, its reader gives b back
	}
	switch {
	case b.stage == asked && lost:
		r.release(b)
		r.redoLocked(b)
	case b.stage == sent && lost: // nothing was needed, and the answer was here before the write came back
		r.redoLocked(b)
	case b.stage == sending && b.final:
		r.release(b)
		switch {
		case b.retry:
			r.redoLocked(b)
		case b.early:
			r.p.mu.Lock()
			r.acked(b)
			r.p.mu.Unlock()
			r.nudge()
		case lost:
			r.redoLocked(b)
		default:
			b.stage = sent
		}
	}
}
