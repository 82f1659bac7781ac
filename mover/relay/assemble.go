package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// inMemory is the size up to which a body is made before the store is asked: it needs no chunk of the cache any more.
const inMemory = 1 << 20

// assemble makes a body of chunks. Those that are gone: *missing.
func (c *serving) assemble(ctx context.Context, chunks []wire.Chunk) (b objstore.Body, done func(), err error) {
	size := int64(0)
	for _, ch := range chunks {
		size += int64(ch.Len)
	}
	if size > c.s.most() {
		return b, nil, fmt.Errorf("%d bytes at once, at most %d: %w", size, c.s.most(), objstore.ErrNotSupported)
	}
	need := int64(wire.MaxChunk)
	if size <= inMemory {
		need = max(size, 1)
	}
	free, err := c.s.bodies.take(ctx, need)
	if err != nil {
		return b, nil, err
	}
	pins, gone := c.s.cache.pin(c.f.scope, chunks)
	if gone != nil {
		free()
		return b, nil, &missing{len(chunks), gone}
	}
	if size > inMemory {
		b = objstore.Body{Size: size, Open: func() (io.ReadCloser, error) { return newAssembled(pins), nil }}
		return b, func() { pins.release(); free() }, nil
	}
	all := make([]byte, size)
	at := all
	for i, ch := range chunks {
		if !pins.read(i, at[:ch.Len]) {
			gone = append(gone, i)
		}
		at = at[ch.Len:]
	}
	pins.release()
	if gone != nil {
		free()
		return b, nil, &missing{len(chunks), gone}
	}
	return objstore.Bytes(all), free, nil
}

// assembled reads a body out of the cache. It can be read again, as drivers do to tell a digest before the bytes.
type assembled struct {
	pins *pinned
	ends []int64 // of the chunks
	at   int64
	buf  []byte
	cur  int // chunk in buf, or -1
}

func newAssembled(pins *pinned) *assembled {
	a := &assembled{pins: pins, cur: -1}
	end := int64(0)
	for _, ch := range pins.chunks {
		end += int64(ch.Len)
		a.ends = append(a.ends, end)
	}
	return a
}

func (a *assembled) size() int64 {
	if len(a.ends) == 0 {
		return 0
	}
	return a.ends[len(a.ends)-1]
}

func (a *assembled) Read(p []byte) (int, error) {
	if a.at >= a.size() {
		return 0, io.EOF
	}
	i := sort.Search(len(a.ends), func(i int) bool { return a.ends[i] > a.at })
	n := int64(a.pins.chunks[i].Len)
	if i != a.cur {
		if a.buf == nil {
			a.buf = make([]byte, wire.MaxChunk)
		}
		a.cur = -1
		if !a.pins.read(i, a.buf[:n]) {
			for j := i + 1; j < len(a.ends); j++ { // so that one more try is enough
				a.pins.read(j, a.buf[:a.pins.chunks[j].Len])
			}
			return 0, fmt.Errorf("a chunk in the cache is not what was put there: %w", objstore.ErrTransient) // forgotten: the next try brings it again
		}
		a.cur = i
	}
	k := copy(p, a.buf[a.at-(a.ends[i]-n):n])
	a.at += int64(k)
	return k, nil
}

func (a *assembled) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += a.at
	case io.SeekEnd:
		off += a.size()
	}
	if off < 0 {
		return 0, errors.New("seek before the beginning")
	}
	a.at = off
	return off, nil
}

func (a *assembled) Close() error { return nil }
