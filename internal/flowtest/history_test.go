package flowtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/sender"
)

// TestHistories runs random histories: writes, cuts at random bytes, both ends dropped and made again, lost tracking, small redo
// logs, frees, verifications and rehearsals; after the cutover no sector may differ. A seed can be run again with -seed and
// -histories 1.
func TestHistories(t *testing.T) {
	for i := range *histories {
		seed := *seedFlag + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // they mostly wait for disks
			history(t, seed)
		})
	}
}

func history(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 42))
	size := (1+rnd.Int64N(10))<<20 + rnd.Int64N(3)*512*rnd.Int64N(40)
	r := newRig(t, size, 0)
	r.config.Conns = 1 + rnd.IntN(4)
	r.config.Window = (1 + rnd.Int64N(4)) << 20
	r.config.Compression = []string{"auto", "off", "fastest", "default"}[rnd.IntN(4)]
	r.config.Interval = time.Duration(rnd.IntN(3)) * time.Millisecond
	if rnd.IntN(3) == 0 { // a log that a delta does not fit into: applied directly
		r.gwConf = func(c *receiver.Config) { c.LogLimit = 1 << 20 }
	}
	r.vol.write(rnd.Int64N(size/granule)*granule, rnd.Int64N(size))
	if rnd.IntN(2) == 0 { // leaves with twins in one pass
		part := size / 4 / chunker.LeafSize * chunker.LeafSize
		b := read(t, r.vol.Mem, part)
		for to := part; to <= 3*part; to += part {
			r.vol.writeBytes(b, to)
		}
	}
	if rnd.IntN(2) == 0 {
		off := rnd.Int64N(size/granule) * granule
		r.vol.setFree(extent.Extent{Off: off, Len: min(size-off, rnd.Int64N(2<<20))})
	}
	cut := int64(64<<10 + rnd.IntN(2<<20))
	r.proxy.cutEvery(rand.New(rand.NewPCG(seed, 7)), cut)
	r.start()
	stop := r.writer(seed, time.Duration(200+rnd.IntN(2000))*time.Microsecond)
	defer func() {
		r.vol.unfreeze(false) // also when the history has failed
		stop()
	}()
	for range 2 + rnd.IntN(6) {
		step(t, r, rnd)
	}
	r.proxy.calm()
	r.proxy.cutAll()
	if rnd.IntN(2) == 0 {
		stop()
	}
	rep := r.finally()
	if rep.SourceRoot != rep.TargetRoot || rep.SourceRoot == "" {
		t.Errorf("roots %s %s", rep.SourceRoot, rep.TargetRoot)
	}
	r.same() // the writers stand still
	must(t, r.flow.Thaw())
}

// step does one random thing.
func step(t *testing.T, r *rig, rnd *rand.Rand) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(60))*time.Millisecond)
	defer cancel()
	switch rnd.IntN(10) {
	case 0:
		r.stopSource()
		r.startSource()
	case 1:
		r.stopGateway()
		r.startGateway()
	case 2:
		r.proxy.cutAll()
	case 3:
		r.vol.lose()
		// What was marked before is lost; the rescan finds it.
	case 4:
		must(t, r.flow.Pause())
		must(t, r.flow.Resume())
	case 5:
		off := rnd.Int64N(r.vol.Size()/granule) * granule
		r.vol.setFree(extent.Extent{Off: off, Len: min(r.vol.Size()-off, rnd.Int64N(1<<20))})
	case 6:
		_, err := r.flow.Cutover(ctx, sender.CutoverOptions{Rehearse: true, Limit: time.Minute, Deadline: time.Second}, nil)
		if errors.Is(err, sentinel.ErrDiffer) {
			t.Errorf("rehearsal: %v", err)
		}
	case 7:
		if _, err := r.flow.Verify(ctx, sender.VerifyOptions{All: rnd.IntN(2) == 0}, nil); errors.Is(err, sentinel.ErrDiffer) {
			t.Errorf("verify: %v", err)
		}
	case 8: // content moves, to other offsets of the grid of leaves
		whole := r.vol.Size() / granule
		from, to := rnd.Int64N(whole)*granule, rnd.Int64N(whole)*granule
		b := make([]byte, min(rnd.Int64N(2<<20), r.vol.Size()-max(from, to))/512*512)
		_, err := r.vol.Mem.ReadAt(b, from)
		must(t, err)
		r.vol.writeBytes(b, to)
	default:
		_ = r.flow.Sync(ctx)
	}
}

// finally cuts over; what a cut of the history before is still being mended is tried again.
func (r *rig) finally() *mover.Report {
	r.t.Helper()
	end := time.Now().Add(40 * time.Second)
	for {
		rep, err := r.cutover(sender.CutoverOptions{Limit: time.Minute, Deadline: 30 * time.Second})
		switch {
		case err == nil:
			return rep
		case errors.Is(err, sentinel.ErrDiffer):
			r.t.Fatalf("cutover: %v %v", err, rep.Differ)
		case time.Now().After(end):
			r.t.Fatalf("cutover: %v; %+v", err, r.flow.Status())
		}
		if s := r.flow.Status(); s.State == mover.Stopped {
			r.t.Logf("stopped: %s", s.Reason)
			must(r.t, r.flow.Resume())
		}
		time.Sleep(5 * time.Millisecond) // between tries, as an operator
	}
}
