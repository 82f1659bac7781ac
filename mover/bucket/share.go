package bucket

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A flow's rate holds over all its workers: the coordinator divides it, and tells each worker its share when that asks to keep its units. A share counts for as long as the
// lease; a worker that is not answered begins no writes. A larger share counts as in use until the worker says that it has the smaller one, or was silent for its lease: so the
// sum never exceeds the rate.

// noRate is a share without a bound.
const noRate = -1

// Use is what a worker made of its share since it asked last.
type Use struct {
	Share   int64 // as told last; 0 before
	Rate    int64 // bytes a second
	Waited  bool  // it could have sent more
	Counted bool  // there was a share that it could use
}

// shares divides a rate.
type shares struct {
	given map[Who]given
}

type given struct {
	rate   int64
	most   int64 // that it may use until it is heard again
	hungry bool
	used   int64
	at     time.Time
}

// share gives a worker its part of all bytes a second; life is how long a share counts.
func (s *shares) share(w Who, u Use, all int64, life time.Duration, now time.Time) int64 {
	if all <= 0 {
		s.given = nil
		return noRate
	}
	if s.given == nil {
		s.given = map[Who]given{}
	}
	me := s.given[w]
	me.hungry, me.used, me.at = u.Waited || !u.Counted, u.Rate, now
	left := all
	for who, g := range s.given {
		switch {
		case now.Sub(g.at) >= life:
			delete(s.given, who)
		case who != w:
			left -= g.most
		}
	}
	s.given[w] = me
	me.rate = max(0, min(left, s.fair(w, all)))
	if me.most = max(me.rate, u.Share); u.Share == noRate {
		me.most = all
	}
	s.given[w] = me
	return me.rate
}

// fair is what a worker would get if all took what is theirs at once: those that do not use what they have keep a quarter more than they use, the others divide the rest.
func (s *shares) fair(w Who, all int64) int64 {
	n := int64(len(s.given))
	least := max(1, all/(8*n))
	rest, hungry := all, int64(0)
	want := func(g given) int64 { return min(all/n, max(least, g.used*5/4)) }
	for _, g := range s.given {
		if g.hungry {
			hungry++
		} else {
			rest -= want(g)
		}
	}
	me := s.given[w]
	switch {
	case !me.hungry && hungry > 0:
		return want(me)
	case !me.hungry: // nobody else wants it
		return all / n
	}
	return rest / hungry
}

// pacer holds a worker to its share.
type pacer struct {
	before func(ctx context.Context, n int) error // CopyConfig.Pace; may be nil
	limit  *rate.Limiter                          // of a share that is a bound

	mu     sync.Mutex // guards all below
	share  int64
	sent   int64
	waited bool
	since  time.Time
}

func newPacer(before func(context.Context, int) error) *pacer {
	return &pacer{before: before, limit: rate.NewLimiter(rate.Inf, paceLeast), since: time.Now()}
}

// Bounds of what goes at once.
const (
	paceLeast = 64 << 10
	paceMost  = 4 << 20
)

// set takes in a share.
func (p *pacer) set(share int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.share = share
	if share > 0 {
		p.limit.SetBurst(int(max(paceLeast, min(share/4, paceMost))))
		p.limit.SetLimit(rate.Limit(share))
	}
}

// take takes what may go at once of n bytes; 0: nothing may, for about so long.
func (p *pacer) take(n int) (int, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.share < 0:
		p.sent += int64(n)
		return n, 0
	case p.share > 0:
		n = min(n, p.limit.Burst())
		if p.limit.AllowN(time.Now(), n) {
			p.sent += int64(n)
			return n, 0
		}
	}
	p.waited = true
	wait := paceLook
	if p.share > 0 {
		wait = min(wait, time.Duration(int64(n)*int64(time.Second)/p.share))
	}
	return 0, max(wait, time.Millisecond)
}

// pace waits until n bytes may go.
func (p *pacer) pace(ctx context.Context, n int) error {
	if p.before != nil {
		if err := p.before(ctx, n); err != nil {
			return err
		}
	}
	for n > 0 {
		part, wait := p.take(n)
		if n -= part; part > 0 {
			continue
		}
		select {
		case <-time.After(wait): // the share may be another one then
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// paceLook is how long a share is waited for before it is looked at again.
const paceLook = 50 * time.Millisecond

// use tells what was made of the share since the last time.
func (p *pacer) use() Use {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	u := Use{Share: p.share, Rate: int64(float64(p.sent) / max(0.01, now.Sub(p.since).Seconds())), Waited: p.waited, Counted: p.share != 0}
	p.sent, p.waited, p.since = 0, false, now
	return u
}
