package flowtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// writer writes at random until stop is called.
func (r *rig) writer(seed uint64, pause time.Duration) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 1))
		for {
			select {
			case <-done:
				return
			default:
			}
			off := rnd.Int64N(r.vol.Size()/granule) * granule
			switch rnd.IntN(10) {
			case 0:
				r.vol.zero(off, granule*(1+rnd.Int64N(8)))
			case 1:
				r.vol.write(off, granule*(1+rnd.Int64N(64)))
			default:
				r.vol.write(off, granule)
			}
			if pause > 0 {
				time.Sleep(pause) // the rate of the workload
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

func TestRehearseRollbackVerify(t *testing.T) {
	r := newRig(t, 10<<20, 0)
	r.config.Interval = time.Millisecond
	r.vol.write(0, 10<<20)
	r.start()
	stop := r.writer(7, 3*time.Millisecond)
	rep, err := r.cutover(sender.CutoverOptions{Rehearse: true, Limit: 10 * time.Second, Deadline: 30 * time.Second})
	must(t, err)
	if rep.Kind != "rehearsal" || !rep.OK || rep.Left != "running" || rep.Rounds == 0 {
		t.Errorf("rehearsal %+v", rep)
	}
	ctx := context.Background()
	rep, err = r.flow.Verify(ctx, sender.VerifyOptions{All: true}, nil)
	must(t, err)
	if !rep.OK || len(rep.Differ) != 0 {
		t.Errorf("verify %+v", rep)
	}
	if err := r.flow.Rollback(ctx); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("rollback of a flow that moves: %v", err)
	}
	rep, err = r.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 30 * time.Second})
	must(t, err)
	r.same()
	if rep.Pause <= 0 || rep.Pause > 30 {
		t.Errorf("pause %v", rep.Pause)
	}
	if err := r.flow.Sync(ctx); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("sync after the cutover: %v", err)
	}
	// A restart finds it done, a rollback lets both go on.
	r.stopSource()
	r.startSource()
	r.wait("done", func(s mover.Status) bool { return s.State == mover.Done })
	must(t, r.flow.Rollback(ctx))
	if s := r.flow.Status(); s.State == mover.Done {
		t.Errorf("still %s after the rollback: moverctl finish would give the source up", s.State)
	}
	r.vol.write(1<<20, 1<<20)
	stop()
	r.sync()
	r.same()
	if s := r.flow.Status(); s.Rescans != 1 {
		t.Errorf("rescans %d, want 1", s.Rescans)
	}
	_, err = r.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 30 * time.Second})
	must(t, err)
	r.same()
}

