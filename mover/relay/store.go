package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/wire"
)

// Config of a Store. Zero values are the defaults given.
type Config struct {
	Flow  string // as the gateway has it
	Agent string // name and version for the gateway's logs
	// Dial makes a connection to the gateway, TLS handshake done.
	Dial   func(ctx context.Context) (net.Conn, error)
	Conns  int                        // connections at most; 4
	Level  chunker.Level              // of compression; Default
	Plain  bool                       // nothing is compressed
	Memory int64                      // bytes of chunks on their way; 64 MiB
	Rules  map[string]objstore.Rule   // what Limits.Rule names
	Pace   func(*wire.Conn) wire.Pace // what the data of a connection waits for; may be nil
	Log    *slog.Logger
}

// Store is a bucket behind a gateway. It has all abilities; those that the gateway's store lacks answer ErrNotSupported.
type Store struct {
	cfg    Config
	log    *slog.Logger
	codec  *chunker.Codec
	link   [16]byte
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	memory *semaphore.Weighted
	pack   chan *packer // idle ones; their number bounds the memory of batches
	counts counts

	mu      sync.Mutex // guards all below
	traits  *wire.StoreTraits
	limits  objstore.Limits
	conns   []*conn       // live
	dialing chan struct{} // closed when the dialling under way has ended; nil: none is
	why     error         // of the last dialling, if it failed
	next    time.Time     // of the next one
	closed  bool
}

const (
	batchMost  = 4 << 20                // plain bytes of a batch
	packers    = 3                      // batches that are packed at a time
	restAfter  = 500 * time.Millisecond // between connections that cannot be made
	dialLimit  = 30 * time.Second
	busyCalls  = 8 // of each connection before another one is made
	mostMemory = 1 << 40
)

// Open makes the first connection, and asks what the store behind it is.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Conns <= 0 {
		cfg.Conns = 4
	}
	cfg.Conns = min(cfg.Conns, wire.MaxConns)
	if cfg.Level == chunker.Off {
		cfg.Level = chunker.Default
	}
	if cfg.Plain {
		cfg.Level = chunker.Off
	}
	cfg.Memory = min(max(cfg.Memory, 0), mostMemory)
	if cfg.Memory == 0 {
		cfg.Memory = 64 << 20
	}
	cfg.Memory = max(cfg.Memory, 2*stretch)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	codec, err := chunker.NewCodec(chunker.CodecConfig{Encoders: packers})
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: cfg.Log, codec: codec, memory: semaphore.NewWeighted(cfg.Memory), pack: make(chan *packer, packers)}
	for range packers {
		s.pack <- &packer{}
	}
	rand.Read(s.link[:])
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if _, err := s.conn(ctx); err != nil {
		return nil, errors.Join(s.fail("open", "", err), s.Close())
	}
	return s, nil
}

// String is what the gateway says of its store.
func (s *Store) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traits == nil {
		return "the gateway's store of " + s.cfg.Flow
	}
	return s.traits.Name + " by the gateway"
}

// Format prints String for every verb.
func (s *Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Limits are those of the gateway's store, and of what a frame holds.
func (s *Store) Limits() objstore.Limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limits
}

// Close ends all connections. Calls under way end with an error.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	s.cancel()
	if again {
		return nil
	}
	for _, c := range conns {
		c.wc.Close()
	}
	s.wg.Wait()
	s.codec.Close()
	return nil
}

var errClosed = fmt.Errorf("the store is closed: %w", fs.ErrClosed)

// conn gives the connection that has the fewest calls, and makes another one where all are busy.
func (s *Store) conn(ctx context.Context) (*conn, error) {
	for tried := false; ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, errClosed
		}
		var best *conn
		live := 0
		for _, c := range s.conns {
			if c.spent() { // it ends with its last call
				continue
			}
			if live++; best == nil || c.load.Load() < best.load.Load() {
				best = c
			}
		}
		now := time.Now()
		if s.dialing == nil && live < s.cfg.Conns && !now.Before(s.next) && (best == nil || best.load.Load() >= busyCalls) && (!tried || s.why == nil) {
			s.dialing = make(chan struct{})
			s.wg.Go(s.dial)
		}
		dialing, why, rest := s.dialing, s.why, s.next.Sub(now)
		s.mu.Unlock()
		switch {
		case best != nil:
			return best, nil
		case dialing == nil && tried && why != nil:
			return nil, why
		case dialing == nil: // somebody else has just failed
			sleep(ctx, s.ctx, max(rest, time.Millisecond))
			continue
		}
		tried = true
		select {
		case <-dialing:
		case <-ctx.Done():
		}
	}
}

func sleep(ctx, over context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-over.Done():
	}
}

