package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/lvmsnap"
	"github.com/moverd/mover/blockdev/points"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/wire"
)

// checks prints one line for each thing looked at and remembers what is wrong.
type checks struct {
	w    io.Writer
	errs []error
}

func (c *checks) ok(what, format string, a ...any) {
	fmt.Fprintf(c.w, "ok    %-24s %s\n", what, fmt.Sprintf(format, a...))
}

func (c *checks) note(what, format string, a ...any) {
	fmt.Fprintf(c.w, "note  %-24s %s\n", what, fmt.Sprintf(format, a...))
}

func (c *checks) bad(what string, err error) {
	fmt.Fprintf(c.w, "BAD   %-24s %v\n", what, err)
	c.errs = append(c.errs, err)
}

// Check looks at everything that a config names, without changing, claiming or freezing anything, and prints the config in effect.
func Check(ctx context.Context, conf *config.Config, w io.Writer) error {
	text, err := conf.YAML()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "# in effect\n%s\n", text)
	c := &checks{w: w}
	if os.Geteuid() != 0 && !bucketsOnly(conf.Source) {
		c.note("user", "not root: devices, mounts and eBPF cannot be looked at fully")
	}
	if s := conf.Source; s != nil {
		c.source(ctx, s)
	}
	if g := conf.Gateway; g != nil {
		c.gateway(ctx, g)
	}
	if w := conf.Worker; w != nil {
		for _, f := range w.Source().Buckets {
			c.bucket(ctx, w.Source(), f)
		}
	}
	if len(c.errs) > 0 {
		return fmt.Errorf("%d of what was looked at is not fit for use, see above", len(c.errs))
	}
	return nil
}

func (c *checks) source(ctx context.Context, s *config.Source) {
	for _, f := range s.Buckets {
		c.bucket(ctx, s, f)
	}
	files := s.Gateway.Files()
	if len(s.Flows) == 0 {
		if s.Sharing() > 0 {
			c.certificate("source certificate", files)
		}
		c.prices(s.Prices)
		return
	}
	c.certificate("source certificate", files)
	support := cbt.Probe()
	switch {
	case s.Tracking.Method == "scan":
		c.note("tracking", "scan, as configured: every pass reads the whole volume")
	case support.Method == cbt.MethodEBPF:
		c.ok("tracking", "ebpf, %s", support.Variant)
	case s.Tracking.Method == "ebpf":
		c.bad("tracking", fmt.Errorf("ebpf is configured and does not run here: %s", support.Reason))
	default:
		c.note("tracking", "scan, every pass reads the whole volume: %s", support.Reason)
	}
	c.reach(ctx, s, files)
	for _, f := range s.Flows {
		if g := s.GroupOf(f.Name); g != nil {
			f.Cutover = g.Cutover
		}
		c.volume("flow "+f.Name, f)
	}
	c.groups(s)
	c.prices(s.Prices)
}

// prices tells what is wrong with a price file.
func (c *checks) prices(file config.File) {
	if file == "" {
		return
	}
	p, err := config.LoadPrices(file)
	if err != nil {
		c.bad("prices", err)
		return
	}
	c.ok("prices", "%s, %d prices", file, len(p.Prices))
}

// groups tells what stands still together, and what should and does not.
func (c *checks) groups(s *config.Source) {
	var parts []part
	for _, f := range s.Flows {
		v, err := disk.OpenVolume(string(f.Volume))
		if err != nil {
			continue // told above
		}
		unit := "flow " + f.Name
		if g := s.GroupOf(f.Name); g != nil {
			unit = "group " + g.Name
		}
		parts = append(parts, part{f.Name, unit, extents(v)})
		v.Close()
	}
	for _, g := range s.Groups {
		every := "points when asked"
		if g.Points.Every > 0 {
			every = fmt.Sprintf("a point every %v", time.Duration(g.Points.Every))
		}
		c.ok("group "+g.Name, "%s stand still at one moment, %s", strings.Join(g.Flows, ", "), every)
	}
	shared, err := sharing(parts)
	if err != nil {
		c.bad("groups", err)
	}
	for _, sh := range shared {
		c.bad("groups", fmt.Errorf("%s: %w", sh.text, sentinel.ErrRefused))
	}
}

func (c *checks) certificate(what string, f wire.Files) {
	until, err := f.NotAfter()
	if err != nil {
		c.bad(what, err)
		return
	}
	if left := time.Until(until); left < 14*24*time.Hour {
		c.note(what, "ends in %s; moverctl pki makes another, which is taken over without a restart", units.Duration(left))
		return
	}
	c.ok(what, "good until %s", until.Format(time.DateOnly))
}

// reach dials the gateway. That it does not answer now is no fault of the config.
func (c *checks) reach(ctx context.Context, s *config.Source, files wire.Files) {
	conf, err := wire.ClientTLS(files, s.Gateway.Name)
	if err != nil {
		c.bad("gateway "+s.Gateway.Address, err)
		return
	}
	links := s.Links
	if len(links) == 0 {
		links = []config.Link{{}}
	}
	for _, l := range links {
		address := cmp.Or(l.Address, s.Gateway.Address)
		what := "gateway " + address
		if l.Name != "" {
			what = "link " + l.Name
		}
		nc, err := wire.DialBy(ctx, address, l.Way(), conf)
		if err != nil {
			c.note(what, "%v", err)
			continue
		}
		c.ok(what, "%s answers with a certificate of the CA", address)
		nc.Close()
	}
}