// Once the target is handed over nothing lets the writers go on by itself, also when they cannot be left as was asked; and the report says so.
func TestWhoCannotBeLeftAsAskedStaysFrozen(t *testing.T) {
	r := newRig(t, 4<<20, 0)
	r.vol.write(0, 4<<20)
	r.deps = func(d *sender.Deps) {
		d.Leave = func(_ context.Context, as string, undo bool) error {
			if undo {
				return nil
			}
			return errors.New("a file is open for writing")
		}
	}
	r.start()
	rep, err := r.cutover(sender.CutoverOptions{Leave: "read-only", Limit: 10 * time.Second, Deadline: 30 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "stays frozen instead of read-only: a file is open for writing") {
		t.Errorf("%v", err)
	}
	r.vol.mu.Lock()
	frozen := r.vol.frozen
	r.vol.mu.Unlock()
	if rep.Left != "frozen" || !frozen {
		t.Errorf("left %s, frozen %v", rep.Left, frozen)
	}
	r.same()
	if s := r.flow.Status(); s.State != mover.Done {
		t.Errorf("state %v after the release", s.State)
	}
	must(t, r.flow.Rollback(context.Background()))
	r.vol.write(0, 4096) // waits while frozen
}

func TestVerifyNamesWhatSomebodyChangedAtTheTarget(t *testing.T) {
	r := newRig(t, 16<<20, 0)
	r.vol.write(0, 16<<20)
	r.start()
	r.sync()
	stop := r.writer(3, time.Millisecond)
	defer stop()
	bad := extent.Extent{Off: 5 * chunker.LeafSize, Len: chunker.LeafSize}
	r.tamper(bad.Off+100, 1)
	rep, err := r.flow.Verify(context.Background(), sender.VerifyOptions{All: true}, nil)
	if !errors.Is(err, sentinel.ErrDiffer) || rep == nil || rep.OK {
		t.Fatalf("verify: %v %+v", err, rep)
	}
	if len(rep.Differ) != 1 || rep.Differ[0] != bad {
		t.Errorf("differ %v, want %v", rep.Differ, bad)
	}
	if !strings.Contains(err.Error(), bad.String()) {
		t.Errorf("error %q does not name %v", err, bad)
	}
	// The next pass is a rescan and mends it.
	r.sync()
	stop()
	r.sync()
	r.same()
	rep, err = r.flow.Verify(context.Background(), sender.VerifyOptions{All: true}, nil)
	must(t, err)
	if !rep.OK {
		t.Errorf("verify %+v", rep)
	}
}

// tamper changes bytes of the target behind the gateway's back.
func (r *rig) tamper(off, n int64) {
	r.mu.Lock()
	m := r.target
	r.mu.Unlock()
	sector := off / 512 * 512
	b := read(r.t, offset{m, sector}, 512)
	for i := range n {
		b[off-sector+i] ^= 0xff
	}
	_, err := m.WriteAt(b, sector)
	must(r.t, err)
}

type offset struct {
	m   *fault.Mem
	off int64
}

func (o offset) ReadAt(p []byte, off int64) (int, error) { return o.m.ReadAt(p, o.off+off) }

// C11: roots are over what was read back, so a target that was changed is found, by its place.
func TestCutoverFindsTamperedTarget(t *testing.T) {
	r := newRig(t, 16<<20, 0)
	r.vol.write(0, 16<<20)
	r.start()
	r.sync()
	r.tamper(3<<20, 16)
	// What was read back once and is changed past the gateway later is verify's to find; a restart of the gateway counts all as touched.
	r.stopGateway()
	r.startGateway()
	rep, err := r.cutover(sender.CutoverOptions{})
	if !errors.Is(err, sentinel.ErrDiffer) || len(rep.Differ) != 1 || rep.Differ[0].Off != 3<<20 {
		t.Fatalf("cutover: %v %+v", err, rep)
	}
	if r.vol.isFrozen() {
		t.Error("still frozen after a failed cutover")
	}
	_, err = r.cutover(sender.CutoverOptions{})
	must(t, err)
	r.same()
}

func (v *volume) isFrozen() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.frozen
}

func TestDeadlineThawsAndFlowGoesOn(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 8<<20)
	r.start()
	r.sync()
	r.vol.plan.Hook(func(op fault.Op, e extent.Extent) error {
		if r.vol.isFrozen() {
			time.Sleep(300 * time.Millisecond) // a disk that has become slow
		}
		return nil
	})
	stop := r.writer(1, 100*time.Microsecond)
	defer stop()
	_, err := r.cutover(sender.CutoverOptions{Deadline: 100 * time.Millisecond, Limit: time.Hour})
	if err == nil {
		t.Fatal("cut over past its deadline")
	}
	if r.vol.isFrozen() {
		t.Error("still frozen")
	}
	r.vol.plan.Clear()
	stop()
	r.sync()
	r.same()
}

