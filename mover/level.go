package mover

import "math"

// Levels of compression, weakest first: 0 is none.
const LevelCount = 5

// LevelCost is what one level does to plain bytes.
type LevelCost struct {
	Seconds float64 // of one core, for each plain byte
	Ratio   float64 // bytes on the wire for each plain byte
}

// priors are typical costs of zstd on program files, until something is measured.
var priors = [LevelCount]LevelCost{{0, 1}, {1 / 260e6, 0.45}, {1 / 200e6, 0.425}, {1 / 115e6, 0.41}, {1 / 19e6, 0.395}}

// Levels chooses how strongly to compress: so that neither the line waits for a core nor, where it is the bottleneck, a core
// idles while the line is full. The zero value is ready.
type Levels struct {
	seen   [LevelCount]LevelCost
	age    [LevelCount]int // batches of other levels since
	recent int             // level seen last; 0: none was
	last   int             // level chosen last, plus 1; 0: none

	more   float64 // share of batches that go one level stronger than chosen
	owed   float64 // of those, what Try has not given yet
	chosen int     // batches that were asked about in Try
}

// Observe tells what a level did to plain bytes: seconds of one core and bytes that came out.
func (l *Levels) Observe(level int, plain, out int64, seconds float64) {
	if plain <= 0 || level <= 0 || level >= LevelCount {
		return
	}
	now := LevelCost{seconds / float64(plain), float64(out) / float64(plain)}
	if l.recent > 0 {
		was := l.cost(level)
		const keep = 0.9
		now = LevelCost{keep*was.Seconds + (1-keep)*now.Seconds, keep*was.Ratio + (1-keep)*now.Ratio}
	}
	for i := range l.age {
		l.age[i]++
	}
	l.seen[level], l.age[level], l.recent = now, 0, level
}

// ages is what is left after each batch of the weight of what a level did to others before.
const ages = 0.97

// cost is what a level does to the data of now: what it did, and the longer that is ago, what the one that was seen last says of it, for data changes, and the
// first batches cost more than others.
func (l *Levels) cost(level int) LevelCost {
	c := priors[level]
	if level == 0 || l.recent == 0 {
		return c
	}
	// A level gains as much over another one as it typically does.
	c.Ratio *= l.seen[l.recent].Ratio / priors[l.recent].Ratio
	c.Seconds *= l.seen[l.recent].Seconds / priors[l.recent].Seconds
	if s := l.seen[level]; s.Ratio > 0 {
		own := math.Pow(ages, float64(l.age[level]))
		c = LevelCost{own*s.Seconds + (1-own)*c.Seconds, own*s.Ratio + (1-own)*c.Ratio}
	}
	return c
}

// Try gives the level to use for one batch where level was chosen: the next stronger one as often as the cores have time for it while the line is busy, and soon
// if it never was seen; both neighbours now and then. What comes out is sent like any other.
func (l *Levels) Try(level int) int {
	if level < 1 {
		return level
	}
	l.chosen++
	stronger, weaker := min(level+1, LevelCount-1), max(level-1, 1)
	if l.owed += l.more; l.owed >= 1 {
		l.owed--
		return stronger
	}
	switch {
	case l.seen[stronger].Ratio == 0 && l.chosen%4 == 0, l.chosen%64 == 0:
		return stronger
	case l.chosen%64 == 32:
		return weaker
	}
	return level
}

// Choose picks the level with which a byte takes the least time, given the line in bytes per second (0: not known), the cores
// that may compress, and the weakest level that is acceptable. Among levels that are within 2 % the stronger wins: bytes on the line cost money.
// The level stays while no other is clearly better, for each change makes encoders anew. Try mixes in what the cores have left.
func (l *Levels) Choose(line float64, cores float64, weakest int) int {
	if line <= 0 {
		return max(weakest, 1) // the first bytes may be on a thin line: wrong there costs more than on a fast one
	}
	level := l.choose(line, cores, weakest)
	l.more = l.left(level, line, cores)
	return level
}

// fills is how much of the cores that may compress a mix of levels uses: both the cores and the costs are estimates, and a line that waits is time lost.
const fills = 0.9

// left is the share of batches that can be compressed one level stronger than level in the time in which the line carries them: levels lie so far apart
// that with one of them a core idles, or with the next the line does.
func (l *Levels) left(level int, line, cores float64) float64 {
	if level < 1 || level == LevelCount-1 {
		return 0
	}
	a, b := l.cost(level), l.cost(level+1)
	cores *= fills
	idle, saves := a.Ratio/line*cores-a.Seconds, a.Ratio-b.Ratio
	if idle <= 0 || saves < a.Ratio*leastSaved {
		return 0
	}
	return min(1, idle/(max(0, b.Seconds-a.Seconds)+saves/line*cores))
}

// leastSaved is the share of bytes for which a stronger level is worth its cores.
const leastSaved = 0.005

func (l *Levels) choose(line, cores float64, weakest int) int {
	best, bestTime := weakest, l.time(weakest, line, cores)
	for i := weakest + 1; i < LevelCount; i++ {
		if t := l.time(i, line, cores); t < bestTime || i > 1 && t <= bestTime*1.02 && l.cost(i).Ratio < l.cost(best).Ratio*0.98 {
			best, bestTime = i, min(t, bestTime)
		}
	}
	if c := l.last - 1; c >= weakest && c != best && l.time(c, line, cores) < bestTime*(1+stayTime) && l.cost(best).Ratio > l.cost(c).Ratio*(1-stayBytes) {
		return c
	}
	l.last = best + 1
	return best
}

// How much better another level has to be, in time or in bytes.
const (
	stayTime  = 0.07 // more than what a stronger level may cost, and a rate wavers
	stayBytes = 0.05
)

func (l *Levels) time(level int, line, cores float64) float64 {
	c := l.cost(level)
	return max(c.Seconds/max(cores, 0.01), c.Ratio/line)
}
