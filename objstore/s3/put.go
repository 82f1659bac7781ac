package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"

	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/moverd/mover/objstore"
)

// readBack is the largest object that is read again where nothing else proves what the store has.
const readBack = 16 << 20

// Put stores an object.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	const op = "put"
	if err := s.fits(op, key, o.Attrs); err != nil {
		return objstore.Written{}, err
	}
	if b.Size > putMost {
		return objstore.Written{}, s.wrong(op, key, objstore.ErrNotSupported, "%d bytes, one put takes %d", b.Size, int64(putMost))
	}
	ctx, done := s.call(ctx)
	defer done()
	if err := s.names(ctx, op, key, o.Attrs.Meta); err != nil {
		return objstore.Written{}, err
	}
	l := load{store: s, op: op, name: key, body: b}
	return l.send(func(h http.Header, c *content) (http.Header, error) {
		described(h, o)
		resp, err := s.caller.do(ctx, http.MethodPut, key, "", h, c)
		if err != nil {
			return nil, s.refused(ctx, op, key, err, o.Absent)
		}
		return resp.Header, nil
	}, func(etag string) error {
		if b.Size <= readBack {
			return s.reread(ctx, key, etag, b.Size, l.md)
		}
		if !l.declared {
			return l.next()
		}
		return s.sized(ctx, op, key, etag, b.Size)
	})
}

// PutPart stores a part.
func (s *Store) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (objstore.Written, error) {
	op := "put part " + strconv.Itoa(no)
	switch {
	case key == "" || upload == "":
		return objstore.Written{}, s.wrong(op, key, objstore.ErrNotSupported, "it needs a key and an upload")
	case no < 1 || no > partsAll:
		return objstore.Written{}, s.wrong(op, key, objstore.ErrNotSupported, "parts have numbers from 1 to %d", partsAll)
	case b.Size > putMost:
		return objstore.Written{}, s.wrong(op, key, objstore.ErrNotSupported, "%d bytes, a part takes %d", b.Size, int64(putMost))
	}
	ctx, done := s.call(ctx)
	defer done()
	query := "partNumber=" + strconv.Itoa(no) + "&uploadId=" + httpbinding.EscapePath(upload, true)
	l := load{store: s, op: op, name: key, body: b}
	return l.send(func(h http.Header, c *content) (http.Header, error) {
		resp, err := s.caller.do(ctx, http.MethodPut, key, query, h, c)
		if err != nil {
			return nil, s.fail(ctx, op, key, err)
		}
		return resp.Header, nil
	}, func(string) error {
		if !l.declared {
			return l.next()
		}
		return nil // a part cannot be read; the server had its digest before it answered
	})
}

// described sets what goes with an object.
func described(h http.Header, o objstore.PutOptions) {
	a := o.Attrs
	for _, f := range [...]struct{ name, value string }{{"Content-Type", a.ContentType}, {"Cache-Control", a.CacheControl}, {"Content-Disposition", a.ContentDisposition},
		{"Content-Encoding", a.ContentEncoding}, {"Content-Language", a.ContentLanguage}, {"Expires", a.Expires}, {"X-Amz-Storage-Class", o.Class}} {
		if f.value != "" {
			h[f.name] = []string{f.value}
		}
	}
	for k, v := range a.Meta {
		h.Set(metaPrefix+k, v)
	}
	if o.Absent {
		h.Set("If-None-Match", "*")
	}
}

// load is a body on its way to the store.
type load struct {
	store    *Store
	op, name string
	body     objstore.Body

	declared bool   // its MD5 goes ahead, and the server refuses another
	md       []byte // its MD5, after it was read once
}

// small is the largest body that is read before it is sent, and goes out in one write with its header, which fit into a buffer of NewTransport together.
const small = 24 << 10

