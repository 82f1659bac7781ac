package sender

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// governor keeps the CPU time of the whole process near a number of cores: who is about to use a core asks first, and waits while
// the process is over. It watches what the process used, so whatever else runs in it counts too.
type governor struct {
	now  func() time.Time
	used func() time.Duration

	mu     sync.Mutex // guards all below
	cores  float64    // 0: no limit
	last   time.Time
	spent  time.Duration
	credit float64 // seconds of CPU
}

// governorBurst is the seconds of all allowed cores that may be saved up.
const governorBurst = 0.25

// newGovernor makes a governor; cores of 0 or all of the machine: no limit.
func newGovernor(cores, machine int) *governor {
	g := &governor{now: time.Now, used: cpuTime}
	g.limit(cores, machine)
	return g
}

func (g *governor) limit(cores, machine int) {
	if cores >= machine {
		cores = 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cores, g.credit, g.last = float64(max(0, cores)), 0, time.Time{}
}

func cpuTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// onCore is the seconds of a core that f takes, on this goroutine's thread. On a busy machine that is less than the time that passes: who waits for
// a core is not slow.
func onCore(f func()) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	f()
	return (threadTime() - before).Seconds()
}

func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// delay is how long the caller has to wait.
func (g *governor) delay() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cores == 0 {
		return 0
	}
	now, used := g.now(), g.used()
	if !g.last.IsZero() {
		g.credit += now.Sub(g.last).Seconds()*g.cores - (used - g.spent).Seconds()
		g.credit = min(g.credit, governorBurst*g.cores)
	}
	g.last, g.spent = now, used
	if g.credit >= 0 {
		return 0
	}
	return time.Duration(-g.credit / g.cores * float64(time.Second))
}

// wait waits until the process may use a core.
func (g *governor) wait(ctx context.Context) error {
	for {
		d := g.delay()
		if d <= 0 {
			return ctx.Err()
		}
		sleep(ctx, min(d, time.Second))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// idleCores measures how many cores of the machine have nothing to do.
type idleCores struct {
	idleTicks, allTicks int64
}

// idle is the idle cores since the last call; false at the first, and where /proc/stat cannot be read.
func (i *idleCores) idle() (float64, bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, false
	}
	var idle, all int64
	for k, s := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, false
		}
		all += n
		if k == 3 || k == 4 {
			idle += n
		}
	}
	di, da := idle-i.idleTicks, all-i.allTicks
	first := i.allTicks == 0
	i.idleTicks, i.allTicks = idle, all
	if first || da <= 0 {
		return 0, false
	}
	return float64(runtime.NumCPU()) * float64(max(0, di)) / float64(da), true
}

// I/O priorities as the kernel packs them: class << 13 | level.
const (
	ioprioIdle    = 3 << 13
	ioprioLow     = 2<<13 | 7 // best effort, lowest
	ioprioUrgent  = 2 << 13   // best effort, highest
	ioprioProcess = 1         // IOPRIO_WHO_PROCESS: one thread
)

// Priority sets the I/O priority of every thread of the process: polite as a rule; fair in the rounds of a cutover, which on a busy disk
// would never end with what is left over; urgent while a flow has stopped its writers. All flows of a process share one.
type Priority struct {
	polite int

	mu    sync.Mutex // guards all below
	hurry [2]int     // flows that want fair, urgent
}

// haste is what a flow wants.
type haste int

const (
	fair haste = iota
	urgent
)

// NewPriority applies class (idle, best-effort or none) at once. Threads that start later inherit it.
func NewPriority(class string) (*Priority, error) {
	p := &Priority{}
	switch class {
	case "idle", "":
		p.polite = ioprioIdle
	case "best-effort":
		p.polite = ioprioLow
	case "none":
		return p, nil
	default:
		return nil, fmt.Errorf("io-priority %q, want idle, best-effort or none", class)
	}
	return p, setIOPriority(p.polite)
}

// raise asks for h until the returned function is called.
func (p *Priority) raise(h haste) (done func()) {
	if p == nil || p.polite == 0 {
		return func() {}
	}
	p.change(h, 1)
	return sync.OnceFunc(func() { p.change(h, -1) })
}

func (p *Priority) change(h haste, by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.wanted()
	p.hurry[h] += by
	if now := p.wanted(); now != before {
		_ = setIOPriority(now) // a priority is a courtesy, never a reason to stop
	}
}

func (p *Priority) wanted() int {
	switch {
	case p.hurry[urgent] > 0:
		return ioprioUrgent
	case p.hurry[fair] > 0:
		return ioprioLow
	}
	return p.polite
}

// setIOPriority sets all threads. It reads /proc only, so it may be called while filesystems are frozen.
func setIOPriority(prio int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("set the I/O priority: %w", err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioProcess, uintptr(tid), uintptr(prio)); e != 0 && e != unix.ESRCH {
			return fmt.Errorf("set the I/O priority: %w", e)
		}
	}
	return nil
}
