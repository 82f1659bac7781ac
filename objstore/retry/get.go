package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/moverd/mover/objstore"
)

// Get tries again, also when the bytes break off: it goes on where they did, while the object is still the same (ErrChanged), so that the caller reads one
// stream. Bytes that came count as progress: the tries begin anew with each MiB.
func (s *Store) Get(ctx context.Context, key string, g objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{s: s, ctx: ctx, cancel: cancel, key: key, o: g}
	err := s.do(ctx, "get", key, func() (err error) {
		r.object, r.body, err = s.in.Get(ctx, key, g)
		return err
	})
	if err != nil {
		cancel()
		return objstore.Object{}, nil, err
	}
	r.all = max(0, r.object.Size-g.Off)
	if g.Len > 0 {
		r.all = min(r.all, g.Len)
	}
	return r.object, r, nil
}

const progress = 1 << 20

type reader struct {
	s      *Store
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	o      objstore.GetOptions
	object objstore.Object
	all    int64 // bytes that were asked for and are there

	at   int64 // bytes read
	try  *try  // since try was begun at from
	from int64
	lost error // what the body broke with; the next Read mends it
	err  error // the end

	mu   sync.Mutex
	body io.ReadCloser // nil: closed by Close, or broken
	shut bool
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.err == nil && r.lost != nil {
			r.err, r.lost = r.resume(r.lost), nil
		}
		if r.err != nil {
			return 0, r.err
		}
		r.mu.Lock()
		body := r.body
		r.mu.Unlock()
		if body == nil {
			return 0, fs.ErrClosed
		}
		n, err := body.Read(p)
		r.at += int64(n)
		switch {
		case err == io.EOF && r.at < r.all:
			err = fmt.Errorf("%d of %d bytes are missing: %w", r.all-r.at, r.all, io.ErrUnexpectedEOF)
		case err == nil || err == io.EOF:
			r.err = err
			return n, err
		}
		if !r.mendable(err) {
			r.err = err
			return n, err
		}
		if r.lost = err; n > 0 {
			return n, nil
		}
	}
}

// mendable tells whether what a body broke with may be gone at another try.
func (r *reader) mendable(err error) bool {
	if r.ctx.Err() != nil || errors.Is(err, objstore.ErrCorrupt) {
		return false
	}
	return objstore.Retryable(err) || objstore.KindOf(0, "", err) == objstore.ErrTransient
}

// resume opens the rest, and gives the error with which it cannot.
func (r *reader) resume(lost error) error {
	if r.at >= r.all { // everything has come: what broke was the end
		return io.EOF
	}
	r.swap(nil)
	if r.try == nil || r.at-r.from >= progress {
		r.try, r.from = r.s.try("get", r.key), r.at
		r.try.n = 1 // that which broke
	}
	var err error = &objstore.Error{Op: "get", Store: r.s.String(), Key: r.key, Kind: objstore.ErrTransient, Err: fmt.Errorf("after %d of %d bytes: %w", r.at, r.all, lost)}
	if objstore.Retryable(lost) {
		err = lost
	}
	g := objstore.GetOptions{Off: r.o.Off + r.at, Len: r.all - r.at, IfTag: r.object.ETag}
	for {
		if err := r.try.again(r.ctx, err); err != nil {
			return err
		}
		var o objstore.Object
		var body io.ReadCloser
		err = r.try.once(r.ctx, func() (err error) {
			o, body, err = r.s.in.Get(r.ctx, r.key, g)
			return err
		})
		switch {
		case err != nil:
			continue
		case o.ETag != r.object.ETag || o.Size != r.object.Size:
			return errors.Join(r.try.changed(o), body.Close())
		case !r.swap(body):
			return fs.ErrClosed
		}
		r.s.resumed.Add(1)
		return nil
	}
}

func (t *try) changed(o objstore.Object) error {
	return &objstore.Error{Op: t.op, Store: t.s.String(), Key: t.key, Kind: objstore.ErrChanged, Err: fmt.Errorf("while it was read, to %d bytes with ETag %s", o.Size, o.ETag)}
}

// swap replaces the body by another, which it closes if the reader is closed: false.
func (r *reader) swap(body io.ReadCloser) bool {
	r.mu.Lock()
	old := r.body
	r.body = body
	shut := r.shut
	if shut {
		old, r.body = body, nil
	}
	r.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return !shut
}

// Close may be called at any time.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	body := r.body
	r.body, r.shut = nil, true
	r.mu.Unlock()
	if body == nil {
		return nil
	}
	return body.Close()
}