// send gives the body to do, and proves what the store has made of it. prove is asked where the answer has nothing that can be compared.
func (l *load) send(do func(http.Header, *content) (http.Header, error), prove func(etag string) error) (objstore.Written, error) {
	r, err := l.open()
	if err != nil {
		return objstore.Written{}, l.broken(err)
	}
	defer func() { r.Close() }()
	if len(l.body.MD5) == md5.Size {
		l.declared, l.md = true, l.body.MD5
	} else if l.body.Size > small {
		if r, err = l.declare(r); err != nil {
			return objstore.Written{}, l.broken(err)
		}
	}
	src := &source{r: r, left: l.body.Size}
	var name string
	if p := l.store.sum.Load(); p != nil {
		name, src.sum = *p, newSum(*p)
	}
	c := &content{size: l.body.Size, stream: src}
	if c.size <= small {
		if c.bytes = src.all(); src.err != nil {
			return objstore.Written{}, l.broken(src.err)
		}
		if !l.declared {
			sum := md5.Sum(c.bytes)
			l.declared, l.md = true, sum[:]
		}
	} else if !l.declared {
		src.md = md5.New()
	}
	h := make(http.Header, 16)
	if l.declared {
		h["Content-Md5"] = []string{base64.StdEncoding.EncodeToString(l.md)}
	}
	answer, err := do(h, c)
	switch {
	case src.err != nil:
		return objstore.Written{}, l.broken(src.err)
	case err != nil:
		return objstore.Written{}, err
	case src.left > 0:
		return objstore.Written{}, l.store.wrong(l.op, l.name, objstore.ErrCorrupt, "the store said yes when %d of %d bytes were still to come", src.left, l.body.Size)
	}
	if src.md != nil {
		l.md = src.md.Sum(nil)
	}
	return l.proven(answer, name, src.sum, prove)
}

func (l *load) open() (io.ReadCloser, error) {
	if l.body.Size < 0 || l.body.Open == nil {
		return nil, errors.New("a body without a size")
	}
	return l.body.Open()
}

// declare finds the MD5 of the body before it is sent: where it can be read twice, and where the store has shown that nothing else proves it.
func (l *load) declare(r io.ReadCloser) (io.ReadCloser, error) {
	seeker, ok := r.(io.Seeker)
	var begin int64
	if ok {
		var err error
		begin, err = seeker.Seek(0, io.SeekCurrent)
		ok = err == nil // a pipe is a file too
	}
	if !ok && !l.store.declares.Load() {
		return r, nil
	}
	src := &source{r: r, left: l.body.Size, md: l.newSum()}
	defer l.store.lanes.end(src.md)
	for buf := make([]byte, 32<<10); src.left > 0 && src.err == nil; {
		_, _ = src.Read(buf)
	}
	if src.err != nil {
		return r, src.err
	}
	l.declared, l.md = true, src.md.Sum(nil)
	if ok {
		_, err := seeker.Seek(begin, io.SeekStart)
		return r, err
	}
	if err := r.Close(); err != nil {
		return r, err
	}
	again, err := l.open()
	if err != nil {
		return r, err
	}
	return again, nil
}

func (l *load) newSum() hash.Hash {
	if l.body.Size < lanesFrom {
		return md5.New()
	}
	return l.store.lanes.begin()
}

// proven compares what the answer tells with what was sent. sum is the checksum of that name, which may have been taken on the way.
func (l *load) proven(h http.Header, name string, sum hash.Hash, prove func(string) error) (objstore.Written, error) {
	etag := unquote(h.Get("ETag"))
	l.store.learn(h)
	w := objstore.Written{ETag: etag}
	if etag == "" {
		return objstore.Written{}, l.store.wrong(l.op, l.name, nil, "an answer without an ETag")
	}
	if md := plain(etag); md != nil && !opaque(h) {
		if string(md) != string(l.md) {
			return objstore.Written{}, l.store.wrong(l.op, l.name, objstore.ErrCorrupt, "the MD5 of what was sent is %s, the ETag of what is stored %s", hex.EncodeToString(l.md), etag)
		}
		return w, nil
	}
	t := toldBy(h)
	if t.name == "" {
		return w, prove(etag)
	}
	if t.name != name {
		l.store.sum.Store(&t.name) // the next body is summed while it is sent
		var err error
		if sum, err = l.summed(t.name); err != nil {
			return objstore.Written{}, l.broken(err)
		}
	}
	if !t.is(sum) {
		return objstore.Written{}, l.store.wrong(l.op, l.name, objstore.ErrCorrupt, "the %s of what is stored is %s, which is not that of what was sent", t.name, t.value)
	}
	return w, nil
}

