package bucket

import (
	"context"
	"sync"
	"time"
)

// Level finds how many requests should be under way: twice as many each time as long as that brings much, then a few more or fewer, whatever gets more done; and
// fewer at once when a store asks for it. The zero value is not ready: set Least and Most.
type Level struct {
	Least, Most float64

	n     float64
	up    bool
	found bool    // it has stopped doubling
	best  float64 // things done a second, at the level before
}

// How the level moves.
const (
	levelStart = 8
	levelMuch  = 1.15 // more done after doubling: once more
	levelStep  = 0.1  // of the level, one at least
	levelGain  = 1.02 // more done after a step: it was worth it
	levelBack  = 0.6  // of the level, when the store asks for fewer
)

// Now is the level.
func (l *Level) Now() int {
	if l.n == 0 {
		l.n, l.up = min(l.Most, max(l.Least, levelStart)), true
	}
	return int(l.n)
}

// Look takes in that n things were done within d at this level, and whether the store asked for fewer.
func (l *Level) Look(n int, d time.Duration, slow bool) {
	l.Now()
	rate := float64(n) / max(d.Seconds(), 1e-9)
	step := max(1, l.n*levelStep)
	switch {
	case slow:
		l.n, l.up, l.found, rate = l.n*levelBack, true, true, 0
	case !l.found && rate >= l.best*levelMuch && l.n < l.Most:
		l.n *= 2
	case !l.found:
		l.n, l.up, l.found = l.n/2+step, false, true // the doubling before brought nothing
	default:
		if rate < l.best*levelGain { // no better than before: turn round
			l.up = !l.up
		}
		if !l.up {
			step = -step
		}
		l.n += step
	}
	l.best = rate
	l.n = min(l.Most, max(l.Least, l.n))
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
	lookEvery = 100 * time.Millisecond
	lookLeast = 2
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
