package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/moverd/mover/daemon/config"
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
		if err := c.end(ctx, what, s, keys, e, i == 0, f.Claim); err != nil {
			c.bad(what, fmt.Errorf("%s: %w", []string{"from", "to"}[i], err))
		}
	}
}

func (c *checks) end(ctx context.Context, what string, s *config.Source, keys *keyring, e config.End, source, claim bool) error {
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
	switch some := len(p.Entries) > 0; {
	case source && !some:
		c.note(what, "%s lists nothing", describe(e))
	case !source && some && !claim:
		c.note(what, "%s is not empty: unless this flow has filled it, it is refused without claim: true", describe(e))
	default:
		c.ok(what, "%s answers", describe(e))
	}
	return nil
}
