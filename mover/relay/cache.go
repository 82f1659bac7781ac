package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/room"
	"github.com/moverd/mover/wire"
)

// cache keeps chunks on disk, in segments that are written from front to back; the oldest segment that nobody reads makes room for another. Where a chunk lies is
// known in memory only, so a cache begins empty. What it says of a chunk is a hint: who reads one digests it (C7). A chunk is found by those of its scope only.
type cache struct {
	dir     string
	most    int64 // bytes of all segments
	segment int64 // of one
	chunks  int   // in the index, at most

	mu    sync.Mutex // guards all below
	freed *sync.Cond // something was unpinned
	index map[uint64]place
	segs  []*segment // oldest first; the last one is written to
	no    uint32
	drops int64
	shut  bool
}

// place is where a chunk lies.
type place struct{ scope, seg, off, n uint32 }

type segment struct {
	no   uint32
	f    *os.File
	at   int64    // bytes that are written, or about to be
	keys []uint64 // of its chunks
	pins int      // who reads or writes in it
}

const (
	segmentSize = 64 << 20
	leastCache  = 4 * segmentSize
	// indexEntry is what a chunk costs in memory, the map's slack included.
	indexEntry = 64
	suffix     = ".chunks"
	// spareRoom is what a cache leaves free on its filesystem.
	spareRoom = 256 << 20
)

// openCache begins with an empty cache of at most size bytes, and memory bytes of index.
func openCache(dir string, size, memory int64) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the chunk cache: %w", err)
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look at the chunk cache: %w", err)
	}
	for _, e := range old {
		if strings.HasSuffix(e.Name(), suffix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("empty the chunk cache: %w", err)
			}
		}
	}
	c := &cache{dir: dir, most: size, segment: min(segmentSize, size/4), chunks: max(1000, int(memory/indexEntry)), index: map[uint64]place{}}
	c.freed = sync.NewCond(&c.mu)
	return c, nil
}

func (c *cache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	c.freed.Broadcast()
	var errs []error
	for _, s := range c.segs {
		errs = append(errs, s.f.Close(), os.Remove(s.f.Name()))
	}
	c.segs, c.index = nil, nil
	return errors.Join(errs...)
}

// keyOf mixes the scope in, so that what one scope has stored does not stand in another one's way.
func keyOf(scope uint32, d digest.Digest) uint64 {
	return binary.BigEndian.Uint64(d[:]) ^ uint64(scope)*0x9e3779b97f4a7c15
}

// has tells whether a chunk is said to be there.
func (c *cache) has(scope uint32, ch wire.Chunk) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.index[keyOf(scope, ch.Digest)]
	return ok && p.scope == scope && p.n == ch.Len
}

// put keeps a chunk.
func (c *cache) put(ctx context.Context, scope uint32, d digest.Digest, b []byte) error {
	key := keyOf(scope, d)
	c.mu.Lock()
	if p, ok := c.index[key]; ok && p.scope == scope && int(p.n) == len(b) {
		c.mu.Unlock()
		return nil
	}
	s, err := c.writable(ctx, int64(len(b)))
	if err != nil {
		c.mu.Unlock()
		return err
	}
	off := s.at
	s.at += int64(len(b))
	s.pins++
	c.mu.Unlock()
	_, err = s.f.WriteAt(b, off)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unpin(s)
	if err != nil {
		return fmt.Errorf("write to the chunk cache: %w", err)
	}
	if c.shut {
		return errClosed
	}
	c.index[key] = place{scope, s.no, uint32(off), uint32(len(b))}
	s.keys = append(s.keys, key)
	return nil
}

// writable is the segment that has room for n bytes. mu is held, but while it waits.
func (c *cache) writable(ctx context.Context, n int64) (*segment, error) {
	for {
		if c.shut {
			return nil, errClosed
		}
		if k := len(c.segs); k > 0 && c.segs[k-1].at+n <= c.segment && len(c.index) < c.chunks {
			return c.segs[k-1], nil
		}
		if int64(len(c.segs)+1)*c.segment <= c.most && len(c.index) < c.chunks && c.roomy() || len(c.segs) == 0 {
			if err := c.grow(); err != nil {
				return nil, err
			}
			continue
		}
		dropped, err := c.drop()
		if err == nil && !dropped { // all are being read; none of the readers waits for us
			err = c.wait(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// roomy tells whether the filesystem has room for one more segment.
func (c *cache) roomy() bool {
	free, _, err := room.Of(c.dir)
	return err != nil || free > spareRoom+c.segment
}

func (c *cache) grow() error {
	c.no++
	f, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("%08x%s", c.no, suffix)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make a segment of the chunk cache: %w", err)
	}
	c.segs = append(c.segs, &segment{no: c.no, f: f})
	return nil
}

// drop removes the oldest segment that nobody reads.
func (c *cache) drop() (bool, error) {
	for i, s := range c.segs {
		if s.pins > 0 {
			continue
		}
		c.segs = append(c.segs[:i:i], c.segs[i+1:]...)
		for _, key := range s.keys {
			if c.index[key].seg == s.no {
				delete(c.index, key)
			}
		}
		c.drops++
		return true, errors.Join(s.f.Close(), os.Remove(s.f.Name()))
	}
	return false, nil
}

func (c *cache) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.freed.Broadcast()
	})()
	c.freed.Wait()
	return ctx.Err()
}

func (c *cache) unpin(s *segment) {
	if s.pins--; s.pins == 0 {
		c.freed.Broadcast()
	}
}

// pin holds the segments of chunks, and tells which of these are not there; then nothing is held.
func (c *cache) pin(scope uint32, chunks []wire.Chunk) (p *pinned, missing []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = &pinned{c: c, scope: scope, chunks: chunks, at: make([]place, len(chunks)), segs: map[uint32]*segment{}}
	for i, ch := range chunks {
		at, ok := c.index[keyOf(scope, ch.Digest)]
		if !ok || at.scope != scope || at.n != ch.Len {
			missing = append(missing, i)
			continue
		}
		p.at[i] = at
		if p.segs[at.seg] == nil {
			p.segs[at.seg] = c.find(at.seg)
		}
	}
	if len(missing) > 0 {
		return nil, missing
	}
	for _, s := range p.segs {
		s.pins++
	}
	return p, nil
}

func (c *cache) find(no uint32) *segment {
	for _, s := range c.segs {
		if s.no == no {
			return s
		}
	}
	return nil
}

// pinned is chunks whose segments stay.
type pinned struct {
	c      *cache
	scope  uint32
	chunks []wire.Chunk
	at     []place
	segs   map[uint32]*segment
}

// read reads chunk i into b, which has its length. false: it is not what it should be, and is forgotten (C7).
func (p *pinned) read(i int, b []byte) bool {
	at := p.at[i]
	n, err := p.segs[at.seg].f.ReadAt(b, int64(at.off))
	if err == nil && n == len(b) && digest.Sum(b) == p.chunks[i].Digest {
		return true
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if key := keyOf(p.scope, p.chunks[i].Digest); p.c.index[key] == at {
		delete(p.c.index, key)
	}
	return false
}

func (p *pinned) release() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, s := range p.segs {
		p.c.unpin(s)
	}
}

// figures tells bytes on disk, chunks, and segments that were dropped.
func (c *cache) figures() (bytes int64, chunks int, dropped int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.segs {
		bytes += s.at
	}
	return bytes, len(c.index), c.drops
}
