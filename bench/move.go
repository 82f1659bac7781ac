package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// MoveOptions name a device to be moved under load.
type MoveOptions struct {
	Volume  string // its content is lost
	On      string // where the filesystem goes, when that is a device above the volume
	FS      string
	Expect  string // tracking method that the source must choose
	Target  string // device to move it to; "" is an image file. It must be able to keep recovery points
	Moments int    // recovery points of a moment to take under load, half of them with snapshots off; each is restored and judged. They need Target
	Seed    uint64
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
	s := &soak{plan: p, dev: o.Volume, on: o.On, target: o.Target, moments: o.Moments}
	began := time.Now()
	if err := s.run(ctx, bin); err != nil {
		return err
	}
	if o.Moments > 0 && s.moment == "" {
		return fmt.Errorf("nobody looked at the moments of %s", o.Volume)
	}
	if o.Target != "" && s.points == "" {
		return fmt.Errorf("nobody looked at the recovery points of %s", o.Target)
	}
	if o.Expect != "" && !strings.HasPrefix(s.tracking, o.Expect) {
		return fmt.Errorf("tracked by %q, want %s", s.tracking, o.Expect)
	}
	fmt.Fprintf(w, "%d bytes equal after %.0f s, pause %.0f ms, tracked by %s%s%s\n", p.size, time.Since(began).Seconds(), s.report.Pause*1000, s.tracking, s.moment, s.points)
	return nil
}

// given sets up a device that exists already.
func (s *soak) given(ctx context.Context) (err error) {
	dev := s.dev
	if s.on != "" {
		dev = s.on
	}
	s.r.o.Volume, s.r.o.Target = s.dev, or(s.target, s.r.path("target.img"))
	s.r.o.Create = s.target == ""
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

// claim tells the gateway that it may overwrite the device.
func (s *soak) claim(ctx context.Context) error {
	if s.target == "" {
		return nil
	}
	if _, err := s.r.Await(ctx, "gateway", "up", 2*time.Minute, func(mover.Status) bool { return true }); err != nil {
		return err
	}
	_, err := s.r.Ctl(ctx, "gateway", "claim", "demo/web1/"+flowName, "--overwrite", "--yes")
	return err
}

// keptPoint proves that the point of the cutover is kept, in the way that a device has them, and that a restored one equals the target, also after
// the target was written to.
func (s *soak) keptPoint(ctx context.Context) error {
	key := "demo/web1/" + flowName
	out, err := s.r.Ctl(ctx, "gateway", "points", key, "-o", "json")
	if err != nil {
		return err
	}
	var result struct {
		Points []mover.RecoveryPoint `json:"points"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("points of %s: %w: %s", key, err, out)
	}
	all := result.Points
	if len(all) == 0 {
		return fmt.Errorf("no point of %s is kept\n%s", s.target, s.r.Log("gateway"))
	}
	p, to := all[len(all)-1], s.r.path("restored.img")
	if p.Method != "lvm-thin" || p.Worth != "crash" {
		return fmt.Errorf("the last point is %+v", p)
	}
	if _, err := s.r.Ctl(ctx, "gateway", "restore", key, p.ID, "--to", to); err != nil {
		return err
	}
	if _, err := Run(ctx, "cmp", "-n", fmt.Sprint(s.plan.size), to, s.target); err != nil {
		return fmt.Errorf("the restored point: %w", err)
	}
	out, err = s.r.Ctl(ctx, "gateway", "points", key, "--remove", p.ID, "--yes")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	s.points = fmt.Sprintf(", %d points kept by %s, the last restored equal and removed", len(all), p.Method)
	return nil
}