// summed reads the body once more.
func (l *load) summed(name string) (hash.Hash, error) {
	r, err := l.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	sum := newSum(name)
	_, err = io.Copy(sum, io.LimitReader(r, l.body.Size))
	return sum, err
}

// next leaves the proof to the next try.
func (l *load) next() error {
	l.store.declares.Store(true)
	return l.store.wrong(l.op, l.name, objstore.ErrTransient, "the answer has nothing that proves what is stored; from now on the digest is declared before")
}

// broken is a body that could not be read.
func (l *load) broken(err error) error {
	return &objstore.Error{Op: l.op, Store: l.store.name, Key: l.name, Err: errBody{fmt.Errorf("what is to be stored: %w", err)}}
}

// reread compares an object with the MD5 of what was sent.
func (s *Store) reread(ctx context.Context, key, etag string, size int64, md []byte) error {
	o, r, err := s.Get(ctx, key, objstore.GetOptions{IfTag: etag})
	if err != nil {
		return err
	}
	defer r.Close()
	sum := md5.New()
	if _, err := io.Copy(sum, r); err != nil {
		return err
	}
	if o.Size != size || string(sum.Sum(nil)) != string(md) {
		return s.wrong("put", key, objstore.ErrCorrupt, "what is stored was read again and is not what was sent")
	}
	return nil
}

// sized compares the size of an object with what was sent.
func (s *Store) sized(ctx context.Context, op, key, etag string, size int64) error {
	o, err := s.Head(ctx, key)
	switch {
	case err != nil:
		return err
	case o.ETag != etag:
		return s.wrong(op, key, objstore.ErrChanged, "another object took its place before it could be looked at")
	}
	return s.sameSize(op, key, o.Size, size)
}

func (s *Store) sameSize(op, key string, stored, sent int64) error {
	if stored != sent {
		return s.wrong(op, key, objstore.ErrCorrupt, "%d bytes are stored, %d were sent", stored, sent)
	}
	return nil
}

// source gives exactly the announced bytes of a body. The last of them go out only after nothing was found behind them, so that no store takes the beginning
// of a longer body for all of it.
type source struct {
	r       io.Reader
	left    int64
	md, sum hash.Hash
	err     error // what is wrong with the body itself
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > s.left {
		p = p[:s.left]
	}
	n, err := s.r.Read(p)
	if s.md != nil {
		s.md.Write(p[:n])
	}
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	if s.left -= int64(n); s.left == 0 {
		if err = s.finish(); err != nil {
			s.left = int64(n)
			return 0, err
		}
		return n, nil
	}
	switch {
	case err == io.EOF:
		s.err = fmt.Errorf("%d bytes are missing at its end: %w", s.left, io.ErrUnexpectedEOF)
	case err != nil:
		s.err = err
	}
	return n, s.err
}

// all reads all of it.
func (s *source) all() []byte {
	b := make([]byte, s.left)
	if len(b) == 0 {
		_ = s.finish()
	} else {
		_, _ = io.ReadFull(s, b)
	}
	return b
}

// finish looks that nothing follows.
func (s *source) finish() error {
	var more [1]byte
	for {
		switch n, err := s.r.Read(more[:]); {
		case n > 0:
			s.err = errors.New("it is longer than announced")
		case err == io.EOF:
			return nil
		case err != nil:
			s.err = err
		default:
			continue
		}
		return s.err
	}
}
