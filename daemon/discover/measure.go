package discover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// Dirty is what changed while it was measured.
type Dirty struct {
	Method  string  `json:"method"` // ebpf: bytes of granules that changed, each once; stat: bytes written, again and again
	Bytes   int64   `json:"bytes"`
	Written int64   `json:"written_bytes"` // as the kernel counts
	Rate    float64 `json:"bytes_per_second"`
	Why     string  `json:"why,omitempty"` // the tracker was not used
	curve   curve
}

const pinPrefix = "mover-discover-"

// gauge measures one volume.
type gauge struct {
	v       *Volume
	t       *cbt.Tracker
	why     string
	begin   time.Time
	before  int64 // written, at begin
	points  curve
	written int64
}

// measure watches all volumes for o.Measure. Whatever happens, no pin is left.
func (h *Host) measure(ctx context.Context, o Options) (err error) {
	if o.Measure <= 0 {
		return nil
	}
	dir, why := pinFolder(o.PinDir)
	var all []*gauge
	defer func() {
		for _, g := range all {
			if g.t != nil {
				err = errors.Join(err, g.t.Remove(), g.t.Close())
			}
		}
		if dir != "" {
			err = errors.Join(err, unpin(dir))
		}
	}()
	for i, v := range h.Volumes {
		if ctx.Err() != nil {
			break
		}
		all = append(all, newGauge(v, i, dir, why, o))
	}
	begin := time.Now()
	for _, g := range all {
		g.start()
	}
	interrupted := watch(ctx, all, o.Measure)
	took := time.Since(begin)
	h.Measured = took.Seconds()
	for _, g := range all {
		g.finish()
	}
	if interrupted {
		h.Interrupted = true
		return fmt.Errorf("%w after %.1f s of %v: the rates are of that time", ErrInterrupted, took.Seconds(), o.Measure)
	}
	return nil
}

func newGauge(v *Volume, i int, dir, why string, o Options) *gauge {
	g := &gauge{v: v, why: why}
	if v.Tracking.Method != cbt.MethodEBPF {
		g.why = v.Tracking.Why
	} else if dir != "" {
		t, err := cbt.Open(cbt.Options{Name: "v" + strconv.Itoa(i), Map: v.vol.Map(), Size: v.Size, PinDir: dir, Memory: o.memory(),
			Identity: func() (string, error) { return v.Identity, v.vol.Check() },
			Remap:    func() (extent.Map, error) { return disk.Resolve(v.dev) }})
		if err != nil {
			g.why = clean(err.Error())
			if errors.Is(err, sentinel.ErrNotSupported) {
				v.Tracking = Tracking{Method: cbt.MethodScan, Why: g.why}
			}
			return g
		}
		g.t = t
		v.Tracking.Granule = t.Granule()
	}
	return g
}

// start forgets what changed while the trackers of other volumes were attached, which may take seconds.
func (g *gauge) start() {
	if g.t != nil {
		if _, err := g.take(); err != nil {
			g.why = clean(err.Error())
		}
	}
	g.begin, g.before = time.Now(), written(g.v.stat)
}

// take returns how many bytes changed since the last take. It is called after an interruption too, hence without a context from outside.
func (g *gauge) take() (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	epoch, set, err := g.t.Take(ctx)
	if err != nil {
		return 0, err
	}
	return set.Bytes(), g.t.Retire(epoch)
}

// watch notes how the changed bytes grow; many small steps, because the first seconds tell about short passes. It tells whether ctx ended it.
func watch(ctx context.Context, all []*gauge, d time.Duration) bool {
	tick := time.NewTicker(max(d/120, 100*time.Millisecond))
	defer tick.Stop()
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return true
		case <-end.C:
			return false
		case <-tick.C:
			for _, g := range all {
				if g.t != nil {
					g.points = append(g.points, point{time.Since(g.begin).Seconds(), float64(g.t.Pending())})
				}
			}
		}
	}
}

// finish turns what was counted into a rate.
func (g *gauge) finish() {
	g.written = written(g.v.stat) - g.before
	d := &Dirty{Method: "stat", Bytes: g.written, Written: g.written, Why: g.why}
	if g.t != nil {
		changed, err := g.take()
		if err != nil {
			d.Why = clean(err.Error())
		} else {
			d.Method, d.Bytes, d.curve = cbt.MethodEBPF, changed, g.points
		}
	}
	took := time.Since(g.begin)
	d.Rate = float64(d.Bytes) / max(took.Seconds(), 0.001)
	d.curve = d.curve.end(took.Seconds(), float64(d.Bytes))
	g.v.Dirty = d
}

// written is the kernel's count of bytes written to a device; its sectors are 512 bytes whatever the device's are.
func written(dir string) int64 {
	f := strings.Fields(attr(dir, "stat"))
	if len(f) < 7 {
		return 0
	}
	n, _ := strconv.ParseInt(f[6], 10, 64)
	return n * 512
}

// pinFolder makes a folder of its own for the trackers and removes those of measurements that were killed. A bpffs that is not mounted is
// not mounted: that would change the host.
func pinFolder(top string) (dir, why string) {
	if top == "" {
		top = "/sys/fs/bpf"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(top, &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		return "", "no bpffs is mounted at " + top
	}
	old, _ := filepath.Glob(filepath.Join(top, pinPrefix+"*"))
	for _, o := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(o), pinPrefix))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = unpin(o) // told by nobody; the next one tries again
		}
	}
	dir = filepath.Join(top, pinPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", clean(err.Error())
	}
	return dir, ""
}

// unpin removes a folder of trackers; what is unpinned and open nowhere ends.
func unpin(dir string) error { return os.RemoveAll(dir) }