func (c *checks) volume(what string, f config.SourceFlow) {
	v, err := disk.OpenVolume(string(f.Volume))
	if err != nil {
		c.bad(what, err)
		return
	}
	defer v.Close()
	c.ok(what, "%s, %s of %s, %s", f.Volume, v.Kind(), units.Size(v.Size()), v.Identity())
	if v.Device() == 0 {
		if found, err := disk.Inspect(v.Path()); err == nil && len(found.Users) > 0 {
			c.bad(what, fmt.Errorf("%s: %s: name that device as the volume, or nothing stops its writers", v.Path(), strings.Join(found.Users, "; ")))
		}
	}
	if err := v.Unmapped(); err != nil {
		c.note(what, "is moved in scan mode: %v", err)
	}
	stack, err := disk.StackOn(extents(v))
	if err != nil {
		c.bad(what, err)
		return
	}
	for _, m := range stack.Mounts {
		switch {
		case m.Stopped():
		case m.Dir == "":
			c.bad(what, fmt.Errorf("%s (%s) is mounted on it where nobody can reach it; it could not be frozen: %w", m.Source, m.Type, sentinel.ErrRefused))
		default:
			c.ok(what, "a cutover freezes %s (%s)", m.Dir, m.Type)
		}
	}
	if v.Kind() == disk.LVM {
		o := lvmsnap.Options{Flow: f.Name, Path: v.Path(), Dev: v.Device(), Size: v.Size()}
		if _, err := lvmsnap.New(o); err != nil {
			c.note(what, "points of a group are read within the freeze: %v", err)
		} else {
			c.ok(what, "points of a group can be read from a snapshot after the thaw")
		}
	}
	c.beside(what, stack)
	if len(stack.Mounts) == 0 && len(f.Cutover.StopHook) == 0 {
		c.note(what, "nothing is mounted on it and there is no stop-hook: at a cutover nobody else may write to it")
	}
}

// beside notes who writes past what a freeze stops.
func (c *checks) beside(what string, stack disk.Stack) {
	users, err := stack.RawUsers()
	if err != nil {
		c.bad(what, err)
	}
	for _, u := range users {
		c.note(what, "%s, which no freeze stops: a point is fuzzy and a cutover fails unless a hook ends that", u)
	}
	swaps, err := disk.Swaps(stack.On)
	if err != nil {
		c.bad(what, err)
	}
	for _, a := range swaps {
		c.note(what, "%s is active swap on it, which no freeze stops: swapoff it before a cutover, or what is swapped meanwhile makes it fail", a.Path)
	}
}

func (c *checks) gateway(ctx context.Context, g *config.Gateway) {
	c.certificate("gateway certificate", g.TLS.Files())
	c.policy(g)
	for _, f := range g.Flows {
		what := "flow " + f.Tenant + "/" + f.Host + "/" + f.Name
		found, err := disk.Inspect(string(f.Target))
		switch {
		case errors.Is(err, sentinel.ErrNotFound) || errors.Is(err, os.ErrNotExist):
			if f.Create {
				c.ok(what, "%s will be made when the source connects", f.Target)
			} else {
				c.bad(what, fmt.Errorf("%s does not exist; attach the device, or say create: true for an image file", f.Target))
			}
		case err != nil:
			c.bad(what, err)
		case len(found.Users) > 0:
			c.note(what, "%s is in use by %s; that must be the running gateway", f.Target, strings.Join(found.Users, "; "))
		default:
			c.ok(what, "%s", found)
		}
		c.points(what, f)
	}
	c.gatewayBuckets(ctx, g)
	c.prices(g.Prices)
}

// policy tells which of the configured flows the policy refuses.
func (c *checks) policy(g *config.Gateway) {
	if g.Policy == "" {
		return
	}
	p, err := config.LoadPolicy(string(g.Policy))
	if err != nil {
		c.bad("policy", err)
		return
	}
	c.ok("policy", "%s, %d rules", g.Policy, len(p.Rules))
	for _, f := range g.Flows {
		if err := permit(p, receiver.Ask{Tenant: f.Tenant, Host: f.Host, Flow: f.Name, Target: string(f.Target)}); err != nil {
			c.note("flow "+f.Tenant+"/"+f.Host+"/"+f.Name, "%s is refused: %v", f.Target, err)
		}
	}
	for _, b := range g.Buckets {
		if err := permit(p, receiver.Ask{Tenant: b.Tenant, Host: b.Host, Flow: b.Name, Target: b.Store.Target()}); err != nil {
			c.note("bucket flow "+b.Key(), "%s is refused: %v", b.Store.Target(), err)
		}
	}
}

// points tells how recovery points of a target are kept, or why there are none. Next to an image a reflink copy of a block is tried.
func (c *checks) points(what string, f config.GatewayFlow) {
	method := f.Points.Method
	p, err := openPoints(method, string(f.Target), "", f.Name)
	switch {
	case errors.Is(err, sentinel.ErrNotFound) || errors.Is(err, os.ErrNotExist):
	case err != nil:
		c.bad(what, err)
	case p != nil:
		c.ok(what, "keeps recovery points by %s", p.Method())
	case method == points.Auto:
		c.note(what, "keeps no recovery points: %v", points.Why(string(f.Target)))
	}
}
