package sender

import (
	"context"
	"fmt"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// view is what Status shows and the loop and the sampler write. Guarded by Flow.mu.
type view struct {
	state        mover.State
	reason, next string
	since        time.Time
	lastError    string
	gap          string
	cutover      bool // one is under way, or a recovery point
	pointing     bool // it is a recovery point
	frozen       bool // writers are stopped by it
	final        bool // it is no rehearsal: its last bytes are worth going beyond a month's

	totals          mover.Counts
	passes, rescans int64
	acked, resent   int64 // bytes of passes that have ended
	point           time.Time
	pointEpoch      uint64
	pointWorth      mover.Consistency

	pace     mover.Pace
	oldest   time.Time // of the oldest change that the target lacks, at the earliest
	dirty    mover.Rate
	line     mover.Rate
	wire     mover.Rate
	pending  int64
	unknown  int64
	estimate time.Duration
}

// show sets what the flow is doing now.
func (f *Flow) show(s mover.State, reason, next string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view.cutover && s != mover.Connecting && s != mover.Settling && f.view.frozen {
		s = mover.Frozen
	}
	if s != f.view.state {
		f.view.since = time.Now()
	}
	f.view.state, f.view.reason, f.view.next = s, reason, next
}

// frozenNow tells whether the writers stand still.
func (f *Flow) frozenNow() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view.frozen
}

func (f *Flow) noteError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view.lastError = err.Error()
}

// note tells what a report tells later.
func (f *Flow) note(e mover.Event) {
	if f.deps.Note != nil {
		e.Flow = f.cfg.Flow
		f.deps.Note(e)
	}
}

func (f *Flow) setPace(change func(*mover.Pace)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.view.pace)
}

// committed counts a pass.
func (f *Flow) committed(p *pass) {
	took := time.Since(p.started)
	p.mu.Lock()
	counts := p.counts
	p.mu.Unlock()
	f.deps.Log.Info("pass committed", "flow", f.cfg.Flow, "kind", p.kind.String(), "epoch", p.epoch, "bytes", p.total, "took", took.Round(time.Millisecond))
	f.note(p.event(f.link.view().Out-p.wireAt, nil))
	f.link.setState(func(s *mover.FlowState) { s.Phase, s.Generation, s.Epoch = mover.Point, p.generation, p.epoch })
	f.mu.Lock()
	defer f.mu.Unlock()
	v := &f.view
	v.totals.Add(counts)
	v.passes++
	if p.kind == mover.Rescan {
		v.rescans++
	}
	v.acked += p.acked.Load()
	v.resent += p.resent.Load()
	v.point, v.pointEpoch, v.pointWorth = time.Now(), p.epoch, p.consistency
	v.oldest = p.started // what is dirty now was written after this Take
	if p.kind == mover.Delta && p.total >= chunker.GroupSize && took > 0 {
		v.pace.Line = float64(p.total) / took.Seconds()
	}
}

// watchLine has the packer know what the line takes, until ctx ends.
func (f *Flow) watchLine(ctx context.Context) error {
	tick := time.NewTicker(lineLook)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			conns, held := f.link.Conns()
			f.packer.meter.look(conns, held, now)
		case <-ctx.Done():
			return nil
		}
	}
}

const lineLook = 100 * time.Millisecond

