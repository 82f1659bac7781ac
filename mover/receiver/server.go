package receiver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// Server is the gateway: flows, their targets, and the connections of their sources.
type Server struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	cat    *catalog.Catalog
	index  *catalog.Index
	codec  *chunker.Codec
	flows  map[string]*flow
	lines  []*line
	order  []string // keys, sorted
	bg     sync.WaitGroup

	// Three budgets, so that nobody waits for a buffer of a kind that he holds: in for payloads on their way in, plain for
	// decoded bytes, replay for the redo log's records. Order: in or replay, then plain.
	in, plain, replay *buffers.Pool
	linkSlots         int
	metrics           counters

	straight map[string]struct{} // keys of flows that may have a lease
	leaseMu  sync.Mutex
	lessees  map[*lessee]struct{} // guarded by leaseMu

	policyMu sync.Mutex // held while the policy is asked; before the flows' mu

	mu     sync.Mutex // guards all below
	conns  int        // whose peer is known
	hosts  map[string]int
	moving map[*objectConn]bool // connections of bucket flows
	closed bool
}

// New opens the state directory and all flows. A flow that cannot be opened is stopped with the reason in its Status; the others go on.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := tryPoints(cfg); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Log, flows: map[string]*flow{}, hosts: map[string]int{}, lessees: map[*lessee]struct{}{}, moving: map[*objectConn]bool{}}
	if s.straight, err = straights(cfg); err != nil {
		return nil, err
	}
	if s.cat, err = catalog.Open(cfg.StateDir); err != nil {
		return nil, err
	}
	if s.index, err = catalog.OpenIndex(s.cat.IndexDir(), cfg.IndexMemory, cfg.Log); err != nil {
		return nil, errors.Join(err, s.cat.Close())
	}
	if s.codec, err = chunker.NewCodec(chunker.CodecConfig{Encoders: runtime.NumCPU(), Decoders: runtime.NumCPU()}); err != nil {
		return nil, errors.Join(err, s.index.Close(), s.cat.Close())
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.in = buffers.New(inBuffer, cfg.Memory*45/100)
	s.plain = buffers.New(inBuffer, cfg.Memory*45/100)
	s.replay = buffers.New(applyBuffer, cfg.Memory/10)
	s.linkSlots = max(2, int(s.in.Limit()/int64(s.in.Size())/2))
	for _, fc := range cfg.Flows {
		f := &flow{s: s, cfg: fc, key: fc.Key(), gate: newGate(), attaching: make(chan struct{}, 1), since: time.Now()}
		f.log = cfg.Log.With("flow", f.key)
		s.flows[f.key] = f
		s.order = append(s.order, f.key)
	}
	slices.Sort(s.order)
	if err := s.openLines(); err != nil {
		s.codec.Close()
		return nil, errors.Join(err, s.index.Close(), s.in.Close(), s.plain.Close(), s.replay.Close(), s.cat.Close())
	}
	for _, l := range s.lines {
		s.bg.Go(func() { l.run(s.ctx) })
	}
	s.log.Info("gateway starts", "agent", cfg.Agent, "flows", len(s.order), "state", cfg.StateDir)
	for _, key := range s.order {
		if err := s.flows[key].load(); err != nil {
			s.flows[key].log.Warn("flow is stopped", "error", err)
		}
	}
	return s, nil
}

// Serve accepts connections of sources until ctx ends or the Server is closed. With Config.TLS, l gives plain connections; else
// it has to be what wire.NewListener made. l is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.cfg.TLS != nil {
		l = wire.NewListener(l, s.cfg.TLS)
	}
	done := make(chan struct{})
	defer close(done)
	if !s.start(func() {
		select {
		case <-ctx.Done():
		case <-s.ctx.Done():
		case <-done:
		}
		_ = l.Close()
	}) {
		return l.Close()
	}
	for {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil || s.ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of descriptors, or a peer that went away at once: neither ends a gateway.
			s.log.Warn("accept a connection", "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			case <-s.ctx.Done():
			}
			continue
		}
		if !s.start(func() { s.serve(nc) }) { // the listener bounds those who are not known yet
			closeRaw(nc)
		}
	}
}

// start runs fn in a goroutine that Close waits for; false: the Server is closed.
func (s *Server) start(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.bg.Go(fn)
	return true
}

// closeRaw closes without a TLS goodbye, which could block.
func closeRaw(nc net.Conn) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	nc.Close()
}

