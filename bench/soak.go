package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/mover"
)

// SoakOptions of a campaign. Run i uses seed Seed+i; a single run is repeated with Runs 1 and its seed.
type SoakOptions struct {
	Runs     int
	Seed     uint64
	Parallel int
	Keep     bool // leave the folder of a failed run
}

// soakRun is one run of a campaign: of a single disk (soak) or of a group with points and restores (mix).
type soakRun interface {
	run(ctx context.Context, bin string) error
	outcome() outcome
}

// outcome is what a run has done.
type outcome struct {
	text                     string
	events                   []string
	gap                      string // why the source last lost its history
	kills, cuts, checked     int64
	points, unseen, restored int64
	ended                    int64 // daemons that ended by themselves
}

func (o *outcome) add(x outcome) {
	o.kills += x.kills
	o.cuts += x.cuts
	o.checked += x.checked
	o.points += x.points
	o.unseen += x.unseen
	o.restored += x.restored
	o.ended += x.ended
}

// newSoakRun: of five runs three are of groups.
func newSoakRun(seed uint64, keep bool) soakRun {
	if seed%5 < 2 {
		return &soak{plan: newPlan(seed), keep: keep}
	}
	return &mix{plan: newMixPlan(seed), keep: keep}
}

// Soak moves disks under random writers and random faults, and compares every byte after each cutover, and of each restored point.
func Soak(ctx context.Context, bin string, o SoakOptions, w io.Writer, results *Results) error {
	var next, done atomic.Int64
	var mu sync.Mutex // guards w and all below
	var failed []uint64
	var sum outcome
	var passed, gaps int
	var wg sync.WaitGroup
	start := time.Now()
	for range max(1, o.Parallel) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(o.Runs) {
					return
				}
				seed := o.Seed + uint64(i)
				s := newSoakRun(seed, o.Keep)
				began := time.Now()
				err := s.run(ctx, bin)
				if ctx.Err() != nil {
					return // whoever ended the campaign ended this run
				}
				done.Add(1)
				out := s.outcome()
				mu.Lock()
				sum.add(out)
				if err != nil {
					failed = append(failed, seed)
					fmt.Fprintf(w, "seed %d FAILED after %.1f s (%s)\n  events: %q\n  %v\n", seed, time.Since(began).Seconds(), out.text, out.events, err)
				} else {
					passed++
					fmt.Fprintf(w, "seed %d ok in %.1f s: %s\n", seed, time.Since(began).Seconds(), out.text)
					if out.ended > 0 {
						fmt.Fprintf(w, "  a daemon ended by itself: %q\n", out.events)
					}
					if out.gap != "" {
						gaps++
						fmt.Fprintf(w, "  gap: %s\n", out.gap)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	fmt.Fprintf(w, "\n%d of %d runs equal in every byte, in %.0f s; %d kills, %d cut lines, %d acknowledged writes looked up; %d points taken, %d restored and equal, %d not seen by the bench; %d daemons ended by themselves\n",
		passed, done.Load(), time.Since(start).Seconds(), sum.kills, sum.cuts, sum.checked, sum.points, sum.restored, sum.unseen, sum.ended)
	for _, v := range []struct {
		metric string
		value  int64
		unit   string
	}{{"runs", done.Load(), "runs"}, {"runs with differing bytes or failures", int64(len(failed)), "runs"}, {"kill -9", sum.kills, "kills"},
		{"cut connections", sum.cuts, "cuts"}, {"gaps in the tracked history", int64(gaps), "gaps"}, {"acknowledged writes looked up", sum.checked, "writes"},
		{"recovery points taken", sum.points, "points"}, {"recovery points restored and equal", sum.restored, "points"},
		{"daemons that ended by themselves", sum.ended, "times"}} {
		if results != nil {
			if err := results.Add("soak", "mover", v.metric, float64(v.value), v.unit); err != nil {
				return err
			}
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d runs failed; seeds %v; repeat one with RUNS=1 SEED=n", len(failed), o.Runs, failed)
	}
	return ctx.Err()
}

// soak is one run.
type soak struct {
	plan            plan
	keep            bool
	r               *Rig
	dev, dir        string
	on              string // the filesystem's device where that is not dev
	target          string // device to move to; "" is an image file
	points          string // what was found of its points
	moments         int    // points of a moment to take under load
	moment          string // what was found of them
	tracking        string
	writer          *Proc
	events          []string
	kills, cuts     int64
	checked         int
	passes, rescans int64
	gap             string // why the source last lost its history
	report          *mover.Report
}

func (s *soak) outcome() outcome {
	o := outcome{text: s.plan.String(), events: s.events, gap: s.gap, kills: s.kills, cuts: s.cuts, checked: int64(s.checked)}
	if s.report != nil {
		o.text += fmt.Sprintf("; pause %.0f ms, %d passes, %d rescans", s.report.Pause*1000, s.passes, s.rescans)
	}
	return o
}

func (s *soak) run(ctx context.Context, bin string) (err error) {
	setup, limit, patience := s.disks, 10*time.Minute, 30*time.Second
	if s.dev != "" {
		setup, limit, patience = s.given, 30*time.Minute, 5*time.Minute // in an emulated guest
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := s.plan
	s.r, err = NewRig(ctx, bin, RigOptions{Create: true, Interval: p.interval, Limit: or(p.limit, "20s"), Deadline: or(p.deadline, "30s"), Leave: "frozen", Conns: p.conns,
		LogLimit: p.logLimit, Freeze: p.fs != "raw"})
	if err != nil {
		return err
	}
	defer func() {
		if s.writer != nil {
			s.writer.cmd.Process.Kill() // may stay blocked until the thaw that Close does
		}
		if err != nil && s.keep {
			fmt.Fprintln(os.Stderr, "kept:", s.r.Dir)
			return
		}
		err = errors.Join(err, s.r.Close())
	}()
	if err := setup(ctx); err != nil {
		return err
	}
	if p.early {
		if err := s.startWriter(ctx); err != nil {
			return err
		}
	}
	if err := errors.Join(s.r.StartGateway(), s.claim(ctx), s.r.StartSource()); err != nil {
		return err
	}
	st, err := s.r.Await(ctx, "source", "tracking", patience, func(st mover.Status) bool { return st.Pass != nil || st.PointEpoch > 0 })
	if err != nil {
		return err
	}
	s.tracked(st)
	if !p.early {
		if err := s.startWriter(ctx); err != nil {
			return err
		}
	}
	if err := s.faults(ctx); err != nil {
		return err
	}
	if s.moments > 0 {
		if err := s.takeMoments(ctx); err != nil {
			return err
		}
	}
	if err := s.cutover(ctx); err != nil {
		return err
	}
	if s.target != "" {
		if err := s.keptPoint(ctx); err != nil {
			return err
		}
	}
	return s.judge(ctx)
}

// disks makes source and target as the plan says.
func (s *soak) disks(ctx context.Context) (err error) {
	p, r := s.plan, s.r
	file := r.path("source.img")
	if p.sourceErrors {
		if file, err = s.tmpfs(ctx, "source-fs", p.size+8<<20); err != nil {
			return err
		}
		file += "/source.img"
	}
	if s.dev, err = r.Loop(ctx, file, p.size, p.sector, !p.sourceErrors); err != nil {
		return err
	}
	r.o.Volume, r.o.Target = s.dev, r.path("target.img")
	if p.targetErrors {
		dir, err := s.tmpfs(ctx, "target-fs", p.size+8<<20)
		if err != nil {
			return err
		}
		r.o.Target = dir + "/target.img"
	}
	if p.stateErrors {
		if r.o.RedoDir, err = s.tmpfs(ctx, "state-fs", 96<<20); err != nil {
			return err
		}
	}
	if p.fs == "raw" {
		s.stopByHook()
		return nil
	}
	if err := Mkfs(ctx, s.dev, p.fs); err != nil {
		return err
	}
	s.dir, err = r.Mount(ctx, s.dev, "mnt")
	return err
}

// tmpfs mounts a small filesystem in memory that can be filled to make writes below it fail.
func (s *soak) tmpfs(ctx context.Context, name string, size int64) (string, error) {
	dir := s.r.path(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := Run(ctx, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), name, dir); err != nil {
		return "", err
	}
	s.r.Defer(func() error { return Unmount(dir) })
	return dir, nil
}

func (s *soak) startWriter(ctx context.Context) (err error) {
	p := s.plan
	args := []string{"--seed", fmt.Sprint(p.seed), "--threads", fmt.Sprint(p.threads), "--rate", p.rate, "--size", "16MiB"}
	if p.fs == "raw" {
		args = append(args, "--device", s.dev)
	} else {
		args = append(args, "--dir", s.dir)
	}
	if s.writer, err = s.r.Writer(ctx, args...); err != nil {
		return err
	}
	return os.WriteFile(s.r.path("writer.pid"), []byte(fmt.Sprint(s.writer.Pid())), 0o600)
}

func (s *soak) note(format string, args ...any) {
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// faults plays the plan's faults, then sees to it that both daemons run and nothing fails any more.
func (s *soak) faults(ctx context.Context) error {
	for _, f := range s.plan.faults {
		if err := pause(ctx, f.wait); err != nil {
			return err
		}
		s.note("%s", f.kind)
		if err := s.fault(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.kind, err)
		}
	}
	return pause(ctx, s.plan.rest)
}

func (s *soak) fault(ctx context.Context, f fault) error {
	switch f.kind {
	case killSource:
		s.kills++
		s.r.KillSource()
		if err := pause(ctx, f.length); err != nil {
			return err
		}
		return s.r.StartSource()
	case killGateway:
		s.kills++
		s.r.KillGateway()
		if err := pause(ctx, f.length); err != nil {
			return err
		}
		return s.r.StartGateway()
	case killBoth:
		s.kills += 2
		s.r.KillGateway()
		s.r.KillSource()
		return errors.Join(s.r.StartGateway(), s.r.StartSource())
	case cutLine:
		s.cuts++
		s.r.Proxy.Cut()
		return nil
	}
	return s.ballast(ctx, map[string]string{fillSource: "source-fs", fillTarget: "target-fs", fillState: "state-fs"}[f.kind], f.length)
}

// ballast fills a small filesystem for a while.
func (s *soak) ballast(ctx context.Context, name string, length time.Duration) error {
	file := s.r.path(name + "/ballast")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	f.Close()
	return errors.Join(pause(ctx, length), os.Remove(file))
}

// cutover tries until it succeeds: a fault may still be echoing.
func (s *soak) cutover(ctx context.Context) error {
	var err error
	for range 12 {
		if s.report, err = s.r.Cutover(ctx, io.Discard); err == nil {
			break
		}
		s.note("cutover again: %.200v", err)
		if ctx.Err() != nil {
			return err
		}
		if _, err := s.r.Ctl(ctx, "source", "resume", flowName); err != nil { // a failing disk stops a flow until the operator says so
			s.note("resume: %.200v", err)
		}
		if s.plan.fs == "raw" { // its stop hook may have ended the writer
			s.writer.Kill()
			if err := s.startWriter(ctx); err != nil {
				return err
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("no cutover succeeded: %w\ngateway log:\n%s", err, s.r.Log("gateway"))
	}
	st, err := s.r.Status(ctx, "source")
	s.passes, s.rescans, s.gap = st.Passes, st.Rescans, st.Gap
	return err
}

// judge compares the still source with the target by means that know nothing of the protocol: every byte, then the filesystem with its own
// checker, then the acknowledged writes with the ledger. Space that was free when it was copied holds old bytes at the source and
// zeros at the target; where there is any, the files of both are compared as well.
func (s *soak) judge(ctx context.Context) error {
	p, target := s.plan, s.r.o.Target
	c := churn.Config{Device: target, Ledger: s.r.path("ledger"), Seed: p.seed, Threads: p.threads, FileSize: 16 << 20}
	old, err := compare(ctx, s.dev, target, p.size)
	if err != nil {
		return fmt.Errorf("differing bytes after the cutover: %w", err)
	}
	byFiles := old > 0
	if byFiles && (p.fs == "raw" || p.fs == "btrfs") {
		return fmt.Errorf("differing bytes after the cutover: %d bytes are zero at the target, and nothing may have called them free", old)
	}
	if p.fs == "raw" {
		s.checked, err = churn.Check(c)
		return err
	}
	still := s.r.path("still.img") // the source as it stood at the cutover
	if byFiles && s.on == "" {
		if _, err := Run(ctx, "dd", "if="+s.dev, "of="+still, "bs=4M", "iflag=direct", "conv=sparse", "status=none"); err != nil {
			return err
		}
	}
	s.r.KillSource() // what is left frozen has to stay frozen without it
	if _, err := Run(ctx, "fsfreeze", "-f", s.dir); err == nil {
		return errors.New("the source was to stay frozen, also without moverd, but could be frozen anew")
	}
	s.writer.cmd.Process.Kill()
	if err := Unmount(s.dir); err != nil {
		return err
	}
	if s.on != "" { // the copy holds the filesystem somewhere inside
		return nil
	}
	copied, err := s.mountCopy(ctx, target, "copy-mnt")
	if err != nil {
		return err
	}
	if byFiles {
		want, err := s.mountCopy(ctx, still, "still-mnt")
		if err != nil {
			return err
		}
		if _, err := Run(ctx, "diff", "-r", "--no-dereference", want, copied); err != nil {
			return fmt.Errorf("differing files after the cutover: %w", err)
		}
	}
	c.Device, c.Dir = "", copied
	s.checked, err = churn.Check(c)
	return err
}

// mountCopy mounts a copy of an image after its filesystem has been checked. XFS leaves its log to be replayed when it is frozen, which
// is what a mount does.
func (s *soak) mountCopy(ctx context.Context, image, name string) (string, error) {
	img := s.r.path(name + ".img")
	if _, err := Run(ctx, "cp", "--sparse=always", image, img); err != nil {
		return "", err
	}
	opts := map[string]string{"ext4": "ro,noload,loop", "xfs": "nouuid,loop", "btrfs": "ro,loop"}[s.plan.fs]
	dir, err := s.r.Mount(ctx, img, name, "-o", opts)
	if err != nil {
		return "", err
	}
	if s.plan.fs == "xfs" {
		if err := errors.Join(Unmount(dir), released(ctx, img)); err != nil {
			return "", err
		}
	}
	check := map[string][]string{"ext4": {"e2fsck", "-fn"}, "xfs": {"xfs_repair", "-n", "-f"}, "btrfs": {"btrfs", "check", "--readonly", "--force"}}[s.plan.fs]
	if _, err := Run(ctx, check[0], append(check[1:], img)...); err != nil {
		return "", err
	}
	if s.plan.fs == "xfs" {
		_, err = Run(ctx, "mount", "-o", "ro,norecovery,nouuid,loop", img, dir)
	}
	return dir, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
