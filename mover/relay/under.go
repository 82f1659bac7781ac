package relay

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/objstore"
)

// under gives of a store only what is behind root, which the keys of the caller do not have.
func under(st objstore.Store, root string) objstore.Store {
	if root == "" {
		return st
	}
	return &rooted{st, root}
}

type rooted struct {
	objstore.Store
	root string
}

func (r *rooted) entry(e objstore.Entry) objstore.Entry {
	e.Key = strings.TrimPrefix(e.Key, r.root)
	return e
}

func (r *rooted) object(o objstore.Object) objstore.Object {
	o.Entry = r.entry(o.Entry)
	return o
}

func (r *rooted) place(key string) string {
	if key == "" {
		return ""
	}
	return r.root + key
}

// key is that of the store. The empty one is none of this side either.
func (r *rooted) key(op, key string) (string, error) {
	if key == "" {
		return "", &objstore.Error{Op: op, Store: r.String(), Kind: objstore.ErrNotSupported, Err: fmt.Errorf("an empty key behind %q", r.root)}
	}
	return r.root + key, nil
}

func (r *rooted) List(ctx context.Context, q objstore.Query) (objstore.Page, error) {
	q.Prefix, q.After = r.root+q.Prefix, r.root+q.After // so the root itself is left out
	p, err := r.Store.List(ctx, q)
	for i, e := range p.Entries {
		p.Entries[i] = r.entry(e)
	}
	return p, err
}

func (r *rooted) Head(ctx context.Context, key string) (objstore.Object, error) {
	key, err := r.key("head", key)
	if err != nil {
		return objstore.Object{}, err
	}
	o, err := r.Store.Head(ctx, key)
	return r.object(o), err
}

func (r *rooted) Get(ctx context.Context, key string, g objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	key, err := r.key("get", key)
	if err != nil {
		return objstore.Object{}, nil, err
	}
	o, body, err := r.Store.Get(ctx, key, g)
	return r.object(o), body, err
}

func (r *rooted) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	key, err := r.key("put", key)
	if err != nil {
		return objstore.Written{}, err
	}
	return r.Store.Put(ctx, key, b, o)
}

func (r *rooted) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	all := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if all[i], err = r.key("delete", key); err != nil {
			return nil, err
		}
	}
	left, err := r.Store.Delete(ctx, all...)
	out := map[string]error{}
	for key, why := range left {
		out[strings.TrimPrefix(key, r.root)] = why
	}
	return out, err
}

func (r *rooted) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	key, err := r.key("begin", key)
	if err != nil {
		return "", err
	}
	return r.Store.Begin(ctx, key, o)
}

func (r *rooted) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	key, err := r.key("put part", key)
	if err != nil {
		return objstore.Written{}, err
	}
	return r.Store.PutPart(ctx, key, upload, no, b)
}

func (r *rooted) Parts(ctx context.Context, key, upload string, after int) ([]objstore.Part, bool, error) {
	key, err := r.key("parts", key)
	if err != nil {
		return nil, false, err
	}
	return r.Store.Parts(ctx, key, upload, after)
}

func (r *rooted) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Written, error) {
	key, err := r.key("complete", key)
	if err != nil {
		return objstore.Written{}, err
	}
	return r.Store.Complete(ctx, key, upload, parts, o)
}

func (r *rooted) Abort(ctx context.Context, key, upload string) error {
	key, err := r.key("abort", key)
	if err != nil {
		return err
	}
	return r.Store.Abort(ctx, key, upload)
}

func (r *rooted) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) ([]objstore.Upload, *objstore.UploadPlace, error) {
	after.Key = r.place(after.Key)
	all, next, err := r.Store.Uploads(ctx, r.root+prefix, after)
	for i := range all {
		all[i].Key = strings.TrimPrefix(all[i].Key, r.root)
	}
	if next != nil {
		next = &objstore.UploadPlace{Key: strings.TrimPrefix(next.Key, r.root), ID: next.ID}
	}
	return all, next, err
}

func (r *rooted) lacks(op, key string) error {
	return &objstore.Error{Op: op, Store: r.String(), Key: key, Kind: objstore.ErrNotSupported}
}

func (r *rooted) Tags(ctx context.Context, key string) (map[string]string, error) {
	t, ok := r.Store.(objstore.Tagger)
	if !ok {
		return nil, r.lacks("tags", key)
	}
	return t.Tags(ctx, r.root+key)
}

func (r *rooted) SetTags(ctx context.Context, key string, tags map[string]string) error {
	t, ok := r.Store.(objstore.Tagger)
	if !ok {
		return r.lacks("set tags", key)
	}
	return t.SetTags(ctx, r.root+key, tags)
}

func (r *rooted) Grants(ctx context.Context, key string) (string, []string, error) {
	g, ok := r.Store.(objstore.Granter)
	if !ok {
		return "", nil, r.lacks("grants", key)
	}
	return g.Grants(ctx, r.root+key)
}

func (r *rooted) SetGrants(ctx context.Context, key, canned string) error {
	g, ok := r.Store.(objstore.Granter)
	if !ok {
		return r.lacks("set grants", key)
	}
	return g.SetGrants(ctx, r.root+key, canned)
}

func (r *rooted) Versioned(ctx context.Context) (bool, error) {
	v, ok := r.Store.(objstore.Versioner)
	if !ok {
		return false, r.lacks("versioned", "")
	}
	return v.Versioned(ctx)
}

func (r *rooted) Location(ctx context.Context) (string, error) {
	l, ok := r.Store.(objstore.Locator)
	if !ok {
		return "", r.lacks("location", "")
	}
	return l.Location(ctx)
}

func (r *rooted) Sum(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, []digest.Digest, error) {
	g, ok := r.Store.(objstore.Summer)
	if !ok {
		return objstore.Object{}, nil, r.lacks("sum", key)
	}
	obj, sums, err := g.Sum(ctx, r.root+key, o)
	return r.object(obj), sums, err
}
