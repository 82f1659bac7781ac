package receiver

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
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

// TestCommitAnswerLost: a source that has not heard of its COMMIT opens the pass again, and is told what it would have been told (C6); by the
// gateway that carried it out, and by the one after it.
func TestCommitAnswerLost(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize, 1)
	for i, kind := range []mover.PassKind{mover.Full, mover.Delta, mover.Rescan} {
		fill(s.b[:9*leafSize], uint64(i+2))
		p := s.newPass(kind, s.whole(16)...)
		_, err := r.mustDial("root").run(s, p)
		must(t, err)
		for range 2 {
			c := r.mustDial("root")
			var a wire.Committed
			must(t, c.ask(wire.TypeOpen, &wire.Open{Pass: p.id, Kind: uint8(kind), Consistency: uint8(mover.Crash), Generation: s.gen, Epoch: p.epoch,
				VolumeSize: uint64(len(s.b)), BlockSize: 512, LeafSize: leafSize, Identity: s.id}, &a))
			if a.Pass != p.id || a.Generation != s.gen || a.Epoch != p.epoch || mover.Counts(a.Counts) != p.total() || a.Mode == 0 {
				t.Fatalf("%v: %+v, counted were %+v", kind, a, p.total())
			}
			r.stop()
			r.start()
		}
		old := s.newPass(kind, s.whole(16)...)
		old.epoch = p.epoch
		if _, err := r.mustDial("root").open(s, old); !errors.Is(err, sentinel.ErrFenced) {
			t.Fatalf("another pass of the same epoch: %v", err)
		}
	}
}
