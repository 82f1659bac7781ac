package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
)

// checkLimit bounds how long a store may take to answer a check.
const checkLimit = 30 * time.Second

// bucket looks at both ends of a bucket flow. Nothing is written, so whether the target can be is found out by the first pass.
func (c *checks) bucket(ctx context.Context, s *config.Source, f config.BucketFlow) {
	what := "bucket flow " + f.Name
	keys := newKeyring(slog.New(slog.DiscardHandler))
	defer func() { _ = keys.close() }()
	for i, e := range []config.End{f.From, f.To} {
		flow := &bucketFlow{o: Options{Log: &Log{Logger: slog.New(slog.DiscardHandler)}}, c: f, c0: s, keys: keys}
		if err := c.end(ctx, what, flow, e, i == 0); err != nil {
			c.bad(what, fmt.Errorf("%s: %w", []string{"from", "to"}[i], err))
		}
	}
}

func (c *checks) end(ctx context.Context, what string, f *bucketFlow, e config.End, source bool) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	store, regions, err := f.store(ctx, e, reach{}, true)
	if err != nil {
		return err
	}
	defer store.Close()
	p, err := c.answers(ctx, what, store, regions, "source.regions", e, source, f.c.Claim)
	if err != nil {
		return err
	}
	if !source {
		return nil
	}
	versions, err := bucket.CountVersions(ctx, store, e.Prefix(), 1)
	if err != nil {
		return err
	}
	if text := versions.String(); text != "" {
		c.note(what, "%s", text)
	}
	if len(p.Entries) == 0 {
		return nil
	}
	return readable(ctx, store, p.Entries[0].Key, f.c)
}

// answers looks at a store that is open.
func (c *checks) answers(ctx context.Context, what string, store objstore.Store, regions []string, by string, e config.End, source, claim bool) (p objstore.Page, err error) {
	if err := objstore.Located(ctx, store, regions, by); err != nil {
		return p, err
	}
	if p, err = store.List(ctx, objstore.Query{Prefix: e.Prefix(), Max: 1}); err != nil {
		return p, err
	}
	if p := e.Prefix(); p != "" && !strings.HasSuffix(p, "/") {
		c.note(what, "the prefix %q of %s does not end with a slash: it is the beginning of names, not a folder", p, describe(e))
	}
	switch some := len(p.Entries) > 0; {
	case source && !some:
		c.note(what, "%s lists nothing: if there should be something, look at the bucket's name and the prefix %q", describe(e), e.Prefix())
	case !source && some && !claim:
		c.note(what, "%s is not empty: unless this flow has filled it, it is refused without claim: true", describe(e))
	default:
		c.ok(what, "%s answers", describe(e))
	}
	return p, nil
}

// readable tries whether what is carried of an object may be read.
func readable(ctx context.Context, s objstore.Store, key string, f config.BucketFlow) error {
	if _, err := s.Head(ctx, key); err != nil && !errors.Is(err, objstore.ErrNotFound) { // it may be gone by now
		return err
	}
	if t, ok := s.(objstore.Tagger); ok && f.Tags {
		if _, err := t.Tags(ctx, key); errors.Is(err, objstore.ErrDenied) {
			return fmt.Errorf("%w; let the credentials read tags, or say tags: false", err)
		}
	}
	if g, ok := s.(objstore.Granter); ok && f.Grants {
		if _, _, err := g.Grants(ctx, key); errors.Is(err, objstore.ErrDenied) {
			return fmt.Errorf("%w; let the credentials read grants, or say grants: false", err)
		}
	}
	return nil
}

// gatewayBuckets looks at the stores of bucket flows that come by this gateway. Nothing is written.
func (c *checks) gatewayBuckets(ctx context.Context, g *config.Gateway) {
	keys := newKeyring(slog.New(slog.DiscardHandler))
	defer func() { _ = keys.close() }()
	for _, b := range g.Buckets {
		what := "bucket flow " + b.Key()
		if err := c.gatewayBucket(ctx, what, g, b, keys); err != nil {
			c.bad(what, err)
		}
	}
}

func (c *checks) gatewayBucket(ctx context.Context, what string, g *config.Gateway, b config.GatewayBucket, keys *keyring) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	store, regions, err := driver(b.Store, g.Allowed(), keys, reach{}, true)
	if err != nil {
		return err
	}
	defer store.Close()
	_, err = c.answers(ctx, what, store, regions, "gateway.regions", b.Store, false, true) // whether it may have objects is the source's business
	return err
}
