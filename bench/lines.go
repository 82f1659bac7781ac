package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// Lines are the workloads on a line of a given rate. Each repetition alternates what is compared, and each copy is compared with its source.
type Lines struct {
	Perf

	Rates  []int64       // bytes/s of the line; 0: not limited
	Usr    int64         // bytes of /usr that volumes hold at most; 0: all of it
	Span   time.Duration // the volume for a limited line is made such that a pass takes about as long
	Levels []string      // of compression, to compare auto with
	Peers  []string      // of full, where the line is not limited
	Twins  []string      // kinds of a second host, of Twins
	Sizes  []int64       // of scale: bytes of a volume
	Pauses []PauseLoad
	Spread int64         // of pause: bytes of the files that are written to
	Trip   time.Duration // of distance: the round trip
	Cores  []int
	Within time.Duration // for all workloads together: no repetition begins that would not end in time; 0: no limit

	stored map[string]float64 // what restic stores of an image
}

// PauseLoad is a cutover's line and the writes under it, both in bytes/s.
type PauseLoad struct{ Line, Writes int64 }

// LineWorkloads in the order in which they run.
var LineWorkloads = []string{"stages", "full", "levels", "twin", "scale", "pause", "distance", "cores"}

// Run runs workloads by name; each has an equal share of what is left of Within.
func (l *Lines) Run(ctx context.Context, names []string) error {
	run := map[string]func(context.Context, time.Time) error{"stages": l.stages, "full": l.full, "levels": l.levels, "twin": l.twin, "scale": l.scale,
		"pause": l.pause, "distance": l.distance, "cores": l.cores}
	var until time.Time
	if l.Within > 0 {
		until = time.Now().Add(l.Within)
	}
	var order []string
	for _, name := range LineWorkloads {
		if slices.Contains(names, name) {
			order = append(order, name)
		}
	}
	for i, name := range order {
		began := time.Now()
		if err := run[name](ctx, share(until, len(order)-i)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l.say("%-10s took %.0f s", name, time.Since(began).Seconds())
	}
	return nil
}

// share is the end of the first of n equal parts of the time until an end; none has none.
func share(until time.Time, n int) time.Time {
	if until.IsZero() {
		return until
	}
	return time.Now().Add(time.Until(until) / time.Duration(n))
}

// repeat runs once at least, and as often as asked while there is time for another run as long as the longest.
func (l *Lines) repeat(until time.Time, run func(i int) error) error {
	var longest time.Duration
	for i := range max(1, l.Repeat) {
		if i > 0 && !until.IsZero() && time.Until(until) < longest {
			l.say("           %d of %d repetitions: the time is used up", i, l.Repeat)
			return nil
		}
		began := time.Now()
		if err := run(i); err != nil {
			return err
		}
		longest = max(longest, time.Since(began))
	}
	return nil
}

// rateName is how a rate is written in tables.
func rateName(rate int64) string {
	switch bits := rate * 8; {
	case rate == 0:
		return "unlimited"
	case bits%1e9 == 0:
		return fmt.Sprintf("%d Gbit/s", bits/1e9)
	case bits >= 1e6:
		return fmt.Sprintf("%s Mbit/s", number(float64(bits)/1e6))
	default:
		return fmt.Sprintf("%d bit/s", bits)
	}
}

// crossing is one full pass and what it took.
type crossing struct {
	rig     *Rig
	dir     string  // where the volume is mounted
	secs    float64 // from the start of the source's process until the first recovery point is durable
	cut     bool    // it was ended after limit
	payload int64   // bytes below TLS, above TCP
	line    Traffic // all that the line carried towards the gateway
	cpu     float64 // seconds of cores, of both daemons
	rtt     float64
	data    stretch // when the line carried data
}

// crossOptions of a full pass.
type crossOptions struct {
	rate  int64
	level string // default auto
	cores int
	trip  time.Duration // of a delaying proxy before the gateway
	limit time.Duration // default 30 min; what takes longer is cut
}

// cross moves an image from a new source to a new gateway over a new line and compares the copy.
func (l *Lines) cross(ctx context.Context, img image, o crossOptions) (c crossing, err error) {
	line, err := NewLine(ctx, o.rate)
	if err != nil {
		return c, err
	}
	r, err := NewRig(ctx, l.Bin, RigOptions{Create: true, Interval: "1h", Conns: 4, SkipFree: true, Line: line, Compression: o.level, Cores: o.cores})
	if err != nil {
		return c, errors.Join(err, line.Close())
	}
	defer func() { err = errors.Join(err, r.Close(), line.Close()) }()
	c.rig = r
	r.o.Target = filepath.Join(l.Work, "line-copy.img")
	r.Defer(func() error { return os.Remove(r.o.Target) })
	if err := c.open(ctx, img); err != nil {
		return c, err
	}
	if err := r.StartGateway(); err != nil {
		return c, err
	}
	if err := r.up(ctx, "gateway"); err != nil {
		return c, err
	}
	if o.trip > 0 {
		proxy, err := r.delay(ctx, o.trip)
		if err != nil {
			return c, err
		}
		defer proxy.Kill()
	}
	if err := c.pass(ctx, o.limit); err != nil || c.cut {
		return c, err
	}
	return c, c.check(ctx, img.Size)
}

// open attaches an image as the rig's volume and mounts it: in use, as on a server, and the map of free space is asked from there.
func (c *crossing) open(ctx context.Context, img image) (err error) {
	if err := cold(img.Path); err != nil {
		return err
	}
	if c.rig.o.Volume, err = c.rig.attach(ctx, img.Path); err != nil {
		return err
	}
	c.dir, err = c.rig.Mount(ctx, c.rig.o.Volume, "mnt", "-o", "noatime")
	return err
}

// pass starts the source and waits for the first recovery point.
func (c *crossing) pass(ctx context.Context, limit time.Duration) error {
	if limit == 0 {
		limit = 30 * time.Minute
	}
	r := c.rig
	before, err := r.o.Line.Sent(ctx)
	if err != nil {
		return err
	}
	idle := 0.0
	if r.gateway != nil {
		if idle, err = cpuSeconds(r.GatewayPid()); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := r.StartSource(); err != nil {
		return err
	}
	data := watch(r.SourcePid(), start)
	st, err := r.Await(ctx, "source", "at a recovery point", limit, func(s mover.Status) bool { return s.PointEpoch > 0 })
	c.secs, c.data = time.Since(start).Seconds(), data()
	if err != nil && ctx.Err() == nil && c.secs >= limit.Seconds() && limit < 30*time.Minute {
		c.cut = true
		return nil
	}
	if err != nil {
		return err
	}
	c.payload, c.rtt = st.WireOut, st.RTT
	after, err := r.o.Line.Sent(ctx)
	if err != nil {
		return err
	}
	c.line = after.less(before)
	c.cpu, err = cpuSeconds(r.SourcePid())
	if err != nil || r.gateway == nil {
		return err
	}
	gateway, err := cpuSeconds(r.GatewayPid())
	c.cpu += gateway - idle
	return err
}

// check freezes the volume, has the last changes sent, and compares. Mounting alone has changed something.
func (c *crossing) check(ctx context.Context, size int64) error {
	if _, err := Run(ctx, "fsfreeze", "-f", c.dir); err != nil {
		return err
	}
	defer Thaw(c.dir)
	if _, err := c.rig.Ctl(ctx, "source", "sync", flowName); err != nil {
		return err
	}
	return c.rig.compareTarget(ctx, size)
}

// compareTarget waits until the gateway has applied what it has, and compares.
func (r *Rig) compareTarget(ctx context.Context, size int64) error {
	if err := r.applied(ctx); err != nil {
		return err
	}
	_, err := compare(ctx, r.o.Volume, r.o.Target, size)
	return err
}

// applied waits until no log of the gateway holds anything.
func (r *Rig) applied(ctx context.Context) error {
	for range 1200 {
		all, err := r.Statuses(ctx, "gateway")
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all, func(s mover.Status) bool { return s.Log > 0 }) {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the gateway has not applied its logs after a minute\n%s", r.Log("gateway"))
}

// up waits until a daemon answers.
func (r *Rig) up(ctx context.Context, role string) error {
	var err error
	for range 600 {
		if _, err = r.Statuses(ctx, role); err == nil {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not answer after 30 s: %w\n%s", role, err, r.Log(role))
}

// delay puts a long way between the line's far end and the gateway.
func (r *Rig) delay(ctx context.Context, trip time.Duration) (*Proc, error) {
	argv := r.o.Line.Far(filepath.Join(r.Bin, "moverbench"), "delay", "--listen", fmt.Sprintf("%s:%d", farAddr, delayPort), "--to", r.address, "--delay", (trip / 2).String())
	p, err := r.command(argv[0], argv[1:]...)
	if err != nil {
		return nil, err
	}
	if err := awaitListener(ctx, p, delayPort); err != nil {
		p.Kill()
		return nil, err
	}
	r.o.Through = fmt.Sprintf("%s:%d", farAddr, delayPort)
	return p, nil
}

// cpuSeconds is the time of cores that a process has used.
func cpuSeconds(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(b))
}

// parseCPU reads /proc/PID/stat; its clock has 100 ticks a second.
func parseCPU(stat string) (float64, error) {
	_, rest, ok := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("stat of a process: %q", stat)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return float64(user+system) / 100, errors.Join(err1, err2)
}