// Close ends all connections, waits for what is being written, and closes everything. Passes that are open stay so in their logs.
func (s *Server) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	stopping := &wire.Error{Code: wire.CodeStopping, RetryMS: 2_000, Text: "the gateway is stopping"}
	for _, f := range s.flows {
		if l := f.currentLink(); l != nil {
			l.end(stopping)
		}
	}
	for _, c := range s.objectConns() {
		c.end(stopping)
	}
	s.cancel()
	s.bg.Wait()
	for _, l := range s.lines {
		l.mu.Lock()
		l.save(time.Now(), false)
		l.mu.Unlock()
	}
	for _, f := range s.flows {
		f.teardown()
	}
	s.codec.Close()
	return errors.Join(s.index.Close(), s.in.Close(), s.plain.Close(), s.replay.Close(), s.cat.Close())
}

func (s *Server) flow(key string) (*flow, error) {
	if f := s.flows[key]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("flow %s is not configured at this gateway: %w", key, sentinel.ErrNotFound)
}

// Claim takes a flow's target for it, so that its source may overwrite it. A target that is not blank needs overwrite. The text
// says what was claimed.
func (s *Server) Claim(ctx context.Context, key string, overwrite bool) (string, error) {
	f, err := s.flow(key)
	if err != nil {
		return "", err
	}
	if err := f.exclusiveBroken(ctx, nil); err != nil {
		return "", err
	}
	defer f.gate.unwhole()
	found, err := s.cfg.Inspect(f.cfg.Target)
	if errors.Is(err, sentinel.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%s does not exist; it will be made as an image file when the source first connects", f.cfg.Target), nil
	}
	if err != nil {
		return "", fmt.Errorf("look at target %s: %w", f.cfg.Target, err)
	}
	if r, ok := s.cat.Get(key); ok && r.Target.Identity != "" {
		if catalog.Who(r.Target.Identity) != catalog.Who(found.Identity) || r.Target.Path != f.cfg.Target {
			return "", fmt.Errorf("flow %s has claimed %s (%s) already; drop that claim first: %w", key, r.Target.Path, r.Target.Identity, sentinel.ErrRefused)
		}
		return fmt.Sprintf("%s is claimed by flow %s already", f.cfg.Target, key), nil
	}
	if !found.Blank && !overwrite {
		return "", fmt.Errorf("target %s is not blank (%v); claim it with --overwrite if nothing on it is needed: %w", f.cfg.Target, found.Signatures, sentinel.ErrRefused)
	}
	r := catalog.Record{Tenant: f.cfg.Tenant, Host: f.cfg.Host, Name: f.cfg.Name, Phase: mover.Fresh,
		Target: catalog.Target{Path: f.cfg.Target, Identity: found.Identity, Size: found.Size, Claimed: time.Now().UTC()}}
	if old, ok := s.cat.Get(key); ok {
		r.Number = old.Number
	}
	if _, err := s.cat.Put(r); err != nil {
		return "", err
	}
	f.log.Info("target claimed", "target", f.cfg.Target, "identity", found.Identity, "size", found.Size, "was_blank", found.Blank)
	if err := f.load(); err != nil {
		// The claim is no use while the target cannot be opened: say so at once, not to the source.
		return "", errors.Join(err, s.cat.Drop(key))
	}
	return fmt.Sprintf("claimed %s (%s, %d bytes) for flow %s", f.cfg.Target, found.Identity, found.Size, key), nil
}

// Drop forgets a flow's claim with its table and log. The target keeps its bytes.
func (s *Server) Drop(ctx context.Context, key string) error {
	f, err := s.flow(key)
	if err != nil {
		return err
	}
	if l := f.currentLink(); l != nil {
		l.end(&wire.Error{Code: wire.CodeRefused, Text: "the operator dropped the claim of flow " + key})
	}
	if err := f.exclusiveBroken(ctx, nil); err != nil {
		return err
	}
	defer f.gate.unwhole()
	f.teardown()
	if err := s.cat.Drop(key); err != nil {
		return err
	}
	f.granted.Store(0)
	f.mu.Lock()
	f.last = nil
	f.mu.Unlock()
	f.log.Warn("claim dropped", "target", f.cfg.Target)
	_ = f.load() // shows what an unclaimed flow shows
	return nil
}

// dedupScope is what flows share whose leaves may answer each other's offers. Names hold no slash, so that no tenant's scope is a host's.
func (f *flow) dedupScope() string {
	if f.s.cfg.TenantDedup {
		return f.cfg.Tenant
	}
	return f.cfg.Tenant + "/" + f.cfg.Host
}

// targetOf lends another flow's target of the same scope for reading candidates; done gives it back.
func (f *flow) targetOf(number uint32) (t blockdev.Target, done func()) {
	key, ok := f.s.cat.ByNumber(number)
	o := f.s.flows[key]
	if !ok || o == nil || o.dedupScope() != f.dedupScope() {
		return nil, nil
	}
	o.targetMu.RLock()
	if o.target == nil {
		o.targetMu.RUnlock()
		return nil, nil
	}
	return o.target, o.targetMu.RUnlock
}
