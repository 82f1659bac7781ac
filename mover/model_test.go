package mover

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

// The model: a volume of a few granules as versions, a tracker, a source with a table of free leaves, and a gateway that stages or
// writes directly, each as plain values. Anything may die between any two steps, and answers may be lost. Whatever happened, after
// one more orderly pass with the writers stopped the target equals the volume (C1, C2, C4, C6, C8).
type world struct {
	rnd *rand.Rand

	disk  []int // version of each granule
	used  []bool
	clock int

	// tracker: survives the source's process
	dirty, taken []bool
	history      blockdev.History
	lost         error
	gens         byte

	// source: dies with its process, but for the table
	tag     Tag
	marked  []bool // the table says free
	srcLost error

	// gateway: all durable
	target []int
	state  FlowState

	backupTarget []int // of the gateway's machine, with its state
	backupState  FlowState
}

const cells = 12

func newWorld(seed uint64) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 99)), disk: make([]int, cells), used: make([]bool, cells), dirty: make([]bool, cells),
		taken: make([]bool, cells), marked: make([]bool, cells), target: make([]int, cells)}
	for i := range w.target {
		w.target[i] = -1 // whatever lay there
		w.used[i] = true
	}
	w.state = FlowState{Phase: Fresh}
	w.newGeneration()
	return w
}

func (w *world) newGeneration() {
	w.gens++
	w.history = blockdev.History{Generation: id(int64(w.gens))}
	clear(w.dirty)
	clear(w.taken)
}

func (w *world) write() {
	i := w.rnd.IntN(cells)
	w.clock++
	w.disk[i], w.used[i], w.dirty[i] = w.clock, true, true
}

// dies tells whether the source dies or the link breaks for good at this step.
func (w *world) dies() bool { return w.rnd.IntN(12) == 0 }

// someWrites lets writers run between two steps of the source.
func (w *world) someWrites(quiet bool) {
	for !quiet && w.rnd.IntN(3) == 0 {
		w.write()
	}
}

// pass is what mover/sender does, as a model. It returns whether it came to its end.
func (w *world) pass(quiet bool) (bool, error) {
	facts := Facts{Lost: w.srcLost, History: w.history, Table: w.tag, Size: cells, State: w.state}
	if w.srcLost == nil && w.lost != nil {
		w.srcLost = w.lost // Take says so
		return false, nil
	}
	c, err := Next(facts)
	if err != nil {
		return false, err
	}
	if c.Restart {
		w.lost, w.srcLost = nil, nil
		w.newGeneration()
	}
	if w.dies() {
		return false, nil
	}
	// Take.
	for i := range w.dirty {
		w.taken[i] = w.taken[i] || w.dirty[i]
	}
	clear(w.dirty)
	w.history.Taken++
	epoch, gen := w.history.Taken, w.history.Generation
	carry := append([]bool(nil), w.taken...)
	free := make([]bool, cells)
	if c.Kind != Delta {
		clear(w.marked)
		w.tag = Tag{gen, epoch}
		for i := range carry {
			free[i] = !w.used[i]
			carry[i] = w.used[i]
			w.marked[i] = free[i]
		}
	}
	if w.dies() {
		return false, nil
	}
	// Open (C8).
	if c.Kind == Delta && (w.state.Generation != gen || w.state.Epoch == 0 || w.state.Epoch >= epoch) {
		return false, fmt.Errorf("the core chose a delta that the gateway refuses: %+v, tracker %+v", w.state, w.history)
	}
	direct := c.Kind == Full || w.state.Phase != Point || w.rnd.IntN(3) == 0
	log := map[int]int{}
	begun := false
	put := func(i, v int) {
		if !direct {
			log[i] = v
			return
		}
		if !begun {
			begun = true
			if c.Kind != Delta {
				w.state.Epoch = 0 // no delta may build on it, whoever comes next
			}
			w.state.Phase = Incomplete
		}
		w.target[i] = v
	}
	for _, i := range w.rnd.Perm(cells) {
		w.someWrites(quiet)
		switch {
		case free[i]:
			put(i, 0)
		case carry[i]:
			put(i, w.disk[i])
		}
		if w.dies() {
			return false, nil
		}
	}
	// Commit: the log's record, or the direct pass's record.
	for i, v := range log {
		w.target[i] = v
	}
	w.state = FlowState{Phase: Point, Generation: gen, Epoch: epoch, VolumeSize: cells}
	w.someWrites(quiet)
	if w.dies() { // the answer is lost, or the source with it
		return false, nil
	}
	if c.Kind == Delta {
		for i := range carry {
			if carry[i] {
				w.marked[i] = false
			}
		}
	}
	if w.dies() {
		return false, nil
	}
	w.history.Retired = epoch // C4
	clear(w.taken)
	return true, nil
}

