package receiver

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// scattered is many small puts and offers, so that a log has many records.
func (s *src) scattered(seed uint64) (out []batch) {
	for l := int64(1); l < int64(len(s.b))/leafSize; l += 3 {
		e := extent.Extent{Off: l * leafSize, Len: leafSize}
		fill(s.b[e.Off:e.End()], seed+uint64(l))
		if l%2 == 0 {
			out = append(out, batch{leaves: []int64{l}})
		} else {
			out = append(out, batch{items: []wire.Item{item(wire.ItemData, e)}})
		}
	}
	return out
}

// hookedRig has its target's writes go through a plan at once, not when they are synced.
func hookedRig(t *testing.T, change ...func(*Config)) (*rig, *fault.Plan) {
	plan := new(fault.Plan)
	return newRig(t, append(change, func(c *Config) {
		open := c.OpenTarget
		c.OpenTarget = func(path string, size int64, create bool) (blockdev.Target, error) {
			t, err := open(path, size, create)
			if err != nil {
				return nil, err
			}
			return fault.NewTarget(t, plan), nil
		}
	})...), plan
}

// at calls do before the nth write, and holds all writes until do returns.
func at(plan *fault.Plan, n int, do func()) {
	var mu sync.Mutex
	plan.Hook(func(op fault.Op, _ extent.Extent) error {
		if op == fault.Write {
			mu.Lock()
			defer mu.Unlock()
			if n--; n == 0 {
				do()
			}
		}
		return nil
	})
}

// TestStopWhileApplying: a gateway that is told to stop while it applies a committed log finds all of the log at its next start (C5, C6).
func TestStopWhileApplying(t *testing.T) {
	for _, n := range []int{1, 2, 5, 9, 14, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r, plan := hookedRig(t)
			s := randomSrc(64*leafSize, 1)
			r.first(r.mustDial("root"), s)
			r.settled(testFlow)
			p := s.newPass(mover.Delta, s.scattered(100)...)
			p.cons = mover.Fuzzy // no point is kept that would notice
			at(plan, n, func() { r.s.cancel() })
			_, _ = r.mustDial("root").run(s, p) // its answer may be lost
			r.stop()
			plan.Clear()
			r.start()
			r.settled(testFlow)
			if st := r.s.Status()[0]; st.PointEpoch != p.epoch || st.Phase != mover.Point.String() {
				t.Fatalf("status %+v", st)
			}
			if got := r.content("/t/a", int64(len(s.b))); !bytes.Equal(got, s.b) {
				t.Fatalf("what was committed is not on the target, first at byte %d", firstDiff(got, s.b))
			}
		})
	}
}

// TestConnLostWhileSwitching: a connection that ends while its batch has the log applied, because that is full, takes no acked batch along
// (C3).
func TestConnLostWhileSwitching(t *testing.T) {
	for _, n := range []int{1, 7, 20, 40} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r, plan := hookedRig(t, func(c *Config) { c.LogLimit = minLogLimit })
			s := randomSrc(256*leafSize, 1)
			r.first(r.mustDial("root"), s)
			r.settled(testFlow)
			p := s.newPass(mover.Delta, s.scattered(100)...)
			c := r.mustDial("root")
			at(plan, n, func() {
				l := r.s.flows[testFlow].currentLink()
				l.mu.Lock()
				defer l.mu.Unlock()
				l.conns[0].cancel()
			})
			if _, err := c.run(s, p); err == nil {
				t.Fatal("the log never was full")
			}
			plan.Clear()
			c = r.mustDial("root")
			if _, err := c.run(s, p); err != nil {
				t.Fatal(err)
			}
			r.settled(testFlow)
			if got := r.content("/t/a", int64(len(s.b))); !bytes.Equal(got, s.b) {
				t.Fatalf("what was committed is not on the target, first at byte %d", firstDiff(got, s.b))
			}
		})
	}
}
