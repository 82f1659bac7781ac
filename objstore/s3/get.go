package s3

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/moverd/mover/objstore"
)

// Head asks for an object without its bytes.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	const op = "head"
	if err := s.asks(op, key); err != nil {
		return objstore.Object{}, err
	}
	ctx, done := s.call(ctx)
	defer done()
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: s.bucket, Key: &key})
	if err != nil {
		return objstore.Object{}, s.fail(ctx, op, key, err)
	}
	if out.ContentLength == nil {
		return objstore.Object{}, s.wrong(op, key, nil, "an answer without a length")
	}
	return s.object(op, key, *out.ContentLength, header(out.ResultMetadata))
}

// Get opens the bytes of an object. The body of a whole object reads as ErrCorrupt where it is not what its ETag or checksum says, before its last bytes are
// given.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	const op = "get"
	if err := s.asks(op, key); err != nil {
		return objstore.Object{}, nil, err
	}
	if o.Off < 0 || o.Len < 0 {
		return objstore.Object{}, nil, s.wrong(op, key, objstore.ErrNotSupported, "offset %d, length %d", o.Off, o.Len)
	}
	h := make(http.Header, 8)
	switch {
	case o.Len > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", o.Off, o.Off+o.Len-1))
	case o.Off > 0:
		h.Set("Range", fmt.Sprintf("bytes=%d-", o.Off))
	default:
		h.Set("X-Amz-Checksum-Mode", "ENABLED") // the checksum that is stored with the object is told
	}
	if o.IfTag != "" {
		h.Set("If-Match", quote(o.IfTag))
	}
	ctx, done := s.call(ctx)
	resp, err := s.caller.do(ctx, http.MethodGet, key, "", h, nil)
	if err != nil {
		err = s.fail(ctx, op, key, err)
		done()
		return objstore.Object{}, nil, err
	}
	b := &body{in: resp.Body, ctx: ctx, done: done, store: s, key: key}
	obj, err := s.opened(key, o, resp, b)
	if err != nil {
		b.Close()
		return objstore.Object{}, nil, err
	}
	return obj, b, nil
}

// opened looks at the answer to a Get, and tells b what is to come.
func (s *Store) opened(key string, o objstore.GetOptions, resp *http.Response, b *body) (objstore.Object, error) {
	const op = "get"
	h := resp.Header
	if resp.ContentLength < 0 {
		return objstore.Object{}, s.wrong(op, key, nil, "an answer without a length")
	}
	n, size := resp.ContentLength, resp.ContentLength
	place := h.Get("Content-Range")
	if o.Off > 0 || o.Len > 0 {
		if place == "" {
			return objstore.Object{}, s.wrong(op, key, objstore.ErrNotSupported, "the store gives all of it where a part was asked for")
		}
		first, last, all, err := ranged(place)
		if err != nil {
			return objstore.Object{}, s.wrong(op, key, nil, "content-range: %w", err)
		}
		if first != o.Off || last-first+1 != n || o.Len > 0 && n > o.Len || (o.Len == 0 || n < o.Len) && last != all-1 {
			return objstore.Object{}, s.wrong(op, key, objstore.ErrCorrupt, "offset %d, length %d was asked for, %d bytes came as %q", o.Off, o.Len, n, place)
		}
		size = all
	} else if place != "" {
		return objstore.Object{}, s.wrong(op, key, objstore.ErrCorrupt, "all was asked for, %q came", place)
	}
	obj, err := s.object(op, key, size, h)
	if err != nil {
		return objstore.Object{}, err
	}
	if o.IfTag != "" && obj.ETag != o.IfTag {
		return objstore.Object{}, s.wrong(op, key, objstore.ErrChanged, "its ETag is %q, not %q", obj.ETag, o.IfTag)
	}
	b.in, b.left = objstore.Exactly(b.in, n), n
	if o.Off == 0 && o.Len == 0 {
		b.expect(obj, h)
	}
	return obj, nil
}

// ranged reads "bytes first-last/all".
func ranged(text string) (first, last, all int64, err error) {
	if n, err := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &all); n != 3 || err != nil || first < 0 || last < first || all <= last {
		return 0, 0, 0, fmt.Errorf("%q is none", text)
	}
	return first, last, all, nil
}

// header is the header of an answer.
func header(m middleware.Metadata) http.Header {
	if r, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response); ok && r.Response != nil {
		return r.Header
	}
	return http.Header{}
}

const metaPrefix = "X-Amz-Meta-"

