package meter

import (
	"context"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// Begin is counted.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	began := time.Now()
	id, err := s.in.Begin(ctx, key, o)
	s.done("begin", began, err)
	return id, err
}

// PutPart is counted.
func (s *Store) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	began := time.Now()
	w, err := s.in.PutPart(ctx, key, upload, no, s.counted("put part", b))
	s.done("put part", began, err)
	return w, err
}

// Parts is counted.
func (s *Store) Parts(ctx context.Context, key, upload string, after int) ([]objstore.Part, bool, error) {
	began := time.Now()
	parts, more, err := s.in.Parts(ctx, key, upload, after)
	s.done("parts", began, err)
	return parts, more, err
}

// Complete is counted.
func (s *Store) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	began := time.Now()
	w, err := s.in.Complete(ctx, key, upload, parts, o)
	s.done("complete", began, err)
	return w, err
}

// Abort is counted.
func (s *Store) Abort(ctx context.Context, key, upload string) error {
	began := time.Now()
	err := s.in.Abort(ctx, key, upload)
	s.done("abort", began, err)
	return err
}

// Uploads is counted.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	began := time.Now()
	ups, next, err := s.in.Uploads(ctx, prefix, after)
	s.done("uploads", began, err)
	return ups, next, err
}

func (s *Store) lacks(op, key string) error {
	return &objstore.Error{Op: op, Store: s.String(), Key: key, Kind: objstore.ErrNotSupported, Err: fmt.Errorf("this store has no such thing")}
}

// Tags is counted.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	t, ok := s.in.(objstore.Tagger)
	if !ok {
		return nil, s.lacks("tags", key)
	}
	began := time.Now()
	tags, err := t.Tags(ctx, key)
	s.done("tags", began, err)
	return tags, err
}

// SetTags is counted.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	t, ok := s.in.(objstore.Tagger)
	if !ok {
		return s.lacks("set tags", key)
	}
	began := time.Now()
	err := t.SetTags(ctx, key, tags)
	s.done("set tags", began, err)
	return err
}

// Grants is counted.
func (s *Store) Grants(ctx context.Context, key string) (string, []string, error) {
	g, ok := s.in.(objstore.Granter)
	if !ok {
		return "", nil, s.lacks("grants", key)
	}
	began := time.Now()
	canned, grants, err := g.Grants(ctx, key)
	s.done("grants", began, err)
	return canned, grants, err
}

// SetGrants is counted.
func (s *Store) SetGrants(ctx context.Context, key, canned string) error {
	g, ok := s.in.(objstore.Granter)
	if !ok {
		return s.lacks("set grants", key)
	}
	began := time.Now()
	err := g.SetGrants(ctx, key, canned)
	s.done("set grants", began, err)
	return err
}

// Versioned is counted.
func (s *Store) Versioned(ctx context.Context) (bool, error) {
	v, ok := s.in.(objstore.Versioner)
	if !ok {
		return false, s.lacks("versioned", "")
	}
	began := time.Now()
	yes, err := v.Versioned(ctx)
	s.done("versioned", began, err)
	return yes, err
}

// Older is counted.
func (s *Store) Older(ctx context.Context, prefix, place string) (objstore.Older, string, error) {
	v, ok := s.in.(objstore.OlderCounter)
	if !ok {
		return objstore.Older{}, "", s.lacks("older", "")
	}
	began := time.Now()
	n, next, err := v.Older(ctx, prefix, place)
	s.done("older", began, err)
	return n, next, err
}

// Location is counted.
func (s *Store) Location(ctx context.Context) (string, error) {
	l, ok := s.in.(objstore.Locator)
	if !ok {
		return "", s.lacks("location", "")
	}
	began := time.Now()
	where, err := l.Location(ctx)
	s.done("location", began, err)
	return where, err
}

// Sum is counted.
func (s *Store) Sum(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, []digest.Digest, error) {
	g, ok := s.in.(objstore.Summer)
	if !ok {
		return objstore.Object{}, nil, s.lacks("sum", key)
	}
	began := time.Now()
	obj, sums, err := g.Sum(ctx, key, o)
	s.done("sum", began, err)
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