func TestModelHistories(t *testing.T) {
	for seed := range uint64(3000) {
		w := newWorld(seed)
		for range 4 + w.rnd.IntN(12) {
			w.someWrites(false)
			switch w.rnd.IntN(12) {
			case 0: // a gap: marks are lost
				clear(w.dirty)
				clear(w.taken)
				w.lost = sentinel.ErrTrackLost
			case 1: // reboot: pinned maps are gone
				w.lost, w.srcLost = nil, nil
				w.newGeneration()
			case 2:
				w.used[w.rnd.IntN(cells)] = false
			case 4: // the gateway's machine is backed up at a point, or put back to that
				if w.backupTarget == nil && w.state.Phase == Point {
					w.backupTarget, w.backupState = append([]int(nil), w.target...), w.state
				} else if w.backupTarget != nil {
					copy(w.target, w.backupTarget)
					w.state = w.backupState
				}
			case 3: // the table is gone
				w.tag = Tag{}
				clear(w.marked)
			}
			if _, err := w.pass(false); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for try := 0; ; try++ {
			ok, err := w.pass(true)
			if err != nil || try > 1000 {
				t.Fatalf("seed %d: %v after %d tries", seed, err, try)
			}
			if ok {
				break
			}
		}
		for i := range w.disk {
			if w.target[i] != w.disk[i] && !(w.target[i] == 0 && w.marked[i]) {
				t.Fatalf("seed %d: granule %d is %d at the target, %d at the source", seed, i, w.target[i], w.disk[i])
			}
		}
	}
}

func TestScanTracker(t *testing.T) {
	s := NewScan(5<<20+100, id(1), "no BTF")
	epoch, dirty, err := s.Take(context.Background())
	if err != nil || epoch != 1 || dirty.Bytes() < s.Pending() {
		t.Errorf("take: %d %d %v", epoch, dirty.Bytes(), err)
	}
	if err := s.Retire(7); err != nil || s.History().Retired != 1 {
		t.Errorf("retired %+v %v", s.History(), err)
	}
}

func TestWindow(t *testing.T) {
	w := Window{Limit: 10}
	if !w.Take(30) || w.Take(1) || w.Used() != 30 {
		t.Error("one batch has to fit, and then no more")
	}
	w.Give(30)
	if !w.Take(9) || w.Take(2) || !w.Take(1) {
		t.Error("limit is not exact")
	}
}

func TestTag(t *testing.T) {
	tag := Tag{id(7), 99}
	if ParseTag(tag.Bytes()) != tag {
		t.Error("a tag does not survive its bytes")
	}
}

// TestLevelsDoNotFlap: where two levels are about equal, a rate that wavers does not change the level all the time; a line that becomes another one does.
func TestLevelsDoNotFlap(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for line := 2e6; line < 3e9; line *= 1.07 {
		var l Levels
		changes, last := 0, -1
		for range 200 {
			got := l.Choose(line*(1+0.04*(rng.Float64()-0.5)), 2, 0)
			if got != last && last >= 0 {
				changes++
			}
			last = got
		}
		if changes > 2 {
			t.Errorf("line of %.0f bytes/s: %d changes", line, changes)
		}
	}
	var l Levels
	if slow, fast := l.Choose(2e6, 2, 0), l.Choose(3e9, 2, 0); slow != 4 || fast != 0 {
		t.Errorf("levels %d on a thin line, then %d on none", slow, fast)
	}
}

// TestLevelsFillTheLine: the level is chosen by what the line is seen to take, and what the line takes depends on the level. In the long run bytes have to move as
// fast as under the best fixed level, on lines that a core can fill and on those that it cannot, and when the line becomes another one.
func TestLevelsFillTheLine(t *testing.T) {
	costs := [LevelCount]LevelCost{{0, 1}, {1 / 267e6, 0.42}, {1 / 211e6, 0.40}, {1 / 120e6, 0.385}, {1 / 19e6, 0.37}}
	moves := func(l int, line, cores float64) (plain float64, full bool) { // a second
		cpu := 1.5e9 // the rest of the pipeline
		if l > 0 {
			cpu = min(cpu, cores/costs[l].Seconds)
		}
		return min(cpu, line/costs[l].Ratio), cpu > line/costs[l].Ratio
	}
	const tick = 100 * time.Millisecond
	for _, cores := range []float64{0.5, 1, 2, 8} {
		var l Levels
		var r LineRate
		for _, line := range []float64{3e6, 6e6, 25e6, 125e6, 1.2e9, 125e6, 6e6, 1.2e9} {
			best := 0.0
			for i := range costs {
				plain, _ := moves(i, line, cores)
				best = max(best, plain)
			}
			sum, n := 0.0, 0
			for i := range 3000 {
				level := l.Choose(r.PerSecond(), cores, 0)
				plain, full := moves(level, line, cores)
				r.Look(int64(plain*costs[level].Ratio*tick.Seconds()), tick, full)
				l.Observe(level, int64(plain*tick.Seconds()), int64(plain*costs[level].Ratio*tick.Seconds()), costs[level].Seconds*plain*tick.Seconds())
				if k := l.Try(level); k != level {
					l.Observe(k, 4<<20, int64(costs[k].Ratio*(4<<20)), costs[k].Seconds*(4<<20))
				}
				if i >= 1500 { // a line that has become 400 times as fast is known after 2 minutes
					sum, n = sum+plain, n+1
				}
			}
			if got := sum / float64(n); got < best*0.95 {
				t.Errorf("%v cores, line of %.0f bytes/s: %.0f plain bytes/s, %.0f with the best level", cores, line, got, best)
			}
		}
	}
}

// TestLevelsMix: levels lie far apart; what the cores have left while the line is busy goes into some batches of the next stronger one, and no more than that.
func TestLevelsMix(t *testing.T) {
	costs := [LevelCount]LevelCost{{0, 1}, {1 / 230e6, 0.36}, {1 / 170e6, 0.335}, {1 / 65e6, 0.318}, {1 / 15e6, 0.303}}
	for _, cores := range []float64{0.3, 0.8, 1.2, 2, 6} {
		for _, line := range []float64{3e6, 6e6, 12.5e6, 25e6, 40e6} {
			var l Levels
			least := 1.0 // ratio of the best level with which the line is always full
			for i := 1; i < LevelCount; i++ {
				if costs[i].Seconds/cores <= costs[i].Ratio/line {
					least = costs[i].Ratio
				}
			}
			if least == 1 {
				continue // no level keeps this line full
			}
			const warm, n, plain = 200, 4000, 8 << 20
			used, out := 0.0, 0.0
			for i := range warm + n {
				k := l.Try(l.Choose(line, cores, 0))
				l.Observe(k, plain, int64(costs[k].Ratio*plain), costs[k].Seconds*plain)
				if i >= warm {
					used, out = used+costs[k].Seconds*plain, out+costs[k].Ratio*plain
				}
			}
			ratio, share := out/(n*plain), used/cores/(out/line)
			if ratio > least*1.002 || share > 1.1 {
				t.Errorf("%v cores, line of %.0f bytes/s: ratio %.4f, %.4f with the best single level; cores used %.2f", cores, line, ratio, least, share)
			}
			if ratio > costs[LevelCount-1].Ratio*1.005 && share < 0.80 {
				t.Errorf("%v cores, line of %.0f bytes/s: ratio %.4f leaves cores idle: %.2f used", cores, line, ratio, share)
			}
		}
	}
}

// TestLevelsForget: what a level did to other data, or before its encoder was warm, must not keep it from being chosen.
func TestLevelsForget(t *testing.T) {
	var l Levels
	const n = 8 << 20
	for range 4 {
		l.Observe(1, n, n*18/100, 37e-9*n)
	}
	for range 150 {
		l.Observe(2, n, n*31/100, 9e-9*n)
	}
	if got := l.Choose(125e6, 1.2, 0); got != 1 {
		t.Errorf("level %d where the default needs %.1f ns of a core and the fastest should need less", got, l.cost(2).Seconds*1e9)
	}
}

// TestLineRate: only a full line tells its rate.
func TestLineRate(t *testing.T) {
	var r LineRate
	look := func(n int64, full bool, times int) float64 {
		for range times {
			r.Look(n, 100*time.Millisecond, full)
		}
		return r.PerSecond()
	}
	if got := look(0, false, 9); got != 0 {
		t.Errorf("nothing was sent: %f", got)
	}
	if got := look(2000, false, 1); got < 10e6 {
		t.Errorf("a line that has carried offers, and was not full: %f", got)
	}
	if got := look(1e6, false, 6); got < 100e6 {
		t.Errorf("a line that is not full soon counts as fast, not as %f", got)
	}
	if got := look(2.5e6, true, 3); got != 25e6 {
		t.Errorf("a full line: %f", got)
	}
	if got := look(1e6, false, 10); got < 25.5e6 || got > 27e6 {
		t.Errorf("after a second in which it was not full: %f", got)
	}
	if got := look(0, false, 600); got > 27e6 {
		t.Errorf("after a minute of nothing: %f", got)
	}
	if got := look(2.5e6, true, 3); got != 25e6 {
		t.Errorf("full again: %f", got)
	}
	if got := look(0.5e6, true, 50); got < 4.9e6 || got > 7e6 {
		t.Errorf("a full line that has become slow: %f", got)
	}
}