func TestWritesPastTheFreezeAreFound(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 8<<20)
	r.start()
	r.sync()
	once := sync.Once{}
	r.vol.plan.Hook(func(op fault.Op, e extent.Extent) error {
		if r.vol.isFrozen() {
			once.Do(func() { r.vol.raw(4<<20, granule) })
		}
		return nil
	})
	r.vol.write(0, granule)
	// Something has to be read while frozen, for the hook to write.
	r.vol.onFreeze = func() { r.vol.raw(0, granule) }
	rep, err := r.cutover(sender.CutoverOptions{Rehearse: true})
	if !errors.Is(err, sentinel.ErrDiffer) || !strings.Contains(err.Error(), "were written") || rep.OK {
		t.Fatalf("rehearsal: %v %+v", err, rep)
	}
	r.vol.plan.Clear()
	_, err = r.cutover(sender.CutoverOptions{})
	must(t, err)
	r.same()
}

func TestUnreadableBlock(t *testing.T) {
	for _, how := range []string{"stop", "skip"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, 12<<20, 0)
			r.config.OnReadError = how
			r.vol.write(0, 12<<20)
			bad := extent.Extent{Off: 6<<20 + 512*3, Len: 512}
			r.vol.plan.Fail(fault.Read, bad, errors.New("medium error"))
			r.start()
			if how == "stop" {
				s := r.wait("stopped", func(s mover.Status) bool { return s.State == mover.Stopped })
				if !strings.Contains(s.Reason, bad.String()) || !strings.Contains(s.Next, "on-read-error: skip") {
					t.Errorf("reason %q next %q", s.Reason, s.Next)
				}
				r.vol.plan.Clear()
				must(t, r.flow.Resume())
				r.sync()
				r.same()
				return
			}
			r.sync()
			rep, err := r.cutover(sender.CutoverOptions{Rehearse: true})
			must(t, err)
			if len(rep.Unreadable) != 1 || rep.Unreadable[0] != bad.String() {
				t.Errorf("unreadable %v, want %v", rep.Unreadable, bad)
			}
			if s := r.flow.Status(); len(s.Unreadable) != 1 || s.Totals.Unreadable != 512 {
				t.Errorf("status %+v", s)
			}
			r.vol.plan.Clear()
			r.vol.write(bad.Off/granule*granule, granule) // the disk has remapped the sector
			rep, err = r.cutover(sender.CutoverOptions{})
			must(t, err)
			if len(rep.Unreadable) != 0 {
				t.Errorf("unreadable %v", rep.Unreadable)
			}
			r.same()
		})
	}
}

func TestFreeSpace(t *testing.T) {
	r := newRig(t, 32<<20, 0)
	r.vol.write(0, 32<<20)
	r.vol.setFree(extent.Extent{Off: 3 << 20, Len: 9<<20 + 5*granule})
	r.start()
	r.sync()
	r.same()
	s := r.flow.Status()
	if s.Totals.Free == 0 || s.Totals.Sent > 23<<20/chunker.LeafSize {
		t.Errorf("totals %+v", s.Totals)
	}
	// One block of a free leaf is written: the rest of the leaf has to come along, also when the source dies in between (C1).
	r.vol.write(5<<20+granule, granule)
	r.stopSource()
	r.startSource()
	r.sync()
	r.same()
	rep, err := r.cutover(sender.CutoverOptions{Rehearse: true})
	must(t, err)
	if rep.Free == 0 || rep.Compared+rep.Free != 32<<20 {
		t.Errorf("report %+v", rep)
	}
	r.vol.lose()
	r.vol.write(30<<20, granule)
	r.sync()
	r.same()
	if s := r.flow.Status(); s.Rescans != 1 || s.Gap == "" {
		t.Errorf("status %+v", s)
	}
}

