package bucket

import (
	"context"
	"math"
	"sync"
	"time"
)

// Level finds how many requests should be under way: twice as many each time as long as that brings something; then it tries a step more and a step less by turns,
// and goes where more gets done. A machine's speed goes up and down by itself, so a try is held against what was done just before and after it, and one try decides
// nothing. Fewer at once when a store asks for it. The zero value is not ready: set Least and Most.
type Level struct {
	Least, Most float64

	n     float64
	found bool       // it has stopped doubling
	warm  bool       // the look before was at this level too
	best  float64    // things done a second, at half of the level; then, at the level
	up    bool       // which way the try goes
	tried float64    // things done a second in the try before; 0: there was none
	away  bool       // a try is under way
	gain  [2]float64 // of steps down and up, smoothed
}

// How the level moves.
const (
	levelStart  = 32
	levelMuch   = 1.05 // more done after doubling: once more
	levelStep   = 1.4  // of the level
	levelSmooth = 0.3  // of a try, in what is remembered
	levelGain   = 0.02 // so much more done by a step: it is worth it
	levelBack   = 0.6  // of the level, when the store asks for fewer
)

// Now is the level.
func (l *Level) Now() int {
	if l.n == 0 {
		l.n = l.fit(levelStart)
	}
	if !l.away {
		return int(l.n)
	}
	return int(math.Round(l.fit(l.n * l.way())))
}

func (l *Level) fit(n float64) float64 { return min(l.Most, max(l.Least, n)) }

func (l *Level) way() float64 {
	if l.up {
		return levelStep
	}
	return 1 / levelStep
}

// Look takes in that n things were done within d at this level, and whether the store asked for fewer.
func (l *Level) Look(n int, d time.Duration, slow bool) {
	now := float64(l.Now())
	rate := float64(n) / max(d.Seconds(), 1e-9)
	switch {
	case slow:
		l.begin(l.fit(now * levelBack))
	case !l.found && !l.warm: // connections have only just been made, and the listing has begun
		l.warm = true
	case !l.found && rate >= l.best*levelMuch && l.n < l.Most:
		l.n, l.best, l.warm = l.fit(2*l.n), rate, false
	case !l.found && rate < l.best*levelMuch: // the doubling before brought nothing
		l.begin(l.fit(l.n / 2))
	case !l.found:
		l.begin(l.n)
	case l.away:
		l.tried, l.away = rate, false
	default:
		l.judge(rate)
	}
}

// begin stands at n and knows nothing of what lies beside it.
func (l *Level) begin(n float64) {
	l.n, l.found, l.best, l.tried, l.away, l.gain = n, true, 0, 0, false, [2]float64{}
}

// judge takes in what was done after a try, and begins the next one.
func (l *Level) judge(rate float64) {
	at := 0
	if l.up {
		at = 1
	}
	if l.best > 0 && l.tried > 0 {
		l.gain[at] += levelSmooth * (2*l.tried/(l.best+rate) - 1 - l.gain[at])
	}
	if to := l.fit(l.n * l.way()); l.gain[at] > levelGain && to != l.n {
		up := l.up
		l.begin(to)
		l.up = !up // the next try goes on in this direction
	}
	l.best, l.up = rate, !l.up
	l.away = l.fit(l.n*l.way()) != l.n
	l.tried = 0
}

// gate lets as many in as its level says.
type gate struct {
	mu    sync.Mutex // guards all below
	level Level
	in    int
	done  int
	slow  bool
	since time.Time
	wake  chan struct{}
}

func newGate(least, most int) *gate {
	return &gate{level: Level{Least: float64(least), Most: float64(most)}, wake: make(chan struct{}), since: time.Now()}
}

// enter waits for a place.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.in < g.level.Now() {
			g.in++
			g.mu.Unlock()
			return nil
		}
		wake := g.wake
		g.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A look at the level is taken after this time and so many things for each place.
const (
	lookEvery = 250 * time.Millisecond
	lookLeast = 3
)

// leave gives a place back. slow: the store has asked for fewer requests.
func (g *gate) leave(slow bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	full := g.in >= g.level.Now()
	g.in--
	g.done++
	g.slow = g.slow || slow
	if d := time.Since(g.since); d >= lookEvery && (g.done >= lookLeast*g.level.Now() || g.slow) {
		if full || g.slow { // what was not in use tells nothing
			g.level.Look(g.done, d, g.slow)
		}
		g.done, g.slow, g.since = 0, false, time.Now()
	}
	close(g.wake)
	g.wake = make(chan struct{})
}
