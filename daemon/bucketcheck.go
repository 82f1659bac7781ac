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
		if err := c.end(ctx, what, s, keys, f, e, i == 0); err != nil {
			c.bad(what, fmt.Errorf("%s: %w", []string{"from", "to"}[i], err))
		}
	}
}

func (c *checks) end(ctx context.Context, what string, s *config.Source, keys *keyring, f config.BucketFlow, e config.End, source bool) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	store, regions, err := driver(e, s, keys, reach{}, true)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := objstore.Located(ctx, store, regions, "source.regions"); err != nil {
		return err
	}
	p, err := store.List(ctx, objstore.Query{Prefix: e.Prefix(), Max: 1})
	if err != nil {
		return err
	}
	if p := e.Prefix(); p != "" && !strings.HasSuffix(p, "/") {
		c.note(what, "the prefix %q of %s does not end with a slash: it is the beginning of names, not a folder", p, describe(e))
	}
	switch some := len(p.Entries) > 0; {
	case source && !some:
		c.note(what, "%s lists nothing: if there should be something, look at the bucket's name and the prefix %q", describe(e), e.Prefix())
	case !source && some && !f.Claim:
		c.note(what, "%s is not empty: unless this flow has filled it, it is refused without claim: true", describe(e))
	default:
		c.ok(what, "%s answers", describe(e))
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
	return readable(ctx, store, p.Entries[0].Key, f)
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
