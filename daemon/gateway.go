package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/wire"
)

// gateway is the role that writes targets.
type gateway struct {
	o      Options
	ln     net.Listener
	server *receiver.Server
	judge  func(*x509.Certificate) error // of a source's certificate, as the revocations are now
	policy atomic.Pointer[config.Policy] // nil: none
	relay  *relay.Server                 // of bucket flows; nil: there are none
	keys   *keyring                      // of their stores
}

// gatewayBuffers is what lies outside of Go's heap, where the dedup index lives.
func gatewayBuffers(g *config.Gateway) int64 { return (int64(g.Memory) - int64(g.Dedup.Memory)) / 2 }

// bucketShare is what bucket flows have of them.
func bucketShare(g *config.Gateway) int64 {
	if len(g.Buckets) == 0 {
		return 0
	}
	return max(gatewayBuffers(g)/3, 64<<20)
}

// openGateway listens before it opens targets: an address that is taken is told before anything is held.
func openGateway(ctx context.Context, o Options) (role, error) {
	c := o.Config.Gateway
	setLevel(o, c.LogLevel)
	tls, judge, err := wire.ServerJudge(c.TLS.Files())
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("gateway.listen: %w", err)
	}
	rc := receiver.Config{
		StateDir: string(c.State), TLS: tls, OpenPoints: openPoints, OpenCopy: openCopy, Memory: gatewayBuffers(c) - bucketShare(c), LogLimit: int64(c.LogLimit), IndexMemory: int64(c.Dedup.Memory), NoDedup: c.Dedup.Off, TenantDedup: c.Dedup.Scope == "tenant",
		Agent: "moverd/" + version.String(), OpenTarget: openTarget(c.Flows), Inspect: inspect, Log: o.Log.Logger, Note: o.Log.note,
	}
	g := &gateway{o: o, judge: judge, keys: newKeyring(o.Log.Logger)}
	if err := g.takePolicy(c); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	rc.Policy = g.may
	if o.door != nil {
		rc.Audit = o.door.seen
	}
	for _, f := range c.Flows {
		rc.Flows = append(rc.Flows, receiver.FlowConfig{Tenant: f.Tenant, Host: f.Host, Name: f.Name, Target: string(f.Target),
			Points: receiver.PointsConfig{Method: f.Points.Method, Fuzzy: f.Points.Fuzzy, Keep: mover.Keep(f.Points.Keep)}})
	}
	for _, f := range c.Straight {
		rc.Straight = append(rc.Straight, receiver.StraightConfig(f))
	}
	rc.Lines = linesOf(c)
	if g.relay, err = relayServer(o, c, g.keys, bucketShare(c)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	if g.relay != nil {
		rc.Objects = g.relay
	}
	s, err := receiver.New(rc)
	if err != nil {
		return nil, errors.Join(err, ln.Close(), g.closeRelay())
	}
	g.ln, g.server = ln, s
	return g, nil
}

// openTarget makes image files only where the config says so, of the size that it says.
func openTarget(flows []config.GatewayFlow) func(string, int64, bool) (blockdev.Target, error) {
	byPath := map[string]config.GatewayFlow{}
	for _, f := range flows {
		byPath[string(f.Target)] = f
	}
	return func(path string, size int64, create bool) (blockdev.Target, error) {
		f := byPath[path]
		o := disk.TargetOptions{Size: size, Create: create && f.Create}
		if o.Create && f.Size > 0 {
			if int64(f.Size) < size {
				return nil, fmt.Errorf("target %s is to be made with %v, the volume has %d bytes; give a larger size: %w", path, f.Size, size, sentinel.ErrRefused)
			}
			o.Size = int64(f.Size)
		}
		t, err := disk.OpenTarget(path, o)
		if err != nil {
			return nil, err // no typed nil
		}
		return t, nil
	}
}

func inspect(path string) (receiver.Found, error) {
	d, err := disk.Inspect(path)
	if err != nil {
		return receiver.Found{}, err
	}
	f := receiver.Found{Size: d.Size, Identity: d.Identity, Blank: d.Blank}
	for _, s := range d.Signatures {
		f.Signatures = append(f.Signatures, s.String())
	}
	return f, nil
}

func (g *gateway) run(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return g.server.Serve(ctx, g.ln) })
	eg.Go(func() error {
		tick := time.NewTicker(judgeEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				g.server.Judge(g.judge)
			}
		}
	})
	return eg.Wait()
}

// judgeEvery bounds how long a connection outlives the revocation of its certificate.
const judgeEvery = 2 * time.Second

func (g *gateway) beat() []mover.Pulse { return g.server.Pulses() }

func (g *gateway) totals() []metrics.Total {
	var names []string
	for _, l := range g.server.Lines() {
		names = append(names, l.Name)
	}
	all := append(Totals(g.server.Metrics), LineTotals(names, g.server.Lines)...)
	if g.relay != nil {
		all = append(all, RelayTotals(g.relay.Metrics)...)
	}
	return all
}

