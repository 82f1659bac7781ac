package objtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/moverd/mover/objstore"
)

// broken is a body that ends with err after what it has.
type broken struct {
	io.Reader
	err error
}

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF && b.err != nil {
		err = b.err
	}
	return n, err
}

func (broken) Close() error { return nil }

// body is one of size bytes that has only b, and then err; nil is its end.
func body(size int64, b []byte, err error) objstore.Body {
	return objstore.Body{Size: size, Open: func() (io.ReadCloser, error) { return broken{bytes.NewReader(b), err}, nil }}
}

var errBody = errors.New("the disk of this body has failed")

// wrong are bodies that must not be stored.
func wrong(n int64) map[string]objstore.Body {
	b := content(9, n)
	return map[string]objstore.Body{
		"short":        body(n, b[:n-1], nil),
		"empty":        body(n, nil, nil),
		"long":         body(n-1, b, nil),
		"long by far":  body(1, b, nil),
		"long as none": body(0, b, nil),
		"broken":       body(n, b[:n/2], errBody),
		"broken first": body(n, nil, errBody),
		"broken last":  body(n, b, errBody),
		"shut":         {Size: n, Open: func() (io.ReadCloser, error) { return nil, errBody }},
		"negative":     body(-1, nil, nil),
	}
}

func (s *suite) bodies(t *testing.T) {
	for name, b := range wrong(200_000) {
		t.Run(name, func(t *testing.T) {
			_, err := s.Store.Put(s.ctx, "new", b, objstore.PutOptions{})
			s.wrongBody(t, err, "new", name)
			s.gone(t, "new")
			old := content(1, 5000)
			w := s.put(t, "old", old)
			_, err = s.Store.Put(s.ctx, "old", b, objstore.PutOptions{})
			s.wrongBody(t, err, "old", name)
			s.holds(t, "old", old, w)
			s.listed(t, objstore.Query{}, []string{"old"})
		})
	}
	good := content(10, 300_000)
	w, err := s.Store.Put(s.ctx, "slow", objstore.Body{Size: int64(len(good)), Open: func() (io.ReadCloser, error) { return grudging{bytes.NewReader(good)}, nil }}, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.holds(t, "slow", good, w)
}

func (s *suite) wrongBody(t *testing.T, err error, key, name string) {
	t.Helper()
	s.failed(t, err, key, nil)
	fails := name == "shut" || name == "broken" || name == "broken first" // "broken last" has all bytes: its error may not be seen
	if name == "broken last" && err == nil {
		return
	}
	if fails && !errors.Is(err, errBody) {
		t.Errorf("the error of the body is lost: %v", err)
	}
	if objstore.Retryable(err) {
		t.Errorf("another try of a body that is wrong: %v", err)
	}
}

// fading is a body in the middle of which the caller's context ends.
type fading struct {
	left   int
	cancel func()
	ctx    context.Context
}

func (f *fading) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	n := min(len(p), f.left, 32<<10)
	if f.left -= n; f.left < 1<<20 {
		f.cancel()
	}
	return n, nil
}

func (f *fading) Close() error { return nil }

func (s *suite) cancel(t *testing.T) {
	s.put(t, "kept", content(1, 4<<20))
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	up, err := s.Store.Begin(s.ctx, "up", objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() (string, error){
		"list": func() (string, error) { _, err := s.Store.List(ended, objstore.Query{}); return "", err },
		"head": func() (string, error) { _, err := s.Store.Head(ended, "kept"); return "kept", err },
		"get": func() (string, error) {
			_, _, err := s.Store.Get(ended, "kept", objstore.GetOptions{})
			return "kept", err
		},
		"put": func() (string, error) {
			_, err := s.Store.Put(ended, "new", objstore.Bytes(nil), objstore.PutOptions{})
			return "new", err
		},
		"begin": func() (string, error) {
			_, err := s.Store.Begin(ended, "new", objstore.PutOptions{})
			return "new", err
		},
		"put part": func() (string, error) {
			_, err := s.Store.PutPart(ended, "up", up, 1, objstore.Bytes(nil))
			return "up", err
		},
		"parts": func() (string, error) { _, _, err := s.Store.Parts(ended, "up", up, 0); return "up", err },
		"abort": func() (string, error) { return "up", s.Store.Abort(ended, "up", up) },
		"uploads": func() (string, error) {
			_, _, err := s.Store.Uploads(ended, "", objstore.UploadPlace{})
			return "", err
		},
	}
	for name, call := range calls {
		key, err := call()
		s.failed(t, err, key, nil)
		if !errors.Is(err, context.Canceled) || objstore.Retryable(err) {
			t.Errorf("%s with a context that has ended: %v", name, err)
		}
	}
	if left, err := s.Store.Delete(ended, "kept"); err == nil && len(left) == 0 {
		t.Error("a delete with a context that has ended")
	}
	s.listed(t, objstore.Query{}, []string{"kept"})
	if _, _, err := s.Store.Parts(s.ctx, "up", up, 0); err != nil {
		t.Errorf("the upload: %v", err)
	}

	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	b := objstore.Body{Size: 2 << 20, Open: func() (io.ReadCloser, error) { return &fading{2 << 20, cancel, ctx}, nil }}
	_, err = s.Store.Put(ctx, "new", b, objstore.PutOptions{})
	s.failed(t, err, "new", nil)
	if !errors.Is(err, context.Canceled) || objstore.Retryable(err) {
		t.Errorf("the context ends in the body: %v", err)
	}
	s.gone(t, "new")

	ctx, cancel = context.WithCancel(s.ctx)
	defer cancel()
	_, r, err := s.Store.Get(ctx, "kept", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ends while reading: %d bytes and %v", n, err)
	}
}

// notThere asks for what there is not.
func (s *suite) notThere(t *testing.T) {
	s.put(t, "there/x", nil)
	for _, key := range []string{"none", "there", "there/", "there/x/y", "there/x/"} {
		if s.Store.Limits().Key(key) != nil {
			continue
		}
		s.gone(t, key)
		_, body, err := s.Store.Get(s.ctx, key, objstore.GetOptions{})
		if err == nil {
			body.Close()
		}
		s.failed(t, err, key, objstore.ErrNotFound)
		_, body, err = s.Store.Get(s.ctx, key, objstore.GetOptions{Off: 5, Len: 5, IfTag: "x"})
		if err == nil {
			body.Close()
		}
		s.failed(t, err, key, objstore.ErrNotFound)
	}
}
