package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

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
	unit     *unit

	untracked chan struct{} // closed when the flow was finished and nothing of it runs any more

	mu      sync.Mutex // guards all below
	flow    *sender.Flow
	volume  *disk.Volume
	tracker blockdev.Tracker
	why     error // why there is no flow
	since   time.Time
	limits  *config.Limits // that a reload gave
	freezer *freezer
	parked  *mover.Report // an earlier process cut over and left frozen; the flow does not run until a rollback
	ended   time.Time     // the flow was finished: it never runs again
	stop    func()        // ends the flow that runs
}

// retryEvery is how often a volume that is away is looked for.
const retryEvery = 30 * time.Second

// open makes a flow. The volume's identity and size are known before anything else is touched.
func (p *slot) open(ctx context.Context) error {
	ended, err := readFinished(string(p.c.Run), string(p.c.State), p.f.Name)
	if err == nil && !ended.IsZero() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = ended
		return nil
	}
	var flow *sender.Flow
	if err == nil {
		flow, err = p.build(ctx)
	}
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
	fr := p.unit.shared
	if fr == nil {
		fr = newFreezer(v, p.f, run, p.log)
	}
	flow, err := sender.New(p.config(), sender.Deps{
		Volume: v, Tracker: t, Used: space{v, p.log}.free, Freezer: stopper{fr}, Buffers: p.buffers, Log: p.o.Log.Logger, Priority: p.priority,
		Table: filepath.Join(dir, "table"),
		Paths: pathsOf(p.c, p.tls),
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
		flow, parked, ended := p.flow, p.parked != nil, !p.ended.IsZero()
		fctx, stop := context.WithCancel(ctx)
		p.stop = stop
		p.mu.Unlock()
		switch {
		case ended:
			stop()
			err := p.untrack()
			p.mu.Lock()
			if p.why = err; err != nil {
				p.log.Error("tracking could not be ended; the next boot ends it", "error", err)
			}
			p.mu.Unlock()
			close(p.untracked)
			<-ctx.Done()
			return nil
		case parked:
			stop()
			if !p.unparked(ctx) {
				return p.close()
			}
			continue
		case flow == nil:
			stop()
			if !p.wait(ctx) {
				return nil
			}
			p.open(ctx)
			continue
		}
		err := flow.Run(fctx)
		stop()
		if _, ended := p.isFinished(); ended {
			continue
		}
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

// unparked waits until a rollback lets the flow run. false: ctx ended. Meanwhile the gateway is asked what the record does not know.
func (p *slot) unparked(ctx context.Context) bool {
	actx, stop := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { p.askWhich(actx) })
	defer asking.Wait()
	defer stop()
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

// askWhich asks the gateway whether the target was handed over, where a process before this one ended without knowing (C15).
func (p *slot) askWhich(ctx context.Context) {
	p.mu.Lock()
	r := p.parked
	p.mu.Unlock()
	if r == nil || !r.Doubt {
		return
	}
	s, err := sender.AskState(ctx, p.config(), pathsOf(p.c, p.tls), p.log)
	if err != nil {
		if ctx.Err() == nil {
			p.log.Error("the gateway does not say whether the target was handed over", "error", err)
		}
		return
	}
	r = r.Settled(s.Phase == mover.Released)
	p.mu.Lock()
	still := p.parked != nil
	if still {
		p.parked = r
	}
	p.mu.Unlock()
	if !still {
		return // rolled back meanwhile
	}
	p.log.Warn("the gateway has said whether the target was handed over", "handed_over", r.HandOver())
	if err := recorder(string(p.c.Run), p.f.Name)(r); err != nil {
		p.log.Warn("it will be asked again after a restart", "error", err)
	}
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

func (p *slot) limit(l config.Limits) {
	p.mu.Lock()
	p.limits = &l
	flow := p.flow
	p.mu.Unlock()
	if flow != nil {
		flow.SetLimits(int64(l.ReadRate), l.CPU)
	}
}

// moving is the flow, unless it is not open or stays where a cutover has left it.
func (p *slot) moving() (*sender.Flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.ended.IsZero():
		return nil, fmt.Errorf("flow %s was finished at %s; %s: %w", p.f.Name, p.ended.Format(time.RFC3339), p.anew(), sentinel.ErrRefused)
	case p.flow == nil:
		return nil, p.why
	case p.parked != nil:
		_, reason, _ := p.parked.Standing()
		return nil, fmt.Errorf("flow %s: %s; rollback takes the target back: %w", p.f.Name, reason, sentinel.ErrRefused)
	}
	return p.flow, nil
}

// anew tells how a finished flow is replicated again.
func (p *slot) anew() string {
	run, state := finishedPaths(string(p.c.Run), string(p.c.State), p.f.Name)
	return fmt.Sprintf("to replicate this volume anew, claim a target for it, remove %s and %s, and restart moverd", run, state)
}

// reason is why there is no flow.
func (p *slot) reason() error {
	_, err := p.moving()
	return err
}

func (p *slot) status() mover.Status {
	if at, is := p.isFinished(); is {
		return mover.Status{Flow: p.f.Name, Role: Source, Device: string(p.f.Volume), State: mover.Done, Since: at, Phase: mover.Released.String(),
			Reason: "finished: the target is handed over for good, and the source is not tracked any more", Next: "take the flow out of the config"}
	}
	flow, why := p.current()
	if flow != nil {
		s := flow.Status()
		p.mu.Lock()
		defer p.mu.Unlock()
		if r := p.parked; r != nil {
			s.State, s.Reason, s.Next = r.Standing()
			s.Since, s.HandOver = r.Ended, r.HandOver()
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

// do runs a verb that is the flow's alone.
func (p *slot) do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	flow, err := p.moving()
	if err != nil {
		if current, _ := p.current(); verb == control.Resume && current == nil {
			if _, is := p.isFinished(); !is {
				p.wake()
				return control.Result{Text: r.Flow + " is tried again; see moverctl status"}, nil
			}
		}
		return control.Result{}, err
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
	case control.Verify:
		report, err := flow.Verify(ctx, sender.VerifyOptions{All: r.All}, progress)
		return control.Result{Report: report}, err
	}
	return control.Result{}, usagef("%q is no verb of a source", verb)
}
