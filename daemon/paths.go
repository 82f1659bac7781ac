package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

// pathsOf are the links of the config, or what the routes say.
func pathsOf(c *config.Source, tls *tls.Config) (all []uplink.Path) {
	path := func(l config.Link) uplink.Path {
		address, way := cmp.Or(l.Address, c.Gateway.Address), l.Way()
		return uplink.Path{Name: l.Name, Price: l.Price, Weight: int64(l.Rate), Safe: int64(l.SafeRate) / int64(max(1, c.Sharing())),
			Dial: func(ctx context.Context) (net.Conn, error) { return wire.DialBy(ctx, address, way, tls) }}
	}
	for _, l := range c.Links {
		all = append(all, path(l))
	}
	if len(all) == 0 {
		all = append(all, path(config.Link{Name: "gateway"}))
	}
	return all
}
