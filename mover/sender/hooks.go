package sender

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moverd/mover/mover"
)

// prepared is a freezer with hooks of applications: pre makes them ready for a freeze, post undoes that after the thaw, and also after a pre
// that failed or was cut off.
type prepared interface {
	Pre(ctx context.Context, moment string) error
	Post() error
}

// raws is a freezer that tells who may have written past the last freeze: asked after the thaw, or while frozen where none follows.
type raws interface{ Raw() []string }

// pre runs the hooks, once for all members. An error is why a moment is no better than the freeze alone makes it.
func (g *Group) pre(ctx context.Context) error {
	h, ok := g.freezer.(prepared)
	if !ok || !g.Hooks {
		return nil
	}
	g.mu.Lock()
	g.hooked = true
	g.mu.Unlock()
	err := h.Pre(ctx, g.moment.String())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ready = err == nil
	return err
}

// post undoes pre, once: after the thaw, or when it did not come to a freeze. It is never called while the writers stand still.
func (g *Group) post() {
	g.posting.Do(func() {
		defer close(g.posted)
		g.mu.Lock()
		hooked := g.hooked
		g.mu.Unlock()
		if !hooked {
			return
		}
		err := g.freezer.(prepared).Post() // it has its own limit
		g.mu.Lock()
		g.postErr = err
		g.mu.Unlock()
	})
}

// over waits until nothing of the hooks is left to be done, and tells how post went. Members call it last. A cutover that left its source frozen
// leaves the hooks to the rollback.
func (g *Group) over() string {
	g.mu.Lock()
	left := g.handed.Load() && g.thawed.IsZero()
	g.mu.Unlock()
	if left {
		return ""
	}
	g.post()
	<-g.posted
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.postErr == nil {
		return ""
	}
	return g.postErr.Error()
}

// doubt makes the moment worth less: no longer than a line for each reason.
func (g *Group) doubt(fuzzy bool, format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fuzzy = g.fuzzy || fuzzy
	if len(g.worse) < maxNamed {
		g.worse = append(g.worse, text)
	}
}

// look asks who may have written past the freeze.
func (g *Group) look() {
	if g.freezer == nil {
		g.doubt(true, "nothing stops the writers")
		return
	}
	if h, ok := g.freezer.(raws); ok {
		for _, who := range h.Raw() {
			g.doubt(true, "no freeze stops: %s", who)
		}
	}
}

// worth is what a moment is whose freeze has held until everything was read. C13.
func (g *Group) worth() (c mover.Consistency, worse []string, froze time.Time, pause time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.fuzzy:
		c = mover.Fuzzy
	case g.ready:
		c = mover.App
	default:
		c = mover.Crash
	}
	return c, append([]string(nil), g.worse...), g.froze, g.thawed.Sub(g.froze)
}
