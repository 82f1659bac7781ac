package flowtest

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover/receiver"
)

// copies keeps states of a rig's target in memory.
type copies struct {
	r *rig

	mu  sync.Mutex // guards all below
	all map[string]copied
}

type copied struct {
	at time.Time
	b  []byte
}

// keepPoints has the gateway keep copies of points.
func (r *rig) keepPoints() {
	r.copies = &copies{r: r, all: map[string]copied{}}
	r.gwConf = func(c *receiver.Config) {
		c.OpenPoints = func(string, string, string, string) (blockdev.Points, error) { return r.copies, nil }
		c.Flows[0].Points = receiver.PointsConfig{Method: "copy", Keep: moverKeep}
	}
}

func (c *copies) Method() string { return "copy" }

func (c *copies) Take(_ context.Context, name string) error {
	c.r.mu.Lock()
	target := c.r.target.Reopen()
	c.r.mu.Unlock()
	b := read(c.r.t, target, target.Size())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[name] = copied{time.Now(), b}
	return nil
}

func (c *copies) List(context.Context) (out []blockdev.Snapshot, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, k := range c.all {
		out = append(out, blockdev.Snapshot{Name: name, Time: k.at})
	}
	return out, nil
}

func (c *copies) Open(_ context.Context, name string) (blockdev.Kept, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.all[name]
	if !ok {
		return nil, sentinel.ErrNotFound
	}
	return kept(k.b), nil
}

func (c *copies) Remove(_ context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, name)
	return nil
}

func (c *copies) Holds(string) bool { return false }

// content is the bytes of a point, nil if there is none.
func (c *copies) content(name string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[name].b
}

type kept []byte

func (k kept) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, k[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (k kept) Size() int64  { return int64(len(k)) }
func (k kept) Path() string { return "" }
func (k kept) Close() error { return nil }
