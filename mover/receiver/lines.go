package receiver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// LineConfig is a line that sources share.
type LineConfig struct {
	Name  string
	From  []netip.Prefix // of the sources' addresses as the gateway sees them; empty: all
	Shape shape.LineConfig
}

// line shares one line out among its members.
type line struct {
	cfg LineConfig
	s   *Server

	mu      sync.Mutex // guards all below
	shape   *shape.Line
	ledger  *shape.Ledger[*Member]
	members map[*Member]struct{}
	set     mover.LineSet
	allowed shape.Allowance
	used    mover.Rate
	told    int64 // bytes past the gateway, not in used yet
	looked  time.Time
	dirty   bool
	saved   time.Time
}

const (
	shareEvery = 50 * time.Millisecond
	saveEvery  = 5 * time.Second
	// KindLine is of a connection that comes over none of the lines.
	KindLine = "no line"
)

// openLines takes up what the lines have carried before.
func (s *Server) openLines() error {
	for _, c := range s.cfg.Lines {
		l := &line{cfg: c, s: s, ledger: shape.NewLedger[*Member](), members: map[*Member]struct{}{}}
		r, err := s.cat.Line(c.Name)
		if err != nil {
			return err
		}
		l.set = r.Set
		l.shape = shape.NewLine(l.config(time.Now()), r.Used)
		if !r.Saved.IsZero() { // what went between the last save and a kill is not known: as much as was allowed then
			if lost := min(time.Since(r.Saved), saveEvery); r.Open && lost > 0 && r.Allowed > 0 {
				l.shape.Count(r.Saved, int64(float64(r.Allowed)*lost.Seconds()))
			}
		}
		s.lines = append(s.lines, l)
	}
	return nil
}

// config is the line's with what the operator has set. mu is held, or nobody else knows l.
func (l *line) config(now time.Time) shape.LineConfig {
	c := l.cfg.Shape
	if !l.set.Until.IsZero() && now.After(l.set.Until) {
		l.set = mover.LineSet{}
		l.dirty = true
	}
	if l.set.Rate != nil {
		c.Timetable = shape.Timetable{Zone: c.Timetable.Zone, Rate: *l.set.Rate}
	}
	if l.set.Peak != nil {
		c.Billing.Peak = *l.set.Peak
	}
	if l.set.Month != nil {
		c.Month = *l.set.Month
	}
	return c
}

// lineOf finds the line that a peer's connection comes over; nil without an error: lines are not configured.
func (s *Server) lineOf(peer net.Addr) (*line, error) {
	if len(s.lines) == 0 {
		return nil, nil
	}
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return nil, fmt.Errorf("peer's address %q: %w", peer, err)
	}
	ip := at.Addr().Unmap().WithZone("")
	for _, l := range s.lines {
		l.mu.Lock()
		from := l.cfg.From
		l.mu.Unlock()
		if len(from) == 0 || slices.ContainsFunc(from, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			return l, nil
		}
	}
	return nil, &kindError{KindLine, fmt.Errorf("connections from %v come over none of this gateway's lines: %w", ip, sentinel.ErrDenied)}
}

// count takes in what has come since the last time. mu is held.
func (l *line) count(now time.Time) {
	bytes := int64(0)
	for m := range l.members {
		bytes += m.more()
	}
	from := l.looked
	if from.IsZero() || from.After(now) {
		from = now
	}
	l.looked = now
	for m := range l.members {
		if m.past != nil {
			m.assume(from, now)
		}
	}
	if bytes > 0 {
		l.shape.Spread(from, now, bytes)
		l.dirty = true
	}
	if now.After(from) {
		l.used.Add(bytes+l.told, now.Sub(from))
		l.told = 0
	}
}

// run shares the line out until ctx ends: at every border between two samples, too.
func (l *line) run(ctx context.Context) {
	t := time.NewTimer(shareEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			t.Reset(l.share(time.Now()))
		case <-ctx.Done():
			return
		}
	}
}

// share tells everybody his lease, and returns when that is to be done again.
func (l *line) share(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(now)
	if !l.set.Until.IsZero() && now.After(l.set.Until) {
		l.shape.Set(l.config(now))
	}
	before := l.allowed.Beyond
	l.allowed = l.shape.Allow(now, l.demanded(now))
	if l.allowed.Beyond != before {
		l.overdrawn()
	}
	safe := max(shape.Least, l.shape.Safe(now)/int64(max(1, len(l.s.flows)+len(l.s.straight))))
	l.ledger.Share(now, l.allowed, func(m *Member, lease shape.Lease) {
		wire.Latest(m.grants, &wire.Grant{Serial: lease.Serial, Rate: uint64(min(lease.Rate, wire.MaxSize)), TTLMS: l.ttl(now, m, lease), Safe: uint64(min(safe, wire.MaxSize)),
			Line: l.cfg.Name, Why: l.allowed.Why})
	})
	if l.dirty && now.Sub(l.saved) >= saveEvery {
		l.save(now, true)
	}
	return max(time.Millisecond, min(shareEvery, l.shape.Border(now).Sub(now)))
}

