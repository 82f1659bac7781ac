package sender

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// keepLimit bounds the wait for KEPT: the gateway applies what was committed and takes a copy.
const keepLimit = 2 * time.Minute

// keep confirms what the point that was just committed is worth, and notes in r what became of it (C13). Nothing else may have been committed
// since. A refusal stands in r; the error is that nobody answered.
func (f *Flow) keep(ctx context.Context, g *Group, m wire.Keep, r *mover.Report) error {
	worth, worse, froze, _ := g.worth()
	r.Moment, r.MomentTime, r.Consistency, r.Worse, r.Group = g.moment.String(), froze, worth.String(), worse, g.name
	if !f.link.view().keeps {
		r.PointError = "the gateway is older than this program and keeps points of its own accord"
		return nil
	}
	m.Moment, m.Members, m.Group = g.moment, uint16(g.members), g.name
	m.Consistency, m.UnixNano = uint8(worth), froze.UnixNano()
	ctx, stop := context.WithTimeoutCause(ctx, keepLimit, fmt.Errorf("the gateway did not say within %v whether it keeps the recovery point", keepLimit))
	defer stop()
	for {
		a, err := f.link.ask(ctx, &m)
		if errors.Is(err, errDown) && ctx.Err() == nil { // asked again, with the same moment
			if err = f.linkUp(ctx); err == nil {
				continue
			}
		}
		if err != nil {
			r.PointError = err.Error()
			return err
		}
		k, ok := a.(*wire.Kept)
		if !ok {
			return fmt.Errorf("%w: %T in answer to KEEP", sentinel.ErrProtocol, a)
		}
		r.Point, r.PointError = k.Point, k.Text
		switch {
		case k.Point != "":
		case k.Consistency == 0 && k.Text == "":
			r.PointError = "the gateway refuses it"
		case k.Text == "":
			r.PointError = "the gateway is configured to keep no copy of it"
		}
		if k.Consistency != 0 {
			f.mu.Lock()
			f.view.pointWorth = mover.Consistency(k.Consistency)
			f.mu.Unlock()
		}
		return nil
	}
}