// object is what the header of an answer tells of an object.
func (s *Store) object(op, key string, size int64, h http.Header) (objstore.Object, error) {
	o := objstore.Object{Tags: -1, Entry: objstore.Entry{Key: key, Size: size, ETag: unquote(h.Get("ETag")), Class: standardIsEmpty(h.Get("X-Amz-Storage-Class"))},
		Attrs: objstore.Attrs{ContentType: h.Get("Content-Type"), CacheControl: h.Get("Cache-Control"), ContentDisposition: h.Get("Content-Disposition"),
			ContentEncoding: h.Get("Content-Encoding"), ContentLanguage: h.Get("Content-Language"), Expires: h.Get("Expires")}}
	if o.ETag == "" {
		return objstore.Object{}, s.wrong(op, key, nil, "an answer without an ETag")
	}
	t, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return objstore.Object{}, s.wrong(op, key, nil, "last-modified: %w", err)
	}
	o.Modified = t.UTC()
	if !opaque(h) {
		o.MD5 = plain(o.ETag)
	}
	if n := h.Get("X-Amz-Missing-Meta"); n != "" && n != "0" {
		return objstore.Object{}, s.wrong(op, key, objstore.ErrNotSupported, "it has %s user metadata that the store does not tell, for it cannot stand in a header", n)
	}
	for name, values := range h {
		if len(name) > len(metaPrefix) && strings.EqualFold(name[:len(metaPrefix)], metaPrefix) {
			if o.Attrs.Meta == nil {
				o.Attrs.Meta = make(map[string]string)
			}
			o.Attrs.Meta[strings.ToLower(name[len(metaPrefix):])] = strings.Join(values, ",")
		}
	}
	return o, s.count(op, &o, h)
}

// count finds how many tags an object has. Servers tell only a number that is not 0, and only those who may read tags: that has to be known first.
func (s *Store) count(op string, o *objstore.Object, h http.Header) error {
	s.learn(h)
	if text := h.Get("X-Amz-Tagging-Count"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return s.wrong(op, o.Key, nil, "x-amz-tagging-count: %q is no number", text)
		}
		s.counts.Store(true)
		s.tagged.Store(true)
		o.Tags = n
	} else if s.tagged.Load() && (s.amazon || s.ceph.Load() || s.counts.Load()) {
		o.Tags = 0
	}
	return nil
}

// learn notes what a header tells of the server: the ids of Ceph RGW's requests begin with tx.
func (s *Store) learn(h http.Header) {
	if len(h) > 0 && !s.met.Load() {
		s.met.Store(true)
	}
	if !s.ceph.Load() && strings.HasPrefix(h.Get("X-Amz-Request-Id"), "tx") {
		s.ceph.Store(true)
	}
}

// body gives the bytes of an answer, and the last of them only after all were proven.
type body struct {
	in    io.ReadCloser
	ctx   context.Context
	done  func()
	store *Store
	key   string

	left  int64 // bytes still to come
	sum   hash.Hash
	equal func() error // whether sum has come to what it should
	end   error        // sticky: what reading has ended with
}

// expect makes the body prove itself by what the answer has: its ETag where that is an MD5, or a checksum of all its bytes.
func (b *body) expect(o objstore.Object, h http.Header) {
	if o.MD5 != nil {
		b.sum = md5.New()
		b.equal = func() error {
			if got := b.sum.Sum(nil); string(got) != string(o.MD5) {
				return fmt.Errorf("their MD5 is %s, the ETag %s", hex.EncodeToString(got), o.ETag)
			}
			return nil
		}
	} else if t := toldBy(h); t.name != "" {
		b.sum = newSum(t.name)
		b.equal = func() error {
			if !t.is(b.sum) {
				return fmt.Errorf("their %s is not %s", t.name, t.value)
			}
			return nil
		}
	}
}

func (b *body) Read(p []byte) (int, error) {
	if b.end != nil {
		return 0, b.end
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.left == 0 { // an empty object
		b.end = b.finish()
		return 0, b.end
	}
	n, err := b.in.Read(p)
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	b.left -= int64(n)
	switch {
	case err != nil && b.left > 0, err != nil && err != io.EOF:
		b.end = b.failed(err)
		return n, b.end
	case b.left > 0:
		return n, nil
	}
	if b.end = b.finish(); b.end != io.EOF {
		return 0, b.end
	}
	return n, nil
}

// finish looks that nothing follows and that all was right: io.EOF.
func (b *body) finish() error {
	var more [1]byte
	for {
		n, err := b.in.Read(more[:])
		switch {
		case n > 0:
			return b.failed(fmt.Errorf("bytes behind its end: %w", objstore.ErrCorrupt))
		case err == nil:
			continue
		case err != io.EOF:
			return b.failed(err)
		}
		break
	}
	if b.equal != nil {
		if err := b.equal(); err != nil {
			return b.store.wrong("get", b.key, objstore.ErrCorrupt, "the bytes that came are not what the store has: %w", err)
		}
	}
	return io.EOF
}

func (b *body) failed(err error) error {
	e := &objstore.Error{Op: "get", Store: b.store.name, Key: b.key, Err: err}
	switch {
	case b.ctx.Err() != nil:
		e.Err = context.Cause(b.ctx)
	case errors.Is(err, objstore.ErrCorrupt):
		e.Kind = objstore.ErrCorrupt
	default:
		e.Kind = objstore.ErrTransient // the line or the server
	}
	return e
}

func (b *body) Close() error {
	b.done()
	return b.in.Close()
}
