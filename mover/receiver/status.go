package receiver

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
)

// counters are the figures behind Metrics.
type counters struct {
	hits, misses, mismatches        atomic.Int64
	pagesAsked, pagesFound          atomic.Int64
	pageMismatches                  atomic.Int64
	written, zeroed, read           atomic.Int64
	syncs, syncNS, applies, applyNS atomic.Int64
	readBackDiffers                 atomic.Int64
	points, pointsLost              atomic.Int64
	log                             catalog.LogStats
}

func (c *counters) sync(began time.Time) {
	c.syncs.Add(1)
	c.syncNS.Add(int64(time.Since(began)))
}

func (c *counters) applied(began time.Time) {
	c.applies.Add(1)
	c.applyNS.Add(int64(time.Since(began)))
}

// Metrics are totals since the start, over all flows.
type Metrics struct {
	DedupHits        int64 // leaves that were found elsewhere and proved right
	DedupMisses      int64 // leaves that the index does not have
	DedupMismatches  int64 // candidates whose content was no longer what the index says
	PagesAsked       int64 // pages of leaves that were needed, whose prints were asked for
	PagesFound       int64 // of these, pages that were found; those of zeros are not counted
	PageMismatches   int64 // leaves made of found pages that were not what was offered
	WrittenBytes     int64 // to targets, without zeros
	ZeroedBytes      int64
	ReadBytes        int64 // from targets
	TargetSyncs      int64
	TargetSyncTime   time.Duration
	LogSyncs         int64
	LogSyncTime      time.Duration
	Applies          int64 // committed logs that were applied
	ApplyTime        time.Duration
	PointsTaken      int64
	PointsMissed     int64 // commits that were to have a point and have none
	ReadBackDiffers  int64 // leaves that did not read as they were written
	BufferBytes      int64 // handed out
	BufferLimitBytes int64
	Conns            int
}

// Metrics tells what the gateway has done.
func (s *Server) Metrics() Metrics {
	c := &s.metrics
	m := Metrics{DedupHits: c.hits.Load(), DedupMisses: c.misses.Load(), DedupMismatches: c.mismatches.Load(),
		PagesAsked: c.pagesAsked.Load(), PagesFound: c.pagesFound.Load(), PageMismatches: c.pageMismatches.Load(),
		WrittenBytes: c.written.Load(), ZeroedBytes: c.zeroed.Load(), ReadBytes: c.read.Load(),
		TargetSyncs: c.syncs.Load(), TargetSyncTime: time.Duration(c.syncNS.Load()),
		LogSyncs: c.log.Syncs.Load(), LogSyncTime: time.Duration(c.log.NS.Load()),
		Applies: c.applies.Load(), ApplyTime: time.Duration(c.applyNS.Load()), ReadBackDiffers: c.readBackDiffers.Load(),
		PointsTaken: c.points.Load(), PointsMissed: c.pointsLost.Load(),
		BufferBytes:      s.in.Used() + s.plain.Used() + s.replay.Used(),
		BufferLimitBytes: s.in.Limit() + s.plain.Limit() + s.replay.Limit()}
	s.mu.Lock()
	m.Conns = s.conns
	s.mu.Unlock()
	return m
}

// rates turns totals into rates between two calls of Status.
type rates struct {
	at            time.Time
	acked, wire   int64
	logical, line float64
}

func (r *rates) update(now time.Time, acked, wire int64) {
	if d := now.Sub(r.at).Seconds(); d >= 0.5 {
		if !r.at.IsZero() && acked >= r.acked {
			r.logical, r.line = float64(acked-r.acked)/d, float64(wire-r.wire)/d
		}
		r.at, r.acked, r.wire = now, acked, wire
	}
}

// Status tells about every flow, in the order of their keys.
func (s *Server) Status() []mover.Status {
	out := make([]mover.Status, 0, len(s.order))
	for _, key := range s.order {
		out = append(out, s.flows[key].status())
	}
	return out
}

func (f *flow) status() mover.Status {
	state := f.state()
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.rec
	st := mover.Status{Flow: f.key, Role: "gateway", Device: f.cfg.Target, Identity: r.Target.Identity, Peer: r.Volume.Identity, Size: r.Volume.Size, Since: f.since, Totals: f.totals,
		Passes: f.passes, Rescans: f.rescans, Phase: state.Phase.String(), LogLimit: f.logLimit(), LastError: f.lastError,
		Memory: f.s.in.Used() + f.s.plain.Used() + f.s.replay.Used(), MemoryLimit: f.s.in.Limit() + f.s.plain.Limit() + f.s.replay.Limit(),
		PointTime: r.Point.Time, PointEpoch: r.Epoch, Points: len(r.Points), PointError: f.pointError}
	if r.Point.Consistency != 0 {
		st.PointConsistency = r.Point.Consistency.String()
	}
	for _, e := range r.Unreadable {
		st.Unreadable = append(st.Unreadable, e.String())
	}
	if l := f.link; l != nil {
		st.Conns, st.WireIn, st.WireOut, st.RTT = l.figures()
	}
	acked := int64(f.totals.Offered)*leafSize + int64(f.totals.Put+f.totals.Zero+f.totals.Free)
	if p := f.pass; p != nil {
		st.Pass, st.Log = p.status()
		acked += st.Pass.Acked
	}
	f.rates.update(time.Now(), acked, st.WireIn+st.WireOut)
	st.Rate, st.WireRate = f.rates.logical, f.rates.line
	f.describe(&st)
	return st
}

