package sender

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// pieceSize is the largest single read: several of them are under way for one buffer.
const pieceSize = 1 << 20

// reader reads extents of the volume with a fixed number of reads under way, whoever asks, and within the read rate.
type reader struct {
	skip  bool // unreadable blocks become zeros and are noted
	reads chan piece

	served atomic.Int64 // reads that have ended

	mu     sync.Mutex      // guards all below
	vol    blockdev.Volume // or a view of it
	cap    *rate.Limiter   // nil: none
	hurry  bool            // no cap: the writers stand still
	bad    *extent.Set     // unreadable blocks, as last seen
	nowBad bool            // bad is not empty
}

// piece is one read.
type piece struct {
	buf  []byte
	off  int64
	done *pieces
}

// pieces are the reads of one buffer.
type pieces struct {
	wg  sync.WaitGroup
	mu  sync.Mutex // guards all below
	err error      // first error
	bad []extent.Extent
}

// readError says which bytes could not be read.
type readError struct {
	ext extent.Extent
	err error
}

func (e *readError) Error() string {
	if text := e.err.Error(); strings.Contains(text, e.ext.String()) {
		return text // a disk names them by itself
	}
	return fmt.Sprintf("read bytes %v: %v", e.ext, e.err)
}
func (e *readError) Unwrap() error { return e.err }

func newReader(vol blockdev.Volume, cfg Config) *reader {
	r := &reader{vol: vol, skip: cfg.OnReadError == "skip", reads: make(chan piece),
		bad: extent.NewSet(vol.Size(), int64(vol.BlockSize()))}
	r.limit(cfg.ReadRate)
	return r
}

// limit sets the read rate in bytes per second; 0: none.
func (r *reader) limit(perSecond int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cap = nil
	if perSecond > 0 {
		r.cap = rate.NewLimiter(rate.Limit(perSecond), chunker.BatchSize)
	}
}

// from has all that is read from now on read from vol: the volume, or a view of it. Nobody reads while it is called.
func (r *reader) from(vol blockdev.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.vol = vol
}

func (r *reader) volume() blockdev.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.vol
}

// run serves reads with depth goroutines until ctx ends.
func (r *reader) run(ctx context.Context, depth int) error {
	var g errgroup.Group
	for range depth {
		g.Go(func() error {
			for {
				select {
				case p := <-r.reads:
					r.serve(ctx, p)
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	return g.Wait()
}

func (r *reader) serve(ctx context.Context, p piece) {
	defer p.done.wg.Done()
	defer r.served.Add(1)
	if err := r.throttle(ctx, len(p.buf)); err != nil {
		p.done.fail(err)
		return
	}
	vol := r.volume()
	n, err := vol.ReadAt(p.buf, p.off)
	if n == len(p.buf) {
		r.good(extent.Extent{Off: p.off, Len: int64(n)})
		return
	}
	if err == nil {
		err = fmt.Errorf("%d of %d bytes", n, len(p.buf))
	}
	if r.skip && vol.Check() == nil {
		r.blocks(ctx, vol, p)
		return
	}
	p.done.fail(find(vol, p, err))
}

func (r *reader) throttle(ctx context.Context, n int) error {
	r.mu.Lock()
	limiter := r.cap
	if r.hurry {
		limiter = nil
	}
	r.mu.Unlock()
	if limiter == nil {
		return ctx.Err()
	}
	return limiter.WaitN(ctx, n)
}

// find narrows an error down to the first block that cannot be read, for the operator.
func find(vol blockdev.Volume, p piece, err error) error {
	bs := vol.BlockSize()
	for at := 0; at < len(p.buf); at += bs {
		b := p.buf[at:min(at+bs, len(p.buf))]
		if n, e := vol.ReadAt(b, p.off+int64(at)); n < len(b) && e != nil {
			return &readError{extent.Extent{Off: p.off + int64(at), Len: int64(len(b))}, e}
		}
	}
	return &readError{extent.Extent{Off: p.off, Len: int64(len(p.buf))}, err}
}

// blocks reads block by block and puts zeros where that is impossible.
func (r *reader) blocks(ctx context.Context, vol blockdev.Volume, p piece) {
	bs := vol.BlockSize()
	for at := 0; at < len(p.buf) && ctx.Err() == nil; at += bs {
		b := p.buf[at:min(at+bs, len(p.buf))]
		e := extent.Extent{Off: p.off + int64(at), Len: int64(len(b))}
		if n, _ := vol.ReadAt(b, e.Off); n == len(b) {
			r.good(e)
			continue
		}
		clear(b)
		p.done.mu.Lock()
		p.done.bad = append(p.done.bad, e)
		p.done.mu.Unlock()
		r.mu.Lock()
		r.bad.Add(e)
		r.nowBad = true
		r.mu.Unlock()
	}
	if err := ctx.Err(); err != nil {
		p.done.fail(err)
	}
}

// good forgets that bytes were unreadable once: a rewritten sector is often whole again.
func (r *reader) good(e extent.Extent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nowBad {
		r.bad.Remove(e)
		r.nowBad = !r.bad.Empty()
	}
}

func (p *pieces) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// read fills buf with the extents, one behind the other. bad are unreadable blocks that zeros stand in for.
func (r *reader) read(ctx context.Context, ext []extent.Extent, buf []byte) (bad []extent.Extent, err error) {
	var p pieces
	at := int64(0)
send:
	for _, e := range ext {
		for e.Len > 0 {
			n := min(e.Len, pieceSize)
			p.wg.Add(1)
			select {
			case r.reads <- piece{buf[at : at+n], e.Off, &p}:
			case <-ctx.Done():
				p.wg.Done()
				p.fail(context.Cause(ctx))
				break send
			}
			at, e.Off, e.Len = at+n, e.Off+n, e.Len-n
		}
	}
	p.wg.Wait()
	return p.bad, p.err
}

// inHurry lifts the cap on the read rate.
func (r *reader) inHurry(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hurry = yes
}

// unreadable lists what zeros stand in for.
func (r *reader) unreadable() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := range r.bad.All() {
		if out = append(out, e.String()); len(out) == maxNamed {
			return append(out, "and more")
		}
	}
	return out
}

// maxNamed is the most extents that are named to people.
const maxNamed = 1000
