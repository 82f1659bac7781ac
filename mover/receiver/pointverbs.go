package receiver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
)

// Points lists the recovery points of a flow, the oldest first.
func (s *Server) Points(key string) ([]mover.RecoveryPoint, error) {
	f, err := s.flow(key)
	if err != nil {
		return nil, err
	}
	return f.pointList(), nil
}

func (f *flow) errNoPoint(id string) error {
	return fmt.Errorf("flow %s has no recovery point %q; moverctl points %s lists them: %w", f.key, id, f.key, sentinel.ErrNotFound)
}

func (f *flow) hasPoint(id string) (catalog.KeptPoint, bool) {
	all := f.record().Points
	i := slices.IndexFunc(all, func(p catalog.KeptPoint) bool { return p.ID == id })
	if i < 0 {
		return catalog.KeptPoint{}, false
	}
	return all[i], true
}

// changePoint runs change while nothing else changes the flow's record.
func (s *Server) changePoint(ctx context.Context, key, id string, change func(*flow) error) error {
	f, err := s.flow(key)
	if err != nil {
		return err
	}
	if err := f.exclusiveBroken(ctx, nil); err != nil {
		return err
	}
	defer f.gate.unwhole()
	if _, ok := f.hasPoint(id); !ok {
		return f.errNoPoint(id)
	}
	return change(f)
}

// Pin keeps a point from ever being removed by age, or lets it age again.
func (s *Server) Pin(ctx context.Context, key, id string, pinned bool) error {
	return s.changePoint(ctx, key, id, func(f *flow) error {
		return f.update(func(r *catalog.Record) {
			for i := range r.Points {
				if r.Points[i].ID == id {
					r.Points[i].Pinned = pinned
				}
			}
		})
	})
}

// RemovePoint gives up a point, a pinned one too. One that is being read is refused.
func (s *Server) RemovePoint(ctx context.Context, key, id string) error {
	return s.changePoint(ctx, key, id, func(f *flow) error {
		f.log.Warn("recovery point removed by the operator", "point", id)
		return f.removePoint(ctx, id)
	})
}

// OpenPoint opens a point for reading; it stays until close is called. Size is the volume's, not the target's.
func (s *Server) OpenPoint(ctx context.Context, key, id string) (k blockdev.Kept, size int64, done func() error, err error) {
	k, kp, done, err := s.openPoint(ctx, key, id)
	return k, kp.Size, done, err
}

func (s *Server) openPoint(ctx context.Context, key, id string) (k blockdev.Kept, kp catalog.KeptPoint, done func() error, err error) {
	f, err := s.flow(key)
	if err != nil {
		return nil, kp, nil, err
	}
	f.usePoint(id, 1)
	var ok bool
	kp, ok = f.hasPoint(id)
	store, err := f.points()
	if err == nil && (!ok || store == nil) {
		err = f.errNoPoint(id)
	}
	if err == nil {
		k, err = store.Open(ctx, id)
	}
	if err == nil && k.Size() < kp.Size {
		err = errors.Join(fmt.Errorf("recovery point %s has %d bytes, its volume had %d: %w", id, k.Size(), kp.Size, sentinel.ErrCorrupt), k.Close())
	}
	if err != nil {
		f.usePoint(id, -1)
		return nil, kp, nil, err
	}
	return k, kp, func() error { defer f.usePoint(id, -1); return k.Close() }, nil
}

func (f *flow) usePoint(id string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inUse == nil {
		f.inUse = map[string]int{}
	}
	if f.inUse[id] += n; f.inUse[id] == 0 {
		delete(f.inUse, id)
	}
}

// MayWrite refuses places that a copy must never go to: targets of flows and kept points.
func (s *Server) MayWrite(path string) error {
	found, err := s.cfg.Inspect(path)
	if err != nil && !errors.Is(err, sentinel.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	exists := err == nil
	for _, key := range s.order {
		f := s.flows[key]
		rec := f.record()
		who := rec.Target.Identity
		if t, err := s.cfg.Inspect(f.cfg.Target); err == nil && who == "" {
			who = t.Identity // configured, not claimed yet
		}
		if path == f.cfg.Target || exists && who != "" && catalog.Who(who) == catalog.Who(found.Identity) {
			return fmt.Errorf("%s is the target of flow %s; a target is altered by nothing but replication: %w", path, key, sentinel.ErrRefused)
		}
		if store, err := f.points(); err == nil && store != nil && store.Holds(path) {
			return fmt.Errorf("%s lies where the recovery points of flow %s are kept; choose another place: %w", path, key, sentinel.ErrRefused)
		}
	}
	return nil
}

// Restore copies a point to a device, or to an image file that is made. What is not blank needs overwrite. The copy is read back and
// compared. The text says what was done.
func (s *Server) Restore(ctx context.Context, key, id, to string, overwrite bool, tell func(mover.Progress)) (text string, err error) {
	kept, kp, done, err := s.openPoint(ctx, key, id)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	size := kp.Size
	if err := s.MayWrite(to); err != nil {
		return "", err
	}
	// Before anything is opened for writing, and again with the exclusive hold: somebody could have come between.
	if err := s.blank(to, overwrite); err != nil {
		return "", err
	}
	t, err := s.cfg.OpenCopy(to, (size+511)/512*512)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := s.blank(to, overwrite); err != nil {
		return "", err
	}
	written, root, err := copyPoint(ctx, kept, t, size, tell)
	if err != nil {
		return "", fmt.Errorf("restore of %s to %s is not complete, do not use it: %w", id, to, err)
	}
	proven, err := claims(kp, root)
	if err != nil {
		return "", fmt.Errorf("restored to %s, do not use it: %w", to, err)
	}
	return fmt.Sprintf("%s of %s is restored to %s: %d bytes, %d of them other than zeros; read back and equal%s", id, key, to, size, written, worth(kp, proven)), nil
}

// worth is what has to be said of a point that was copied.
func worth(kp catalog.KeptPoint, proven bool) (text string) {
	if proven {
		text = ", root as recorded"
	} else {
		text = "; no root was recorded to verify the point itself by"
	}
	if kp.Consistency < mover.Crash {
		text += ". It is fuzzy: of no single moment, not to be launched"
	}
	return text
}

// CheckPoint reads a point and compares it with the root that was recorded. The text says how that stands.
func (s *Server) CheckPoint(ctx context.Context, key, id string, tell func(mover.Progress)) (text string, err error) {
	kept, kp, done, err := s.openPoint(ctx, key, id)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	if kp.Image == "" {
		return worth(kp, false), nil
	}
	tree := chunker.NewTree(kp.Size)
	err = walk(ctx, kept, kp.Size, "check", "reading the recovery point", tell, func(p []byte, _ extent.Extent) error {
		tree.Add(chunker.Digests(p, nil))
		return nil
	})
	if err != nil {
		return "", err
	}
	proven, err := claims(kp, tree.Root())
	return worth(kp, proven), err
}

func (s *Server) blank(path string, overwrite bool) error {
	found, err := s.cfg.Inspect(path)
	switch {
	case errors.Is(err, sentinel.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !found.Blank && !overwrite:
		return fmt.Errorf("%s is not blank (%v); give --overwrite if nothing on it is needed: %w", path, found.Signatures, sentinel.ErrRefused)
	}
	return nil
}
