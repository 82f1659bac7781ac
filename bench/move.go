package bench

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// MoveOptions name a device to be moved under load.
type MoveOptions struct {
	Volume string // its content is lost
	On     string // where the filesystem goes, when that is a device above the volume
	FS     string
	Expect string // tracking method that the source must choose
	Seed   uint64
}

// Move moves one given device under load and faults, and compares every byte.
func Move(ctx context.Context, bin string, o MoveOptions, w io.Writer) error {
	size, err := Run(ctx, "blockdev", "--getsize64", o.Volume)
	if err != nil {
		return err
	}
	p := newPlan(o.Seed)
	p.fs, p.early, p.sourceErrors, p.targetErrors, p.stateErrors = o.FS, false, false, false, false
	p.rate, p.conns, p.interval, p.limit, p.deadline = "512KiB", 2, "500ms", "2m", "4m" // an emulated guest is slow, and scans when it has to
	p.faults = []fault{{killSource, 2 * time.Second, 200 * time.Millisecond}, {cutLine, time.Second, 0}, {killGateway, time.Second, 200 * time.Millisecond}}
	if _, err := fmt.Sscan(size, &p.size); err != nil {
		return err
	}
	s := &soak{plan: p, dev: o.Volume, on: o.On}
	began := time.Now()
	if err := s.run(ctx, bin); err != nil {
		return err
	}
	if o.Expect != "" && !strings.HasPrefix(s.tracking, o.Expect) {
		return fmt.Errorf("tracked by %q, want %s", s.tracking, o.Expect)
	}
	fmt.Fprintf(w, "%d bytes equal after %.0f s, pause %.0f ms, tracked by %s\n", p.size, time.Since(began).Seconds(), s.report.Pause*1000, s.tracking)
	return nil
}

// given sets up a device that exists already.
func (s *soak) given(ctx context.Context) (err error) {
	dev := s.dev
	if s.on != "" {
		dev = s.on
	}
	s.r.o.Volume, s.r.o.Target = s.dev, s.r.path("target.img")
	if s.plan.fs == "raw" {
		s.stopByHook()
		return nil
	}
	if err := Mkfs(ctx, dev, s.plan.fs); err != nil {
		return err
	}
	s.dir, err = s.r.Mount(ctx, dev, "mnt")
	return err
}

// stopByHook has the writer of a raw device stopped by the operator's hook, as there is nothing to freeze.
func (s *soak) stopByHook() {
	s.r.o.StopHook = []string{"/bin/sh", "-c", "p=$(cat " + s.r.path("writer.pid") + "); kill $p 2>/dev/null; while kill -0 $p 2>/dev/null; do sleep 0.01; done"}
	s.r.o.StartHook = []string{"/bin/true"}
	s.r.o.Leave = "stopped"
}

// tracked remembers by what method the source tracks.
func (s *soak) tracked(st mover.Status) { s.tracking = st.Tracking }
