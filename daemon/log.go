package daemon

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/moverd/mover/daemon/history"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/logbuf"
	"github.com/moverd/mover/mover"
)

// Log is the daemon's log. It never waits for its reader, who may be stuck on a filesystem that is frozen.
type Log struct {
	*slog.Logger
	buf   *logbuf.Handler
	trail *audit.Trail // held with the log, as the next; may be nil
	past  *history.Store
	later chan audit.Record // on their way to the trail
}

// NewLog makes a log of text lines at out.
func NewLog(out io.Writer, level slog.Leveler) *Log {
	h := logbuf.New(out, 0, func(w io.Writer) slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	})
	return &Log{Logger: slog.New(h), buf: h}
}

// quiet makes what holds the log back while the writers of one flow stand still, and lets it go. Saying the same twice changes nothing: a
// flow that was left frozen by an earlier process is let go without having been held by this one.
func (l *Log) quiet() func(bool) {
	var mu sync.Mutex
	held := false
	return func(on bool) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case on && !held:
			l.buf.Hold()
			l.hold()
		case !on && held:
			l.buf.Release()
			l.release()
		}
		held = on
	}
}

// hold keeps what is recorded about the daemon's work off the disk.
func (l *Log) hold() {
	if l.trail != nil {
		l.trail.Hold()
	}
	if l.past != nil {
		l.past.Hold()
	}
}

func (l *Log) release() {
	if l.past != nil {
		l.past.Release()
	}
	if l.trail == nil {
		return
	}
	if err := l.trail.Release(); err != nil {
		l.Error("the audit trail cannot be written; records wait in memory", "error", err)
	}
}

// record keeps what has happened already, in the trail and for reports: a disk that is full is told loudly, and stops nothing.
func (l *Log) record(r audit.Record) {
	switch {
	case strings.HasSuffix(r.Event, begins), strings.HasPrefix(r.Event, "link.refused"), strings.HasPrefix(r.Event, linkAccepted), strings.HasPrefix(r.Event, linkEnded):
	case r.Event == "flow.gap": // who lost it has told
	default:
		l.note(mover.Event{Time: r.Time, Kind: strings.TrimSuffix(r.Event, ends), Flow: r.Flow, Actor: r.Actor, Details: r.Details})
	}
	l.append(r)
}

// append keeps it in the trail only.
func (l *Log) append(r audit.Record) {
	if l.trail == nil {
		return
	}
	if err := l.trail.Append(r); err != nil {
		l.Error("the audit trail cannot be written; records wait in memory, cutover, claim and rollback are refused", "error", err)
	}
}

// note keeps an event for reports. It does not wait: what belongs into the trail too is written by who watches.
func (l *Log) note(e mover.Event) {
	if e.Kind == mover.PointEvent {
		r := audit.Record{Time: e.Time, Event: "point.kept", Flow: e.Flow, Details: map[string]any{"point": e.Text, "consistency": e.Consistency}}
		if e.Error != "" {
			r.Event, r.Details["error"] = "point.missed", cut(e.Error)
		}
		select {
		case l.later <- r:
		default: // a disk that hangs
		}
	}
	if l.past != nil {
		l.past.Note(e)
	}
}

// Close writes what is left.
func (l *Log) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return l.buf.Close(ctx)
}

// setLevel sets the level that the config names, unless the command line has named one.
func setLevel(o Options, name string) {
	if o.Level != nil {
		_ = o.Level.UnmarshalText([]byte(name)) // the config was checked
	}
}
