package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// ServerConfig is the gateway's end. Zero values are the defaults given.
type ServerConfig struct {
	Dir       string // of the chunk cache
	CacheSize int64  // bytes on disk; 4 GiB, at least 256 MiB
	Index     int64  // bytes of memory for where chunks lie; 32 MiB
	Memory    int64  // bytes of batches, bodies and calls under way, over all flows; 192 MiB, at least 64 MiB
	NoDedup   bool   // every chunk is asked for
	Flows     []FlowConfig
	Log       *slog.Logger
}

// FlowConfig is a bucket that a source may reach.
type FlowConfig struct {
	Tenant, Host, Name string
	Scope              string // whose chunks answer its offers
	Store              string // what Open opens, for people
	Target             string // as a policy names it
	Root               string // what keys of the source are put behind; it sees nothing else
	// Open opens the store, once; after an error again. regions: where its bucket may be; nil: anywhere.
	Open func(ctx context.Context) (s objstore.Store, regions []string, err error)
}

// Key is TENANT/HOST/NAME.
func (f FlowConfig) Key() string { return f.Tenant + "/" + f.Host + "/" + f.Name }

// Server carries out what sources ask of stores.
type Server struct {
	cfg    ServerConfig
	log    *slog.Logger
	cache  *cache
	codec  *chunker.Codec
	flows  map[string]*flow
	order  []string
	scopes map[string]uint32

	// Three budgets, so that nobody waits for memory of a kind that he holds: in for frames, plain for unpacked batches, bodies for objects on their way to a store.
	in, plain, bodies budget
}

// budget is bytes of memory.
type budget struct {
	*semaphore.Weighted
	most int64
	used *atomic.Int64
}

func newBudget(n int64) budget { return budget{semaphore.NewWeighted(n), n, new(atomic.Int64)} }

// take waits for n bytes; more than there are count as all.
func (b budget) take(ctx context.Context, n int64) (done func(), err error) {
	n = min(n, b.most)
	if err := b.Acquire(ctx, n); err != nil {
		return nil, err
	}
	b.used.Add(n)
	return func() {
		b.used.Add(-n)
		b.Release(n)
	}, nil
}

// flow is one bucket with what was done with it.
type flow struct {
	cfg   FlowConfig
	log   *slog.Logger
	scope uint32
	since time.Time

	opening chan struct{} // capacity 1: taken while the store is opened
	counts  served

	mu    sync.Mutex // guards all below
	store objstore.Store
	name  string
	why   error // of the last try to open it
	tried time.Time
	conns map[*serving]bool
	in    int64 // wire bytes of connections that have ended
	out   int64
	last  error
}

// served counts what a flow's connections have done.
type served struct {
	calls, failures, objects, bytes, offered, needed, packed, missing atomic.Int64
}

const (
	leastMemory = 64 << 20
	openAgain   = 2 * time.Second
)

// NewServer empties the chunk cache. Stores are opened when somebody asks for them.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.CacheSize == 0 {
		cfg.CacheSize = 4 << 30
	}
	if cfg.Index == 0 {
		cfg.Index = 32 << 20
	}
	if cfg.Memory == 0 {
		cfg.Memory = 192 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	switch {
	case cfg.CacheSize < leastCache:
		return nil, fmt.Errorf("a chunk cache of %d bytes, at least %d are needed: %w", cfg.CacheSize, leastCache, sentinel.ErrUsage)
	case cfg.Memory < leastMemory:
		return nil, fmt.Errorf("%d bytes of memory, at least %d are needed: %w", cfg.Memory, leastMemory, sentinel.ErrUsage)
	}
	s := &Server{cfg: cfg, log: cfg.Log, flows: map[string]*flow{}, scopes: map[string]uint32{},
		in: newBudget(cfg.Memory / 3), plain: newBudget(cfg.Memory / 3), bodies: newBudget(cfg.Memory / 3)}
	var err error
	if s.codec, err = chunker.NewCodec(chunker.CodecConfig{}); err != nil {
		return nil, err
	}
	if s.cache, err = openCache(cfg.Dir, cfg.CacheSize, cfg.Index); err != nil {
		s.codec.Close()
		return nil, err
	}
	for _, c := range cfg.Flows {
		n, ok := s.scopes[c.Scope]
		if !ok {
			n = uint32(len(s.scopes) + 1)
			s.scopes[c.Scope] = n
		}
		f := &flow{cfg: c, log: cfg.Log.With("flow", c.Key()), scope: n, since: time.Now(), opening: make(chan struct{}, 1), conns: map[*serving]bool{}}
		s.flows[c.Key()] = f
		s.order = append(s.order, c.Key())
	}
	slices.Sort(s.order)
	return s, nil
}

