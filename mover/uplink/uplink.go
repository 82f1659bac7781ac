// Package uplink keeps a source's connections to its gateway: over the ways that there are, with failover, each within what the gateway grants of its line. What
// goes over them is the business of its User: batches of a volume (mover/sender), or objects. What goes over the same line past the gateway has a Past.
package uplink

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// ErrDown: the link has no connection now. Nothing is wrong with the flow; it goes on when there is one again.
var ErrDown = errors.New("no connection to the gateway")

// errSpent: a connection has sent as much as one key should and is to be replaced at once.
var errSpent = errors.New("connection has sent its share")

// Config of a Link.
type Config struct {
	Flow         string        // as the gateway knows it
	Agent        string        // what HELLO tells about this program
	Conns        int           // that carry data; 0 in a Past
	BackOff      time.Duration // first wait after a lost connection, doubling up to 16 times that
	ConnBytes    int64         // sent on a connection before it is replaced by one with new keys; 0: wire.MaxConnBytes
	Capabilities uint64        // that HELLO announces beside zstd and shape
	Needs        uint64        // of those, what the gateway has to announce too; zstd always
	Paths        []Path        // to the gateway, at least one
	Log          *slog.Logger
}

// User is who works over a Link. None of its methods may wait for the line.
type User interface {
	// Welcomed hears what the gateway says of the flow, before c is used; an error ends c.
	Welcomed(c *Conn, w *wire.Welcome) error
	// Took gets each frame that is not about the link, NOTICE too, on the reader of c; an error ends c.
	Took(c *Conn, f wire.Frame) error
	// Lost hears, once, that a connection which was welcomed is of no more use. true: somebody waited for an answer on it, and judges its error himself.
	Lost(c *Conn) bool
	// Asked tells whether somebody waits for an answer on c, which therefore is not replaced now. It must not call the Link.
	Asked(c *Conn) bool
	// Wants is what the flow would send now: for what, and about how many bytes of the line.
	Wants() (class shape.Class, backlog int64)
}

// Link keeps Config.Conns connections to the gateway and dials again what breaks. Safe for concurrent use; Run is called once.
type Link struct {
	cfg    Config
	user   User
	paths  []*path
	prefer [][]int // of each slot
	log    *slog.Logger

	in, out atomic.Int64 // bytes of connections that have ended
	losses  atomic.Int64
	heard   atomic.Int64 // frames of the gateway before WELCOME, and this

	mu      sync.Mutex // guards all below
	id      mover.ID
	conns   []*Conn       // live
	fatal   error         // nobody dials until Reset
	why     string        // of the last failure to connect
	next    time.Time     // of the next try
	changed chan struct{} // closed and replaced when anything above changes, or by Wake
}

// Conn is one live connection. Its reader is the Link's.
type Conn struct {
	*wire.Conn
	Load atomic.Int64  // bytes of what is under way on it, as its user counts them
	Gone chan struct{} // closed, by the Link, when it is of no more use
	Err  error         // why; set before Gone is closed

	slot   int
	path   int
	id     mover.ID // of the link that it belongs to
	quiet  bool     // carries no data
	moving bool     // its slot goes to another path: it gets nothing more; guarded by Link.mu
}

// New makes a link; nothing is dialled before Run.
func New(cfg Config, user User) *Link {
	if cfg.ConnBytes == 0 {
		cfg.ConnBytes = wire.MaxConnBytes
	}
	if cfg.BackOff == 0 {
		cfg.BackOff = 500 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Needs |= wire.CapZstd
	cfg.Capabilities |= wire.CapZstd | wire.CapShape
	return &Link{cfg: cfg, user: user, paths: newPaths(cfg.Paths), prefer: preferences(cfg.Paths, cfg.Conns), log: cfg.Log, id: newID(), changed: make(chan struct{})}
}

func newID() (id mover.ID) {
	rand.Read(id[:])
	return id
}

// Run dials until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for slot := range l.cfg.Conns {
		g.Go(func() error { return l.slot(ctx, slot) })
	}
	for i := range l.paths {
		g.Go(func() error { return l.hush(ctx, i) })
	}
	g.Go(func() error { return l.rehome(ctx) })
	g.Go(func() error { return l.demand(ctx) })
	return g.Wait()
}

