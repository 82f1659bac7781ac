package retry

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/moverd/mover/objstore"
)

// Put tries again. With Absent, after a try whose answer was lost, an object of the same bytes counts as that of the lost try.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (w objstore.Written, err error) {
	lost, watched := false, watch(b)
	err = s.do(ctx, "put", key, func() error {
		var err error
		w, err = s.in.Put(ctx, key, watched.Body, o)
		if o.Absent && lost && errors.Is(err, objstore.ErrExists) {
			w, err = s.own(ctx, key, b, err)
			return err
		}
		err = watched.final(err)
		lost = lost || objstore.Retryable(err)
		return err
	})
	return w, err
}

// PutPart tries again.
func (s *Store) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (w objstore.Written, err error) {
	watched := watch(b)
	err = s.do(ctx, "put part", key, func() (err error) {
		w, err = s.in.PutPart(ctx, key, upload, no, watched.Body)
		return watched.final(err)
	})
	return w, err
}

// own finds out whether the object that exists is b. exists is the error if not, or if that cannot be known.
func (s *Store) own(ctx context.Context, key string, b objstore.Body, exists error) (objstore.Written, error) {
	o, r, err := s.Get(ctx, key, objstore.GetOptions{})
	same := false
	if err == nil {
		if o.Size == b.Size {
			same, err = equal(r, b)
		}
		r.Close()
	}
	switch {
	case same && err == nil:
		return objstore.Written{ETag: o.ETag}, nil
	case err == nil:
		return objstore.Written{}, exists
	}
	// The cause is told, not wrapped: no other try of this call makes sense.
	return objstore.Written{}, &objstore.Error{Op: "put", Store: s.String(), Key: key, Kind: objstore.ErrExists,
		Err: fmt.Errorf("an earlier try of this call may have stored it; comparing failed: %v", err)}
}

// equal compares what r reads with b.
func equal(r io.Reader, b objstore.Body) (bool, error) {
	w, err := b.Open()
	if err != nil {
		return false, err
	}
	defer w.Close()
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(r, p)
		m, err2 := io.ReadFull(w, q)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		end, end2 := over(err), over(err2)
		switch {
		case end && end2:
			return true, nil
		case err != nil && !end:
			return false, err
		case err2 != nil && !end2:
			return false, err2
		}
	}
}

func over(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

// Complete tries again. When its upload is gone after a try whose answer was lost, the object tells whether that one made it.
func (s *Store) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (w objstore.Written, err error) {
	before, errBefore := s.Head(ctx, key)
	lost := false
	err = s.do(ctx, "complete", key, func() error {
		var err error
		w, err = s.in.Complete(ctx, key, upload, parts, o)
		if lost && (errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) && errors.Is(errBefore, objstore.ErrNotFound)) {
			w, err = s.made(ctx, key, upload, parts, before, errBefore, err)
			return err
		}
		lost = lost || objstore.Retryable(err)
		return err
	})
	return w, err
}

// made finds out whether the object is of these parts. gone is the error if not. A store that is still at it is asked a few times.
func (s *Store) made(ctx context.Context, key, upload string, parts []objstore.Part, before objstore.Object, errBefore, gone error) (objstore.Written, error) {
	if _, _, err := s.Parts(ctx, key, upload, 0); !errors.Is(err, objstore.ErrNotFound) {
		return objstore.Written{}, gone // the upload is there: whatever exists is not of it
	}
	var size int64
	for _, p := range parts {
		size += p.Size
	}
	for n := 1; ; n++ {
		h, err := s.Head(ctx, key)
		switch {
		case err == nil && h.Size == size && (h.ETag == etag(parts) || fresh(h, before, errBefore)):
			return objstore.Written{ETag: h.ETag}, nil
		case err != nil && !errors.Is(err, objstore.ErrNotFound):
			return objstore.Written{}, fmt.Errorf("%w; whether an earlier try has completed it is not known: %v", gone, err)
		case n == 4:
			return objstore.Written{}, gone
		}
		if err := sleep(ctx, s.over, s.c.wait(n)+s.c.First); err != nil {
			return objstore.Written{}, s.try("complete", key).fail(err)
		}
	}
}

// fresh tells whether an object was not there before.
func fresh(now, before objstore.Object, errBefore error) bool {
	if errBefore != nil { // nothing was there, or nobody knows
		return errors.Is(errBefore, objstore.ErrNotFound)
	}
	return now.ETag != before.ETag || now.Modified.After(before.Modified)
}

// etag is what S3 makes of the ETags of parts; "": they are no MD5s.
func etag(parts []objstore.Part) string {
	all := md5.New()
	for _, p := range parts {
		sum, err := hex.DecodeString(p.ETag)
		if err != nil || len(sum) != md5.Size {
			return ""
		}
		all.Write(sum)
	}
	return fmt.Sprintf("%x-%d", all.Sum(nil), len(parts))
}

// watched is a body that notes its own errors, so that a body which is broken for good is not taken for a store which may recover.
type watched struct {
	objstore.Body

	mu  sync.Mutex
	err error
}

func watch(b objstore.Body) *watched {
	w := &watched{Body: b}
	w.Open = func() (io.ReadCloser, error) {
		r, err := b.Open()
		if err != nil {
			w.note(err)
			return nil, err
		}
		c := &watchedReader{ReadCloser: r, w: w}
		if seek, ok := r.(io.Seeker); ok {
			return struct {
				*watchedReader
				io.Seeker
			}{c, seek}, nil
		}
		return c, nil
	}
	return w
}

func (w *watched) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// final is err, or the body's own error if no other try can mend that.
func (w *watched) final(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.err
	w.err = nil
	if err == nil || own == nil || objstore.Retryable(own) || !objstore.Retryable(err) {
		return err
	}
	var e *objstore.Error
	if !errors.As(err, &e) {
		return err
	}
	last := *e
	last.Kind, last.Err = nil, fmt.Errorf("the body: %w", own)
	return &last
}

type watchedReader struct {
	io.ReadCloser
	w    *watched
	mu   sync.Mutex
	shut bool
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		r.mu.Lock()
		shut := r.shut
		r.mu.Unlock()
		if !shut { // what is read after Close fails because of that
			r.w.note(err)
		}
	}
	return n, err
}

func (r *watchedReader) Close() error {
	r.mu.Lock()
	r.shut = true
	r.mu.Unlock()
	return r.ReadCloser.Close()
}
