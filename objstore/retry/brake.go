package retry

import (
	"context"
	"sync"
	"time"
)

// brake bounds the rate of tries while the store asks for fewer. It is off at first. When the store says so, the rate becomes half of what was tried in the
// last second; then it grows by a tenth each second, until it is twice what was too much: then the brake is off again.
type brake struct {
	over <-chan struct{} // closed when the store is
	turn chan struct{}   // whoever waits at a brake that is on holds it: one at a time, so that a rate which changes counts for all behind

	mu     sync.Mutex
	rate   float64 // tries per second; 0: off
	high   float64 // the rate at which the store complained
	cutAt  time.Time
	grown  time.Time // when rate was reckoned
	next   time.Time // when the next try may begin
	counts [slots]int
	slot   int64 // the newest of counts, in units of a second/slots since 1970
}

const (
	slots = 10
	least = 1.0 // tries per second that stay
	grow  = 0.1 // of the rate, each second
)

// wait lets a try begin, and counts it.
func (b *brake) wait(ctx context.Context) error {
	b.mu.Lock()
	off := b.rate == 0
	if off {
		b.count(time.Now(), 1)
	}
	b.mu.Unlock()
	if off {
		return ctx.Err()
	}
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.over:
		return errClosed
	}
	defer func() { <-b.turn }()
	if d := b.reserve(time.Now()); d > 0 {
		return sleep(ctx, b.over, d)
	}
	return ctx.Err()
}

// reserve takes the next place and tells how long it is until then.
func (b *brake) reserve(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate > 0 {
		b.rate *= 1 + grow*now.Sub(b.grown).Seconds()
		if b.grown = now; b.rate > 2*b.high {
			b.rate = 0
		}
	}
	at := now
	if b.rate > 0 {
		if b.next.After(now) {
			at = b.next
		}
		b.next = at.Add(time.Duration(float64(time.Second) / b.rate))
	}
	b.count(at, 1)
	return at.Sub(now)
}

// cut halves the rate, for a try that began at a time: one that began before the last cut tells nothing of the rate since.
func (b *brake) cut(began time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.cutAt.IsZero() && !began.After(b.cutAt) {
		return
	}
	now := time.Now()
	b.high = max(least, float64(b.count(now, 0)))
	if b.rate > 0 {
		b.high = min(b.high, max(least, b.rate))
	}
	b.rate, b.cutAt, b.grown = max(least, b.high/2), now, now
	if gap := now.Add(time.Duration(float64(time.Second) / b.rate)); b.next.Before(now) || b.next.After(gap) {
		b.next = gap
	}
}

// count adds n tries at a time and gives those of the last second.
func (b *brake) count(at time.Time, n int) (sum int) {
	slot := at.UnixNano() / int64(time.Second/slots)
	for ; b.slot < slot; b.slot++ {
		if slot-b.slot > slots {
			b.slot = slot - slots - 1
		} else {
			b.counts[(b.slot+1)%slots] = 0
		}
	}
	b.counts[slot%slots] += n
	for _, c := range b.counts {
		sum += c
	}
	return sum
}
