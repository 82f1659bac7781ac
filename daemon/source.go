package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
	"github.com/moverd/mover/wire"
)

// source is the role that reads volumes.
type source struct {
	o       Options
	buffers *buffers.Pool
	slots   []*slot
}

// sourceBuffers and heap share the memory limit: buffers lie outside of Go's heap, and an eighth is left for what neither counts.
func sourceBuffers(s *config.Source) int64 { return int64(s.Limits.Memory) * 3 / 8 }
func heap(s *config.Source) int64          { return int64(s.Limits.Memory) / 2 }

func openSource(ctx context.Context, o Options) (_ role, err error) {
	c := o.Config.Source
	// What a daemon and a guardian that were killed together left frozen has to be thawed before anything else: nobody else will.
	thawed, err := freeze.ThawStale(string(c.Run))
	if len(thawed) > 0 {
		o.Log.Warn("thawed what an earlier daemon had left frozen", "what", thawed)
		o.Log.record(audit.Record{Event: "thaw.stale", Details: map[string]any{"what": thawed}})
	}
	if err != nil {
		return nil, fmt.Errorf("thaw what an earlier daemon left frozen: %w", err)
	}
	// What their applications are owed comes after that. A command that fails stays owed, and keeps further moments of its group from beginning.
	if ran, err := freeze.PostStale(string(c.Run), o.Log.Logger); err != nil {
		o.Log.Error("post hooks of an earlier daemon's moments", "error", err)
	} else if len(ran) > 0 {
		o.Log.Warn("ran post hooks of an earlier daemon's moments", "what", ran)
	}
	sweepSnapshots(ctx, string(c.Run), o.Log.Logger)
	setLevel(o, c.LogLevel)
	tls, err := wire.ClientTLS(c.Gateway.Files(), c.Gateway.Name)
	if err != nil {
		return nil, err
	}
	priority, err := sender.NewPriority(c.Limits.IOPriority)
	if err != nil {
		o.Log.Warn("the I/O priority stays as it is", "error", err)
	}
	s := &source{o: o, buffers: buffers.New(chunker.GroupSize, sourceBuffers(c))}
	here := machineOf(string(c.State))
	var errs []error
	for _, f := range c.Flows {
		p := &slot{o: o, c: c, f: f, tls: tls, machine: here, buffers: s.buffers, priority: priority, again: make(chan struct{}, 1),
			log: o.Log.With("flow", f.Name)}
		if err := p.open(ctx); err != nil {
			errs = append(errs, err)
		}
		s.slots = append(s.slots, p)
	}
	// One volume that is away must not keep the others from being moved; if none is there, the config is of another machine.
	// A copy of the server that boots elsewhere stands still and says why, instead of being started again and again.
	all := errors.Join(errs...)
	if len(errs) == len(s.slots) && !errors.Is(all, errForeign) {
		return nil, errors.Join(all, s.close())
	}
	return s, nil
}

func (s *source) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range s.slots {
		g.Go(func() error { return p.run(ctx) })
	}
	return g.Wait()
}

// beat gives one pulse for the flows of a group together: they wait for each other.
func (s *source) beat() []mover.Pulse {
	group := map[string]string{}
	for _, g := range s.o.Config.Source.Groups {
		for _, f := range g.Flows {
			group[f] = "group " + g.Name
		}
	}
	sums := map[string]mover.Pulse{}
	for _, p := range s.slots {
		flow, _ := p.current()
		if flow == nil {
			continue
		}
		one := flow.Pulse()
		key := cmp.Or(group[one.Flow], one.Flow)
		all := sums[key]
		sums[key] = mover.Pulse{Flow: key, Done: all.Done + one.Done, Working: all.Working || one.Working}
	}
	return slices.Collect(maps.Values(sums))
}

func (s *source) totals() []metrics.Total { return nil }

func (s *source) close() error {
	var errs []error
	for _, p := range s.slots {
		errs = append(errs, p.close())
	}
	return errors.Join(append(errs, s.buffers.Close())...)
}

// reload takes over limits and the log level. Flows, volumes and the gateway need a restart, which costs nothing: the kernel goes on tracking.
func (s *source) reload(c *config.Config) error {
	setLevel(s.o, c.Source.LogLevel)
	for _, p := range s.slots {
		p.limit(c.Source.Limits)
	}
	return nil
}

func (s *source) Daemon() control.Daemon { return daemonOf(s.o) }

func (s *source) Status() []mover.Status {
	var all []mover.Status
	for _, p := range s.slots {
		all = append(all, p.status())
	}
	return all
}

func (s *source) Do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	switch verb {
	case control.Claim, control.Points, control.Restore, control.Export, control.Serve:
		return control.Result{}, usagef("%s is for a gateway; this is a source", verb)
	}
	for _, p := range s.slots {
		if p.f.Name == r.Flow {
			return p.do(ctx, verb, r, progress)
		}
	}
	return control.Result{}, unknownFlow(r.Flow, s.Status())
}

// cutover merges the request with the config.
func (p *slot) cutover(r control.Request) (sender.CutoverOptions, error) {
	c := p.f.Cutover
	o := sender.CutoverOptions{Limit: time.Duration(c.Limit), Deadline: time.Duration(c.FreezeDeadline), Leave: c.Leave, Rehearse: r.Rehearse}
	if r.Limit > 0 {
		o.Limit = time.Duration(r.Limit * float64(time.Second))
	}
	if r.Deadline > 0 {
		o.Deadline = time.Duration(r.Deadline * float64(time.Second))
	}
	if r.Leave != "" {
		o.Leave = r.Leave
	}
	switch {
	case o.Deadline > 10*time.Minute:
		return o, usagef("--deadline %v is longer than 10m; a server whose writers stand still that long is down", o.Deadline)
	case o.Limit > o.Deadline:
		return o, usagef("--limit %v is longer than the freeze deadline %v; give a longer --deadline", o.Limit, o.Deadline)
	case o.Leave == "read-only" && p.image():
		return o, usagef("an image file cannot be left read-only; --leave frozen leaves it to its stop hook")
	case o.Leave == "read-only" && p.holdsState():
		return o, usagef("flow %s cannot be left read-only: the state folder %s lies on it and has files open for writing; leave it frozen", p.f.Name, p.c.State)
	case o.Leave == "stopped" && len(c.StopHook) == 0:
		return o, usagef("--leave stopped needs a stop-hook in the flow's config")
	}
	return o, nil
}
