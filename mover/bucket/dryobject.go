package bucket

import (
	"context"
	"errors"
	"fmt"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
)

// drying is what a page has come to.
type drying struct {
	*dry
	out mover.BucketPlan
}

// archives are the classes whose objects have to be restored before they can be read.
var archives = map[string]bool{"ARCHIVE": true, "GLACIER": true, "DEEP_ARCHIVE": true}

// take takes in what is known under one key.
func (w *drying) take(ctx context.Context, f found) error {
	key := w.cfg.Copy.FromPrefix + f.rest
	taken := w.cfg.Filter.Takes(key)
	if f.source != nil && !taken {
		w.out.LeftOut++
	}
	switch {
	case f.source != nil && taken:
		return w.there(ctx, key, f)
	case f.record != nil:
		w.gone(f, taken)
	case f.target != nil:
		return w.other(ctx, f)
	}
	return nil
}

// there is an object that the source has.
func (w *drying) there(ctx context.Context, key string, f found) error {
	e, r := *f.source, f.record
	w.out.Source.Add(e.Size)
	class := w.out.Classes[e.Class]
	class.Add(e.Size)
	w.out.Classes[e.Class] = class
	name, why := w.refuses(key, e)
	t := f.target
	if why == "" && name != w.cfg.Copy.ToPrefix+f.rest {
		obj, err := w.names.to.Head(ctx, name)
		if err == nil {
			t = &obj.Entry
		} else if !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
	}
	mine := r != nil && r.Target != ""
	if t != nil && mine {
		w.out.Ours.Add(t.Size)
	}
	same := r != nil && r.is(e)
	if same && r.Outcome == Refused && why == "" {
		why = r.Why
	}
	switch {
	case why != "":
		w.out.Refused.Add(e.Size)
		if len(w.out.RefusedKeys) < dryNames {
			w.out.RefusedKeys = append(w.out.RefusedKeys, named(key, e.Size, "refused", why))
		}
		if t != nil && !mine {
			w.out.Others.Add(t.Size)
		}
		return nil
	case same:
		w.out.Same.Add(e.Size)
		w.compare(key, *r, t)
		return nil
	}
	w.out.Copy.Add(e.Size)
	switch {
	case r == nil || r.Outcome == Gone:
		w.out.New++
	case r.Outcome == Failed:
		w.out.Again++
	case !r.Sure && r.Size == e.Size && r.ETag == e.ETag:
		w.out.Unsure++
	default:
		w.out.Changed++
	}
	if t != nil && !mine {
		w.out.Overwrite.Add(t.Size)
		if t.Size == e.Size && t.ETag == e.ETag {
			w.out.Alike++
		}
		w.example(named(key, e.Size, "overwrites", fmt.Sprintf("the target has an object of this name that is not of this flow, of %d bytes", t.Size)))
	}
	w.requests(e.Size)
	return nil
}

// refuses tells the name of an object at the target, and why it cannot be there.
func (w *drying) refuses(key string, e objstore.Entry) (name, why string) {
	name, err := w.names.target(key)
	lim := w.names.to.Limits()
	switch {
	case err != nil:
		return name, err.Error()
	case lim.Object > 0 && e.Size > lim.Object:
		return name, fmt.Sprintf("%d bytes are more than the %d that the target takes", e.Size, lim.Object)
	case archives[e.Class]:
		return name, fmt.Sprintf("it is of class %s, and has to be restored before it can be read, unless it has been", e.Class)
	}
	return name, ""
}

// requests reckons what the copy of an object asks of both ends.
func (w *drying) requests(size int64) {
	q, lim := &w.out.Requests, w.names.to.Limits()
	if size <= w.names.cfg.Part && (lim.Put == 0 || size <= lim.Put) {
		q.Get, q.Put = q.Get+1, q.Put+1
		return
	}
	part := w.names.partSize(size)
	n := (size + part - 1) / part
	w.out.Large.Add(size)
	q.Head, q.Get, q.Part, q.Upload = q.Head+1, q.Get+n, q.Part+n, q.Upload+2
}

// compare holds what the target has against what was written there.
func (w *drying) compare(key string, r Record, t *objstore.Entry) {
	how := "it is missing"
	if t != nil {
		how = differs(r, *t)
	}
	switch {
	case how == "":
		return
	case t == nil:
		w.out.Missing++
	default:
		w.out.Differ++
	}
	w.example(named(key, r.Size, "differs", "at the target "+how))
}

// gone is an object that the ledger knows and the source has no longer, or that the filters leave out now.
func (w *drying) gone(f found, taken bool) {
	if f.target != nil {
		w.out.Ours.Add(f.target.Size)
	}
	switch {
	case !taken:
	case w.cfg.Deletes:
		w.out.Delete.Add(f.record.Size)
		w.out.Requests.Delete++
	case f.record.Target != "":
		w.out.Stay.Add(f.record.Size)
	}
}

// other is an object of the target whose name no object of the flow has, unless that is spelled otherwise.
func (w *drying) other(ctx context.Context, f found) error {
	if w.cfg.Copy.Escape {
		if plain := unescape(f.rest); plain != f.rest && escape(w.cfg.Copy.ToPrefix+plain) == w.cfg.Copy.ToPrefix+f.rest {
			ours, err := w.spelt(ctx, w.cfg.Copy.FromPrefix+plain)
			if ours || err != nil {
				return err
			}
		}
	}
	w.out.Others.Add(f.target.Size)
	return nil
}

// spelt tells whether the flow has a key, which counts where that lies.
func (w *drying) spelt(ctx context.Context, key string) (bool, error) {
	if w.ledger != nil {
		if _, found, err := w.ledger.record(key); found || err != nil {
			return found, err
		}
	}
	_, err := w.from.Head(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// example names an object, of the first ones.
func (w *drying) example(o mover.BucketObject) {
	if len(w.out.Examples) < dryNames {
		w.out.Examples = append(w.out.Examples, o)
	}
}