// close waits for writes that are under way; what is not applied then is replayed at the next start.
func (g *gateway) close() error { return errors.Join(g.server.Close(), g.closeRelay()) }

// closeRelay closes the stores of bucket flows, when no connection is served any more.
func (g *gateway) closeRelay() error {
	if g.relay == nil {
		return g.keys.close()
	}
	return errors.Join(g.relay.Close(), g.keys.close())
}

// reload takes over the log level, the policy, and what is said of the lines. Certificates are read again by themselves; targets and memory need a restart, which
// loses nothing.
func (g *gateway) reload(c *config.Config) error {
	if err := g.takePolicy(c.Gateway); err != nil {
		return err
	}
	setLevel(g.o, c.Gateway.LogLevel)
	if err := g.server.Relines(linesOf(c.Gateway)); err != nil {
		return err
	}
	if n := g.server.Enforce(); n > 0 {
		g.o.Log.Warn("the policy ended links", "links", n)
	}
	return nil
}

func linesOf(c *config.Gateway) (all []receiver.LineConfig) {
	for _, l := range c.Lines {
		r := receiver.LineConfig{Name: l.Name, Shape: l.Shape()}
		for _, p := range l.From {
			r.From = append(r.From, netip.Prefix(p))
		}
		all = append(all, r)
	}
	return all
}

// takePolicy reads the policy that c names; an error leaves the one in use.
func (g *gateway) takePolicy(c *config.Gateway) error {
	if c.Policy == "" {
		g.policy.Store(nil)
		return nil
	}
	p, err := config.LoadPolicy(string(c.Policy))
	if err != nil {
		return fmt.Errorf("gateway.policy: %w", err)
	}
	g.policy.Store(p)
	return nil
}

// may answers the receiver. What the peer hears names no target and no other flow.
func (g *gateway) may(a receiver.Ask) error {
	p := g.policy.Load()
	if p == nil {
		return nil
	}
	return permit(p, a)
}

func permit(p *config.Policy, a receiver.Ask) error {
	who := a.Tenant + "/" + a.Host
	r := p.Rule(a.Tenant, a.Host)
	switch {
	case r == nil:
		return fmt.Errorf("the gateway's policy has no rule for %s: %w", who, sentinel.ErrDenied)
	case !a.Lease && !r.Allows(a.Target):
		return fmt.Errorf("the gateway's policy does not let %s write the target of flow %s: %w", who, a.Flow, sentinel.ErrDenied)
	case r.Volume > 0 && a.Volume > int64(r.Volume):
		return fmt.Errorf("the gateway's policy allows %s volumes of %v, flow %s has %v: %w", who, r.Volume, a.Flow, config.Size(a.Volume), sentinel.ErrDenied)
	case r.Total > 0 && a.Total > int64(r.Total):
		return fmt.Errorf("the gateway's policy allows %s %v in all, with flow %s it has %v: %w", who, r.Total, a.Flow, config.Size(a.Total), sentinel.ErrDenied)
	case r.Flows > 0 && a.Flows > r.Flows:
		return fmt.Errorf("the gateway's policy allows %s %d flows, %s is one more: %w", who, r.Flows, a.Flow, sentinel.ErrDenied)
	case r.Connections > 0 && a.Conns > r.Connections:
		return &wire.Error{Code: wire.CodeBusy, RetryMS: 10_000, Text: fmt.Sprintf("the gateway's policy allows %s %d connections at once", who, r.Connections)}
	}
	return nil
}

func (g *gateway) Daemon() control.Daemon { return daemonOf(g.o) }

func (g *gateway) Status() []mover.Status {
	all := g.server.Status()
	if g.relay != nil {
		all = append(all, g.relay.Status()...)
	}
	return all
}

func (g *gateway) Do(ctx context.Context, verb string, r control.Request, tell func(mover.Progress)) (control.Result, error) {
	if verb == control.Lines {
		return g.line(r)
	}
	switch verb {
	case control.Claim, control.Points, control.Restore, control.Export, control.Serve, control.Finish:
	default:
		return control.Result{}, usagef("%s is for a source; this is a gateway", verb)
	}
	known := false
	for _, f := range g.o.Config.Gateway.Flows {
		known = known || r.Flow == f.Tenant+"/"+f.Host+"/"+f.Name
	}
	if verb != control.Claim {
		if _, err := g.server.Members(r.Flow); err != nil {
			return control.Result{}, usagef("%v", err)
		}
		return g.doPoints(ctx, verb, r, tell)
	}
	if !known {
		return control.Result{}, unknownFlow(r.Flow, g.Status())
	}
	if r.Drop {
		if err := g.server.Drop(ctx, r.Flow); err != nil {
			return control.Result{}, err
		}
		return control.Result{Text: "the claim of " + r.Flow + " is dropped; the target keeps its bytes"}, nil
	}
	text, err := g.server.Claim(ctx, r.Flow, r.Overwrite)
	return control.Result{Text: text}, err
}
