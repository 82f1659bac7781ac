package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// twin moves a second host with the operating system of the first to the same gateway: figure 3.
func (l *Lines) twin(ctx context.Context, until time.Time) error {
	img, err := l.volume(ctx, 0, 0)
	if err != nil {
		return err
	}
	for i, kind := range l.Twins {
		var ratios []float64
		err := l.repeat(share(until, len(l.Twins)-i), func(int) error {
			first, second, err := l.pair(ctx, img, kind)
			if err != nil {
				return err
			}
			ratios = append(ratios, float64(second.payload)/float64(first.payload))
			return errors.Join(l.add("line twin", "first host", "wire bytes below TLS", float64(first.payload), "B"), l.add("line twin", "first host", "seconds", first.secs, "s"),
				l.add("line twin", "second host, "+kind, "wire bytes below TLS", float64(second.payload), "B"), l.add("line twin", "second host, "+kind, "seconds", second.secs, "s"))
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		bound := " (at most 0.15)"
		if kind == otherOrder {
			bound = "" // nobody installs a system in random order; this tells how much is owed to the order
		}
		if err := l.add("line twin", "second / first host, "+kind, "ratio of wire bytes"+bound, Median(ratios), "ratio"); err != nil {
			return err
		}
	}
	return nil
}

// Twins are the kinds of a second host.
var Twins = []string{cloned, sameLayout, otherInodes, otherOrder}

// pair moves both hosts, one after the other, at one level of compression: which one auto takes on a line without a limit depends on what else the
// machine does.
func (l *Lines) pair(ctx context.Context, img image, kind string) (first, second crossing, err error) {
	line, err := NewLine(ctx, 0)
	if err != nil {
		return first, second, err
	}
	r, err := NewRig(ctx, l.Bin, RigOptions{Create: true, Interval: "1h", Conns: 4, SkipFree: true, Line: line, Scope: "tenant", Compression: "default"})
	if err != nil {
		return first, second, errors.Join(err, line.Close())
	}
	defer func() { err = errors.Join(err, r.Close(), line.Close()) }()
	r.o.Target, r.o.Twin = filepath.Join(l.Work, "line-copy.img"), filepath.Join(l.Work, "twin-copy.img")
	twin, err := l.twinOf(ctx, r, img, kind)
	if err != nil {
		return first, second, err
	}
	r.Defer(func() error {
		return errors.Join(os.Remove(twin.Path), ignoreGone(os.Remove(r.o.Target)), ignoreGone(os.Remove(r.o.Twin)))
	})
	first.rig = r
	if err := first.open(ctx, img); err != nil {
		return first, second, err
	}
	if err := errors.Join(r.StartGateway(), r.up(ctx, "gateway")); err != nil {
		return first, second, err
	}
	if err := first.pass(ctx, 0); err != nil {
		return first, second, err
	}
	if err := first.check(ctx, img.Size); err != nil {
		return first, second, fmt.Errorf("the first host: %w", err)
	}
	s, err := r.Second(ctx, "")
	if err != nil {
		return first, second, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	second.rig = s
	if err := second.open(ctx, twin); err != nil {
		return first, second, err
	}
	if err := second.pass(ctx, 0); err != nil {
		return first, second, err
	}
	err = second.check(ctx, twin.Size)
	if err != nil {
		err = fmt.Errorf("the second host: %w", err)
	}
	return first, second, err
}
