package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/meter"
	"github.com/moverd/mover/objstore/s3"
	"github.com/moverd/mover/shape"
)

// keyRules are what objstore.Limits.Rule names.
var keyRules = map[string]objstore.Rule{"bos": bos.Rule(), "dir": dir.Rule(), "s3": s3.Rule(), "s3 of AWS": s3.AmazonRule()}

// relayMemory is what chunks on their way take beside limits.memory of a flow, batches included.
const relayMemory = 48 << 20

// byGateway opens the target of a flow that goes by the gateway.
func (f *bucketFlow) byGateway(ctx context.Context) (objstore.Store, error) {
	p := f.paced
	if p == nil { // a look
		var err error
		if p, err = newPaced(f.c0, f.c, f.o.Log, func() (shape.Class, int64) { return 0, 0 }); err != nil {
			return nil, err
		}
	}
	cfg := relay.Config{Flow: f.c.Name, Agent: "moverd/" + version.String(), Dial: p.past.Dial, Conns: f.c0.Gateway.Connections, Memory: relayMemory, Rules: keyRules,
		Plain: f.c0.Compression == "off", Log: f.o.Log.With("flow", f.c.Name)}
	if f.paced != nil {
		cfg.Pace = p.past.Pacer
	}
	if c := f.c0.Compression; c != "auto" && c != "off" {
		var err error
		if cfg.Level, err = chunker.ParseLevel(c); err != nil {
			return nil, err
		}
	}
	s, err := relay.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := f.sameTarget(s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.way != nil {
		f.gone = f.gone.Plus(f.way.Counts())
	}
	f.way = s
	return s, nil
}

// sameTarget refuses another bucket behind the gateway than the one that the ledger is about.
func (f *bucketFlow) sameTarget(s *relay.Store) error {
	if f.Flow == nil { // a look, which changes nothing
		return nil
	}
	name := filepath.Join(string(f.c0.State), "buckets", f.c.Name, "target")
	was, err := os.ReadFile(name)
	switch {
	case err == nil && string(was) == s.String():
		return nil
	case err == nil:
		return fmt.Errorf("flow %s: its ledger is about %s, and the gateway has %s now; give the flow another name, or let the gateway have what it had: %w",
			f.c.Name, was, s, objstore.ErrRefused)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read what the flow's target was: %w", err)
	}
	if err := os.WriteFile(name+".new", []byte(s.String()), 0o600); err != nil {
		return fmt.Errorf("note the flow's target: %w", err)
	}
	return os.Rename(name+".new", name)
}

// relayed tells what went by the gateway.
func (f *bucketFlow) relayed(s *mover.Status) {
	f.mu.Lock()
	way, k := f.way, f.gone
	f.mu.Unlock()
	if way == nil {
		return
	}
	k = k.Plus(way.Counts())
	s.WireOut, s.WireIn, s.Conns = k.WireOut, k.WireIn, k.Conns
	s.Relay = &mover.Relay{Bodies: k.Bodies, Offered: k.Offered, Needed: k.Needed, Packed: k.Packed, Resent: k.Resent, Calls: k.Calls}
}

// relayServer serves the bucket flows of a gateway; nil: it has none.
func relayServer(o Options, c *config.Gateway, keys *keyring, memory int64) (*relay.Server, error) {
	if len(c.Buckets) == 0 {
		return nil, nil
	}
	rc := relay.ServerConfig{Dir: filepath.Join(string(c.State), "chunks"), CacheSize: int64(c.Dedup.Cache), Memory: memory, NoDedup: c.Dedup.Off, Log: o.Log.Logger}
	for _, b := range c.Buckets {
		f := relay.FlowConfig{Tenant: b.Tenant, Host: b.Host, Name: b.Name, Scope: b.Tenant + "/" + b.Host, Store: describe(b.Store), Target: b.Store.Target(), Root: b.Store.Prefix()}
		if c.Dedup.Scope == "tenant" {
			f.Scope = b.Tenant
		}
		f.Open = func(context.Context) (objstore.Store, []string, error) {
			s, regions, err := driver(b.Store, c.Allowed(), keys, reach{}, false)
			if err != nil {
				return nil, nil, err
			}
			return meter.New(s), regions, nil
		}
		rc.Flows = append(rc.Flows, f)
	}
	return relay.NewServer(rc)
}
