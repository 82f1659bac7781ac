package retry

import (
	"context"
	"errors"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// Begin tries again. A lost answer leaves an upload that nobody knows.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (upload string, err error) {
	err = s.do(ctx, "begin", key, func() (err error) {
		upload, err = s.in.Begin(ctx, key, o)
		return err
	})
	return upload, err
}

// Parts tries again.
func (s *Store) Parts(ctx context.Context, key, upload string, after int) (parts []objstore.Part, more bool, err error) {
	err = s.do(ctx, "parts", key, func() (err error) {
		parts, more, err = s.in.Parts(ctx, key, upload, after)
		return err
	})
	return parts, more, err
}

// Abort tries again.
func (s *Store) Abort(ctx context.Context, key, upload string) error {
	return s.do(ctx, "abort", key, func() error { return s.in.Abort(ctx, key, upload) })
}

// Uploads tries again.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) (ups []objstore.Upload, next *objstore.UploadPlace, err error) {
	err = s.do(ctx, "uploads", "", func() (err error) {
		ups, next, err = s.in.Uploads(ctx, prefix, after)
		return err
	})
	return ups, next, err
}

var errLacks = errors.New("this store has no such thing")

func (s *Store) lacks(op, key string) error {
	return &objstore.Error{Op: op, Store: s.String(), Key: key, Kind: objstore.ErrNotSupported, Err: errLacks}
}

// Tags tries again.
func (s *Store) Tags(ctx context.Context, key string) (tags map[string]string, err error) {
	t, ok := s.in.(objstore.Tagger)
	if !ok {
		return nil, s.lacks("tags", key)
	}
	err = s.do(ctx, "tags", key, func() (err error) {
		tags, err = t.Tags(ctx, key)
		return err
	})
	return tags, err
}

// SetTags tries again.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	t, ok := s.in.(objstore.Tagger)
	if !ok {
		return s.lacks("set tags", key)
	}
	return s.do(ctx, "set tags", key, func() error { return t.SetTags(ctx, key, tags) })
}

// Grants tries again.
func (s *Store) Grants(ctx context.Context, key string) (canned string, grants []string, err error) {
	g, ok := s.in.(objstore.Granter)
	if !ok {
		return "", nil, s.lacks("grants", key)
	}
	err = s.do(ctx, "grants", key, func() (err error) {
		canned, grants, err = g.Grants(ctx, key)
		return err
	})
	return canned, grants, err
}

// SetGrants tries again.
func (s *Store) SetGrants(ctx context.Context, key, canned string) error {
	g, ok := s.in.(objstore.Granter)
	if !ok {
		return s.lacks("set grants", key)
	}
	return s.do(ctx, "set grants", key, func() error { return g.SetGrants(ctx, key, canned) })
}

// Versioned tries again.
func (s *Store) Versioned(ctx context.Context) (yes bool, err error) {
	v, ok := s.in.(objstore.Versioner)
	if !ok {
		return false, s.lacks("versioned", "")
	}
	err = s.do(ctx, "versioned", "", func() (err error) {
		yes, err = v.Versioned(ctx)
		return err
	})
	return yes, err
}

// Older tries again.
func (s *Store) Older(ctx context.Context, prefix, place string) (n objstore.Older, next string, err error) {
	v, ok := s.in.(objstore.OlderCounter)
	if !ok {
		return n, "", s.lacks("older", "")
	}
	err = s.do(ctx, "older", "", func() (err error) {
		n, next, err = v.Older(ctx, prefix, place)
		return err
	})
	return n, next, err
}

// Location tries again.
func (s *Store) Location(ctx context.Context) (where string, err error) {
	l, ok := s.in.(objstore.Locator)
	if !ok {
		return "", s.lacks("location", "")
	}
	err = s.do(ctx, "location", "", func() (err error) {
		where, err = l.Location(ctx)
		return err
	})
	return where, err
}

// Sum tries again.
func (s *Store) Sum(ctx context.Context, key string, o objstore.GetOptions) (obj objstore.Object, sums []digest.Digest, err error) {
	g, ok := s.in.(objstore.Summer)
	if !ok {
		return obj, nil, s.lacks("sum", key)
	}
	err = s.do(ctx, "sum", key, func() (err error) {
		obj, sums, err = g.Sum(ctx, key, o)
		return err
	})
	return obj, sums, err
}

var _ interface {
	objstore.Store
	objstore.Tagger
	objstore.Granter
	objstore.Versioner
	objstore.OlderCounter
	objstore.Locator
	objstore.Summer
} = (*Store)(nil)
