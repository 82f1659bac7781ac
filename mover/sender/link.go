package sender

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// errDown: the link has no connection now. Nothing is wrong with the flow; it goes on when there is one again.
var errDown = uplink.ErrDown

// conn is one live connection. Its Load is the plain bytes of batches on it.
type conn = uplink.Conn

// handler is the pass under way, as the link sees it. Methods are called by the readers of connections and must not wait for the line.
type handler interface {
	need(c *conn, seq uint32, m *wire.Need)
	pages(c *conn, seq uint32, m *wire.Pages)
	again(c *conn, seq uint32)
	ack(m *wire.Ack)
	differ(c *conn, seq uint32, m *wire.Differ) bool // false: not one of the pass
	lost(c *conn)
}

// link is the flow's link to the gateway: what is asked and answered over it. Which batch is on which connection is the pass's business. Lock order: that of the
// uplink, mu.
type link struct {
	*uplink.Link
	wants func() (class shape.Class, backlog int64) // what the flow would send now; may be nil

	seq atomic.Uint32 // of requests; the top bit tells them from batches

	hmu     sync.RWMutex // held while the handler is called; before mu
	handler handler      // may be nil

	mu      sync.Mutex // guards all below
	window  int64      // what WELCOME allows
	keeps   bool       // the gateway knows KEEP
	state   mover.FlowState
	notice  wire.Notice // last one
	noticed time.Time   // when it came
	waiting map[uint32]*waiter
}

func newLink(cfg Config, paths []uplink.Path, log *slog.Logger) *link {
	l := &link{waiting: map[uint32]*waiter{}}
	l.Link = uplink.New(uplink.Config{Flow: cfg.Flow, Agent: cfg.Agent, Conns: cfg.Conns, BackOff: cfg.BackOff, ConnBytes: cfg.ConnBytes,
		Capabilities: wire.CapKeep | wire.CapPages, Paths: paths, Log: log}, l)
	return l
}

func newID() (id mover.ID) {
	rand.Read(id[:])
	return id
}

// Wants is what the flow would send now.
func (l *link) Wants() (class shape.Class, backlog int64) {
	if l.wants == nil {
		return 0, 0
	}
	return l.wants()
}

// Welcomed takes in where the flow stands at the gateway.
func (l *link) Welcomed(_ *conn, w *wire.Welcome) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.window, l.keeps = flowState(&w.State), int64(min(w.Window, 1<<40)), w.Capabilities&wire.CapKeep != 0
	return nil
}

func flowState(s *wire.FlowState) mover.FlowState {
	return mover.FlowState{Phase: mover.Phase(s.Phase), Generation: s.Generation, Epoch: s.Epoch, VolumeSize: int64(s.VolumeSize),
		TargetSize: int64(s.TargetSize), Pass: s.Pass, Mode: mover.Mode(s.Mode), Known: s.Known, Identity: s.Identity}
}

// Took serves one frame. It never writes.
func (l *link) Took(c *conn, f wire.Frame) (err error) {
	switch f.Type {
	case wire.TypeNeed:
		var m wire.Need
		if err = m.Decode(f.Payload); err == nil {
			l.call(func(h handler) { h.need(c, f.Seq, &m) })
		}
	case wire.TypePages:
		var m wire.Pages
		if err = m.Decode(f.Payload); err == nil {
			l.call(func(h handler) { h.pages(c, f.Seq, &m) })
		}
	case wire.TypeAgain:
		l.call(func(h handler) { h.again(c, f.Seq) })
	case wire.TypeAck:
		var m wire.Ack
		if err = m.Decode(f.Payload); err == nil {
			l.call(func(h handler) { h.ack(&m) })
		}
	case wire.TypeDiffer:
		var m wire.Differ
		taken := false
		if err = m.Decode(f.Payload); err == nil {
			l.call(func(h handler) { taken = h.differ(c, f.Seq, &m) })
			if !taken {
				err = l.answer(f)
			}
		}
	case wire.TypeNotice:
		l.gotNotice(f.Payload)
	case wire.TypeOpened, wire.TypeCommitted, wire.TypeAborted, wire.TypeRoot, wire.TypeReleased, wire.TypeFlowState, wire.TypeKept:
		err = l.answer(f)
	default:
		err = fmt.Errorf("%w: %v is not for a source", sentinel.ErrProtocol, f.Type)
	}
	return err
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
	l.notice, l.noticed = n, time.Now()
	l.mu.Unlock()
	l.Wake()
}

// Lost wakes whoever waits on a connection that is gone.
func (l *link) Lost(c *conn) (asked bool) {
	l.mu.Lock()
	for seq, w := range l.waiting {
		if w.conn == c {
			asked = true
			delete(l.waiting, seq)
			close(w.ch)
		}
	}
	l.mu.Unlock()
	l.call(func(h handler) { h.lost(c) })
	return asked
}

// Asked tells whether somebody waits for an answer on c.
func (l *link) Asked(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.waiting {
		if w.conn == c {
			return true
		}
	}
	return false
}
