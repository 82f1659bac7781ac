package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
)

// ErrCrashed is what a Crash returns after its power cut.
var ErrCrashed = errors.New("injected: power cut")

const sector = 512

// Crash is a target with a volatile cache over another one: what was written and not synced is kept apart, and a power cut leaves any
// subset of it on the medium, down to single sectors of a write, in any order.
type Crash struct {
	t blockdev.Target

	mu      sync.RWMutex // guards all below; held for reading while the medium is read
	pending []change     // in the order of writing, since the last Sync
	crashed bool
}

var _ blockdev.Target = (*Crash)(nil)

// change is one write (data) or one Zero (nil data) that is not on the medium.
type change struct {
	e    extent.Extent
	data []byte
}

// NewCrash puts a volatile cache over t, which stands for the medium. Everything that is pending is kept in memory.
func NewCrash(t blockdev.Target) *Crash { return &Crash{t: t} }

func (c *Crash) Size() int64      { return c.t.Size() }
func (c *Crash) Identity() string { return c.t.Identity() }

// Pending is how many writes a power cut could drop now.
func (c *Crash) Pending() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.pending)
}

func (c *Crash) ReadAt(p []byte, off int64) (int, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.crashed {
		return 0, ErrCrashed
	}
	n, err := c.t.ReadAt(p, off)
	all := extent.Extent{Off: off, Len: int64(n)}
	for _, w := range c.pending {
		if x := w.e.Intersect(all); !x.Empty() {
			w.put(p[x.Off-off:x.End()-off], x)
		}
	}
	return n, err
}

// put fills p with what the change says about x.
func (w change) put(p []byte, x extent.Extent) {
	if w.data == nil {
		clear(p)
		return
	}
	copy(p, w.data[x.Off-w.e.Off:x.End()-w.e.Off])
}

func (c *Crash) WriteAt(p []byte, off int64) (int, error) {
	e := extent.Extent{Off: off, Len: int64(len(p))}
	if err := c.push(change{e, append([]byte{}, p...)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *Crash) Zero(e extent.Extent) error { return c.push(change{e: e}) }

func (c *Crash) push(w change) error {
	if w.e.Off < 0 || w.e.Len < 0 || w.e.Off > c.t.Size()-w.e.Len {
		return fmt.Errorf("bytes %v of a target of %d bytes", w.e, c.t.Size())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crashed {
		return ErrCrashed
	}
	if !w.e.Empty() {
		c.pending = append(c.pending, w)
	}
	return nil
}

// Sync brings everything pending to the medium. After an error the rest stays pending.
func (c *Crash) Sync() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crashed {
		return ErrCrashed
	}
	for len(c.pending) > 0 {
		if err := c.apply(c.pending[0], c.pending[0].e); err != nil {
			return err
		}
		c.pending = c.pending[1:]
	}
	return c.t.Sync()
}

// apply brings the part x of w to the medium. mu is held.
func (c *Crash) apply(w change, x extent.Extent) error {
	if w.data == nil {
		return c.t.Zero(x)
	}
	_, err := c.t.WriteAt(w.data[x.Off-w.e.Off:x.End()-w.e.Off], x.Off)
	return err
}

// Crash cuts the power: of each pending write all, nothing, or any choice of its sectors reaches the medium, by seed. From then on the
// Crash returns ErrCrashed; the medium, which is returned, can be put under a new one.
func (c *Crash) Crash(seed uint64) (blockdev.Target, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crashed = true
	r := rand.New(rand.NewPCG(seed, 3))
	keep := r.Float64() // some power cuts lose nearly everything, some nearly nothing
	for _, w := range c.pending {
		var err error
		switch {
		case r.Float64() < 0.3:
			err = c.tear(r, w)
		case r.Float64() < keep:
			err = c.apply(w, w.e)
		}
		if err != nil {
			return c.t, err
		}
	}
	c.pending = nil
	return c.t, c.t.Sync()
}

// tear applies runs of sectors of w. A large Zero is cut into 64 runs at most. mu is held.
func (c *Crash) tear(r *rand.Rand, w change) error {
	most := max(1, (w.e.Len+sector-1)/sector/64)
	for at := w.e.Off; at < w.e.End(); {
		n := (1 + r.Int64N(2*most)) * sector
		x := extent.Extent{Off: at, Len: min(n-at%sector, w.e.End()-at)}
		if r.IntN(2) == 0 {
			if err := c.apply(w, x); err != nil {
				return err
			}
		}
		at = x.End()
	}
	return nil
}

// Close writes back what is pending, as the kernel does some time after the last close, and closes the medium. After a Crash it does
// nothing.
func (c *Crash) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crashed {
		return nil
	}
	for _, w := range c.pending {
		if err := c.apply(w, w.e); err != nil {
			return err
		}
	}
	c.pending, c.crashed = nil, true
	return c.t.Close()
}
