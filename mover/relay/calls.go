package relay

import (
	"context"
	"fmt"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// ask makes one call over any connection.
func (s *Store) ask(ctx context.Context, key string, m *wire.Call) (*wire.Result, error) {
	c, err := s.conn(ctx)
	if err != nil {
		return nil, s.fail(m.Op.String(), key, err)
	}
	r, err := c.call(ctx, m)
	return r, s.told(m, key, r, err)
}

// told is the error of a call, of the line or of the store.
func (s *Store) told(m *wire.Call, key string, r *wire.Result, err error) error {
	switch {
	case err != nil:
		return s.fail(m.Op.String(), key, err)
	case r.Kind != wire.ResultDone:
		return failed(m.Op.String(), s.String(), key, r.Kind, r.Failure)
	}
	return nil
}

// List asks for a page.
func (s *Store) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	r, err := s.ask(ctx, "", &wire.Call{Op: wire.OpList, Values: wire.Values{Prefix: q.Prefix, After: q.After, Most: uint32(max(0, min(q.Max, wire.MaxPage)))}})
	if err != nil {
		return objstore.Page{}, err
	}
	p := objstore.Page{More: r.Flag, Now: unnano(r.Now)}
	for _, e := range r.Entries {
		p.Entries = append(p.Entries, ofEntry(e))
	}
	if p.More && len(p.Entries) == 0 {
		return objstore.Page{}, s.fail("list", "", fmt.Errorf("a page without keys that says there are more: %w", objstore.ErrTransient))
	}
	return p, nil
}

// Head asks for an object without its bytes.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpHead, Values: wire.Values{Key: key}})
	if err != nil {
		return objstore.Object{}, err
	}
	return ofObject(r.Object), nil
}

// ranged makes the call that reads what o asks for.
func (s *Store) ranged(op wire.Op, key string, o objstore.GetOptions) (*wire.Call, error) {
	if o.Off < 0 || o.Len < 0 {
		return nil, s.fail(op.String(), key, fmt.Errorf("%d bytes from %d", o.Len, o.Off))
	}
	return &wire.Call{Op: op, Values: wire.Values{Key: key, Off: uint64(o.Off), Len: uint64(o.Len), ETag: o.IfTag}}, nil
}

// Put brings the body to the gateway, which stores it.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	return s.store(ctx, key, b, &wire.Call{Op: wire.OpPut, Values: wire.Values{Key: key, Put: toPut(o)}})
}

// PutPart is Put for a part.
func (s *Store) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	m := &wire.Call{Op: wire.OpPutPart, Values: wire.Values{Key: key, Upload: upload, No: uint32(no)}}
	if most := s.Limits().Parts; no < 1 || no > wire.MaxParts || most > 0 && no > most {
		return objstore.Written{}, s.fail(m.Op.String(), key, fmt.Errorf("part number %d: %w", no, objstore.ErrNotSupported))
	}
	return s.store(ctx, key, b, m)
}

// store brings a body, and makes the call that says what to do with it.
func (s *Store) store(ctx context.Context, key string, b objstore.Body, m *wire.Call) (objstore.Written, error) {
	bad := func(err error) (objstore.Written, error) { return objstore.Written{}, s.fail(m.Op.String(), key, err) }
	l := s.Limits()
	most := l.Put
	if m.Op == wire.OpPutPart {
		most = l.PartMost
	}
	switch err := l.Key(key); {
	case b.Size < 0:
		return bad(fmt.Errorf("a body of %d bytes", b.Size))
	case b.Size > most:
		return bad(fmt.Errorf("%d bytes at once, the way by the gateway takes %d: %w", b.Size, most, objstore.ErrNotSupported))
	case err != nil: // before the body has crossed the line
		return bad(fmt.Errorf("%w: %w", err, objstore.ErrNotSupported))
	}
	c, err := s.conn(ctx)
	if err != nil {
		return bad(err)
	}
	c.load.Add(1)
	defer c.rest()
	if m.Body, err = c.bring(ctx, b); err != nil {
		return bad(err)
	}
	for n := 1; ; n++ {
		r, err := c.call(ctx, m)
		if err != nil || r.Kind != wire.ResultMissing {
			if err := s.told(m, key, r, err); err != nil {
				return objstore.Written{}, err
			}
			return objstore.Written{ETag: r.ETag}, nil
		}
		if n == sentAgain {
			return bad(fmt.Errorf("its chunks were sent %d times and were gone each time; give the gateway a larger cache (gateway.dedup.cache): %w", n, objstore.ErrTransient))
		}
		if err := c.again(ctx, b, m.Body, r.Missing); err != nil {
			return bad(err)
		}
	}
}

