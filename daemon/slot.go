package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
	"github.com/moverd/mover/wire"
)

// slot is the place of one flow: it opens the volume and what belongs to it, runs the flow, and opens all anew when the volume has
// changed its shape or was away.
type slot struct {
	o        Options
	c        *config.Source
	f        config.SourceFlow
	tls      *tls.Config
	buffers  *buffers.Pool
	priority *sender.Priority
	log      *slog.Logger
	machine  machine       // no flow is opened on another one
	again    chan struct{} // capacity 1: the operator wants another try

	mu      sync.Mutex // guards all below
	flow    *sender.Flow
	volume  *disk.Volume
	tracker blockdev.Tracker
	why     error // why there is no flow
	since   time.Time
	limits  *config.Limits // that a reload gave
	freezer *freezer
	parked  *mover.Report // an earlier process cut over and left frozen; the flow does not run until a rollback
}

// retryEvery is how often a volume that is away is looked for.
const retryEvery = 30 * time.Second

// open makes a flow. The volume's identity and size are known before anything else is touched.
func (p *slot) open(ctx context.Context) error {
	flow, err := p.build(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("flow %s: %w", p.f.Name, err)
		if p.why == nil || p.why.Error() != err.Error() {
			p.since = time.Now()
			p.log.Error("flow cannot be opened", "error", err)
		}
		p.why = err
		return err
	}
	p.flow, p.why = flow, nil
	if p.limits != nil {
		flow.SetLimits(int64(p.limits.ReadRate), p.limits.CPU)
	}
	return nil
}

func (p *slot) build(ctx context.Context) (_ *sender.Flow, err error) {
	if err := p.machine.check(); err != nil {
		return nil, err
	}
	v, err := disk.OpenVolume(string(p.f.Volume))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	if err := p.machine.record(); err != nil {
		return nil, err
	}
	p.log.Info("volume", "path", v.Path(), "kind", v.Kind(), "bytes", v.Size(), "block", v.BlockSize(), "identity", v.Identity())
	t, err := p.track(v)
	if err != nil {
		return nil, err
	}
	name, detail := t.Method()
	p.log.Info("tracking", "method", name, "detail", detail)
	run := string(p.c.Run)
	report, err := recorded(run, p.f.Name)
	if err != nil {
		p.log.Warn("the record of a cutover cannot be read; whether it was cut over is the gateway's word now", "error", err)
	}
	dir := filepath.Join(string(p.c.State), "flows", p.f.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make the flow's folder: %w", err), t.Close())
	}
	fr := newFreezer(v, p.f, run, p.log)
	flow, err := sender.New(p.config(), sender.Deps{
		Volume: v, Tracker: t, Used: space{v, p.log}.free, Freezer: fr, Buffers: p.buffers, Log: p.o.Log.Logger, Priority: p.priority,
		Table: filepath.Join(dir, "table"),
		Dial:  func(ctx context.Context) (net.Conn, error) { return wire.Dial(ctx, p.c.Gateway.Address, p.tls) },
		Quiet: p.o.Log.quiet(),
		Leave: fr.leave, Snapshot: p.snapshotter,
		Record: recorder(run, p.f.Name), Recorded: report, Note: p.o.Log.note,
	})
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	p.mu.Lock()
	p.volume, p.tracker, p.freezer = v, t, fr
	if p.parked = nil; report != nil && report.Left == "frozen" {
		// The state folder may lie on what is frozen: a flow that runs would open its table there, and wait for the thaw for ever.
		p.parked = report
	}
	p.mu.Unlock()
	return flow, nil
}

func (p *slot) config() sender.Config {
	return sender.Config{
		Flow: p.f.Name, Device: string(p.f.Volume), Gateway: p.c.Gateway.Address, Agent: "moverd/" + version.String(), Conns: p.c.Gateway.Connections,
		Interval: time.Duration(p.f.Interval), QueueDepth: p.c.Limits.QueueDepth, ReadRate: int64(p.c.Limits.ReadRate), CPU: p.c.Limits.CPU,
		Compression: p.c.Compression, OnReadError: p.f.OnReadError,
	}
}

// track opens the best tracker that the config allows and this volume and kernel can have. A tracker that is worse says why.
func (p *slot) track(v *disk.Volume) (blockdev.Tracker, error) {
	c := p.c.Tracking
	why := "as configured"
	if c.Method != "scan" {
		t, err := p.ebpf(v)
		if err == nil {
			return t, nil
		}
		if c.Method == "ebpf" || !errors.Is(err, sentinel.ErrNotSupported) {
			return nil, err
		}
		why = err.Error()
		p.log.Warn("changes cannot be tracked; every pass reads the whole volume", "why", why)
	}
	var generation mover.ID
	rand.Read(generation[:])
	return mover.NewScan(v.Size(), generation, why), nil
}

func (p *slot) ebpf(v *disk.Volume) (blockdev.Tracker, error) {
	if v.Map() == nil {
		return nil, v.Unmapped()
	}
	return cbt.Open(cbt.Options{
		Name: p.f.Name, Map: v.Map(), Size: v.Size(), PinDir: string(p.c.Tracking.PinDir), Memory: int64(p.c.Tracking.Memory),
		Identity: func() (string, error) { return v.Identity(), v.Check() },
		Remap:    func() (extent.Map, error) { return disk.Resolve(v.Device()) },
	})
}

