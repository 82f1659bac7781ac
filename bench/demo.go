package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/moverd/mover/bench/churn"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover"
)

// Demo moves a mounted filesystem under load from a loop disk to an image file, with the real tracker over TLS, and prints the proof.
func Demo(ctx context.Context, bin string, w io.Writer) (err error) {
	const size = 1 << 30
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	r, err := NewRig(ctx, bin, RigOptions{Create: true, Interval: "1s", Limit: "5s", Deadline: "10s", Leave: "frozen", SkipFree: true, Freeze: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	dev, err := r.Loop(ctx, r.path("disk.img"), size, 512, true)
	if err != nil {
		return err
	}
	if err := Mkfs(ctx, dev, "ext4"); err != nil {
		return err
	}
	dir, err := r.Mount(ctx, dev, "mnt")
	if err != nil {
		return err
	}
	say("1. a disk in use:   %s, %s, ext4 mounted, filled with programs of this machine", dev, units.Size(size))
	if err := fill(ctx, dir, 350<<20); err != nil {
		return err
	}
	r.o.Volume, r.o.Target = dev, r.path("target.img")
	if err := r.StartGateway(); err != nil {
		return err
	}
	if err := r.StartSource(); err != nil {
		return err
	}
	st, err := r.Await(ctx, "source", "tracking", 30*time.Second, func(s mover.Status) bool { return s.Tracking != "" && s.Pass != nil || s.PointEpoch > 0 })
	if err != nil {
		return err
	}
	say("2. tracking:        %s", st.Tracking)

	writer, err := r.Writer(ctx, "--dir", dir, "--seed", "7", "--threads", "2", "--rate", "20MiB")
	if err != nil {
		return err
	}
	defer func() {
		Thaw(dir) // else a writer that the freeze holds could not even be killed
		writer.Kill()
	}()
	say("3. a real writer:   direct, buffered and mmap writes, punched holes, renames, deletes, 20 MiB/s")
	st, err = r.Await(ctx, "source", "at a recovery point", 2*time.Minute, func(s mover.Status) bool { return s.PointEpoch > 0 })
	if err != nil {
		return err
	}
	say("4. full pass:       %s on the wire so far; %d leaves sent, %d found equal, %s free space skipped", units.Size(st.WireOut), st.Totals.Sent,
		st.Totals.Same+st.Totals.Copied, units.Size(int64(st.Totals.Free)))
	st, err = r.Await(ctx, "source", "through three delta passes", time.Minute, func(s mover.Status) bool { return s.Passes >= 4 })
	if err != nil {
		return err
	}
	say("5. delta passes:    %d under load; %s still to go, %s", st.Passes-1, units.Size(st.Dirty), st.Cutover)
	say("\n   $ moverctl status")
	out, err := r.Ctl(ctx, "source", "status")
	if err != nil {
		return err
	}
	say("%s", indent(string(out)))
	say("6. cutover:         writers frozen, last delta, both ends read back\n\n   $ moverctl cutover disk --yes")
	report, err := r.Cutover(ctx, w)
	if err != nil {
		return err
	}
	return r.prove(ctx, w, dev, size, dir, report)
}

// prove lets programs that know nothing of Mover judge, and prints what they found.
func (r *Rig) prove(ctx context.Context, w io.Writer, dev string, size int64, dir string, report *mover.Report) error {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	if err := Cmp(ctx, dev, r.o.Target, size); err != nil {
		return fmt.Errorf("cmp found source and target unequal: %w", err)
	}
	if _, err := Run(ctx, "e2fsck", "-fn", r.o.Target); err != nil {
		return err
	}
	copied, err := r.Mount(ctx, r.o.Target, "copy", "-o", "ro,noload,loop")
	if err != nil {
		return err
	}
	checked, err := churn.Check(churn.Config{Dir: copied, Ledger: r.path("ledger"), Seed: 7})
	if err != nil {
		return err
	}
	say("\nProof")
	say("  pause of the writers      %.0f ms", report.Pause*1000)
	say("  final delta               %s, after %d rounds", units.Size(report.FinalDelta), report.Rounds)
	say("  source root               %s", report.SourceRoot)
	say("  target root               %s", report.TargetRoot)
	say("  compared by roots         %s, and %s free space by its marker", units.Size(report.Compared), units.Size(report.Free))
	say("  tracker                   %s", report.Proof)
	say("  cmp, whole disk           %s, 0 differing bytes", units.Size(size))
	say("  e2fsck -fn on the target  clean")
	say("  acknowledged writes       %d of %d found in the mounted target", checked, checked)
	return nil
}

// Writer starts moverbench's churn as a process of its own.
func (r *Rig) Writer(ctx context.Context, args ...string) (*Proc, error) {
	log, err := os.OpenFile(r.path("writer.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &Proc{cmd: exec.Command(filepath.Join(r.Bin, "moverbench"), append([]string{"churn", "--ledger", r.path("ledger")}, args...)...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Cutover runs moverctl cutover; its progress goes to w as a user sees it. The report comes from its JSON form, which is asked for afterwards.
func (r *Rig) Cutover(ctx context.Context, w io.Writer, args ...string) (*mover.Report, error) {
	file := r.path("report.json")
	cmd := exec.CommandContext(ctx, filepath.Join(r.Bin, "moverctl"), append([]string{"--socket", r.path("source.sock"), "cutover", r.o.unit(), "--yes", "--report", file}, args...)...)
	var msg tail
	cmd.Stdout, cmd.Stderr = &indenter{w: w, start: true}, &msg
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("moverctl cutover: %w: %s\n%s", err, msg.String(), r.Log("source"))
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var report mover.Report
	if err := json.Unmarshal(b, &report); err != nil {
		return nil, fmt.Errorf("report of the cutover: %w", err)
	}
	if !report.OK {
		return &report, fmt.Errorf("the cutover's report is not ok: %s", report.Error)
	}
	return &report, nil
}

// fill copies about size bytes of programs and libraries into dir.
func fill(ctx context.Context, dir string, size int64) error {
	var have int64
	for _, from := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || ctx.Err() != nil {
				return ctx.Err()
			}
			if have >= size {
				return filepath.SkipAll
			}
			st, err := d.Info()
			if err != nil || st.Size() > 64<<20 {
				return nil
			}
			have += st.Size()
			return copyFile(path, filepath.Join(dir, fmt.Sprintf("%08d-%s", have, d.Name())))
		})
		if err != nil {
			return err
		}
	}
	_, err := Run(ctx, "sync", "-f", dir)
	return err
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