// Delete removes keys.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	if most := s.Limits().Batch; len(keys) > most {
		return nil, s.fail("delete", "", fmt.Errorf("%d keys at once, at most %d: %w", len(keys), most, objstore.ErrNotSupported))
	}
	r, err := s.ask(ctx, "", &wire.Call{Op: wire.OpDelete, Values: wire.Values{Keys: keys}})
	if err != nil || len(r.Left) == 0 {
		return nil, err
	}
	left := map[string]error{}
	for _, l := range r.Left {
		left[l.Key] = failed("delete", s.String(), l.Key, l.Kind, wire.Failure{Text: l.Text})
	}
	return left, nil
}

// Begin starts an upload.
func (s *Store) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpBegin, Values: wire.Values{Key: key, Put: toPut(o)}})
	if err != nil {
		return "", err
	}
	return r.Upload, nil
}

// Parts asks for the parts of an upload.
func (s *Store) Parts(ctx context.Context, key, upload string, after int) ([]objstore.Part, bool, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpParts, Values: wire.Values{Key: key, Upload: upload, No: uint32(max(0, after))}})
	if err != nil {
		return nil, false, err
	}
	return ofParts(r.Parts), r.Flag, nil
}

// Complete makes the object of an upload.
func (s *Store) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpComplete, Values: wire.Values{Key: key, Upload: upload, Put: toPut(o), Parts: toParts(parts)}})
	if err != nil {
		return objstore.Written{}, err
	}
	return objstore.Written{ETag: r.ETag}, nil
}

// Abort forgets an upload.
func (s *Store) Abort(ctx context.Context, key, upload string) error {
	_, err := s.ask(ctx, key, &wire.Call{Op: wire.OpAbort, Values: wire.Values{Key: key, Upload: upload}})
	return err
}

// Uploads asks for uploads that have not ended.
func (s *Store) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	r, err := s.ask(ctx, "", &wire.Call{Op: wire.OpUploads, Values: wire.Values{Prefix: prefix, After: after.Key, Upload: after.ID}})
	if err != nil {
		return nil, nil, err
	}
	var all []objstore.Upload
	for _, u := range r.Uploads {
		all = append(all, objstore.Upload{Key: u.Key, ID: u.ID, Begun: unnano(u.Begun)})
	}
	if !r.Flag {
		return all, nil, nil
	}
	return all, &objstore.UploadPlace{Key: r.After, ID: r.Upload}, nil
}

// Tags asks for those of an object.
func (s *Store) Tags(ctx context.Context, key string) (map[string]string, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpTags, Values: wire.Values{Key: key}})
	if err != nil {
		return nil, err
	}
	return ofPairs(r.Values.Tags), nil
}

// SetTags replaces those of an object.
func (s *Store) SetTags(ctx context.Context, key string, tags map[string]string) error {
	_, err := s.ask(ctx, key, &wire.Call{Op: wire.OpSetTags, Values: wire.Values{Key: key, Tags: toPairs(tags)}})
	return err
}

// Grants asks who may read an object.
func (s *Store) Grants(ctx context.Context, key string) (string, []string, error) {
	r, err := s.ask(ctx, key, &wire.Call{Op: wire.OpGrants, Values: wire.Values{Key: key}})
	if err != nil {
		return "", nil, err
	}
	return r.Name, r.Grants, nil
}

// SetGrants sets a canned name.
func (s *Store) SetGrants(ctx context.Context, key, canned string) error {
	_, err := s.ask(ctx, key, &wire.Call{Op: wire.OpSetGrants, Values: wire.Values{Key: key, Name: canned}})
	return err
}

// Versioned asks whether the bucket keeps older states.
func (s *Store) Versioned(ctx context.Context) (bool, error) {
	r, err := s.ask(ctx, "", &wire.Call{Op: wire.OpVersioned})
	return err == nil && r.Flag, err
}

// Location asks where the bucket is.
func (s *Store) Location(ctx context.Context) (string, error) {
	r, err := s.ask(ctx, "", &wire.Call{Op: wire.OpLocation})
	if err != nil {
		return "", err
	}
	return r.Name, nil
}

// Sum has the gateway read an object and digest it.
func (s *Store) Sum(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, []digest.Digest, error) {
	m, err := s.ranged(wire.OpSum, key, o)
	if err != nil {
		return objstore.Object{}, nil, err
	}
	r, err := s.ask(ctx, key, m)
	if err != nil {
		return objstore.Object{}, nil, err
	}
	return ofObject(r.Object), r.Sums, nil
}

var _ interface {
	objstore.Store
	objstore.Tagger
	objstore.Granter
	objstore.Versioner
	objstore.Locator
	objstore.Summer
} = (*Store)(nil)
