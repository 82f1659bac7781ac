package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// pause rehearses cutovers under random writes, over lines that take a little more than the writes: figure 5.
func (l *Lines) pause(ctx context.Context, until time.Time) error {
	for i, p := range l.Pauses {
		if err := l.pausesAt(ctx, p, share(until, len(l.Pauses)-i)); err != nil {
			return fmt.Errorf("%s: %w", rateName(p.Line), err)
		}
	}
	return nil
}

func (l *Lines) pausesAt(ctx context.Context, load PauseLoad, until time.Time) (err error) {
	line, err := NewLine(ctx, load.Line)
	if err != nil {
		return err
	}
	r, err := NewRig(ctx, l.Bin, RigOptions{Create: true, Interval: "0s", Limit: "3s", Deadline: "20s", Conns: 4, SkipFree: true, Freeze: true, Line: line})
	if err != nil {
		return errors.Join(err, line.Close())
	}
	defer func() { err = errors.Join(err, r.Close(), line.Close()) }()
	img := filepath.Join(l.Work, "line-pause.img")
	r.o.Target = filepath.Join(l.Work, "line-pause-copy.img")
	r.Defer(func() error { return errors.Join(ignoreGone(os.Remove(img)), ignoreGone(os.Remove(r.o.Target))) })
	size := max(2<<30, l.Spread*4)
	if r.o.Volume, err = r.Loop(ctx, img, size, 512, true); err != nil {
		return err
	}
	if err := Mkfs(ctx, r.o.Volume, "ext4"); err != nil {
		return err
	}
	dir, err := r.Mount(ctx, r.o.Volume, "mnt")
	if err != nil {
		return err
	}
	if _, _, err := l.moved(ctx, r); err != nil {
		return err
	}
	const threads = 4
	writer, err := r.Writer(ctx, "--dir", dir, "--pages", "--threads", fmt.Sprint(threads), "--size", fmt.Sprintf("%dB", l.Spread/threads>>12<<12), "--rate", fmt.Sprintf("%dB", load.Writes))
	if err != nil {
		return err
	}
	stop := func() {
		Thaw(dir)
		writer.Kill()
	}
	defer stop()
	subject := fmt.Sprintf("mover, %s, %s MB/s of writes", rateName(load.Line), number(float64(load.Writes)/1e6))
	var pauses []float64
	err = l.repeat(until, func(int) error {
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		report, err := r.Cutover(ctx, l.W, "--rehearse")
		if err != nil {
			return err
		}
		pauses = append(pauses, report.Pause)
		return errors.Join(l.add("line pause", subject, "pause", report.Pause, "s"), l.add("line pause", subject, "final delta", float64(report.FinalDelta), "B"))
	})
	if err != nil {
		return err
	}
	stop()
	last := crossing{rig: r, dir: dir}
	if err := last.check(ctx, size); err != nil {
		return err
	}
	return l.add("line pause", subject, "median pause (under 1)", Median(pauses), "s")
}

// distance moves a volume over a line of a long round trip: figure 7.
func (l *Lines) distance(ctx context.Context, until time.Time) error {
	for i, rate := range l.Rates {
		if rate == 0 {
			continue
		}
		img, err := l.volume(ctx, rate, l.Span)
		if err != nil {
			return err
		}
		var near, far []float64
		err = l.repeat(share(until, len(l.Rates)-i), func(int) error {
			for _, trip := range []time.Duration{0, l.Trip} {
				c, err := l.cross(ctx, img, crossOptions{rate: rate, trip: trip})
				if err != nil {
					return fmt.Errorf("round trip %v: %w", trip, err)
				}
				used := float64(c.line.Bytes) / float64(rate) / c.secs
				if trip == 0 {
					near = append(near, used)
				} else {
					far = append(far, used)
				}
				subject := fmt.Sprintf("mover, round trip of %v", trip)
				err = errors.Join(l.addAt("distance", rate, subject, "share of the line", used, "share"), l.addAt("distance", rate, subject, "round trip that the source measures", c.rtt, "s"))
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", rateName(rate), err)
		}
		err = errors.Join(l.addAt("distance", rate, "mover, no delay", "median share of the line", Median(near), "ratio"),
			l.addAt("distance", rate, fmt.Sprintf("mover, round trip of %v", l.Trip), "median share of the line (at least 0.9)", Median(far), "ratio"))
		if err != nil {
			return err
		}
	}
	return nil
}