// slot keeps one connection. Only slot 0 dials while there is none at all: a gateway that is down is not asked by all of them.
func (l *Link) slot(ctx context.Context, slot int) error {
	wait := l.cfg.BackOff
	for {
		path := 0
		if err := l.until(ctx, func() bool {
			path = l.choose(slot)
			return path >= 0 && (l.fatal == nil && (slot == 0 || len(l.conns) > 0) || slot == 0 && l.mendable())
		}); err != nil {
			return nil
		}
		up, err := l.connect(ctx, slot, path, false)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errSpent) {
			continue
		}
		if up {
			wait = l.cfg.BackOff
		}
		d := time.Duration(float64(wait) * (0.75 + mathrand.Float64()/2))
		if e, ok := errors.AsType[*wire.Error](err); ok {
			d = max(d, e.RetryAfter())
		}
		wait = min(2*wait, 16*l.cfg.BackOff)
		if Permanent(err) {
			d = 64 * l.cfg.BackOff // somebody has to do something first
		}
		l.setWhy(err, time.Now().Add(d))
		l.rest(ctx, d)
	}
}

// mendable tells whether what stopped the link may be mended at the gateway, so that looking now and then is worth it. Who was fenced
// stays away. mu is held.
func (l *Link) mendable() bool { return l.fatal != nil && !errors.Is(l.fatal, sentinel.ErrFenced) }

// rest waits for d, or until the operator resets the link.
func (l *Link) rest(ctx context.Context, d time.Duration) {
	id := l.linkID()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_ = l.until(ctx, func() bool { return l.id != id })
}

// connect makes one connection and serves it until it ends. up tells whether it was welcomed.
func (l *Link) connect(ctx context.Context, slot, path int, quiet bool) (up bool, err error) {
	patience := wire.DeadMS * time.Millisecond
	if quiet && len(l.paths) > 1 {
		patience = quietPatience
	}
	dctx, cancel := context.WithTimeout(ctx, patience)
	nc, err := l.paths[path].Dial(dctx)
	cancel()
	if err != nil {
		return false, l.judge(l.linkID(), wire.Explain(err))
	}
	id := l.linkID()
	c := &Conn{Conn: wire.NewConn(nc), slot: slot, path: path, id: id, quiet: quiet, Gone: make(chan struct{})}
	c.SetPatience(patience)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	if err := l.hello(c, id); err != nil {
		return false, l.judge(id, err)
	}
	l.mu.Lock()
	if id != l.id {
		l.mu.Unlock()
		return false, ErrDown // reset meanwhile
	}
	if p := l.paths[path]; quiet {
		p.quiet, p.since, p.askedAt = c, time.Now(), time.Time{}
	} else {
		l.conns = append(l.conns, c)
		l.smooth(c)
	}
	if l.mendable() {
		l.fatal = nil
	}
	l.why, l.next = "", time.Time{}
	l.change()
	l.mu.Unlock()

	kctx, kstop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error {
		err := c.Keepalive(kctx)
		if err != nil {
			c.Close()
		}
		return nil
	})
	err = l.read(c)
	kstop()
	c.Close()
	g.Wait()
	return true, l.lose(ctx, c, err)
}