// sample measures rates every second until ctx ends.
func (f *Flow) sample(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := time.Now()
	var line, wire, pending int64
	var cores idleCores
	for first := true; ; first = false {
		l := f.link.view()
		now, bytes := time.Now(), f.deps.Tracker.Pending()
		leaves, known, _ := f.table.Counts()
		f.mu.Lock()
		v := &f.view
		done := v.acked
		if f.current != nil {
			done += f.current.acked.Load()
		}
		if d := now.Sub(last); !first {
			v.line.Add(max(0, done-line), d)
			v.wire.Add(max(0, l.In+l.Out-wire), d)
			if bytes >= pending { // less: a pass was retired within this second
				v.dirty.Add(bytes-pending, d)
			}
		}
		v.pending, v.unknown = bytes, (leaves-known)*chunker.LeafSize
		v.pace.RTT, v.pace.LeafSize = l.RTT, chunker.LeafSize
		v.estimate = v.pace.Pause(bytes, v.unknown)
		f.mu.Unlock()
		if idle, ok := cores.idle(); ok {
			f.packer.look(idle, now.Sub(last))
		}
		last, line, wire, pending = now, done, l.In+l.Out, bytes
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Status tells everything about the flow. It never waits.
func (f *Flow) Status() mover.Status {
	l := f.link.view()
	method, detail := f.deps.Tracker.Method()
	bad := f.reader.unreadable()
	pending := f.deps.Tracker.Pending()
	f.mu.Lock()
	defer f.mu.Unlock()
	v := &f.view
	s := mover.Status{Flow: f.cfg.Flow, Role: "source", Device: f.cfg.Device, Identity: f.deps.Volume.Identity(), Peer: f.cfg.Gateway, Size: f.deps.Volume.Size(), State: v.state, Reason: v.reason,
		Next: v.next, Since: v.since, Tracking: method, Gap: v.gap, Dirty: pending, DirtyRate: v.dirty.PerSecond(), Rate: v.line.PerSecond(),
		WireRate: v.wire.PerSecond(), WireOut: l.Out, WireIn: l.In, Totals: v.totals, Passes: v.passes, Rescans: v.rescans,
		PointTime: v.point, PointEpoch: v.pointEpoch, Conns: l.Conns, RTT: l.RTT.Seconds(), Links: l.Links, Memory: f.deps.Buffers.Used(),
		MemoryLimit: f.deps.Buffers.Limit(), Unreadable: bad, Reconnects: l.Losses, Resent: v.resent, LastError: v.lastError}
	if detail != "" {
		s.Tracking += ": " + detail
	}
	if l.state.Phase != 0 {
		s.Phase = l.state.Phase.String()
	}
	if v.passes > 0 {
		s.PointConsistency = v.pointWorth.String()
	}
	if s.State == "" {
		s.State = mover.Connecting
	}
	if p := f.current; p != nil {
		s.Pass = p.view(s.Rate)
		s.Totals.Add(s.Pass.Counts)
		s.Resent += p.resent.Load()
	}
	if pending > 0 && !v.oldest.IsZero() {
		s.Lag = time.Since(v.oldest).Seconds()
	}
	f.explain(&s, l)
	if s.HandOver = f.report.HandOver(); f.released {
		s.HandOver = mover.HandedOver
	}
	if v.passes > 0 && f.report == nil && !f.released {
		s.Estimate = v.estimate.Seconds()
		s.Cutover = fmt.Sprintf("final delta %s, about %s", units.Size(pending), seconds(max(v.estimate, 100*time.Millisecond)))
	}
	return s
}

// freshNotice is how old a NOTICE may be and still tell what goes on.
const freshNotice = 15 * time.Second

// explain adds what the link knows to the reason. mu is held.
func (f *Flow) explain(s *mover.Status, l linkView) {
	switch s.State {
	case mover.Passing, mover.Settling, mover.Frozen:
		if l.Conns == 0 {
			s.Reason = connecting(f.cfg.Gateway, l)
		} else if p := noShare(l.Links); p != nil {
			s.Reason = fmt.Sprintf("line %s: %s", p.Line, p.Why)
			s.Next = "wait, or moverctl line set " + p.Line + " at the gateway"
		} else if l.notice != "" && time.Since(l.noticed) < freshNotice && l.noticed.After(f.view.since) {
			s.Reason = "gateway: " + l.notice
		}
	case mover.Connecting:
		s.Reason = connecting(f.cfg.Gateway, l)
	}
}

// noShare is a link that carries the flow's connections while the gateway grants nothing of its line; nil: something moves.
func noShare(links []mover.LinkStatus) *mover.LinkStatus {
	var none *mover.LinkStatus
	for i := range links {
		switch p := &links[i]; {
		case p.Conns == 0:
		case p.Leased && p.Rate == 0 && p.Line != "":
			none = p
		default:
			return nil
		}
	}
	return none
}
