package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

const (
	// stretch is the bytes of a body that are in memory at once. Chunks end with it, so that nobody who holds memory waits for more.
	stretch = 4 << 20
	// whole is the size up to which an object is one chunk.
	whole = 2 * chunker.CutLeast
	// sentAgain is how often chunks that were gone are sent.
	sentAgain = 4
)

var errWrongNeed = fmt.Errorf("%w: NEED of another number of chunks", sentinel.ErrProtocol)

// lease holds memory until all who have taken it have given it back.
type lease struct {
	s    *Store
	n    int64
	held atomic.Int32
}

func (s *Store) lease(ctx context.Context, n int64) (*lease, []byte, error) {
	n = max(n, 512) // what goes with it
	if err := s.memory.Acquire(ctx, n); err != nil {
		return nil, nil, err
	}
	l := &lease{s: s, n: n}
	l.take()
	return l, make([]byte, n), nil
}

func (l *lease) take() { l.held.Add(1) }

func (l *lease) give() {
	if l.held.Add(-1) == 0 {
		l.s.memory.Release(l.n)
	}
}

// sent collects the batches that a body is in.
type sent []*batch

func (t *sent) add(b *batch) {
	if n := len(*t); n == 0 || (*t)[n-1] != b {
		*t = append(*t, b)
	}
}

// wait waits until the gateway has them.
func (t sent) wait(ctx context.Context) error {
	for _, b := range t {
		select {
		case <-b.done:
			if b.err != nil {
				return b.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// bring brings a body to the gateway and gives its chunks.
func (c *conn) bring(ctx context.Context, b objstore.Body) ([]wire.Chunk, error) {
	r, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []wire.Chunk
	var way sent
	for at := int64(0); at < b.Size; at += stretch {
		n := min(stretch, b.Size-at)
		l, p, err := c.s.lease(ctx, n)
		if err != nil {
			return nil, err
		}
		p = p[:n]
		if err = fill(r, p, at, b.Size); err == nil {
			all, err = c.cut(p, b.Size, l, all, &way)
		}
		l.give()
		if err != nil {
			return nil, err
		}
	}
	if err := atEnd(r, b.Size); err != nil {
		return nil, err
	}
	c.s.counts.bodies.Add(b.Size)
	return all, way.wait(ctx)
}

// cut cuts p, which is of a body of size bytes, and puts the chunks on their way.
func (c *conn) cut(p []byte, size int64, l *lease, all []wire.Chunk, way *sent) ([]wire.Chunk, error) {
	for len(p) > 0 {
		n := len(p)
		if size > whole {
			n = chunker.Cut(p)
		}
		d := digest.Sum(p[:n])
		b, err := c.out.add(d, p[:n], l)
		if err != nil {
			return nil, err
		}
		way.add(b)
		all, p = append(all, wire.Chunk{Digest: d, Len: uint32(n)}), p[n:]
	}
	return all, nil
}

// fill reads all of p, which begins at at.
func fill(r io.Reader, p []byte, at, size int64) error {
	n, err := io.ReadFull(r, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("the body has %d bytes, not %d: %w", at+int64(n), size, io.ErrUnexpectedEOF)
	}
	return err
}

// atEnd reads the end of a body, which is where it tells that it was not what it should be.
func atEnd(r io.Reader, size int64) error {
	var one [1]byte
	switch _, err := io.ReadFull(r, one[:]); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("the body has more than %d bytes", size)
	default:
		return err
	}
}

// again brings the chunks that are missing.
func (c *conn) again(ctx context.Context, b objstore.Body, all []wire.Chunk, missing wire.Missing) error {
	if int(missing.N) != len(all) {
		return fmt.Errorf("%w: %d of %d chunks are said to be missing", sentinel.ErrProtocol, missing.N, len(all))
	}
	r, err := b.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	var way sent
	at := int64(0)
	for i, ch := range all {
		if wire.Bit(missing.Bitmap, i) {
			l, p, err := c.s.lease(ctx, int64(ch.Len))
			if err != nil {
				return err
			}
			p = p[:ch.Len]
			if err = fill(r, p, at, b.Size); err == nil {
				err = c.same(p, ch, l, &way)
			}
			l.give()
			if err != nil {
				return err
			}
			c.s.counts.resent.Add(int64(ch.Len))
		} else if n, err := io.CopyN(io.Discard, r, int64(ch.Len)); err != nil {
			return errors.Join(fmt.Errorf("the body has %d bytes, not %d", at+n, b.Size), err)
		}
		at += int64(ch.Len)
	}
	return way.wait(ctx)
}

// same puts a chunk on its way again.
func (c *conn) same(p []byte, ch wire.Chunk, l *lease, way *sent) error {
	if digest.Sum(p) != ch.Digest {
		return fmt.Errorf("the body is another one when it is read again: %w", objstore.ErrCorrupt)
	}
	b, err := c.out.add(ch.Digest, p, l)
	if err == nil {
		way.add(b)
	}
	return err
}
