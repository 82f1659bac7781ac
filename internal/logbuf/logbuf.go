// Package logbuf keeps logging from blocking the program. The reader of a log pipe (journald, a shipper) may itself be stuck on a
// filesystem that this program froze; a log call that waits for it would wait for ever, and the thaw with it.
//
// Records are formatted by the caller, queued in bounded memory and written by one goroutine. When the queue is full the oldest
// records go, and their number is logged in their place. Hold stops even that goroutine, for the time of a freeze.
package logbuf

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Limit is the default of New's limit in bytes.
const Limit = 1 << 20

// Handler is a slog.Handler that never waits for its output.
type Handler struct {
	slog.Handler // formats into q
	q            *queue
}

// New makes a handler that writes what format produces to out, keeping at most limit bytes of formatted records (0: Limit). format
// makes a handler that writes each record by one call of Write, as those of slog do. Close ends it.
func New(out io.Writer, limit int, format func(io.Writer) slog.Handler) *Handler {
	if limit <= 0 {
		limit = Limit
	}
	q := &queue{out: out, limit: limit, note: format(out), done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return &Handler{Handler: format(q), q: q}
}

// WithAttrs is slog.Handler's.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{Handler: h.Handler.WithAttrs(attrs), q: h.q}
}

// WithGroup is slog.Handler's.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{Handler: h.Handler.WithGroup(name), q: h.q}
}

// Hold keeps all records in memory until Release; holds nest. A record that is being written when Hold is called may still be written.
func (h *Handler) Hold() { h.q.hold(1) }

// Release undoes one Hold.
func (h *Handler) Release() { h.q.hold(-1) }

// Flush waits until everything logged before is written, or ctx ends. It waits in vain while on hold.
func (h *Handler) Flush(ctx context.Context) error { return h.q.flush(ctx) }

// Dropped is the number of records that were dropped, ever.
func (h *Handler) Dropped() int64 {
	h.q.mu.Lock()
	defer h.q.mu.Unlock()
	return h.q.dropped
}

// Close writes what is left, also when on hold, for as long as ctx lasts, and ends the handler: later records are dropped.
func (h *Handler) Close(ctx context.Context) error {
	h.q.close()
	select {
	case <-h.q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// queue is an io.Writer whose Write never waits for out.
type queue struct {
	out   io.Writer
	limit int
	note  slog.Handler // formats straight to out; used by run only
	done  chan struct{}

	mu      sync.Mutex // guards all below; never held during a write to out
	changed sync.Cond
	lines   [][]byte
	bytes   int   // of lines
	wrote   int64 // records taken in, and those of them that are out or dropped
	gone    int64
	dropped int64 // ever
	unsaid  int64 // dropped and not logged yet
	held    int
	closed  bool
}

// Write takes one formatted record in.
func (q *queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.dropped++
		return len(p), nil
	}
	q.lines = append(q.lines, append([]byte(nil), p...))
	q.bytes += len(p)
	q.wrote++
	for q.bytes > q.limit && len(q.lines) > 0 {
		q.pop()
		q.gone++
		q.dropped++
		q.unsaid++
	}
	q.changed.Broadcast()
	return len(p), nil
}

// pop takes the oldest record out. mu is held.
func (q *queue) pop() []byte {
	line := q.lines[0]
	q.lines[0] = nil
	q.lines = q.lines[1:]
	q.bytes -= len(line)
	return line
}

// run writes records, until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for (len(q.lines) == 0 && q.unsaid == 0 || q.held > 0) && !q.closed {
			q.changed.Wait()
		}
		if len(q.lines) == 0 && q.unsaid == 0 {
			return
		}
		if n := q.unsaid; n > 0 {
			q.unsaid = 0
			q.mu.Unlock()
			r := slog.NewRecord(time.Now(), slog.LevelWarn, "log records were dropped", 0)
			r.AddAttrs(slog.Int64("count", n))
			q.note.Handle(context.Background(), r)
			q.mu.Lock()
			continue
		}
		line := q.pop()
		q.mu.Unlock()
		q.out.Write(line) // there is nowhere to tell an error
		q.mu.Lock()
		q.gone++
		q.changed.Broadcast()
	}
}

func (q *queue) hold(by int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held += by; q.held < 0 {
		panic("logbuf: release without hold")
	}
	q.changed.Broadcast()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Broadcast()
}

func (q *queue) flush(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.changed.Broadcast()
	})()
	q.mu.Lock()
	defer q.mu.Unlock()
	for target := q.wrote; q.gone < target; q.changed.Wait() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
