package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// serving is one connection of a source: a reader, which also takes chunks in, and a goroutine for each call. The source's reader never writes, so ours may.
type serving struct {
	s      *Server
	f      *flow
	wc     *wire.Conn
	ctx    context.Context
	slots  chan struct{} // calls under way
	wg     sync.WaitGroup
	offers map[uint32][]wire.Chunk // that NEED has asked for. Used by the reader only

	mu     sync.Mutex // guards all below
	calls  map[uint32]context.CancelFunc
	bodies map[uint32]*opened
}

// opened is an object that a source reads.
type opened struct {
	mu   sync.Mutex // held while it is read
	body io.ReadCloser
	err  error // of the last read, told with the next one
}

const (
	callsMost  = 1024 // of a connection; behind that it is not read from
	offersMost = 16   // of a connection that DATA is still to come for
	bodiesMost = 512  // of a connection
)

// Serve answers the calls of a connection whose HELLO named a flow of this Server and got its WELCOME. It ends when the peer goes, with what the peer did wrong, or
// with ctx; nothing of the connection is under way then. The connection is the caller's to close, and to tell why.
func (s *Server) Serve(ctx context.Context, key string, wc *wire.Conn) error {
	f := s.flows[key]
	if f == nil {
		return fmt.Errorf("bucket flow %s is not configured at this gateway: %w", key, sentinel.ErrNotFound)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &serving{s: s, f: f, wc: wc, ctx: ctx, slots: make(chan struct{}, callsMost), offers: map[uint32][]wire.Chunk{},
		calls: map[uint32]context.CancelFunc{}, bodies: map[uint32]*opened{}}
	f.mu.Lock()
	f.conns[c] = true
	f.mu.Unlock()
	c.wg.Go(func() {
		if err := wc.Keepalive(ctx); err != nil {
			wc.Close()
		}
	})
	err := c.read()
	cancel()
	c.wg.Wait()
	for _, o := range c.bodies {
		o.body.Close()
	}
	f.mu.Lock()
	delete(f.conns, c)
	f.in, f.out = f.in+wc.WireIn(), f.out+wc.WireOut()
	if err == io.EOF {
		err = nil
	} else {
		f.last = err
	}
	f.mu.Unlock()
	return err
}

// read serves frames until the connection ends, io.EOF, or breaks.
func (c *serving) read() error {
	for {
		var done func()
		f, err := c.wc.ReadFrame(func(n int) []byte {
			var err error
			if done, err = c.s.in.take(c.ctx, int64(n)); err != nil {
				return nil
			}
			return make([]byte, n)
		})
		if err == nil {
			err = c.frame(f)
		}
		if done != nil {
			done()
		}
		if err != nil {
			return err
		}
	}
}

func (c *serving) frame(f wire.Frame) error {
	switch f.Type {
	case wire.TypeCall:
		return c.called(f)
	case wire.TypeChunks:
		m := new(wire.Chunks)
		if err := m.Decode(f.Payload); err != nil {
			return err
		}
		return c.offered(f.Seq, m)
	case wire.TypeData:
		m := new(wire.Data)
		if err := m.Decode(f.Payload); err != nil {
			return err
		}
		return c.data(f.Seq, m)
	}
	return fmt.Errorf("a source of objects does not send %v: %w", f.Type, sentinel.ErrProtocol)
}

// offered answers which chunks are needed.
func (c *serving) offered(seq uint32, m *wire.Chunks) error {
	if len(c.offers) >= offersMost {
		return fmt.Errorf("more than %d batches of chunks wait for their bytes: %w", offersMost, sentinel.ErrProtocol)
	}
	if c.offers[seq] != nil {
		return fmt.Errorf("seq %d was offered already: %w", seq, sentinel.ErrProtocol)
	}
	n := &wire.Need{N: uint16(len(m.Chunks)), Bitmap: make([]byte, wire.BitmapSize(len(m.Chunks)))}
	var need []wire.Chunk
	for i, ch := range m.Chunks {
		c.f.counts.offered.Add(int64(ch.Len))
		if !c.s.cfg.NoDedup && c.s.cache.has(c.f.scope, ch) {
			n.Copied++
			continue
		}
		wire.SetBit(n.Bitmap, i)
		need = append(need, ch)
		c.f.counts.needed.Add(int64(ch.Len))
	}
	if need != nil {
		c.offers[seq] = need
	}
	return c.wc.Write(wire.TypeNeed, seq, n)
}

// data takes needed chunks in. Each is digested before it is kept (C7).
func (c *serving) data(seq uint32, m *wire.Data) error {
	need := c.offers[seq]
	if need == nil {
		return fmt.Errorf("DATA for what was not needed: %w", sentinel.ErrProtocol)
	}
	delete(c.offers, seq)
	all := 0
	for _, ch := range need {
		all += int(ch.Len)
	}
	if all != int(m.Plain) {
		return fmt.Errorf("DATA of %d bytes, %d are needed: %w", m.Plain, all, sentinel.ErrProtocol)
	}
	c.f.counts.packed.Add(int64(len(m.Payload)))
	plain := m.Payload
	if m.Codec == wire.CodecZstd {
		done, err := c.s.plain.take(c.ctx, int64(m.Plain))
		if err != nil {
			return err
		}
		defer done()
		if plain, err = c.s.codec.Decompress(make([]byte, 0, m.Plain), m.Payload, int(m.Plain)); err != nil {
			return err
		}
	}
	for _, ch := range need {
		b := plain[:ch.Len]
		plain = plain[ch.Len:]
		if digest.Sum(b) != ch.Digest {
			return fmt.Errorf("a chunk of %d bytes is not what was offered: %w", ch.Len, sentinel.ErrCorrupt)
		}
		if err := c.s.cache.put(c.ctx, c.f.scope, ch.Digest, b); err != nil {
			return err
		}
	}
	return nil
}

// called begins a call.
func (c *serving) called(f wire.Frame) error {
	m := new(wire.Call)
	if err := m.Decode(f.Payload); err != nil {
		return err
	}
	if m.Op == wire.OpDrop {
		c.drop(m.Of)
		return c.answer(f.Seq, &wire.Result{Op: m.Op})
	}
	done, err := c.s.in.take(c.ctx, int64(len(f.Payload)))
	if err != nil {
		return err
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		done()
		return c.ctx.Err()
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	c.calls[f.Seq] = cancel
	c.mu.Unlock()
	c.wg.Go(func() {
		defer func() {
			cancel()
			done()
			<-c.slots
		}()
		r := c.do(ctx, f.Seq, m)
		c.mu.Lock()
		delete(c.calls, f.Seq)
		c.mu.Unlock()
		c.f.counts.calls.Add(1)
		if r.Kind > wire.ResultMissing {
			c.f.counts.failures.Add(1)
		}
		if err := c.answer(f.Seq, r); err != nil {
			c.wc.Close() // the reader tells
		}
	})
	return nil
}

// answer sends a RESULT. A store that tells what fits into none fails the call, not the connection.
func (c *serving) answer(seq uint32, r *wire.Result) error {
	err := c.wc.Write(wire.TypeResult, seq, r)
	if errors.Is(err, sentinel.ErrProtocol) {
		err = c.wc.Write(wire.TypeResult, seq, &wire.Result{Op: r.Op, Kind: wire.ResultFinal, Failure: wire.Failure{Text: fmt.Sprintf("what the store answers does not fit into a frame: %v", err)}})
	}
	return err
}

// drop ends a call that nobody waits for, and closes what it has opened.
func (c *serving) drop(of uint32) {
	c.mu.Lock()
	cancel, o := c.calls[of], c.bodies[of]
	delete(c.bodies, of)
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if o != nil {
		o.body.Close()
	}
}

// keep keeps an object open until it is dropped.
func (c *serving) keep(ctx context.Context, seq uint32, body io.ReadCloser) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ctx.Err() != nil: // it was dropped
		return errors.Join(ctx.Err(), body.Close())
	case len(c.bodies) >= bodiesMost:
		return errors.Join(fmt.Errorf("the source reads %d objects at once: %w", bodiesMost, objstore.ErrSlowDown), body.Close())
	}
	c.bodies[seq] = &opened{body: body}
	return nil
}
