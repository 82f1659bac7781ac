package receiver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
)

// Finish gives up the way back of flows that were cut over: their targets are no longer theirs, and no rollback takes them back. Recovery
// points stay. key is as in Members; all of the flows are finished, or none. The text says what was done.
func (s *Server) Finish(ctx context.Context, key string) (string, error) {
	keys, err := s.Members(key)
	if err != nil {
		return "", err
	}
	var todo []*flow
	for _, k := range keys {
		f := s.flows[k]
		if err := f.exclusiveBroken(ctx, nil); err != nil { // always in the order of the keys
			unwhole(todo)
			return "", err
		}
		todo = append(todo, f)
	}
	defer unwhole(todo)
	var done []string
	for _, f := range todo {
		if r := f.record(); r.Phase != mover.Released {
			return "", fmt.Errorf("flow %s is %s, not released: it has not been cut over, or was rolled back; nothing is finished: %w", f.key, r.Phase, sentinel.ErrRefused)
		}
	}
	for _, f := range todo {
		if r := f.record(); !r.Finished.IsZero() {
			done = append(done, fmt.Sprintf("%s was finished at %s", f.key, r.Finished.Format(time.RFC3339)))
			continue
		}
		if err := f.update(func(r *catalog.Record) { r.Finished = time.Now().UTC() }); err != nil {
			return "", fmt.Errorf("finish %s (before it: %s): %w", f.key, strings.Join(done, "; "), err)
		}
		f.log.Warn("flow is finished: no rollback takes its target back", "target", f.cfg.Target)
		done = append(done, fmt.Sprintf("%s is finished: %s is yours; %d recovery points stay until they are removed", f.key, f.cfg.Target, len(f.record().Points)))
	}
	return strings.Join(done, "\n"), nil
}

func unwhole(flows []*flow) {
	for _, f := range flows {
		f.gate.unwhole()
	}
}