// describe says what the flow is doing and what comes next. mu is held.
func (f *flow) describe(st *mover.Status) {
	switch {
	case f.broken != nil:
		st.State, st.Reason = mover.Stopped, f.broken.Error()
		st.Next = "mend the cause; the gateway tries again when the source connects"
	case f.rec.Phase == mover.Released:
		st.State, st.Reason = mover.Done, "released at "+f.rec.Released.Format(time.RFC3339)
		st.Next = "boot a copy of its recovery point, or the target itself; then moverctl finish here, or moverctl rollback at the source"
		if !f.rec.Finished.IsZero() {
			st.Reason += ", finished at " + f.rec.Finished.Format(time.RFC3339)
			st.Next = "take it out of the config; its recovery points stay until they are removed"
		}
	case f.finishing != nil:
		st.State, st.Log = mover.Applying, f.finishing.total
		st.PointEpoch = f.finishing.pass.Epoch
	case f.settling:
		st.State, st.Reason = mover.Settling, "reading the target back"
	case f.pass != nil && st.Conns > 0:
		st.State = mover.Passing
	case st.Conns > 0:
		st.State, st.Reason = mover.Idle, "the source decides when the next pass begins"
	case f.pass != nil:
		st.State, st.Reason = mover.Waiting, "for the source, to go on with a pass"
	default:
		st.State, st.Reason = mover.Waiting, "for the source to connect"
	}
	if f.pointError != "" && f.broken == nil {
		st.Reason = strings.TrimPrefix(st.Reason+"; the last commit has no recovery point to go back to: "+f.pointError, "; ")
	}
}

func (p *pass) status() (*mover.Pass, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &mover.Pass{Kind: p.Kind.String(), Mode: p.mode().String(), Epoch: p.Epoch, Started: p.began, Total: p.estimate,
		Read: p.acked + p.pendLen, Acked: p.acked, ETA: -1, Counts: p.ledger.total}
	if p.acked > 0 && p.estimate > p.acked {
		s.ETA = time.Since(p.began).Seconds() * float64(p.estimate-p.acked) / float64(p.acked)
	}
	return s, p.redo.Bytes()
}

func (l *link) figures() (conns int, in, out int64, rtt float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	in, out = l.in, l.out
	for _, c := range l.conns {
		in += c.wc.WireIn()
		out += c.wc.WireOut()
		rtt = max(rtt, c.wc.RTT().Seconds())
	}
	return len(l.conns), in, out, rtt
}

// note tells what a report tells later.
func (f *flow) note(e mover.Event) {
	if f.s.cfg.Note != nil {
		e.Flow = f.key
		f.s.cfg.Note(e)
	}
}

// event tells how a committed pass ended. What it saved is the source's to tell: here leaves count as whole, and groups that were equal
// are not seen.
func (p *pass) event() mover.Event {
	c := p.commit.Counts
	zero := c.Offered - c.Same - c.Copied - c.Sent
	m := mover.Moved{Free: int64(c.Free), Zero: int64(c.Zero + zero*leafSize), Same: int64(c.Same) * leafSize, Copied: int64(c.Copied) * leafSize,
		Unreadable: int64(c.Unreadable), Sent: int64(c.Sent)*leafSize + int64(c.Put)}
	m.Looked = m.Free + m.Zero + m.Same + m.Copied + m.Unreadable + m.Sent
	return mover.Event{Time: time.Now(), Began: p.began, Kind: mover.PassEvent, Pass: &mover.EndedPass{Kind: p.Kind.String(), Passes: 1, Epoch: p.Epoch,
		Generation: fmt.Sprintf("%x", p.Generation[:]), Consistency: p.commit.Consistency.String(), Moved: m}}
}

func (f *flow) noteError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastError = err.Error()
}

// Progress of what delays a flow, for people: bytes of log applied and in all.
func (s *Server) Progress(key string) (done, total int64) {
	f, err := s.flow(key)
	if err != nil {
		return 0, 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finishing == nil {
		return 0, 0
	}
	return f.finishing.done.Load(), f.finishing.total
}
