package bucket

import (
	"context"
	"errors"
	"fmt"

	"github.com/moverd/mover/internal/units"
	"github.com/moverd/mover/objstore"
)

// Versions is what the source keeps beside the newest states of its objects, and what is therefore not carried.
type Versions struct {
	Kept    bool // the bucket keeps older states
	Counted bool // of what follows; else the store cannot list them
	More    bool // there are more than were counted
	objstore.Older
}

// Pages of older states that are counted.
const (
	versionsSoon = 5   // when a session begins
	versionsMost = 100 // before the writers of a cutover stop
)

// CountVersions asks a store what it keeps beside what its listing shows, at most so many pages of it. Nothing is known of a store that cannot tell, or does not allow to ask.
func CountVersions(ctx context.Context, s objstore.Store, prefix string, pages int) (v Versions, err error) {
	w, ok := s.(objstore.Versioner)
	if !ok {
		return v, nil
	}
	if v.Kept, err = w.Versioned(ctx); err != nil || !v.Kept {
		return v, unlessDenied(err)
	}
	o, ok := s.(objstore.OlderCounter)
	if !ok {
		return v, nil
	}
	v.Counted = true
	for place, n := "", 0; ; n++ {
		if n == pages {
			v.More = true
			return v, nil
		}
		page, next, err := o.Older(ctx, prefix, place)
		if err != nil {
			return Versions{Kept: true}, unlessDenied(err)
		}
		v.Versions, v.Bytes, v.Markers = v.Versions+page.Versions, v.Bytes+page.Bytes, v.Markers+page.Markers
		if place = next; place == "" {
			return v, nil
		}
	}
}

// unlessDenied is err, but where a store cannot, or the credentials may not.
func unlessDenied(err error) error {
	if errors.Is(err, objstore.ErrDenied) {
		return nil
	}
	return unlessLacking(err)
}

// String is for people; "": there is nothing to say.
func (v Versions) String() string {
	switch {
	case !v.Kept:
		return ""
	case !v.Counted:
		return "the source keeps older versions of objects, which are not carried; it cannot be asked how many"
	}
	least := ""
	if v.More {
		least = "at least "
	}
	return fmt.Sprintf("the source keeps %s%d older versions (%s) and %d delete markers, which are not carried", least, v.Versions, units.Size(v.Bytes), v.Markers)
}

// count counts what the source keeps, and remembers it. busy is held, and the session is open.
func (f *Flow) countVersions(ctx context.Context, s *session, l *Ledger, pages int) error {
	v, err := CountVersions(ctx, s.from, f.cfg.Copy.FromPrefix, pages)
	if err != nil {
		return fmt.Errorf("ask for older versions: %w", err)
	}
	if v == l.State().Versions {
		return nil
	}
	return l.update(func(c change) error { c.Versions = v; return nil })
}
