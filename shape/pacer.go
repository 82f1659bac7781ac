package shape

import (
	"sync"
	"time"
)

// Pacer holds the senders of one flow on one line to a rate. Whoever wants to send waits for his turn and then until what was sent before is paid
// for; time that nobody used is lost, but for a moment. It is safe for concurrent use.
type Pacer struct {
	turn chan struct{} // holds one token: senders go one after the other

	mu      sync.Mutex // guards all below
	rate    int64
	until   time.Time // when rate ends; zero: never
	safe    int64     // what holds from then on
	tokens  float64   // bytes that may go at once; below 0: owed
	at      time.Time // when tokens were right
	changed chan struct{}
	sent    int64
	limited bool // somebody has waited since the last look
	serial  uint32
}

// credit is the time whose bytes may be saved up: what timers and the scheduler are late.
const credit = 30 * time.Millisecond

// NewPacer makes one without a lease: it keeps to safe, bytes/s.
func NewPacer(safe int64) *Pacer {
	p := &Pacer{turn: make(chan struct{}, 1), safe: safe, changed: make(chan struct{}), until: time.Unix(0, 0)}
	p.turn <- struct{}{}
	return p
}

// Grant gives a lease; until a zero time: for good.
func (p *Pacer) Grant(rate int64, until time.Time, serial uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle(time.Now())
	p.rate, p.until, p.serial = rate, until, serial
	p.wake()
}

// SetSafe sets what holds without a lease.
func (p *Pacer) SetSafe(safe int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle(time.Now())
	p.safe = safe
	p.wake()
}

func (p *Pacer) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// now is the rate that holds, and until when. mu is held.
func (p *Pacer) now(at time.Time) (rate int64, end time.Time) {
	if p.until.IsZero() || at.Before(p.until) {
		return p.rate, p.until
	}
	return p.safe, time.Time{}
}

// settle brings tokens up to now. mu is held.
func (p *Pacer) settle(now time.Time) {
	if p.at.IsZero() {
		p.at = now
	}
	for p.at.Before(now) {
		rate, end := p.now(p.at)
		to := now
		if !end.IsZero() && end.Before(now) {
			to = end
		}
		flow := float64(max(rate, Least))
		p.tokens = min(p.tokens+flow*to.Sub(p.at).Seconds(), flow*credit.Seconds())
		p.at = to
	}
}

// Ready waits while the rate is 0, or until done is closed: no frame should begin then. It keeps nobody from his turn.
func (p *Pacer) Ready(done <-chan struct{}) {
	for {
		p.mu.Lock()
		now := time.Now()
		rate, end := p.now(now)
		if rate > 0 {
			p.mu.Unlock()
			return
		}
		p.limited = true
		changed, d := p.changed, time.Hour
		p.mu.Unlock()
		if !end.IsZero() {
			d = max(time.Microsecond, end.Sub(now))
		}
		if !rest(d, changed, done) {
			return
		}
	}
}

// rest lasts for d, or until changed. false: done is closed.
func rest(d time.Duration, changed, done <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-done:
		return false
	}
	return true
}

// Wait waits until n bytes may be sent, or done is closed. At a rate of 0 that is at Least: a frame that has begun goes on, so that nobody has to hold
// half of it for long.
func (p *Pacer) Wait(done <-chan struct{}, n int64) {
	select {
	case <-p.turn:
	case <-done:
		return
	}
	defer func() { p.turn <- struct{}{} }()
	for {
		d, changed := p.take(n)
		if d == 0 || !rest(d, changed, done) {
			return
		}
	}
}

// take sends n bytes, or tells how long to wait, unless something changes before.
func (p *Pacer) take(n int64) (time.Duration, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.settle(now)
	rate, end := p.now(now)
	if p.tokens >= 0 {
		p.pay(n)
		return 0, nil
	}
	d := max(time.Microsecond, time.Duration(-p.tokens/float64(max(rate, Least))*float64(time.Second)))
	p.limited = true
	if !end.IsZero() {
		d = min(d, max(time.Microsecond, end.Sub(now)))
	}
	return d, p.changed
}

// pay takes n bytes out. mu is held.
func (p *Pacer) pay(n int64) {
	p.tokens -= float64(n)
	p.sent += n
}

// Spend counts n bytes that do not wait: what is small and must not be late.
func (p *Pacer) Spend(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle(time.Now())
	p.pay(n)
}

// Look is what has been sent since the last look, whether anybody had to wait, and the serial of the last lease.
func (p *Pacer) Look() (sent int64, limited bool, serial uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sent, limited, serial = p.sent, p.limited, p.serial
	p.sent, p.limited = 0, len(p.turn) == 0 // who stands there now is waiting still
	return sent, limited, serial
}

// Rate is what holds now, bytes/s, and whether that is a lease.
func (p *Pacer) Rate() (rate int64, leased bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	rate, _ = p.now(now)
	return rate, p.until.IsZero() || now.Before(p.until)
}
