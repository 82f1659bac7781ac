package sender

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

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
	"golang.org/x/sync/errgroup"
)

// errDown: the link has no connection now. Nothing is wrong with the flow; it goes on when there is one again.
var errDown = errors.New("no connection to the gateway")

// errSpent: a connection has sent as much as one key should and is to be replaced at once.
var errSpent = errors.New("connection has sent its share")

// handler is the pass under way, as the link sees it. Methods are called by the readers of connections and must not wait for the line.
type handler interface {
	need(c *conn, seq uint32, m *wire.Need)
	pages(c *conn, seq uint32, m *wire.Pages)
	again(c *conn, seq uint32)
	ack(m *wire.Ack)
	differ(c *conn, seq uint32, m *wire.Differ) bool // false: not one of the pass
	lost(c *conn)
}

// link keeps cfg.Conns connections to the gateway and redials what breaks. Which batch is on which connection is the pass's business.
type link struct {
	cfg    Config
	paths  []*path
	prefer [][]int // of each slot
	log    *slog.Logger
	wants  func() (class shape.Class, backlog int64) // what the flow would send now; may be nil

	seq     atomic.Uint32 // of requests; the top bit tells them from batches
	in, out atomic.Int64  // bytes of connections that have ended
	losses  atomic.Int64
	heard   atomic.Int64 // frames of the gateway, without keep-alives

	hmu     sync.RWMutex // held while the handler is called; before mu
	handler handler      // may be nil

	mu      sync.Mutex // guards all below
	id      mover.ID
	conns   []*conn // live
	window  int64   // what WELCOME allows
	keeps   bool    // the gateway knows KEEP
	state   mover.FlowState
	fatal   error         // nobody dials until reset
	why     string        // of the last failure to connect
	next    time.Time     // of the next try
	notice  wire.Notice   // last one
	noticed time.Time     // when it came
	changed chan struct{} // closed and replaced when anything above changes
	waiting map[uint32]*waiter
}

// conn is one live connection.
type conn struct {
	*wire.Conn
	slot int
	path int
	id   mover.ID      // of the link that it belongs to
	load atomic.Int64  // plain bytes of batches on it
	gone chan struct{} // closed when it is of no more use
	err  error         // why; set before gone and the channels of waiters are closed

	quiet  bool // carries no batches
	moving bool // its slot goes to another path: it gets nothing more; guarded by link.mu
}

func newLink(cfg Config, paths []Path, log *slog.Logger) *link {
	return &link{cfg: cfg, paths: newPaths(paths), prefer: preferences(paths, cfg.Conns), log: log, id: newID(), changed: make(chan struct{}), waiting: map[uint32]*waiter{}}
}

func newID() (id mover.ID) {
	rand.Read(id[:])
	return id
}

// run dials until ctx ends.
func (l *link) run(ctx context.Context) error {
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
func (l *link) slot(ctx context.Context, slot int) error {
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
		if permanent(err) {
			d = 64 * l.cfg.BackOff // somebody has to do something first
		}
		l.setWhy(err, time.Now().Add(d))
		l.rest(ctx, d)
	}
}

// mendable tells whether what stopped the link may be mended at the gateway, so that looking now and then is worth it. Who was fenced
// stays away. mu is held.
func (l *link) mendable() bool { return l.fatal != nil && !errors.Is(l.fatal, sentinel.ErrFenced) }

// rest waits for d, or until the operator resets the link.
func (l *link) rest(ctx context.Context, d time.Duration) {
	id := l.linkID()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_ = l.until(ctx, func() bool { return l.id != id })
}

// connect makes one connection and serves it until it ends. up tells whether it was welcomed.
func (l *link) connect(ctx context.Context, slot, path int, quiet bool) (up bool, err error) {
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
	c := &conn{Conn: wire.NewConn(nc), slot: slot, path: path, id: id, quiet: quiet, gone: make(chan struct{})}
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
		return false, errDown // reset meanwhile
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

func (l *link) hello(c *conn, id mover.ID) error {
	err := c.Write(wire.TypeHello, 0, &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Capabilities: wire.CapZstd | wire.CapKeep | wire.CapShape | wire.CapPages,
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
			l.gotNotice(f.Payload)
			continue
		}
		if f.Type != wire.TypeWelcome {
			return fmt.Errorf("%w: %v instead of WELCOME", sentinel.ErrProtocol, f.Type)
		}
		var w wire.Welcome
		if err := w.Decode(f.Payload); err != nil {
			return err
		}
		if w.Version != wire.Version || w.Capabilities&wire.CapZstd == 0 {
			return fmt.Errorf("%w: the gateway speaks version %d with capabilities %#x, this program version %d with zstd",
				sentinel.ErrNotSupported, w.Version, w.Capabilities, wire.Version)
		}
		c.SetKeepalive(w.KeepaliveMS)
		if c.quiet {
			c.SetKeepalive(uint32(quietPulse.Milliseconds()))
		}
		l.mu.Lock()
		p := l.paths[c.path]
		if p.shaped = w.Capabilities&wire.CapShape != 0; p.shaped && !c.quiet {
			c.SetPace(packets{p.pace, &p.held, c.MSS(), shape.Headers(c.IPv6())})
		}
		l.state, l.window, l.keeps = flowState(&w.State), int64(min(w.Window, 1<<40)), w.Capabilities&wire.CapKeep != 0
		l.mu.Unlock()
		return nil
	}
}

