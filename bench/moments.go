package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/mover"
)

// takeMoments takes recovery points while the writer goes on: half of them are read from a snapshot of the volume after the thaw, with a kill of
// the source in between, half within the freeze. Each is restored: its filesystem is clean, and holds every write that was
// acknowledged before the moment was asked for. Nothing is left of the snapshots.
func (s *soak) takeMoments(ctx context.Context) error {
	var pauses [2][]float64 // with snapshots, without
	for i := range s.moments {
		off := i%2 == 1
		if err := s.withSnapshots(!off); err != nil {
			return err
		}
		pause, err := s.takeMoment(ctx, fmt.Sprintf("moment-%d", i), !off)
		if err != nil {
			return fmt.Errorf("moment %d: %w\n%s", i, err, s.r.Log("source"))
		}
		pauses[i%2] = append(pauses[i%2], pause)
	}
	if err := s.withSnapshots(true); err != nil {
		return err
	}
	if err := s.killedMoment(ctx); err != nil {
		return fmt.Errorf("a moment whose source was killed: %w\n%s", err, s.r.Log("source"))
	}
	s.r.KillSource()
	s.r.o.Group, s.r.source = "", nil
	if err := s.r.StartSource(); err != nil {
		return err
	}
	s.moment = fmt.Sprintf(", %d moments restored clean with all acknowledged writes, pause with snapshots %s ms, without %s ms", s.moments, milliseconds(pauses[0]), milliseconds(pauses[1]))
	return nil
}

// tight is a limit that no reading within a freeze can keep: a point has to be read from a snapshot, however little has changed.
var tight = []string{"--limit", "1ms"}

func milliseconds(seconds []float64) string {
	var out []string
	for _, p := range seconds {
		out = append(out, fmt.Sprintf("%.0f", p*1000))
	}
	return strings.Join(out, " ")
}

// withSnapshots starts the source anew with snapshots on or off.
func (s *soak) withSnapshots(on bool) error {
	s.r.KillSource()
	s.r.o.Group = map[bool]string{true: "auto", false: "off"}[on]
	s.r.source = nil // the config is written anew
	return s.r.StartSource()
}

func (s *soak) takeMoment(ctx context.Context, name string, viewed bool) (pause float64, err error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	ledger := s.r.path(name + ".ledger")
	if _, err := Run(ctx, "cp", s.r.path("ledger"), ledger); err != nil {
		return 0, err
	}
	args := []string{"point", groupName, "-o", "json"}
	if viewed {
		args = append(args, tight...)
	}
	out, err := s.r.Ctl(ctx, "source", args...)
	if err != nil {
		return 0, err
	}
	var report mover.Report
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	if len(report.Members) == 1 {
		pause, report = report.Pause, *report.Members[0]
	}
	if report.Point == "" || report.Viewed != viewed {
		return 0, fmt.Errorf("point %q, from a snapshot: %v, wanted %v; %s", report.Point, report.Viewed, viewed, report.Unviewed)
	}
	if left := s.leftOver(ctx); left != "" {
		return 0, fmt.Errorf("left of a snapshot: %s", left)
	}
	return max(pause, report.Pause), s.judgePoint(ctx, report.Point, name, ledger)
}

// ready waits for a point to build on.
func (s *soak) ready(ctx context.Context) error {
	_, err := s.r.Await(ctx, "source", "ready for a point", 4*time.Minute, func(st mover.Status) bool {
		return st.Passes > 0 && st.State == mover.Idle || st.Pass != nil && st.Pass.Kind == mover.Delta.String()
	})
	return err
}

// judgePoint restores a point and looks at it as at a disk after a power cut.
func (s *soak) judgePoint(ctx context.Context, id, name, ledger string) error {
	to := s.r.path(name + ".img")
	if _, err := s.r.Ctl(ctx, "gateway", "restore", "demo/web1/"+flowName, id, "--to", to); err != nil {
		return err
	}
	defer os.Remove(to)
	dir, err := s.mountCopy(ctx, to, name+"-copy")
	if err != nil {
		return err
	}
	_, err = churn.Check(churn.Config{Dir: dir, Ledger: ledger, Seed: s.plan.seed, Threads: s.plan.threads, FileSize: 16 << 20})
	return errors.Join(err, Unmount(dir), os.Remove(s.r.path(name+"-copy.img")))
}

// killedMoment kills the source within a moment; the next start leaves nothing of the snapshot, and its history of changes goes on.
func (s *soak) killedMoment(ctx context.Context) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		s.r.Ctl(ctx, "source", append([]string{"point", groupName}, tight...)...) // fails: the source is killed
	}()
	seen := false
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && !seen; time.Sleep(10 * time.Millisecond) {
		table, _ := Run(ctx, "dmsetup", "table")
		seen = strings.Contains(table, "snapshot-origin")
	}
	s.r.KillSource()
	s.kills++
	<-asked
	if !seen {
		return errors.New("no snapshot was seen within a minute")
	}
	if err := s.r.StartSource(); err != nil {
		return err
	}
	st, err := s.r.Await(ctx, "source", "going on", 2*time.Minute, func(st mover.Status) bool { return st.Passes > 0 })
	if err != nil {
		return err
	}
	if left := s.leftOver(ctx); left != "" {
		return fmt.Errorf("left after the next start: %s", left)
	}
	if st.Gap != "" { // a digest table that a kill has left behind is another matter: it costs a rescan
		return fmt.Errorf("the history of changes was lost: %q", st.Gap)
	}
	return nil
}

// leftOver is what stands of snapshots.
func (s *soak) leftOver(ctx context.Context) (left string) {
	for _, args := range [][]string{{"dmsetup", "table"}, {"lvs", "--noheadings", "-o", "lv_name"}} {
		out, err := Run(ctx, args[0], args[1:]...)
		if err != nil {
			return err.Error()
		}
		for _, line := range strings.Split(out, "\n") {
			if strings.Contains(line, "mover-snap") || strings.Contains(line, "mover--snap") || strings.Contains(line, "snapshot-origin") {
				left += line + "; "
			}
		}
	}
	return left
}
