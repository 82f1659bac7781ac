package daemon

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/objstore/s3"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// reach is how a store is reached. The zero value leaves it to the driver.
type reach struct {
	dialer *net.Dialer
	conn   func(net.Conn) net.Conn // has each connection, and gives what is used in its place
}

// transport is s3's with what is said of it; nil: the driver's own.
func (r reach) transport(pool *x509.CertPool) http.RoundTripper {
	if pool == nil && r.dialer == nil && r.conn == nil {
		return nil
	}
	t := s3.NewTransportBy(r.dialer)
	if pool != nil {
		t.TLSClientConfig = trusting(pool)
	}
	if r.conn != nil {
		dial := t.DialContext
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return r.conn(nc), nil
		}
	}
	return t
}

// paced has the pace of a bucket flow: its own rate, and its lease of the gateway's line where its requests go over that.
type paced struct {
	own  *shape.Pacer
	past *uplink.Past // may be nil
	far  bool         // the flow goes by the gateway: what is sent waits on its connections
	rate atomic.Int64 // of the config; 0: none
}

// newPaced makes the pace of a flow; wants is asked while its run goes on.
func newPaced(c *config.Source, f config.BucketFlow, log *Log, wants func() (shape.Class, int64)) (*paced, error) {
	p := &paced{own: shape.NewPacer(rateOf(f))}
	p.rate.Store(int64(f.Limits.Rate))
	if !c.Leased(f) {
		return p, nil
	}
	tls, err := wire.ClientTLS(c.Gateway.Files(), c.Gateway.Name)
	if err != nil {
		return nil, err
	}
	paths := pathsOf(c, tls)
	if i := slices.IndexFunc(paths, func(p uplink.Path) bool { return p.Name == f.Link }); i >= 0 {
		paths = paths[i : i+1]
	}
	p.far = f.To.Gateway != nil
	p.past = uplink.NewPast(uplink.Config{Flow: f.Name, Agent: "moverd/" + version.String(), Paths: paths, Log: log.With("flow", f.Name)}, wants)
	return p, nil
}

func rateOf(f config.BucketFlow) int64 {
	if f.Limits.Rate == 0 {
		return shape.Unlimited
	}
	return int64(f.Limits.Rate)
}

// pace waits until n bytes may begin their way to the target.
func (p *paced) pace(ctx context.Context, n int) error {
	p.own.Wait(ctx.Done(), int64(n))
	if p.past == nil {
		return ctx.Err()
	}
	if p.far {
		n = 0 // what is left when it is packed waits
	}
	return p.past.Pace(ctx, n)
}

// all is how many bytes a second all workers of the flow together may send, by its own rate; 0: as many as they can. Of a line that it shares each process has its own lease.
func (p *paced) all() int64 { return p.rate.Load() }

// line is what the flow shows of its lease; nil: it has none.
func (p *paced) line() func() mover.LinkStatus {
	if p.past == nil {
		return nil
	}
	return p.past.Status
}

// reach is how the target is reached.
func (p *paced) reach(c *config.Source, f config.BucketFlow) (r reach, err error) {
	if p.past == nil || p.far {
		return r, nil
	}
	var way wire.Way // as the routes say, unless the flow names a link
	for _, l := range c.Links {
		if l.Name == f.Link {
			way = l.Way()
		}
	}
	r.dialer, err = uplink.Dialer(way)
	r.conn = p.past.Conn
	return r, err
}

// run keeps the lease until ctx ends.
func (p *paced) run(ctx context.Context) error {
	if p.past == nil {
		return nil
	}
	return p.past.Run(ctx)
}

// retry asks a gateway at once that could not be asked, or has refused.
func (p *paced) retry() {
	if p.past != nil {
		p.past.Reset()
	}
}

// reload takes over the rates of flows that are there.
func (b *buckets) reload(c *config.Source) {
	for _, n := range c.Buckets {
		if f := b.flow(n.Name); f != nil {
			f.paced.own.SetSafe(rateOf(n))
			f.paced.rate.Store(int64(n.Limits.Rate))
		}
	}
}