// run runs the flow, and opens it again when it ended because the volume is not what it was.
func (p *slot) run(ctx context.Context) error {
	for {
		p.mu.Lock()
		flow, parked := p.flow, p.parked != nil
		p.mu.Unlock()
		switch {
		case parked:
			if !p.unparked(ctx) {
				return p.close()
			}
			continue
		case flow == nil:
			if !p.wait(ctx) {
				return nil
			}
			p.open(ctx)
			continue
		}
		err := flow.Run(ctx)
		err = errors.Join(err, p.close())
		if ctx.Err() != nil {
			return nil
		}
		p.mu.Lock()
		p.why, p.since = fmt.Errorf("flow %s: %w", p.f.Name, err), time.Now()
		p.mu.Unlock()
		p.log.Warn("flow ended and is opened again", "error", err)
		p.open(ctx)
	}
}

// wait lasts until another try is due. false: ctx ended.
func (p *slot) wait(ctx context.Context) bool {
	timer := time.NewTimer(retryEvery)
	defer timer.Stop()
	select {
	case <-p.again:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// unparked waits until a rollback lets the flow run. false: ctx ended.
func (p *slot) unparked(ctx context.Context) bool {
	select {
	case <-p.again:
		return true
	case <-ctx.Done():
		return false
	}
}

// unpark thaws what an earlier process left frozen and lets the flow run, whose rollback does the rest.
func (p *slot) unpark() error {
	p.mu.Lock()
	parked, fr := p.parked, p.freezer
	p.mu.Unlock()
	if parked == nil {
		return nil
	}
	if err := fr.Thaw(); err != nil {
		return err
	}
	p.mu.Lock()
	p.parked = nil
	p.mu.Unlock()
	p.wake()
	return nil
}

func (p *slot) wake() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// close lets go of volume and tracker; the kernel goes on tracking.
func (p *slot) close() error {
	p.mu.Lock()
	v, t := p.volume, p.tracker
	p.flow, p.volume, p.tracker = nil, nil, nil
	p.mu.Unlock()
	if v == nil {
		return nil
	}
	return errors.Join(t.Close(), v.Close())
}

func (p *slot) current() (*sender.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flow, p.why
}

// image tells whether the volume is an image file.
func (p *slot) image() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.volume != nil && p.volume.Device() == 0
}

// holdsState tells whether the daemon's own state lies on the volume.
func (p *slot) holdsState() bool {
	p.mu.Lock()
	fr := p.freezer
	p.mu.Unlock()
	var state unix.Stat_t
	if fr == nil || unix.Stat(string(p.c.State), &state) != nil {
		return false
	}
	dirs, err := fr.dirs()
	return err == nil && slices.ContainsFunc(dirs, func(dir string) bool {
		var st unix.Stat_t
		return unix.Stat(dir, &st) == nil && st.Dev == state.Dev
	})
}

func (p *slot) limit(l config.Limits) {
	p.mu.Lock()
	p.limits = &l
	flow := p.flow
	p.mu.Unlock()
	if flow != nil {
		flow.SetLimits(int64(l.ReadRate), l.CPU)
	}
}

func (p *slot) status() mover.Status {
	flow, why := p.current()
	if flow != nil {
		s := flow.Status()
		p.mu.Lock()
		defer p.mu.Unlock()
		if r := p.parked; r != nil {
			s.State, s.Since, s.Reason = mover.Done, r.Ended, fmt.Sprintf("cut over at %s, source left frozen", r.Ended.Format(time.RFC3339))
			s.Next = "moverctl rollback, to let the source go on instead of the target"
		}
		return s
	}
	p.mu.Lock()
	since := p.since
	p.mu.Unlock()
	s := mover.Status{Flow: p.f.Name, Role: Source, Device: string(p.f.Volume), State: mover.Stopped, Since: since,
		Next: fmt.Sprintf("mend it; it is tried again every %v, and at once by moverctl resume", retryEvery)}
	if why != nil {
		s.Reason, s.LastError = why.Error(), why.Error()
	}
	return s
}

// do runs a verb.
func (p *slot) do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	flow, why := p.current()
	if flow == nil {
		if verb == control.Resume {
			p.wake()
			return control.Result{Text: r.Flow + " is tried again; see moverctl status"}, nil
		}
		return control.Result{}, why
	}
	p.mu.Lock()
	parked := p.parked != nil
	p.mu.Unlock()
	if parked && verb != control.Rollback && verb != control.Thaw {
		return control.Result{}, fmt.Errorf("flow %s is cut over and left frozen; rollback takes the target back: %w", r.Flow, sentinel.ErrRefused)
	}
	text := func(s string, err error) (control.Result, error) {
		if err != nil {
			return control.Result{}, err
		}
		return control.Result{Text: r.Flow + " " + s}, nil
	}
	switch verb {
	case control.Pause:
		return text("is paused; changes are still tracked", flow.Pause())
	case control.Resume:
		return text("goes on", flow.Resume())
	case control.Sync:
		return text("is in sync with what was written before", flow.Sync(ctx))
	case control.Rollback:
		if err := p.unpark(); err != nil {
			return control.Result{}, err
		}
		return text("goes on at the source, and is replicated again", flow.Rollback(ctx))
	case control.Thaw:
		return text("is thawed", flow.Thaw())
	case control.Verify:
		report, err := flow.Verify(ctx, sender.VerifyOptions{All: r.All}, progress)
		return control.Result{Report: report}, err
	case control.Cutover:
		o, err := p.cutover(r)
		if err != nil {
			return control.Result{}, err
		}
		report, err := flow.Cutover(ctx, o, progress)
		return control.Result{Report: report}, err
	}
	return control.Result{}, usagef("%q is no verb of a source", verb)
}