// Close closes the stores. No connection may be served any more.
func (s *Server) Close() error {
	var errs []error
	for _, key := range s.order {
		f := s.flows[key]
		f.mu.Lock()
		if f.store != nil {
			errs = append(errs, f.store.Close())
		}
		f.mu.Unlock()
	}
	s.codec.Close()
	return errors.Join(append(errs, s.cache.close())...)
}

// Target names what a bucket flow writes, as a policy does; false: there is no such flow.
func (s *Server) Target(key string) (string, bool) {
	f := s.flows[key]
	if f == nil {
		return "", false
	}
	return f.cfg.Target, true
}

// opened gives the flow's store. It was looked at before anybody gets it: where its bucket is (C19).
func (f *flow) opened(ctx context.Context) (objstore.Store, error) {
	select {
	case f.opening <- struct{}{}:
		defer func() { <-f.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f.mu.Lock()
	st, why, tried := f.store, f.why, f.tried
	f.mu.Unlock()
	if st != nil {
		return st, nil
	}
	if why != nil && time.Since(tried) < openAgain {
		return nil, why
	}
	st, regions, err := f.cfg.Open(ctx)
	if err == nil {
		if err = objstore.Located(ctx, st, regions, "gateway.regions"); err != nil {
			err = errors.Join(err, st.Close())
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tried = time.Now(); err != nil {
		f.why = fmt.Errorf("the gateway cannot open the store of flow %s: %w", f.cfg.Name, err)
		f.last = f.why
		f.log.Warn("the store of a bucket flow cannot be opened", "store", f.cfg.Store, "error", err)
		return nil, f.why
	}
	f.store, f.name, f.why = under(st, f.cfg.Root), st.String(), nil
	f.log.Info("the store of a bucket flow is open", "store", f.name)
	return f.store, nil
}

// most is the bytes of a body: all its chunks have to be in the cache at once, and those of others beside.
func (s *Server) most() int64 { return s.cfg.CacheSize / 16 / (1 << 20) * (1 << 20) }

// traits is what a store is, as a source sees it.
func (s *Server) traits(f *flow, st objstore.Store) wire.StoreTraits {
	l := st.Limits()
	least := func(a, b int64) uint64 {
		if a == 0 || b > 0 && b < a {
			a = b
		}
		return uint64(a)
	}
	t := wire.StoreTraits{Name: st.String(), Rule: l.Rule, Root: f.cfg.Root, Put: least(l.Put, s.most()), PartLeast: uint64(l.PartLeast), PartAlign: uint64(l.PartAlign),
		PartMost: least(l.PartMost, s.most()), Parts: uint32(l.Parts), List: uint32(max(1, min(l.List, wire.MaxPage))), Batch: uint32(max(1, min(l.Batch, wire.MaxPage))),
		Meta: uint32(l.Meta)}
	if t.Parts == 0 || t.Parts > wire.MaxParts {
		t.Parts = wire.MaxParts
	}
	t.Object = least(l.Object, int64(t.Parts)*int64(t.PartMost))
	return t
}