func (l *Link) hello(c *Conn, id mover.ID) error {
	err := c.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Capabilities: l.cfg.Capabilities,
		Link: id, Conn: uint8(c.slot), Flow: l.cfg.Flow, Agent: l.cfg.Agent})
	if err != nil {
		return err
	}
	for {
		f, err := c.ReadFrame(nil)
		if err != nil {
			return err
		}
		l.heard.Add(1)
		if f.Type == wire.TypeNotice {
			if err := l.user.Took(c, f); err != nil {
				return err
			}
			continue
		}
		if f.Type != wire.TypeWelcome {
			return fmt.Errorf("%w: %v instead of WELCOME", sentinel.ErrProtocol, f.Type)
		}
		var w wire.Welcome
		if err := w.Decode(f.Payload); err != nil {
			return err
		}
		if w.Version != wire.Version || w.Capabilities&l.cfg.Needs != l.cfg.Needs {
			return fmt.Errorf("%w: the gateway speaks version %d with capabilities %#x, this program version %d and needs %#x",
				sentinel.ErrNotSupported, w.Version, w.Capabilities, wire.Version, l.cfg.Needs)
		}
		c.SetKeepalive(w.KeepaliveMS)
		if c.quiet {
			c.SetKeepalive(uint32(quietPulse.Milliseconds()))
		}
		l.mu.Lock()
		p := l.paths[c.path]
		if p.leased != nil {
			if p.free.Store(w.Capabilities&wire.CapShape == 0); p.free.Load() {
				p.said()
			}
		}
		if p.shaped = w.Capabilities&wire.CapShape != 0; p.shaped && !c.quiet {
			c.SetPace(packets{p.pace, &p.held, c.MSS(), shape.Headers(c.IPv6())})
		}
		l.mu.Unlock()
		return l.user.Welcomed(c, &w)
	}
}

// read serves the frames of one connection. It never writes.
func (l *Link) read(c *Conn) error {
	var grant wire.Grant
	for {
		f, err := c.ReadFrame(nil)
		if err != nil {
			return err
		}
		if f.Type != wire.TypeGrant {
			err = l.user.Took(c, f)
		} else if err = grant.Decode(f.Payload); err == nil {
			l.granted(c, &grant)
		}
		if err != nil {
			return err
		}
	}
}

// lose takes a connection out and wakes whoever waits on it.
func (l *Link) lose(ctx context.Context, c *Conn, err error) error {
	l.in.Add(c.WireIn())
	l.out.Add(c.WireOut())
	l.mu.Lock()
	c.Err = err
	if i := slices.Index(l.conns, c); i >= 0 {
		l.conns = append(l.conns[:i:i], l.conns[i+1:]...)
	}
	if c.quiet && l.paths[c.path].quiet == c {
		l.fellSilent(c.path)
	}
	close(c.Gone)
	l.change()
	l.mu.Unlock()
	asked := l.user.Lost(c)
	if ctx.Err() != nil {
		return err
	}
	if l.spent(c) {
		l.log.Debug("connection replaced", "conn", c.slot, "sent", c.WireOut())
		return errSpent
	}
	if c.moving {
		return errSpent
	}
	if !c.quiet {
		l.losses.Add(1)
	}
	l.log.Debug("connection lost", "conn", c.slot, "link", l.paths[c.path].Name, "err", err)
	if asked {
		return err // the one that asked judges
	}
	return l.judge(c.id, err)
}

// Permanent tells whether nothing goes on until the operator, here or at the gateway, has done something.
func Permanent(err error) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && (e.Code == wire.CodeDenied || e.Code == wire.CodeFenced || e.Code == wire.CodeRefused || e.Code == wire.CodeVersion)
}

// judge ends the dialling when err is permanent. What a connection of an older link hears, fenced by our own newer one, is not.
func (l *Link) judge(id mover.ID, err error) error {
	if Permanent(err) {
		l.mu.Lock()
		if id != l.id {
			err = ErrDown
		} else if l.fatal == nil {
			l.fatal = err
			l.change()
		}
		l.mu.Unlock()
	}
	return err
}

// Reset forgets a permanent error and, with a new id, takes the flow over from whoever has it now.
func (l *Link) Reset() {
	l.mu.Lock()
	l.fatal, l.why, l.id = nil, "", newID()
	conns := slices.Clone(l.conns)
	for _, p := range l.paths {
		if p.quiet != nil {
			conns = append(conns, p.quiet)
		}
	}
	l.change()
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// Renew begins a new link, so that nothing of the old one is carried out once the new one is welcomed (C8). Who was fenced takes nothing over.
func (l *Link) Renew() {
	if !errors.Is(l.State().Fatal, sentinel.ErrFenced) {
		l.Reset()
	}
}

func (l *Link) linkID() mover.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *Link) setWhy(err error, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) == 0 && err != nil {
		l.why, l.next = err.Error(), next
		l.change()
	}
}
