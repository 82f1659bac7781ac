package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// restShare is what the payload of a full pass may be, of what restic stores of the same volume, by the line's rate.
func restShare(rate int64) float64 {
	switch {
	case rate >= 1e9/8:
		return 1
	case rate >= 200e6/8:
		return 0.94
	}
	return 0.9
}

// volume is the volume for a line: what the line takes about a span for, so that thin lines do not need hours.
func (l *Lines) volume(ctx context.Context, rate int64, span time.Duration) (image, error) {
	want := l.Usr
	if rate > 0 && span > 0 {
		const ratio = 0.33 // of the payload to the bytes of /usr
		fits := int64(float64(rate) * span.Seconds() / ratio)
		if fits = fits >> 24 << 24; want == 0 || fits < want {
			want = max(fits, 32<<20)
		}
	}
	if want > 0 {
		all, err := usrFiles(0)
		if err != nil {
			return image{}, err
		}
		var total int64
		for _, f := range all {
			total += f.size
		}
		if want >= total {
			want = 0
		}
	}
	return l.usr(ctx, want)
}

// full moves a volume at each rate: figures 1 and 2.
func (l *Lines) full(ctx context.Context, until time.Time) error {
	for i, rate := range l.Rates {
		if err := l.fullAt(ctx, rate, share(until, len(l.Rates)-i)); err != nil {
			return fmt.Errorf("%s: %w", rateName(rate), err)
		}
	}
	return nil
}

