package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

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
	units   []*unit
	buckets *buckets
}

// sourceBuffers and heap share the memory limit: buffers lie outside of Go's heap, and an eighth is left for what neither counts.
func sourceBuffers(s *config.Source) int64 { return int64(s.Limits.Memory) * 3 / 8 }

func heap(s *config.Source) int64 {
	n := int64(s.Limits.Memory) / 2
	for _, b := range s.Buckets {
		if n += int64(b.Limits.Memory)*5/4 + bucketMemory; b.To.Gateway != nil {
			n += 2 * relayMemory
		}
	}
	return n
}

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
	s := &source{o: o}
	here := machineOf(string(c.State))
	if s.buckets, err = openBuckets(o, here); err != nil {
		return nil, err
	}
	if len(c.Flows) == 0 { // no volumes: no gateway, no tracking, no buffers
		return s, nil
	}
	defer func() {
		if err != nil && s.buffers == nil {
			err = errors.Join(err, s.buckets.close())
		}
	}()
	tls, err := wire.ClientTLS(c.Gateway.Files(), c.Gateway.Name)
	if err != nil {
		return nil, err
	}
	priority, err := sender.NewPriority(c.Limits.IOPriority)
	if err != nil {
		o.Log.Warn("the I/O priority stays as it is", "error", err)
	}
	s.buffers = buffers.New(chunker.BatchSize, sourceBuffers(c))
	s.newUnits(func(f config.SourceFlow) *slot {
		return &slot{o: o, c: c, f: f, tls: tls, machine: here, buffers: s.buffers, priority: priority, again: make(chan struct{}, 1), untracked: make(chan struct{}),
			log: o.Log.With("flow", f.Name)}
	})
	var errs []error
	for _, p := range s.slots {
		if err := p.open(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if shared, err := s.sharing(); err != nil {
		o.Log.Warn("what lies on several volumes could not be looked up", "error", err)
	} else {
		for _, sh := range shared {
			o.Log.Warn("points and cutovers of these flows are refused", "why", sh.text)
		}
	}
	// One volume that is away must not keep the others from being moved; if none is there, the config is of another machine.
	// A copy of the server that boots elsewhere stands still and says why, instead of being started again and again.
	all := errors.Join(errs...)
	if len(errs) == len(s.slots) && len(s.buckets.flows) == 0 && !errors.Is(all, errForeign) {
		return nil, errors.Join(all, s.close())
	}
	return s, nil
}

func (s *source) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range s.slots {
		g.Go(func() error { return p.run(ctx) })
	}
	g.Go(func() error { return s.buckets.run(ctx) })
	for _, u := range s.units {
		if u.schedule.Every > 0 {
			g.Go(func() error { return u.scheduled(ctx) })
		}
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
	all := slices.Collect(maps.Values(sums))
	for _, f := range s.buckets.flows {
		all = append(all, f.Pulse())
	}
	return all
}

func (s *source) totals() []metrics.Total { return nil }

func (s *source) close() error {
	var errs []error
	for _, p := range s.slots {
		errs = append(errs, p.close())
	}
	if s.buffers != nil {
		errs = append(errs, s.buffers.Close())
	}
	return errors.Join(append(errs, s.buckets.close())...)
}

// reload takes over limits and the log level. Flows, volumes and the gateway need a restart, which costs nothing: the kernel goes on tracking.
func (s *source) reload(c *config.Config) error {
	setLevel(s.o, c.Source.LogLevel)
	for _, p := range s.slots {
		p.limit(c.Source.Limits)
	}
	s.buckets.reload(c.Source)
	return nil
}

func (s *source) Daemon() control.Daemon { return daemonOf(s.o) }

func (s *source) Status() []mover.Status {
	of := map[*unit][]mover.Status{}
	var all []mover.Status
	for _, p := range s.slots {
		all = append(all, p.status())
		of[p.unit] = append(of[p.unit], all[len(all)-1])
	}
	views := map[*unit]*mover.Group{}
	for u, members := range of {
		views[u] = u.view(members)
	}
	for i, p := range s.slots {
		all[i].Group = views[p.unit]
	}
	for _, f := range s.buckets.flows {
		all = append(all, f.Status())
	}
	return all
}

func (s *source) Do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	switch verb {
	case control.Claim, control.Points, control.Restore, control.Export, control.Serve:
		return control.Result{}, usagef("%s is for a gateway; this is a source", verb)
	}
	if f := s.buckets.flow(r.Flow); f != nil {
		return f.do(ctx, verb, r, progress)
	}
	if verb == control.Manifest || verb == control.Objects || verb == control.Plan {
		if slices.ContainsFunc(s.Status(), func(f mover.Status) bool { return f.Flow == r.Flow }) {
			return control.Result{}, usagef("%s is for bucket flows; %s moves a volume", verb, r.Flow)
		}
		return control.Result{}, s.unknown(r.Flow)
	}
	for _, u := range s.units {
		if u.name == r.Flow {
			return u.do(ctx, verb, r, progress)
		}
	}
	for _, p := range s.slots {
		if p.f.Name != r.Flow {
			continue
		}
		switch verb {
		case control.Cutover, control.Point, control.Rollback, control.Finish:
			return control.Result{}, p.refuseMember(verb)
		case control.Thaw: // what is frozen is frozen together, and a thaw is not held up
			return p.unit.thaw()
		}
		return p.do(ctx, verb, r, progress)
	}
	return control.Result{}, s.unknown(r.Flow)
}

// unknown names the flows and groups that there are.
func (s *source) unknown(name string) error {
	text := fmt.Sprintf("there is no flow or group %q; there are", name)
	for _, p := range s.slots {
		text += " " + p.f.Name
	}
	for _, g := range s.o.Config.Source.Groups {
		text += " " + g.Name
	}
	for _, f := range s.buckets.flows {
		text += " " + f.c.Name
	}
	return &usageError{text}
}
