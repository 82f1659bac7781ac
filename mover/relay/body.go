package relay

import (
	"context"
	"io"
	"sync"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// pieceSize is what one READ asks for: as much as a frame keeps memory for.
const pieceSize = 240 << 10

// Get opens an object. Its bytes are asked for piece by piece, the next one while the last one is being read, so that who reads slowly holds up nobody.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (objstore.Object, io.ReadCloser, error) {
	m, err := s.ranged(wire.OpGet, key, o)
	if err != nil {
		return objstore.Object{}, nil, err
	}
	c, err := s.conn(ctx)
	if err != nil {
		return objstore.Object{}, nil, s.fail("get", key, err)
	}
	r, seq, err := c.ask(ctx, m)
	if err := s.told(m, key, r, err); err != nil {
		return objstore.Object{}, nil, err
	}
	obj := ofObject(r.Object)
	b := &body{s: s, c: c, key: key, of: seq}
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.next()
	all := max(0, obj.Size-o.Off)
	if o.Len > 0 {
		all = min(all, o.Len)
	}
	return obj, objstore.Exactly(b, all), nil
}

// body is an object that the gateway has open.
type body struct {
	s      *Store
	c      *conn
	key    string
	of     uint32
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once

	// Of the reader.
	ahead chan piece
	left  []byte
	err   error // behind left
}

type piece struct {
	b   []byte
	end bool
	err error
}

// next asks for the next piece.
func (b *body) next() {
	ch := make(chan piece, 1)
	b.ahead = ch
	go func() { // ends with the context, or the connection
		m := &wire.Call{Op: wire.OpRead, Values: wire.Values{Of: b.of, Most: pieceSize}}
		r, err := b.c.call(b.ctx, m)
		if err := b.s.told(m, b.key, r, err); err != nil {
			ch <- piece{err: err}
			return
		}
		ch <- piece{r.Bytes, !r.Flag, nil}
	}()
}

func (b *body) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		if b.err != nil {
			return 0, b.err
		}
		got := <-b.ahead
		b.left, b.err = got.b, got.err
		switch {
		case got.err != nil:
		case got.end:
			b.err = io.EOF
		default:
			b.next()
		}
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// Close may be called at any time.
func (b *body) Close() error {
	b.once.Do(func() {
		b.cancel()
		b.c.drop(b.of)
	})
	return nil
}