func (l *Lines) fullAt(ctx context.Context, rate int64, until time.Time) error {
	img, err := l.volume(ctx, rate, l.Span)
	if err != nil {
		return err
	}
	var ours, payload, wall []float64
	theirs := map[string][]float64{}
	err = l.repeat(until, func(int) error {
		c, err := l.cross(ctx, img, crossOptions{rate: rate})
		if err != nil {
			return err
		}
		ours, payload = append(ours, c.secs), append(payload, float64(c.payload))
		if rate > 0 {
			wall = append(wall, c.secs*float64(rate)/float64(c.line.Bytes))
			if err := l.phases(rate, c); err != nil {
				return err
			}
		}
		err = errors.Join(l.addAt("full", rate, "mover", "seconds", c.secs, "s"), l.addAt("full", rate, "mover", "wire bytes below TLS", float64(c.payload), "B"),
			l.addAt("full", rate, "mover", "bytes of the line, headers too", float64(c.line.Bytes), "B"))
		for _, name := range l.Peers {
			if err == nil && (name != "restic" || rate == 0 || l.stored[img.Path] == 0) { // restic knows no line: once for each volume
				err = l.fullPeer(ctx, name, img, rate, theirs)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return l.fullRatios(rate, ours, payload, wall, theirs, l.stored[img.Path])
}

// phases tells where a pass did not use the line: before its first data, after its last, or in between.
func (l *Lines) phases(rate int64, c crossing) error {
	between := c.data.last - c.data.first
	return errors.Join(l.addAt("full", rate, "mover", "seconds before the first data", c.data.first, "s"),
		l.addAt("full", rate, "mover", "share of the line in between", float64(c.line.Bytes)/float64(rate)/max(between, watchEvery.Seconds()), "share"),
		l.addAt("full", rate, "mover", "seconds after the last data", c.secs-c.data.last, "s"))
}

func (l *Lines) fullPeer(ctx context.Context, name string, img image, rate int64, theirs map[string][]float64) error {
	c, err := l.peer(ctx, name, img, rate)
	if err != nil {
		return err
	}
	title := peerTitles[name]
	if name == "restic" {
		if l.stored == nil {
			l.stored = map[string]float64{}
		}
		l.stored[img.Path] = float64(c.stored)
		err = l.addAt("full", rate, title, "bytes stored", float64(c.stored), "B")
	} else {
		err = l.addAt("full", rate, title, "bytes of the line, headers too", float64(c.line.Bytes), "B")
	}
	if name == "restic" && rate > 0 {
		return err
	}
	theirs[name] = append(theirs[name], c.secs)
	return errors.Join(err, l.addAt("full", rate, title, "seconds", c.secs, "s"))
}

func (l *Lines) fullRatios(rate int64, ours, payload, wall []float64, theirs map[string][]float64, stored float64) error {
	err := errors.Join(l.addAt("full", rate, "mover", "median seconds", Median(ours), "s"), l.addAt("full", rate, "mover", "runs", float64(len(ours)), "runs"))
	bounds := map[string]string{}
	if rate == 0 {
		bounds = map[string]string{"nbdcopy": " (at most 0.5)", "restic": " (at most 0.25)"}
	}
	for _, name := range PeerNames {
		if t := theirs[name]; len(t) > 0 {
			err = errors.Join(err, l.addAt("full", rate, "mover / "+peerTitles[name], "ratio of median seconds"+bounds[name], Median(ours)/Median(t), "ratio"))
		}
	}
	if len(wall) > 0 {
		err = errors.Join(err, l.addAt("full", rate, "mover", "wall time / (bytes of the line / rate) (at most 1.05)", Median(wall), "ratio"))
	}
	if stored > 0 {
		text := "wire bytes / bytes stored"
		if rate > 0 {
			text += fmt.Sprintf(" (at most %s)", number(restShare(rate)))
		}
		err = errors.Join(err, l.addAt("full", rate, "mover / restic backup", text, Median(payload)/stored, "ratio"))
	}
	return err
}

// addAt records a value of one rate.
func (l *Lines) addAt(workload string, rate int64, subject, metric string, v float64, unit string) error {
	return l.add("line "+workload, subject+", "+rateName(rate), metric, v, unit)
}

// cutAfter is how much longer than auto a fixed level may take before it is ended: it cannot be the best any more.
const cutAfter = 1.3

// levels compares auto with each fixed level at each rate.
func (l *Lines) levels(ctx context.Context, until time.Time) error {
	for i, rate := range l.Rates {
		if err := l.levelsAt(ctx, rate, share(until, len(l.Rates)-i)); err != nil {
			return fmt.Errorf("%s: %w", rateName(rate), err)
		}
	}
	return nil
}

func (l *Lines) levelsAt(ctx context.Context, rate int64, until time.Time) error {
	span := l.Span
	if rate == 0 {
		span = 0
	}
	img, err := l.volume(ctx, rate, span)
	if err != nil {
		return err
	}
	var auto []float64
	fixed, cut := map[string][]float64{}, map[string]bool{}
	err = l.repeat(until, func(int) error {
		c, err := l.cross(ctx, img, crossOptions{rate: rate, level: "auto"})
		if err != nil {
			return err
		}
		auto = append(auto, c.secs)
		if err := l.addAt("levels", rate, "auto", "seconds", c.secs, "s"); err != nil {
			return err
		}
		limit := time.Duration(c.secs*cutAfter*float64(time.Second)) + time.Second
		for _, level := range l.Levels {
			if cut[level] {
				continue
			}
			c, err := l.cross(ctx, img, crossOptions{rate: rate, level: level, limit: limit})
			if err != nil {
				return err
			}
			metric := "seconds"
			if c.cut {
				metric, cut[level] = "seconds until it was ended", true
			}
			fixed[level] = append(fixed[level], c.secs)
			if err := l.addAt("levels", rate, level, metric, c.secs, "s"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	best := ""
	for _, level := range l.Levels {
		if !cut[level] && (best == "" || Median(fixed[level]) < Median(fixed[best])) {
			best = level
		}
	}
	if best == "" {
		return l.addAt("levels", rate, "auto", "median seconds; no fixed level ended in time", Median(auto), "s")
	}
	return l.addAt("levels", rate, "auto / best fixed, "+best, "ratio of median seconds (at most 1.05)", Median(auto)/Median(fixed[best]), "ratio")
}
