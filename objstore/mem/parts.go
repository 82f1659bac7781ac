package mem

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/moverd/mover/objstore"
)

// upload is one in parts, under Store.mu.
type upload struct {
	objstore.Upload
	o     objstore.PutOptions
	parts map[int]part
}

type part struct {
	objstore.Part
	data []byte
}

// Begin starts an upload in parts.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	if err := s.enter(ctx); err != nil {
		return "", s.fail("begin", key, nil, err)
	}
	if err := s.allowed(key, o); err != nil {
		return "", s.fail("begin", key, objstore.ErrNotSupported, err)
	}
	o.Attrs = clone(o.Attrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	id := fmt.Sprintf("upload-%08d", s.begun)
	s.ups[id] = &upload{objstore.Upload{Key: strings.Clone(key), ID: id, Begun: s.c.Now().UTC().Round(0)}, o, map[int]part{}}
	return id, nil
}

// upload finds one, under mu.
func (s *Store) upload(key, id string) *upload {
	if u := s.ups[id]; u != nil && u.Key == key {
		return u
	}
	return nil
}

// PutPart stores a part.
func (s *Store) PutPart(ctx context.Context, key, id string, no int, b objstore.Body) (objstore.Written, error) {
	var none objstore.Written
	if err := s.enter(ctx); err != nil {
		return none, s.fail("put part", key, nil, err)
	}
	s.mu.RLock()
	u := s.upload(key, id)
	s.mu.RUnlock()
	if u == nil {
		return none, s.fail("put part", key, objstore.ErrNotFound, fmt.Errorf("no upload %q", id))
	}
	if most := s.c.Limits.Parts; no < 1 || most > 0 && no > most {
		return none, s.fail("put part", key, objstore.ErrNotSupported, fmt.Errorf("there is no part %d", no))
	}
	data, w, kind, err := s.take(ctx, b, s.c.Limits.PartMost)
	if err != nil {
		return none, s.fail("put part", key, kind, fmt.Errorf("part %d: %w", no, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upload(key, id) != u {
		return none, s.fail("put part", key, objstore.ErrNotFound, fmt.Errorf("no upload %q any more", id))
	}
	u.parts[no] = part{objstore.Part{No: no, Size: int64(len(data)), ETag: w.ETag}, data}
	return w, nil
}

// Parts gives the parts of an upload.
func (s *Store) Parts(ctx context.Context, key, id string, after int) (out []objstore.Part, more bool, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, false, s.fail("parts", key, nil, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := s.upload(key, id)
	if u == nil {
		return nil, false, s.fail("parts", key, objstore.ErrNotFound, fmt.Errorf("no upload %q", id))
	}
	for no, p := range u.parts {
		if no > after {
			out = append(out, p.Part)
		}
	}
	slices.SortFunc(out, func(a, b objstore.Part) int { return cmp.Compare(a.No, b.No) })
	if most := s.c.Limits.List; len(out) > most {
		out, more = out[:most], true
	}
	return out, more, nil
}

// Complete makes the object. The options of Begin count.
func (s *Store) Complete(ctx context.Context, key, id string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	var none objstore.Written
	if err := s.enter(ctx); err != nil {
		return none, s.fail("complete", key, nil, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.upload(key, id)
	if u == nil {
		return none, s.fail("complete", key, objstore.ErrNotFound, fmt.Errorf("no upload %q", id))
	}
	data, etag, err := u.join(parts, s.c.Limits)
	if err != nil {
		return none, s.fail("complete", key, nil, err)
	}
	if (o.Absent || u.o.Absent) && s.objects.get(key) != nil {
		return none, s.fail("complete", key, objstore.ErrExists, nil)
	}
	s.store(key, data, etag, u.o)
	delete(s.ups, id)
	return objstore.Written{ETag: etag}, nil
}

// join makes the bytes of an object of parts.
func (u *upload) join(parts []objstore.Part, l objstore.Limits) ([]byte, string, error) {
	if len(parts) == 0 {
		return nil, "", fmt.Errorf("no parts")
	}
	var all [][]byte
	var size int64
	sums := md5.New()
	for i, p := range parts {
		have, ok := u.parts[p.No]
		n := int64(len(have.data))
		switch {
		case i > 0 && p.No <= parts[i-1].No:
			return nil, "", fmt.Errorf("part %d stands behind part %d", p.No, parts[i-1].No)
		case !ok:
			return nil, "", fmt.Errorf("part %d is not there", p.No)
		case have.ETag != p.ETag || n != p.Size:
			return nil, "", fmt.Errorf("part %d is of %d bytes with ETag %s, not %d with %s", p.No, n, have.ETag, p.Size, p.ETag)
		case i < len(parts)-1 && (n < l.PartLeast || l.PartAlign > 0 && n%l.PartAlign != 0):
			return nil, "", fmt.Errorf("part %d is of %d bytes: those before the last have at least %d and are a multiple of %d", p.No, n, l.PartLeast, max(1, l.PartAlign))
		}
		sum := md5.Sum(have.data)
		sums.Write(sum[:])
		all, size = append(all, have.data), size+n
	}
	if l.Object > 0 && size > l.Object {
		return nil, "", fmt.Errorf("%d bytes are more than the %d of an object: %w", size, l.Object, objstore.ErrNotSupported)
	}
	return slices.Concat(all...), fmt.Sprintf("%s-%d", hex.EncodeToString(sums.Sum(nil)), len(parts)), nil
}

// Abort forgets an upload.
func (s *Store) Abort(ctx context.Context, key, id string) error {
	if err := s.enter(ctx); err != nil {
		return s.fail("abort", key, nil, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upload(key, id) != nil {
		delete(s.ups, id)
	}
	return nil
}

// Uploads lists uploads by key, then by name.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) (out []objstore.Upload, next *objstore.UploadPlace, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, nil, s.fail("uploads", "", nil, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, u := range s.ups {
		if strings.HasPrefix(u.Key, prefix) && (u.Key > after.Key || u.Key == after.Key && u.ID > after.ID) {
			out = append(out, u.Upload)
		}
	}
	slices.SortFunc(out, func(a, b objstore.Upload) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.ID, b.ID))
	})
	if most := s.c.Limits.List; len(out) > most {
		out = out[:most]
		next = &objstore.UploadPlace{Key: out[most-1].Key, ID: out[most-1].ID}
	}
	return out, next, nil
}

var _ interface {
	objstore.Store
	objstore.Tagger
	objstore.Granter
	objstore.Versioner
	objstore.Locator
} = (*Store)(nil)
