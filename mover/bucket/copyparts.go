package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/objstore"
)

// partSize is how large parts of an object of size bytes are.
func (c *copier) partSize(size int64) int64 {
	lim := c.to.Limits()
	n := max(c.cfg.Part, lim.PartLeast)
	if lim.Parts > 0 {
		n = max(n, (size+int64(lim.Parts)-1)/int64(lim.Parts))
	}
	align := int64(objstore.BlockSize)
	for lim.PartAlign > 0 && align%lim.PartAlign != 0 {
		align += objstore.BlockSize
	}
	return (n + align - 1) / align * align
}

// large moves an object in parts. An upload that was begun before and is gone was completed, perhaps, by a worker that could not tell any more: it begins anew.
func (c *copier) large(ctx context.Context, it Item, key string, r *Record, told told) (int64, error) {
	sent, err := c.inParts(ctx, it, key, r, told)
	if it.Upload == nil || !errors.Is(err, objstore.ErrNotFound) {
		return sent, err
	}
	it.Upload, r.Lost = nil, nil
	more, err := c.inParts(ctx, it, key, r, told)
	return sent + more, err
}

func (c *copier) inParts(ctx context.Context, it Item, key string, r *Record, told told) (sent int64, err error) {
	e := it.Entry
	obj, err := c.from.Head(ctx, e.Key)
	if err == nil && obj.ETag != e.ETag {
		err = fmt.Errorf("%q: %w while it waited", e.Key, objstore.ErrChanged)
	}
	if err != nil {
		return 0, err
	}
	up, lost := it.Upload, r.Lost
	opts := c.options(obj, r)
	if up == nil || up.ETag != e.ETag || up.Size <= 0 || up.Attrs != r.Marks.Attrs { // stores take the attributes at the beginning
		if up != nil {
			if err := c.to.Abort(ctx, key, up.ID); err != nil {
				return 0, atTarget(err)
			}
		}
		up, r.Lost = &Progress{ETag: e.ETag, Size: c.partSize(e.Size)}, lost
		opts, err = c.described(obj, r, func(o objstore.PutOptions) (err error) { up.ID, err = c.to.Begin(ctx, key, o); return err })
		if err != nil {
			return 0, atTarget(err)
		}
		up.Attrs = r.Marks.Attrs
		if err := told(PartResult{Key: e.Key, Upload: up.ID, ETag: up.ETag, Size: up.Size, Attrs: up.Attrs}); err != nil {
			return 0, errors.Join(err, c.drop(ctx, key, up.ID)) // nobody would end it but a sweep
		}
	}
	n := int((e.Size + up.Size - 1) / up.Size)
	parts := make([]objstore.Part, n)
	for _, d := range up.Parts {
		if d.No >= 1 && d.No <= n {
			parts[d.No-1] = objstore.Part{No: d.No, Size: c.sizeOf(e.Size, up.Size, d.No), ETag: d.ETag}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.cfg.Parts)
	for i := range parts {
		if parts[i].No != 0 {
			continue
		}
		g.Go(func() error {
			d, err := c.part(gctx, e, key, up, i+1)
			if err != nil {
				return err
			}
			parts[i] = objstore.Part{No: i + 1, Size: c.sizeOf(e.Size, up.Size, i+1), ETag: d.ETag}
			return told(PartResult{Key: e.Key, Upload: up.ID, ETag: up.ETag, Size: up.Size, Part: d})
		})
		sent += c.sizeOf(e.Size, up.Size, i+1)
	}
	if err := g.Wait(); err != nil {
		if errors.Is(err, objstore.ErrChanged) || errors.Is(err, objstore.ErrArchived) { // its parts are of a state that is gone, or there will be none
			err = errors.Join(err, c.to.Abort(ctx, key, up.ID))
		}
		return sent, err
	}
	w, err := c.to.Complete(ctx, key, up.ID, parts, opts)
	if err != nil {
		return sent, atTarget(err)
	}
	return sent, c.finish(ctx, obj, key, w, r) // its digest is made of the parts, where they are all known
}

// drop ends an upload that the ledger does not know, also where the work ends.
func (c *copier) drop(ctx context.Context, key, upload string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	return c.to.Abort(ctx, key, upload)
}

// sizeOf is the bytes of part no of an object.
func (c *copier) sizeOf(object, part int64, no int) int64 {
	return min(part, object-int64(no-1)*part)
}

// part copies one part, from memory, or as a stream where it is too long for that.
func (c *copier) part(ctx context.Context, e objstore.Entry, key string, up *Progress, no int) (Done, error) {
	n := c.sizeOf(e.Size, up.Size, no)
	o := objstore.GetOptions{Off: int64(no-1) * up.Size, Len: n, IfTag: up.ETag}
	if n > c.cfg.Memory/4 && n > c.cfg.Part {
		return c.stream(ctx, e, key, up, no, o)
	}
	buf, release, err := c.lease(ctx, n)
	if err != nil {
		return Done{}, err
	}
	defer release()
	if _, err := c.read(ctx, e.Key, o, buf); err != nil {
		return Done{}, err
	}
	var d objstore.Digester
	_, _ = d.Write(buf)
	if err := c.pace(ctx, len(buf)); err != nil {
		return Done{}, err
	}
	w, err := c.to.PutPart(ctx, key, up.ID, no, objstore.Bytes(buf))
	if err != nil {
		return Done{}, atTarget(err)
	}
	return Done{No: no, ETag: w.ETag, Blocks: d.Blocks()}, nil
}

// stream copies a part through a small buffer. For another try it is read again.
func (c *copier) stream(ctx context.Context, e objstore.Entry, key string, up *Progress, no int, o objstore.GetOptions) (Done, error) {
	var last *digested
	w, err := c.to.PutPart(ctx, key, up.ID, no, objstore.Body{Size: o.Len, Open: func() (io.ReadCloser, error) {
		_, body, err := c.from.Get(ctx, e.Key, o)
		if err != nil {
			return nil, err
		}
		last = &digested{ReadCloser: body, pace: func(n int) error { return c.pace(ctx, n) }}
		return last, nil
	}})
	if err != nil {
		return Done{}, err // of either end
	}
	return Done{No: no, ETag: w.ETag, Blocks: last.d.Blocks()}, nil
}

// digested digests what is read.
type digested struct {
	io.ReadCloser
	d    objstore.Digester
	pace func(int) error
}

func (r *digested) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	_, _ = r.d.Write(p[:n])
	if n > 0 && (err == nil || err == io.EOF) {
		if err := r.pace(n); err != nil {
			return n, err
		}
	}
	return n, err
}