// overdrawn says that a month is being, or was, overdrawn. mu is held.
func (l *line) overdrawn() {
	used := l.shape.Used()
	attrs := []any{"line", l.cfg.Name, "carried", used.Bytes, "beyond", used.Bytes - l.shape.Config().Month}
	if l.allowed.Beyond {
		for m := range l.members {
			if _, ask, ok := l.ledger.Lease(m); ok && ask.Class == shape.Final {
				attrs = append(attrs, "flow", m.flow)
			}
		}
		l.s.log.Warn("the bytes of the month are spent; the last delta of a cutover goes beyond them", attrs...)
		return
	}
	l.s.log.Info("nobody goes beyond the bytes of the month any more", attrs...)
}

// settle is the time, beside the way to a source and back, until a new lease is kept to there: what its sockets hold goes first.
const settle = 100 * time.Millisecond

// demanded is what all flows want, and how late they are. mu is held.
func (l *line) demanded(now time.Time) shape.Demand {
	d := l.ledger.Demand(now)
	for m := range l.members {
		d.Lag = max(d.Lag, m.wc.RTT())
	}
	d.Lag = settle + min(d.Lag, settle)
	return d
}

// ttl is how long a lease holds at its source, which begins to count when it hears of it. One that ends earlier than leases do, ends for what comes over the
// line after that: what is under way then, was sent before. mu is held.
func (l *line) ttl(now time.Time, m *Member, lease shape.Lease) uint32 {
	d := lease.Until.Sub(now)
	if d < shape.LeaseTime {
		d -= m.wc.RTT()
	}
	return uint32(max(1, d.Milliseconds()))
}

// save keeps what has been carried; open: more may follow. mu is held.
func (l *line) save(now time.Time, open bool) {
	r := catalog.LineRecord{Name: l.cfg.Name, Used: l.shape.Used(), Set: l.set, Saved: now, Open: open, Allowed: min(l.allowed.Final, int64(l.used.PerSecond()*2))}
	l.saved, l.dirty = now, false
	if err := l.s.cat.PutLine(r); err != nil {
		l.s.log.Error("what a line has carried cannot be kept", "line", l.cfg.Name, "error", err)
	}
}

// bounded is a rate for people: -1 instead of what nothing bounds.
func bounded(rate int64) int64 {
	if rate >= wire.MaxSize {
		return -1
	}
	return rate
}

// Lines tells about every line.
func (s *Server) Lines() (all []mover.LineStatus) {
	for _, l := range s.lines {
		all = append(all, l.status(time.Now()))
	}
	return all
}

func (l *line) status(now time.Time) mover.LineStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(now)
	cfg, used := l.shape.Config(), l.shape.Used()
	d := l.demanded(now)
	a := l.shape.Allow(now, d)
	s := mover.LineStatus{Name: l.cfg.Name, Rate: cfg.Timetable.At(now), Allowed: bounded(a.For(d)), Why: a.Why, Used: l.used.PerSecond(), Billing: cfg.Billing.Model.String(),
		Peak: cfg.Billing.Peak, Burst: a.Burst, Month: used.Month, MonthBytes: used.Bytes, MonthLimit: cfg.Month, Spare: l.shape.Spare(now), Billed: l.shape.Billed(now)}
	s.Changes, s.Next = cfg.Timetable.Next(now)
	if l.set != (mover.LineSet{}) {
		set := l.set
		s.Set = &set
	}
	for m := range l.members {
		if lease, ask, ok := l.ledger.Lease(m); ok {
			s.Leases = append(s.Leases, mover.Lease{Flow: m.flow, Class: ask.Class.String(), Want: bounded(ask.Want), Rate: bounded(lease.Rate), Past: m.past != nil})
		}
	}
	slices.SortFunc(s.Leases, func(a, b mover.Lease) int {
		if a.Flow < b.Flow {
			return -1
		}
		return 1
	})
	return s
}

// SetLine changes a line at once and until it is taken back; an empty set takes all back.
func (s *Server) SetLine(name string, set mover.LineSet) (mover.LineStatus, error) {
	for _, l := range s.lines {
		if l.cfg.Name != name {
			continue
		}
		now := time.Now()
		l.mu.Lock()
		l.set = set
		l.shape.Set(l.config(now))
		l.save(now, true)
		l.mu.Unlock()
		s.log.Info("line was set", "line", name, "set", set)
		return l.status(now), nil
	}
	return mover.LineStatus{}, fmt.Errorf("there is no line %q: %w", name, sentinel.ErrNotFound)
}

// Relines takes over what is said of the lines, whose names stay.
func (s *Server) Relines(all []LineConfig) error {
	if len(all) != len(s.lines) || slices.ContainsFunc(all, func(c LineConfig) bool {
		return !slices.ContainsFunc(s.lines, func(l *line) bool { return l.cfg.Name == c.Name })
	}) {
		return fmt.Errorf("lines were added, removed or renamed, which needs a restart: %w", sentinel.ErrRefused)
	}
	for _, c := range all {
		for _, l := range s.lines {
			if l.cfg.Name != c.Name {
				continue
			}
			l.mu.Lock()
			l.cfg = c
			l.shape.Set(l.config(time.Now()))
			l.mu.Unlock()
		}
	}
	return nil
}
