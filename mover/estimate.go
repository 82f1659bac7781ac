package mover

import (
	"fmt"
	"math"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
)

// Rate is a moving average of bytes (or anything) per second. What is HalfLife old weighs half. The zero value has a HalfLife of 5 s.
type Rate struct {
	HalfLife  time.Duration
	n, weight float64 // decayed amounts and seconds
}

// Add tells that n were counted within d.
func (r *Rate) Add(n int64, d time.Duration) {
	half := r.HalfLife
	if half == 0 {
		half = 5 * time.Second
	}
	s := max(0, d.Seconds())
	keep := math.Exp2(-s / half.Seconds())
	r.n = r.n*keep + float64(n)
	r.weight = r.weight*keep + s
}

// PerSecond is the average, 0 before anything was added.
func (r *Rate) PerSecond() float64 {
	if r.weight <= 0 {
		return 0
	}
	return r.n / r.weight
}

// LineRate estimates what a line can carry from what it carries. Only a full line tells: while there was always more to send, what went is its rate. A line that
// could take more may be faster than it was, or than is known: the estimate rises, until it is full or what is sent has changed. The zero value knows nothing.
type LineRate struct {
	rate   float64
	met    bool // it was full once
	risen  bool // since it was full last
	before bool // it was full at the last look
}

const (
	lineHalf  = time.Second // within which half of the weight goes
	lineRise  = 1.05        // a second: a line that has become ten times as fast is known after 50 s
	lineStart = 2           // a look: until it was full once
	lineGuess = 12.5e6      // the least until then: offers go before data, and are few bytes
)

// Look takes in that n bytes went within d, and whether more is waiting now.
func (r *LineRate) Look(n int64, d time.Duration, full bool) {
	if d <= 0 {
		return
	}
	now, all := float64(n)/d.Seconds(), full && r.before
	r.before = full
	switch {
	case all && (!r.met || r.risen):
		r.rate, r.met, r.risen = now, true, false
	case all:
		r.rate += (now - r.rate) * (1 - math.Exp2(-d.Seconds()/lineHalf.Seconds()))
	case n <= 0: // nothing was sent, nothing is known
	case !r.met:
		r.rate = max(now, r.rate*lineStart, lineGuess)
	case now > r.rate:
		r.rate = now
	default:
		r.rate *= math.Pow(lineRise, d.Seconds())
		r.risen = true
	}
}

// PerSecond is the estimate in bytes, 0 before anything was sent.
func (r *LineRate) PerSecond() float64 { return r.rate }

// Seconds is how long n takes at rate; negative when that is not known.
func Seconds(n int64, rate float64) float64 {
	switch {
	case n <= 0:
		return 0
	case rate <= 0:
		return -1
	}
	return float64(n) / rate
}

// Pace is what was measured and decides how long a cutover would stop the writers.
type Pace struct {
	Line     float64       // logical bytes of deltas per second, end to end
	Source   float64       // bytes per second that the source reads back
	Target   float64       // bytes per second that the gateway reads back
	RTT      time.Duration // one round trip
	Freeze   time.Duration // to freeze, prove and keep
	LeafSize int64
	Granule  int64 // bytes of one dirty bit: the least that makes a leaf unknown
}

// Defaults where nothing was measured yet: slow enough not to promise too much.
const (
	defaultLine     = 10e6
	defaultReadBack = 50e6
	defaultFreeze   = 100 * time.Millisecond
	cutoverTrips    = 6 // OPEN, OFFER, DATA and ACK, COMMIT, READBACK, one to spare
)

func or(v, instead float64) float64 {
	if v > 0 {
		return v
	}
	return instead
}