// dial makes one connection.
func (s *Store) dial() {
	ctx, cancel := context.WithTimeout(s.ctx, dialLimit)
	defer cancel()
	c, err := s.connect(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why = err; err != nil {
		s.next = time.Now().Add(restAfter)
		if e, ok := errors.AsType[*wire.Error](err); ok {
			s.next = s.next.Add(min(e.RetryAfter(), dialLimit))
		}
		s.log.Debug("no connection to the gateway", "flow", s.cfg.Flow, "error", err)
	} else {
		if !c.over { // it may have ended already
			s.conns = append(s.conns, c)
		}
		if s.closed {
			c.wc.Close()
		}
	}
	close(s.dialing)
	s.dialing = nil
}

// connect makes a connection and looks at what is behind it.
func (s *Store) connect(ctx context.Context) (*conn, error) {
	nc, err := s.cfg.Dial(ctx)
	if err != nil {
		return nil, s.broken(wire.Explain(err))
	}
	c := newConn(s, wire.NewConn(nc))
	stop := context.AfterFunc(ctx, func() { c.wc.Close() })
	err = c.hello()
	if err != nil {
		stop()
		c.wc.Close()
		if s.ctx.Err() != nil {
			err = errClosed
		}
		return nil, s.broken(err)
	}
	s.wg.Go(c.run)
	r, err := c.call(ctx, &wire.Call{Op: wire.OpOpen})
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && r.Kind != wire.ResultDone {
		err = failed("open", s.String(), "", r.Kind, r.Failure)
	}
	if err == nil {
		err = s.take(&r.Store)
	}
	if err != nil {
		c.wc.Close()
		return nil, err
	}
	return c, nil
}

// take learns what the store is; it stays that as long as this Store lives.
func (s *Store) take(t *wire.StoreTraits) error {
	rule, ok := s.cfg.Rules[t.Rule]
	if !ok {
		return fmt.Errorf("the gateway's store has a rule of keys that this program does not know, %q; upgrade it: %w", t.Rule, objstore.ErrNotSupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traits != nil {
		if *s.traits != *t {
			return fmt.Errorf("the gateway has another store behind flow %s now: %s, not %s: %w", s.cfg.Flow, t.Name, s.traits.Name, objstore.ErrRefused)
		}
		return nil
	}
	s.traits = t
	root := t.Root
	s.limits = objstore.Limits{Put: int64(t.Put), Object: int64(t.Object), PartLeast: int64(t.PartLeast), PartAlign: int64(t.PartAlign), PartMost: int64(t.PartMost),
		Parts: int(t.Parts), List: int(t.List), Batch: int(t.Batch), Meta: int(t.Meta), Rule: t.Rule, Header: rule.Header, Pair: rule.Pair,
		Key: func(key string) error {
			switch {
			case key == "":
				return errors.New("the key is empty")
			case len(root)+len(key) > wire.MaxKey:
				return fmt.Errorf("the key has %d bytes, the way to the gateway takes %d", len(key), wire.MaxKey-len(root))
			}
			return rule.Key(root + key)
		}}
	return nil
}

// forget takes a connection out that has ended.
func (s *Store) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.over = true
	if i := slices.Index(s.conns, c); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
	s.counts.in.Add(c.wc.WireIn())
	s.counts.out.Add(c.wc.WireOut())
}

// broken is an error of the line, with its kind.
func (s *Store) broken(err error) error {
	if errors.Is(err, fs.ErrClosed) && s.ctx.Err() != nil {
		return errClosed
	}
	if errors.As(err, new(*lineError)) {
		return err
	}
	return &lineError{lost(err), err}
}

// lineError is what ended a connection, or kept it from being made.
type lineError struct{ kind, err error }

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// fail makes an error of the contract.
func (s *Store) fail(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*objstore.Error](err); ok && e.Op == op && e.Key == key {
		return err
	}
	out := &objstore.Error{Op: op, Store: s.String(), Key: key, Err: err}
	if l, ok := errors.AsType[*lineError](err); ok {
		out.Kind = l.kind
	}
	return out
}

// counts are of all connections since Open.
type counts struct {
	in, out                                 atomic.Int64 // wire bytes of connections that have ended
	bodies, offered, needed, packed, resent atomic.Int64 // bytes
	calls                                   atomic.Int64
}

// Counts is what a Store has done since Open.
type Counts struct {
	Conns           int
	WireIn, WireOut int64 // bytes on the line, TLS included
	Bodies          int64 // bytes of the objects and parts that were put
	Offered         int64 // bytes of chunks that the gateway was asked about
	Needed          int64 // of those, that it needed
	Packed          int64 // what they had compressed
	Resent          int64 // bytes of chunks that were gone when they were used
	Calls           int64
}

// Plus adds up. Connections are those of o.
func (c Counts) Plus(o Counts) Counts {
	return Counts{o.Conns, c.WireIn + o.WireIn, c.WireOut + o.WireOut, c.Bodies + o.Bodies, c.Offered + o.Offered, c.Needed + o.Needed, c.Packed + o.Packed,
		c.Resent + o.Resent, c.Calls + o.Calls}
}

// Counts gives the figures of now.
func (s *Store) Counts() Counts {
	k := &s.counts
	out := Counts{WireIn: k.in.Load(), WireOut: k.out.Load(), Bodies: k.bodies.Load(), Offered: k.offered.Load(), Needed: k.needed.Load(), Packed: k.packed.Load(),
		Resent: k.resent.Load(), Calls: k.calls.Load()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		out.Conns++
		out.WireIn += c.wc.WireIn()
		out.WireOut += c.wc.WireOut()
	}
	return out
}
