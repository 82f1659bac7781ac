package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FreezesOptions of a campaign of kills inside of freezes.
type FreezesOptions struct {
	Runs     int
	Seed     uint64
	Parallel int
	Deadline time.Duration // of each freeze
	Points   bool          // freeze for points as well as for rehearsals
}

// freezeGrace is what a freeze may last beyond its deadline: the daemon gives a guardian that much before it kills it and thaws (300 ms), and a
// loaded machine takes its time to run who thaws.
const freezeGrace = time.Second

// Who dies.
const (
	daemonDies   = "moverd is killed"
	guardianDies = "its guardian is killed"
	bothDie      = "both are killed, the unit's thaw follows"
	daemonStops  = "moverd is stopped (SIGSTOP)"
)

// Freezes kills the source at random moments inside of freezes, which are made to last up to their deadline, and measures how long writers stood
// still.
func Freezes(ctx context.Context, bin string, o FreezesOptions, w io.Writer, results *Results) error {
	var next atomic.Int64
	var mu sync.Mutex // guards w and all below
	stalls := map[string][]float64{}
	var errs []error
	var wg sync.WaitGroup
	sets := [][]string{{"ext4"}, {"xfs"}, {"ext4", "xfs", "ext4"}}
	start := time.Now()
	for worker := range max(1, o.Parallel) {
		wg.Go(func() {
			k := &killer{o: o, rng: rand.New(rand.NewPCG(o.Seed, uint64(worker))), kinds: sets[worker%len(sets)]}
			err := k.run(ctx, bin, func() bool { return next.Add(1) <= int64(o.Runs) }, func(who string, stall time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				stalls[who] = append(stalls[who], stall.Seconds())
				fmt.Fprintf(w, "%s: %s; the writers stood still for %.3f s\n", strings.Join(k.kinds, "+"), who, stall.Seconds())
			})
			if err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%v: %w", k.kinds, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	longest, n := 0.0, 0
	add := func(metric string, value float64, unit string) {
		if results != nil {
			errs = append(errs, results.Add("freezes", "mover", metric, value, unit))
		}
	}
	for _, who := range []string{daemonDies, guardianDies, bothDie, daemonStops} {
		all := stalls[who]
		if len(all) == 0 {
			continue
		}
		n += len(all)
		longest = max(longest, slices.Max(all))
		fmt.Fprintf(w, "%d times %s: median stall %.2f s, longest %.2f s\n", len(all), who, Median(all), slices.Max(all))
		add("freezes in which "+who, float64(len(all)), "freezes")
		add("longest stall where "+who, slices.Max(all), "s")
	}
	fmt.Fprintf(w, "%d freezes with a deadline of %v in %.0f s: the longest stall of a writer was %.3f s\n", n, o.Deadline, time.Since(start).Seconds(), longest)
	add("freezes", float64(n), "freezes")
	add("deadline", o.Deadline.Seconds(), "s")
	add("longest stall of a writer", longest, "s")
	if limit := o.Deadline + freezeGrace; longest > limit.Seconds() {
		errs = append(errs, fmt.Errorf("a writer stood still for %.2f s, the deadline is %v and the grace %v", longest, o.Deadline, freezeGrace))
	}
	if n < o.Runs && ctx.Err() == nil {
		errs = append(errs, fmt.Errorf("%d of %d freezes were made", n, o.Runs))
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// killer is one server whose freezes are disturbed again and again.
type killer struct {
	o     FreezesOptions
	rng   *rand.Rand
	kinds []string
	f     *fleet
	beats []*heart
}

func (k *killer) run(ctx context.Context, bin string, more func() bool, tell func(string, time.Duration)) (err error) {
	o := RigOptions{Interval: "1s", Limit: k.o.Deadline.String(), Deadline: k.o.Deadline.String(), Leave: "frozen", Freeze: true, Points: "{method: reflink, keep: {last: 3}}"}
	if k.f, err = newFleet(ctx, bin, o, 512, k.kinds...); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, k.stopHearts(), k.f.close())
	}()
	for _, d := range k.f.disks {
		h, err := newHeart(d.dir)
		if err != nil {
			return err
		}
		k.beats = append(k.beats, h)
	}
	if err := k.f.start(ctx); err != nil {
		return err
	}
	for more() && ctx.Err() == nil {
		who, stall, err := k.once(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", who, err, k.f.r.Log("source"))
		}
		tell(who, stall)
	}
	if ctx.Err() != nil {
		return nil
	}
	// After all that a rehearsal is made as ever.
	_, err = k.f.r.Ctl(ctx, "source", "cutover", k.f.r.o.unit(), "--rehearse", "--deadline", "20s", "--yes")
	return err
}

func (k *killer) stopHearts() (err error) {
	for _, d := range k.f.disks {
		Thaw(d.dir)
	}
	for _, h := range k.beats {
		err = errors.Join(err, h.close())
	}
	return err
}

// once makes one freeze that lasts, because the gateway stands still, and disturbs it at a random moment.
func (k *killer) once(ctx context.Context) (who string, stall time.Duration, err error) {
	r := k.f.r
	for _, h := range k.beats {
		h.reset()
	}
	verb := []string{"cutover", r.o.unit(), "--rehearse", "--yes"}
	if k.o.Points && k.rng.IntN(2) == 0 {
		verb = []string{"point", r.o.unit()}
	}
	vctx, stop := context.WithCancel(ctx)
	verbs := make(chan error, 1)
	ask := func() {
		_, err := r.Ctl(vctx, "source", verb...)
		verbs <- err
	}
	go ask() // it fails, in one way or another
	defer func() { stop(); <-verbs }()
	record := r.path("src-run/frozen-*.json")
	var verr error
	err = until(ctx, time.Minute, func() bool {
		if found, _ := filepath.Glob(record); len(found) > 0 {
			return true
		}
		select {
		case verr = <-verbs: // before it froze anything: what was disturbed before may echo
			go func() { _ = pause(vctx, 300*time.Millisecond); ask() }()
		default:
		}
		return false
	})
	if err != nil {
		return "before the freeze", 0, errors.Join(err, verr)
	}
	if err := syscall.Kill(r.GatewayPid(), syscall.SIGSTOP); err != nil {
		return "", 0, err
	}
	defer syscall.Kill(r.GatewayPid(), syscall.SIGCONT)
	if err := pause(ctx, time.Duration(k.rng.Int64N(int64(k.o.Deadline+k.o.Deadline/10)))); err != nil {
		return "", 0, err
	}
	if who, err = k.kill(ctx); err != nil {
		return who, 0, err
	}
	beating := func() bool {
		for _, h := range k.beats {
			if !h.alive() {
				return false
			}
		}
		return true
	}
	if err := until(ctx, k.o.Deadline+30*time.Second, beating); err != nil {
		return who, 0, fmt.Errorf("somebody's writes still stand: %w", err)
	}
	for _, h := range k.beats {
		stall = max(stall, h.longest())
	}
	syscall.Kill(r.GatewayPid(), syscall.SIGCONT)
	select {
	case <-r.source.done:
		err = r.StartSource()
	default:
	}
	if err == nil {
		err = r.AwaitAll(ctx, "source", "replicating again", time.Minute, replicating)
	}
	if found, _ := filepath.Glob(record); err == nil && len(found) > 0 && beating() {
		// The record of a thawed freeze would refuse the next one.
		err = until(ctx, 10*time.Second, func() bool { found, _ := filepath.Glob(record); return len(found) == 0 })
	}
	return who, stall, err
}

// kill disturbs the freeze, and does what systemd does when the daemon has ended.
func (k *killer) kill(ctx context.Context) (who string, err error) {
	r := k.f.r
	guardians := children(r.SourcePid(), "guardian")
	killAll := func() {
		for _, pid := range guardians {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	switch n := k.rng.IntN(20); {
	case n < 9:
		r.KillSource()
		return daemonDies, nil
	case n < 13:
		killAll()
		return guardianDies, nil
	case n < 17:
		killAll()
		r.KillSource()
		killAll()
		_, err := Run(ctx, filepath.Join(r.Bin, "moverctl"), "thaw", "--stale", "--run", r.path("src-run"))
		return bothDie, err
	}
	if err := syscall.Kill(r.SourcePid(), syscall.SIGSTOP); err != nil {
		return daemonStops, err
	}
	err = pause(ctx, k.o.Deadline+freezeGrace)
	r.KillSource() // as the watchdog does
	return daemonStops, err
}

// children lists the processes below pid whose command line holds word.
func children(pid int, word string) (out []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, s := range strings.Fields(string(b)) {
			cmd, _ := os.ReadFile("/proc/" + s + "/cmdline")
			if n, err := strconv.Atoi(s); err == nil && strings.Contains(string(cmd), word) {
				out = append(out, n)
			}
		}
	}
	return out
}

// until polls for cond.
func until(ctx context.Context, limit time.Duration, cond func() bool) error {
	end := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(end) {
			return fmt.Errorf("not within %v", limit)
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// heart writes to a filesystem all the time, as an application does, and knows how long each write took.
type heart struct {
	f    *os.File
	quit chan struct{}
	done chan error

	mu    sync.Mutex // guards all below
	began time.Time  // of the write under way, zero: none
	last  time.Time  // when a write ended
	worst time.Duration
}

func newHeart(dir string) (*heart, error) {
	f, err := os.OpenFile(filepath.Join(dir, "heart"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	h := &heart{f: f, quit: make(chan struct{}), done: make(chan error, 1)}
	go func() { h.done <- h.beat() }()
	return h, nil
}

func (h *heart) beat() error {
	b := make([]byte, 4096)
	for n := uint64(0); ; n++ {
		select {
		case <-h.quit:
			return nil
		case <-time.After(5 * time.Millisecond):
		}
		copy(b, strconv.FormatUint(n, 10))
		h.mu.Lock()
		h.began = time.Now()
		h.mu.Unlock()
		_, err := h.f.WriteAt(b, int64(n%256)*4096) // through the page cache: what waits here waits for a thaw, not for the disk
		if err == nil && n%64 == 0 {
			err = unix.Fdatasync(int(h.f.Fd()))
		}
		h.mu.Lock()
		h.last = time.Now()
		h.worst, h.began = max(h.worst, h.last.Sub(h.began)), time.Time{}
		h.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (h *heart) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.worst = 0
}

// alive tells whether a write has ended just now.
func (h *heart) alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.last) < 50*time.Millisecond
}

func (h *heart) longest() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.worst
}

func (h *heart) close() error {
	close(h.quit)
	return errors.Join(<-h.done, h.f.Close())
}
