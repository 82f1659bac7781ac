package daemon

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/logbuf"
)

// Log is the daemon's log. It never waits for its reader, who may be stuck on a filesystem that is frozen.
type Log struct {
	*slog.Logger
	buf   *logbuf.Handler
	trail *audit.Trail // held with the log; may be nil
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
			if l.trail != nil {
				l.trail.Hold()
			}
		case !on && held:
			l.buf.Release()
			if l.trail != nil {
				if err := l.trail.Release(); err != nil {
					l.Error("the audit trail cannot be written; records wait in memory", "error", err)
				}
			}
		}
		held = on
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
