package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/points"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/mover"
)

func openPoints(method, target, owner, flow string) (blockdev.Points, error) {
	return points.Open(points.Options{Method: method, Target: target, Owner: owner, Flow: flow})
}

func openCopy(path string, size int64) (blockdev.Target, error) {
	t, err := disk.OpenTarget(path, disk.TargetOptions{Size: size, Create: true})
	if err != nil {
		return nil, err // no typed nil
	}
	return t, nil
}

// doPoints runs the verbs about recovery points, and finish.
func (g *gateway) doPoints(ctx context.Context, verb string, r control.Request, tell func(mover.Progress)) (result control.Result, err error) {
	switch verb {
	case control.Finish:
		result.Text, err = g.server.Finish(ctx, r.Flow)
	case control.Serve:
		result.Text, err = g.serve(ctx, r, tell)
	case control.Restore, control.Export:
		if r.Dir != "" {
			result.Text, err = g.copyMoment(ctx, verb, r, tell)
			break
		}
		if !filepath.IsAbs(r.To) {
			return result, usagef("%s: --to %q is not an absolute path", verb, r.To)
		}
		result.Text, err = g.copyPoint(ctx, verb, r, tell)
	default:
		if r.Change == "" {
			return g.listPoints(r)
		}
		result.Text, err = g.changePoint(ctx, r)
	}
	if err != nil {
		result.Text = ""
	}
	return result, err
}

func (g *gateway) listPoints(r control.Request) (result control.Result, err error) {
	if r.Moments {
		result.Moments, err = g.server.Moments(r.Flow)
		if len(result.Moments) == 0 {
			result.Text = "no moments are kept of " + cmp.Or(r.Flow, "any flow")
		}
		return result, err
	}
	if result.Flows, err = g.server.FlowPoints(r.Flow); err != nil {
		return result, err
	}
	kept := 0
	for _, f := range result.Flows {
		kept += len(f.Points)
	}
	if len(result.Flows) == 1 {
		result.Points = result.Flows[0].Points
	}
	if kept == 0 {
		result.Text = "no recovery points are kept of " + cmp.Or(r.Flow, "any flow")
	}
	return result, nil
}

// changePoint changes a flow's point, or every point of a moment.
func (g *gateway) changePoint(ctx context.Context, r control.Request) (string, error) {
	pin, remove, what := g.server.PinMoment, g.server.RemoveMoment, "moment "+r.Point+" of "+r.Flow
	if keys, err := g.server.Members(r.Flow); err == nil && len(keys) == 1 && keys[0] == r.Flow && !r.Moments {
		pin, remove, what = g.server.Pin, g.server.RemovePoint, r.Point
	}
	switch r.Change {
	case "remove":
		return what + " is removed", remove(ctx, r.Flow, r.Point)
	case "pin":
		return what + " is pinned", pin(ctx, r.Flow, r.Point, true)
	case "unpin":
		return what + " is no longer pinned", pin(ctx, r.Flow, r.Point, false)
	}
	return "", usagef("points: change %q is none of pin, unpin, remove", r.Change)
}

func (g *gateway) copyPoint(ctx context.Context, verb string, r control.Request, tell func(mover.Progress)) (string, error) {
	if verb == control.Restore {
		return g.server.Restore(ctx, r.Flow, r.Point, filepath.Clean(r.To), r.Overwrite, tell)
	}
	return g.export(ctx, r, tell)
}

// serve holds a point open for a client that offers it, until the client hangs up. The progress of step serve has the path and the size.
func (g *gateway) serve(ctx context.Context, r control.Request, tell func(mover.Progress)) (text string, err error) {
	k, size, done, err := g.server.OpenPoint(ctx, r.Flow, r.Point)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	tell(mover.Progress{Step: control.Serve, Text: k.Path(), Total: size})
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), control.ErrHangUp) {
		return "", fmt.Errorf("%s of %s is no longer served: the daemon stops", r.Point, r.Flow)
	}
	return r.Point + " of " + r.Flow + " is no longer served", nil
}