func TestPauseResume(t *testing.T) {
	r := newRig(t, 64<<20, 0)
	r.config.ReadRate = 16 << 20
	r.config.Compression = "fastest" // with the race detector the best takes half a minute for a batch, which a pause lets end
	r.vol.write(0, 64<<20)
	r.start()
	r.wait("some of it acked", func(s mover.Status) bool { return s.Pass != nil && s.Pass.Acked > 4<<20 })
	must(t, r.flow.Pause())
	s := r.wait("paused", func(s mover.Status) bool { return s.State == mover.Paused })
	if s.Pass == nil || s.Pass.Acked == 0 {
		t.Errorf("the pass is gone: %+v", s)
	}
	if err := r.flow.Sync(context.Background()); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("sync while paused: %v", err)
	}
	r.flow.SetLimits(0, 0)
	must(t, r.flow.Resume())
	acked := s.Pass.Acked
	s = r.wait("the pass that was paused", func(s mover.Status) bool { return s.Passes == 1 })
	r.same()
	if s.Resent > 32<<20-acked {
		t.Errorf("%d bytes sent again, %d were acked before the pause", s.Resent, acked)
	}
}

func TestResize(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 8<<20)
	r.start()
	r.sync()
	r.stopSource()
	old := r.vol
	r.vol = newVolume(11<<20 + 512)
	_, err := r.vol.Mem.WriteAt(read(t, old.Mem, old.Size()), 0)
	must(t, err)
	r.vol.write(8<<20, 3<<20+512)
	r.startSource()
	r.sync()
	r.same()
	if s := r.flow.Status(); s.Rescans != 1 {
		t.Errorf("%d rescans", s.Rescans)
	}
	_, err = r.cutover(sender.CutoverOptions{})
	must(t, err)
	r.same()
}

func TestScanMode(t *testing.T) {
	r := newRig(t, 12<<20, 0)
	r.deps = func(d *sender.Deps) { d.Tracker = mover.NewScan(r.vol.Size(), randomID(), "the test says so") }
	r.vol.write(0, 12<<20)
	r.start()
	r.sync()
	r.vol.write(2<<20+granule, 3*granule)
	r.sync()
	r.same()
	before := r.flow.Status()
	r.sync()
	if s := r.flow.Status(); s.Totals.Sent != before.Totals.Sent || s.Totals.Offered != before.Totals.Offered {
		t.Errorf("an equal rescan sent something: %+v, before %+v", s.Totals, before.Totals)
	}
	r.tamper(9<<20, 1)
	rep, err := r.flow.Verify(context.Background(), sender.VerifyOptions{All: true}, nil)
	if !errors.Is(err, sentinel.ErrDiffer) || len(rep.Differ) != 1 || rep.Differ[0].Off != 9<<20 {
		t.Errorf("verify: %v %+v", err, rep)
	}
	rep, err = r.cutover(sender.CutoverOptions{Limit: 5 * time.Second})
	must(t, err)
	if rep.Proof != "unproven" {
		t.Errorf("a scan proves %q", rep.Proof)
	}
	r.same()
}

func TestSecondSourceFencesTheFirst(t *testing.T) {
	r := newRig(t, 4<<20, 0)
	r.vol.write(0, 4<<20)
	r.start()
	r.sync()
	first, end := r.flow, r.end
	must(t, os.Remove(r.dir+"/table"))
	r.startSource()
	r.sync()
	r.flow, r.end = first, func(second func()) func() { return func() { second(); end() } }(r.end)
	s := r.wait("fenced", func(s mover.Status) bool { return s.State == mover.Stopped })
	if !strings.Contains(s.Next, "resume") {
		t.Errorf("next %q", s.Next)
	}
}

func TestNotConverged(t *testing.T) {
	r := newRig(t, 6<<20, 0)
	r.config.ReadRate = 4 << 20
	r.vol.write(0, 1<<20)
	r.start()
	r.sync()
	stop := r.writer(1, 50*time.Microsecond)
	defer stop()
	_, err := r.cutover(sender.CutoverOptions{Limit: 10 * time.Millisecond, Timeout: time.Second})
	if !errors.Is(err, sentinel.ErrNotConverged) || !strings.Contains(err.Error(), "writes arrive at") {
		t.Fatalf("cutover: %v", err)
	}
	if r.vol.freezes != 0 {
		t.Error("frozen all the same")
	}
}
