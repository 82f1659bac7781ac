package mem

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/moverd/mover/objstore"
)

// Tags gives the tags of an object.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	o, err := s.object(ctx, "tags", key)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[string]string{}
	maps.Copy(out, o.tags)
	return out, nil
}

// SetTags replaces the tags of an object.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	o, err := s.object(ctx, "set tags", key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.tags = maps.Clone(tags)
	return nil
}

var canned = []string{"private", "public-read", "public-read-write"}

// Grants gives the canned name of an object.
func (s *Store) Grants(ctx context.Context, key string) (string, []string, error) {
	o, err := s.object(ctx, "grants", key)
	if err != nil {
		return "", nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return o.canned, nil, nil
}

// SetGrants sets the canned name of an object.
func (s *Store) SetGrants(ctx context.Context, key, name string) error {
	o, err := s.object(ctx, "set grants", key)
	if err != nil {
		return err
	}
	if !slices.Contains(canned, name) {
		return s.fail("set grants", key, objstore.ErrNotSupported, fmt.Errorf("%q is none of %q", name, canned))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.canned = name
	return nil
}

// Versioned: no older states are kept.
func (s *Store) Versioned(ctx context.Context) (bool, error) {
	if err := s.enter(ctx); err != nil {
		return false, s.fail("versions", "", nil, err)
	}
	return false, nil
}

// Older: there are none.
func (s *Store) Older(ctx context.Context, _, _ string) (objstore.Older, string, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Older{}, "", s.fail("older", "", nil, err)
	}
	return objstore.Older{}, "", nil
}

// Location is the region of the config.
func (s *Store) Location(ctx context.Context) (string, error) {
	if err := s.enter(ctx); err != nil {
		return "", s.fail("location", "", nil, err)
	}
	return s.c.Region, nil
}
