package discover

import (
	"fmt"
	"time"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// Estimate is what the line can do, without compression, duplicates and zeros, which only make it better.
type Estimate struct {
	FirstPass float64 `json:"first_pass_seconds"`
	Converges *bool   `json:"converges"`     // null: the rate of change is not known
	Pause     float64 `json:"pause_seconds"` // of the writers at a cutover, when known
	Why       string  `json:"why"`
}

// point: so many bytes have changed, each counted once, so many seconds after the measurement began.
type point struct{ t, bytes float64 }

// curve is the growth of what changed. It flattens where the same places are written again.
type curve []point

// end adds the last point, which is exact, and caps what was counted before.
func (c curve) end(t, bytes float64) curve {
	out := make(curve, 0, len(c)+1)
	for _, p := range c {
		if p.t < t {
			out = append(out, point{p.t, min(p.bytes, bytes)})
		}
	}
	return append(out, point{t, bytes})
}

// at is how many bytes change within t seconds; beyond the measurement it goes on as in its second half.
func (c curve) at(t float64) float64 {
	last := point{}
	for _, p := range c {
		if t <= p.t {
			return last.bytes + (p.bytes-last.bytes)*(t-last.t)/max(p.t-last.t, 1e-9)
		}
		last = p
	}
	if len(c) == 0 || last.t <= 0 {
		return 0
	}
	return last.bytes + (last.bytes-c.at(last.t/2))/(last.t/2)*(t-last.t)
}

// load is what convergence needs to know of one or several volumes.
type load struct {
	first  int64 // bytes of a full pass
	size   int64
	curves []curve
	known  bool
	scan   int64 // bytes of volumes in scan mode
	gran   int64
}

func (l load) changed(t float64) (sum float64) {
	for _, c := range l.curves {
		sum += c.at(t)
	}
	return min(sum, float64(l.size))
}

func (h *Host) estimate(o Options) {
	if o.Line <= 0 {
		return
	}
	limit := o.limit()
	all := load{known: true}
	for _, v := range h.Volumes {
		l := load{first: v.FirstPass, size: v.Size, gran: v.Tracking.Granule, known: v.Dirty != nil}
		if v.Tracking.Method == cbt.MethodScan {
			l.scan = v.Size
		}
		if v.Dirty != nil {
			l.curves = []curve{v.Dirty.curve}
		}
		v.Estimate = l.estimate(o.Line, limit)
		all.first += l.first
		all.size += l.size
		all.curves = append(all.curves, l.curves...)
		all.known = all.known && l.known
		all.scan += l.scan
		all.gran = max(all.gran, l.gran)
	}
	h.Estimate = all.estimate(o.Line, limit)
}

// leastRound is how long a round takes that has nothing to send.
const leastRound = 0.2

// estimate plays the passes before a cutover: each moves what changed during the one before.
func (l load) estimate(line float64, limit time.Duration) *Estimate {
	e := &Estimate{FirstPass: float64(l.first) / line}
	if !l.known {
		e.Why = "the rate of change was not measured"
		return e
	}
	pace := mover.Pace{Line: line, LeafSize: chunker.LeafSize, Granule: l.gran}
	yes, no := true, false
	round := e.FirstPass
	for range 100 {
		next := max(l.changed(round)/line, leastRound)
		if next >= round*0.99 {
			round = min(next, round)
			break
		}
		round = next
	}
	dirty := int64(l.changed(round))
	pause := pace.Pause(dirty, l.scan) // in scan mode no bit tells what changed: the last pass reads all of it
	e.Pause = pause.Seconds()
	switch steady := l.changed(3600) / 3600; {
	case l.scan > 0:
		e.Converges, e.Why = &no, "in scan mode the last pass reads the whole volume while the writers stand still"
	case pause <= limit:
		e.Converges, e.Why = &yes, "the pause fits the limit of "+units.Duration(limit)
	case steady >= line*0.9:
		e.Converges, e.Why = &no, fmt.Sprintf("%s change, the line moves %s", units.Rate(steady), units.Rate(line))
	default:
		e.Converges, e.Why = &no, fmt.Sprintf("a pause of %s is over the limit of %s; a longer --limit, a faster line or a quieter hour would do", units.Duration(pause), units.Duration(limit))
	}
	return e
}