// Pause estimates how long the writers would stand still if they were stopped with dirty bytes pending and unknown bytes of leaves
// still to be read back. Both ends read back at the same time; the source knows the leaves of the last delta from sending it.
func (p Pace) Pause(dirty, unknown int64) time.Duration {
	touched := unknown + dirty // at worst each dirty granule lies in a leaf of its own
	if p.Granule > 0 && p.LeafSize > p.Granule {
		touched = unknown + dirty/p.Granule*p.LeafSize
	}
	s := float64(dirty)/or(p.Line, defaultLine) + max(float64(unknown)/or(p.Source, defaultReadBack), float64(touched)/or(p.Target, defaultReadBack))
	freeze := p.Freeze
	if freeze == 0 {
		freeze = defaultFreeze
	}
	return freeze + cutoverTrips*p.RTT + time.Duration(s*float64(time.Second))
}

// Flushed takes in how long filesystems took to write back what a freeze would have had to. What the last freeze took was for what was dirty
// then: it counts less with each flush, or one that was slow once would keep the writers from ever being stopped again.
func (p *Pace) Flushed(took time.Duration) {
	if p.Freeze > defaultFreeze {
		p.Freeze = min(p.Freeze, max(took, p.Freeze/2, defaultFreeze))
	}
}

// momentTrips: STATE, OPEN, OFFER, DATA and ACK, one to spare.
const momentTrips = 5

// Reading estimates how long the writers would stand still for a recovery point: dirty bytes are read and acked, nothing is read back.
func (p Pace) Reading(dirty int64) time.Duration {
	freeze := p.Freeze
	if freeze == 0 {
		freeze = defaultFreeze
	}
	return freeze + momentTrips*p.RTT + time.Duration(float64(dirty)/or(p.Line, defaultLine)*float64(time.Second))
}

// Converge decides after each round whether the writers may be stopped now.
type Converge struct {
	Limit   time.Duration // longest pause that is asked for
	Timeout time.Duration // after it, a flow that is not there yet is given up; 0: never
	Rounds  int           // rounds seen
	best    time.Duration // least estimate
	vain    int           // rounds since it became notably less
}

// One more round is worth its while, also when the limit is met, for as long as the pause shrinks: the writers are everybody's customers,
// the rounds are nobody's. What ends that: a pause so short that there is little to gain; rounds in vain, which means without making it
// a tenth shorter, of which the last comes near the best; or many of them.
const (
	gain     = 0.9
	near     = 1.2
	vain     = 2
	mostVain = 5
	short    = 250 * time.Millisecond
)

// Verdict of a round.
type Verdict int

const (
	Again Verdict = iota // one more round
	Go                   // stop the writers
)

// Round tells the estimate after a round, how long the rounds have taken, and the rates of writing and moving in bytes per second.
// It returns ErrNotConverged with the reason when there is no hope within the limit.
func (c *Converge) Round(estimate, elapsed time.Duration, written, moved float64) (Verdict, error) {
	c.Rounds++
	c.vain++
	if c.best == 0 || float64(estimate) < gain*float64(c.best) {
		c.vain = 0
	}
	if c.best == 0 || estimate < c.best {
		c.best = estimate
	}
	enough := estimate <= min(short, c.Limit/2) || c.vain >= vain && float64(estimate) <= near*float64(c.best) || c.vain >= mostVain
	if estimate <= c.Limit && enough {
		return Go, nil
	}
	if c.Timeout == 0 || elapsed < c.Timeout {
		return Again, nil
	}
	if estimate <= c.Limit {
		return Go, nil
	}
	return Again, c.giveUp(elapsed, written, moved)
}

func (c *Converge) giveUp(elapsed time.Duration, written, moved float64) error {
	why := "the rest does not shrink"
	if written > moved {
		why = "they cannot be caught up with"
	}
	return fmt.Errorf("%w after %d rounds in %v: writes arrive at %s, the line moves %s; %s. The pause would be about %v, the limit is %v; "+
		"try again when less is written, or allow a longer pause", sentinel.ErrNotConverged, c.Rounds, elapsed.Round(time.Second),
		units.Rate(written), units.Rate(moved), why, c.best.Round(10*time.Millisecond), c.Limit)
}