func flowState(s *wire.FlowState) mover.FlowState {
	return mover.FlowState{Phase: mover.Phase(s.Phase), Generation: s.Generation, Epoch: s.Epoch, VolumeSize: int64(s.VolumeSize),
		TargetSize: int64(s.TargetSize), Pass: s.Pass, Mode: mover.Mode(s.Mode), Known: s.Known, Identity: s.Identity}
}

// read serves the frames of one connection. It never writes.
func (l *link) read(c *conn) error {
	var need wire.Need
	var pages wire.Pages
	var ack wire.Ack
	var differ wire.Differ
	var grant wire.Grant
	for {
		f, err := c.ReadFrame(nil)
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeNeed:
			if err = need.Decode(f.Payload); err == nil {
				l.call(func(h handler) { h.need(c, f.Seq, &need) })
			}
		case wire.TypePages:
			if err = pages.Decode(f.Payload); err == nil {
				l.call(func(h handler) { h.pages(c, f.Seq, &pages) })
			}
		case wire.TypeAgain:
			l.call(func(h handler) { h.again(c, f.Seq) })
		case wire.TypeAck:
			if err = ack.Decode(f.Payload); err == nil {
				l.call(func(h handler) { h.ack(&ack) })
			}
		case wire.TypeDiffer:
			taken := false
			if err = differ.Decode(f.Payload); err == nil {
				l.call(func(h handler) { taken = h.differ(c, f.Seq, &differ) })
				if !taken {
					err = l.answer(f)
				}
			}
		case wire.TypeNotice:
			l.gotNotice(f.Payload)
		case wire.TypeGrant:
			if err = grant.Decode(f.Payload); err == nil {
				l.granted(c, &grant)
			}
		case wire.TypeOpened, wire.TypeCommitted, wire.TypeAborted, wire.TypeRoot, wire.TypeReleased, wire.TypeFlowState, wire.TypeKept:
			err = l.answer(f)
		default:
			err = fmt.Errorf("%w: %v is not for a source", sentinel.ErrProtocol, f.Type)
		}
		if err != nil {
			return err
		}
	}
}

// handle sets who gets the answers to batches; nil: nobody. When it returns, nobody calls the one before.
func (l *link) handle(h handler) {
	l.hmu.Lock()
	defer l.hmu.Unlock()
	l.handler = h
}

func (l *link) call(f func(handler)) {
	l.hmu.RLock()
	defer l.hmu.RUnlock()
	if l.handler != nil {
		f(l.handler)
	}
}

func (l *link) gotNotice(p []byte) {
	var n wire.Notice
	if n.Decode(p) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notice, l.noticed = n, time.Now()
	l.change()
}

// lose takes a connection out and wakes whoever waits on it.
func (l *link) lose(ctx context.Context, c *conn, err error) error {
	l.in.Add(c.WireIn())
	l.out.Add(c.WireOut())
	l.mu.Lock()
	c.err = err
	asked := false
	for seq, w := range l.waiting {
		if w.conn == c {
			asked = true
			delete(l.waiting, seq)
			close(w.ch)
		}
	}
	for i, o := range l.conns {
		if o == c {
			l.conns = append(l.conns[:i:i], l.conns[i+1:]...)
			break
		}
	}
	if c.quiet && l.paths[c.path].quiet == c {
		l.fellSilent(c.path)
	}
	close(c.gone)
	l.change()
	l.mu.Unlock()
	l.call(func(h handler) { h.lost(c) })
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

// permanent tells whether nothing goes on until the operator, here or at the gateway, has done something.
func permanent(err error) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && (e.Code == wire.CodeDenied || e.Code == wire.CodeFenced || e.Code == wire.CodeRefused || e.Code == wire.CodeVersion)
}

// judge ends the dialling when err is permanent. What a connection of an older link hears, fenced by our own newer one, is not.
func (l *link) judge(id mover.ID, err error) error {
	if permanent(err) {
		l.mu.Lock()
		if id != l.id {
			err = errDown
		} else if l.fatal == nil {
			l.fatal = err
			l.change()
		}
		l.mu.Unlock()
	}
	return err
}

// reset forgets a permanent error and, with a new id, takes the flow over from whoever has it now.
func (l *link) reset() {
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

// renew begins a new link, so that nothing of the old one is carried out once the new one is welcomed (C8). Who was fenced takes nothing over.
func (l *link) renew() {
	if !errors.Is(l.view().fatal, sentinel.ErrFenced) {
		l.reset()
	}
}

func (l *link) linkID() mover.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *link) setWhy(err error, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) == 0 && err != nil {
		l.why, l.next = err.Error(), next
		l.change()
	}
}

// change wakes everyone in until. mu is held.
func (l *link) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// until waits for cond, which is called with mu held.
func (l *link) until(ctx context.Context, cond func() bool) error {
	for {
		l.mu.Lock()
		ok, ch := cond(), l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
