package bosemu

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// content is bytes that are kept, in memory or in a file. It is shared by what has the same bytes: an object and the parts that it was made of, or its copies.
type content struct {
	mem  []byte
	path string
	size int64
	refs atomic.Int32
}

func (c *content) hold() *content { c.refs.Add(1); return c }

func (c *content) drop() {
	if c.refs.Add(-1) == 0 && c.path != "" {
		_ = os.Remove(c.path)
	}
}

// section reads n bytes from off. A file may be removed meanwhile: what is open can be read to its end.
func (c *content) section(off, n int64) (io.ReadCloser, error) {
	if c.path == "" {
		return io.NopCloser(bytes.NewReader(c.mem[off : off+n])), nil
	}
	f, err := os.Open(c.path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// pipe copies with a buffer that is used again.
func pipe(w io.Writer, r io.Reader) (int64, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *b)
}

// receive keeps the body of a request, checked by what its headers say of it. The caller holds it once.
func (q *request) receive() (*content, digests, error) {
	h, size := q.r.Header, q.r.ContentLength
	switch {
	case size < 0:
		return nil, digests{}, fail("MissingContentLength", "the length of the body is needed")
	case size > q.s.cfg.Limits.Put:
		return nil, digests{}, fail("EntityTooLarge", "%d bytes; at most %d", size, q.s.cfg.Limits.Put)
	}
	c, sum := &content{size: size}, newSummer(h)
	c.hold()
	n, err := q.store(c, io.TeeReader(q.r.Body, sum))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, errCut) {
		c.drop()
		return nil, digests{}, errCut
	}
	if err != nil {
		c.drop()
		return nil, digests{}, fail("IncompleteBody", "%d of %d bytes came: %v", n, size, err)
	}
	if err := sum.check(h); err != nil {
		c.drop()
		return nil, digests{}, err
	}
	return c, sum.sums(), nil
}

func (q *request) store(c *content, r io.Reader) (int64, error) {
	if q.s.dir == "" || c.size <= q.s.cfg.Limits.Memory {
		c.mem = make([]byte, c.size)
		n, err := io.ReadFull(r, c.mem)
		return int64(n), err
	}
	f, err := os.CreateTemp(q.s.dir, "")
	if err != nil {
		return 0, err
	}
	c.path = f.Name()
	n, err := pipe(f, r)
	return n, errors.Join(err, f.Close())
}

// body is the bytes of an object: contents one after the other.
type body []*content

func (b body) hold() body {
	for _, c := range b {
		c.hold()
	}
	return b
}

func (b body) drop() {
	for _, c := range b {
		c.drop()
	}
}

func (b body) size() (n int64) {
	for _, c := range b {
		n += c.size
	}
	return n
}

// writeTo sends n bytes from off.
func (b body) writeTo(w io.Writer, off, n int64) error {
	for _, c := range b {
		if off >= c.size {
			off -= c.size
			continue
		}
		if n <= 0 {
			break
		}
		m := min(n, c.size-off)
		r, err := c.section(off, m)
		if err != nil {
			return err
		}
		_, err = pipe(w, r)
		_ = r.Close()
		if err != nil {
			return err
		}
		off, n = 0, n-m
	}
	return nil
}
