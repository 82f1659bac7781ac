package retry_test

import (
	"context"
	"io"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// flaky fails as its test tells it to.
type flaky struct {
	*mem.Store
	before func(op string, n int) error // instead of try n, from 0, of op; nil: none
	after  func(op string, n int) error // instead of the answer: what was asked for is done
	body   func(n int) (at int64, err error)

	mu sync.Mutex
	n  map[string]int
}

func (f *flaky) call(op string, do func() error) error {
	f.mu.Lock()
	if f.n == nil {
		f.n = map[string]int{}
	}
	n := f.n[op]
	f.n[op]++
	f.mu.Unlock()
	if f.before != nil {
		if err := f.before(op, n); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if f.after != nil {
		return f.after(op, n)
	}
	return nil
}

func (f *flaky) count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n[op]
}

func lost(op, kind string) error {
	k := map[string]error{"transient": objstore.ErrTransient, "slow": objstore.ErrSlowDown, "denied": objstore.ErrDenied}[kind]
	return &objstore.Error{Op: op, Store: "flaky", Kind: k, Status: 500}
}

func (f *flaky) List(ctx context.Context, q objstore.Query) (p objstore.Page, err error) {
	err = f.call("list", func() (err error) { p, err = f.Store.List(ctx, q); return })
	return p, err
}

func (f *flaky) Head(ctx context.Context, key string) (o objstore.Object, err error) {
	err = f.call("head", func() (err error) { o, err = f.Store.Head(ctx, key); return })
	return o, err
}

func (f *flaky) Get(ctx context.Context, key string, g objstore.GetOptions) (o objstore.Object, r io.ReadCloser, err error) {
	n := f.count("get")
	err = f.call("get", func() (err error) { o, r, err = f.Store.Get(ctx, key, g); return })
	if err == nil && f.body != nil {
		if at, err := f.body(n); err != nil {
			r = &breaking{r, at, err}
		}
	}
	return o, r, err
}

// breaking breaks after left bytes.
type breaking struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (f *flaky) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (w objstore.Written, err error) {
	err = f.call("put", func() (err error) { w, err = f.Store.Put(ctx, key, b, o); return })
	return w, err
}

func (f *flaky) Delete(ctx context.Context, keys ...string) (left map[string]error, err error) {
	err = f.call("delete", func() (err error) { left, err = f.Store.Delete(ctx, keys...); return })
	return left, err
}

func (f *flaky) Begin(ctx context.Context, key string, o objstore.PutOptions) (up string, err error) {
	err = f.call("begin", func() (err error) { up, err = f.Store.Begin(ctx, key, o); return })
	return up, err
}

func (f *flaky) PutPart(ctx context.Context, key, up string, no int, b objstore.Body) (w objstore.Written, err error) {
	err = f.call("put part", func() (err error) { w, err = f.Store.PutPart(ctx, key, up, no, b); return })
	return w, err
}

func (f *flaky) Parts(ctx context.Context, key, up string, after int) (p []objstore.Part, more bool, err error) {
	err = f.call("parts", func() (err error) { p, more, err = f.Store.Parts(ctx, key, up, after); return })
	return p, more, err
}

func (f *flaky) Complete(ctx context.Context, key, up string, parts []objstore.Part, o objstore.PutOptions) (w objstore.Written, err error) {
	err = f.call("complete", func() (err error) { w, err = f.Store.Complete(ctx, key, up, parts, o); return })
	return w, err
}

func (f *flaky) Abort(ctx context.Context, key, up string) error {
	return f.call("abort", func() error { return f.Store.Abort(ctx, key, up) })
}

func (f *flaky) Uploads(ctx context.Context, prefix string, after objstore.UploadPlace) (u []objstore.Upload, next *objstore.UploadPlace, err error) {
	err = f.call("uploads", func() (err error) { u, next, err = f.Store.Uploads(ctx, prefix, after); return })
	return u, next, err
}

func (f *flaky) Tags(ctx context.Context, key string) (tags map[string]string, err error) {
	err = f.call("tags", func() (err error) { tags, err = f.Store.Tags(ctx, key); return })
	return tags, err
}

func (f *flaky) SetTags(ctx context.Context, key string, tags map[string]string) error {
	return f.call("set tags", func() error { return f.Store.SetTags(ctx, key, tags) })
}
