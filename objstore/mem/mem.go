// Package mem keeps a bucket in memory: for tests, and for small amounts inside a program. It can imitate the limits of other stores.
package mem

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/moverd/mover/objstore"
)

// Config of a bucket. The zero value is one without limits but those of a page (1,000 keys), a batch (1,000 keys) and a key (1 to 1,024 bytes).
type Config struct {
	Name   string           // String is "mem://NAME"
	Limits objstore.Limits  // kept strictly
	Region string           // what Location tells; "": "here"
	Now    func() time.Time // nil: time.Now
}

// Store is a bucket in memory. It has every ability that the contract knows.
type Store struct {
	c    Config
	life context.Context // ends with Close
	end  context.CancelFunc

	mu      sync.RWMutex
	objects index
	ups     map[string]*upload
	begun   int // uploads so far
}

// object is never changed but for tags and canned.
type object struct {
	head   objstore.Object
	data   []byte
	tags   map[string]string
	canned string
}

// New makes an empty bucket.
func New(c Config) *Store {
	if c.Limits.List <= 0 {
		c.Limits.List = 1000
	}
	if c.Limits.Batch <= 0 {
		c.Limits.Batch = 1000
	}
	if c.Limits.Key == nil {
		c.Limits.Key = key
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Region == "" {
		c.Region = "here"
	}
	s := &Store{c: c, ups: map[string]*upload{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

func key(key string) error {
	if len(key) == 0 || len(key) > 1024 {
		return fmt.Errorf("a key has 1 to 1,024 bytes, not %d", len(key))
	}
	return nil
}

// String is "mem://NAME".
func (s *Store) String() string { return "mem://" + s.c.Name }

// Format prints String for every verb: never what is stored.
func (s *Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Limits are those of the config.
func (s *Store) Limits() objstore.Limits { return s.c.Limits }

// Close ends every call.
func (s *Store) Close() error {
	s.end()
	return nil
}

// fail makes the error of a call; nil stays nil.
func (s *Store) fail(op, key string, kind, err error) error {
	if kind == nil && err == nil {
		return nil
	}
	return &objstore.Error{Op: op, Store: s.String(), Key: key, Kind: kind, Err: err}
}

// enter tells why a call cannot begin, or go on.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.life.Err() != nil {
		return fmt.Errorf("the store is closed: %w", fs.ErrClosed)
	}
	return nil
}

// List gives a page.
func (s *Store) List(ctx context.Context, q objstore.Query) (p objstore.Page, err error) {
	if err := s.enter(ctx); err != nil {
		return p, s.fail("list", "", nil, err)
	}
	most := s.c.Limits.List
	if q.Max > 0 {
		most = min(most, q.Max)
	}
	p.Now = s.c.Now().UTC()
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.objects.after(q.After)
	if q.Prefix > q.After {
		n = s.objects.from(q.Prefix)
	}
	for ; n != nil && strings.HasPrefix(n.key, q.Prefix); n = n.next[0] {
		if len(p.Entries) == most {
			p.More = true
			break
		}
		p.Entries = append(p.Entries, n.o.head.Entry)
	}
	return p, nil
}

func (s *Store) object(ctx context.Context, op, key string) (*object, error) {
	if err := s.enter(ctx); err != nil {
		return nil, s.fail(op, key, nil, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if o := s.objects.get(key); o != nil {
		return o, nil
	}
	return nil, s.fail(op, key, objstore.ErrNotFound, nil)
}

// told is the object as callers may have it.
func (s *Store) told(o *object) objstore.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := o.head
	h.Attrs, h.Tags = clone(h.Attrs), len(o.tags)
	return h
}

// Head gives an object without its bytes.
func (s *Store) Head(ctx context.Context, key string) (objstore.Object, error) {
	o, err := s.object(ctx, "head", key)
	if err != nil {
		return objstore.Object{}, err
	}
	return s.told(o), nil
}

// Get opens the bytes of an object.
func (s *Store) Get(ctx context.Context, key string, g objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	o, err := s.object(ctx, "get", key)
	if err != nil {
		return objstore.Object{}, nil, err
	}
	n := int64(len(o.data))
	switch {
	case g.IfTag != "" && g.IfTag != o.head.ETag:
		return objstore.Object{}, nil, s.fail("get", key, objstore.ErrChanged, nil)
	case g.Off < 0 || g.Len < 0 || g.Off > 0 && g.Off >= n:
		return objstore.Object{}, nil, s.fail("get", key, nil, fmt.Errorf("%d bytes from %d on are not in an object of %d", g.Len, g.Off, n))
	}
	b := o.data[g.Off:]
	if g.Len > 0 {
		b = b[:min(g.Len, int64(len(b)))]
	}
	return s.told(o), &reader{s, ctx, b, false}, nil
}

type reader struct {
	s    *Store
	ctx  context.Context
	b    []byte
	shut bool
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.s.enter(r.ctx); err != nil {
		return 0, r.s.fail("get", "", nil, err)
	}
	if r.shut {
		return 0, fs.ErrClosed
	}
	n := copy(p, r.b)
	if r.b = r.b[n:]; n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *reader) Close() error {
	r.shut = true
	return nil
}

// take reads a body whole and gives it with its MD5.
func (s *Store) take(ctx context.Context, b objstore.Body, most int64) ([]byte, objstore.Written, error, error) {
	var none objstore.Written
	if most > 0 && b.Size > most {
		return nil, none, objstore.ErrNotSupported, fmt.Errorf("%d bytes are more than the %d that one call takes", b.Size, most)
	}
	if b.Size < 0 {
		return nil, none, objstore.ErrNotSupported, fmt.Errorf("a body of %d bytes", b.Size)
	}
	r, err := b.Open()
	if err != nil {
		return nil, none, nil, err
	}
	defer r.Close()
	data := make([]byte, 0, min(b.Size, 1<<20)) // what a body announces is not what it has
	exact := objstore.Exactly(r, b.Size)
	for {
		if err := s.enter(ctx); err != nil {
			return nil, none, nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := exact.Read(data[len(data):min(cap(data), len(data)+1<<20)])
		if data = data[:len(data)+n]; err == io.EOF {
			break
		} else if err != nil {
			return nil, none, nil, err
		}
	}
	sum := md5.Sum(data)
	return data, objstore.Written{ETag: hex.EncodeToString(sum[:])}, nil, nil
}

// allowed tells why a key or attributes are not taken.
func (s *Store) allowed(key string, o objstore.PutOptions) error {
	if err := s.c.Limits.Key(key); err != nil {
		return err
	}
	n := 0
	for k, v := range o.Attrs.Meta {
		n += len(k) + len(v)
	}
	if most := s.c.Limits.Meta; most > 0 && n > most {
		return fmt.Errorf("%d bytes of metadata are more than %d", n, most)
	}
	return nil
}

// Put stores an object.
func (s *Store) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	if err := s.enter(ctx); err != nil {
		return objstore.Written{}, s.fail("put", key, nil, err)
	}
	if err := s.allowed(key, o); err != nil {
		return objstore.Written{}, s.fail("put", key, objstore.ErrNotSupported, err)
	}
	data, w, kind, err := s.take(ctx, b, s.c.Limits.Put)
	if err != nil {
		return objstore.Written{}, s.fail("put", key, kind, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Absent && s.objects.get(key) != nil {
		return objstore.Written{}, s.fail("put", key, objstore.ErrExists, nil)
	}
	s.store(key, data, w.ETag, o)
	return w, nil
}

func (s *Store) store(key string, data []byte, etag string, o objstore.PutOptions) {
	e := objstore.Entry{Key: strings.Clone(key), Size: int64(len(data)), ETag: etag, Modified: s.c.Now().UTC(), Class: o.Class}
	s.objects.set(e.Key, &object{head: objstore.Object{Entry: e, Attrs: clone(o.Attrs)}, data: data, canned: "private"})
}

// clone has a metadata map of its own; an empty one is none.
func clone(a objstore.Attrs) objstore.Attrs {
	var m map[string]string
	for k, v := range a.Meta {
		if m == nil {
			m = make(map[string]string, len(a.Meta))
		}
		m[k] = v
	}
	a.Meta = m
	return a
}

// Delete removes keys.
func (s *Store) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	if err := s.enter(ctx); err != nil {
		return nil, s.fail("delete", "", nil, err)
	}
	if n := s.c.Limits.Batch; len(keys) > n {
		return nil, s.fail("delete", "", objstore.ErrNotSupported, fmt.Errorf("%d keys are more than the %d of one call", len(keys), n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.objects.del(key)
	}
	return nil, nil
}
