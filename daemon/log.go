package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/moverd/mover/internal/logbuf"
)

// Log is the daemon's log. It never waits for its reader, who may be stuck on a filesystem that is frozen.
type Log struct {
	*slog.Logger
	buf *logbuf.Handler
}

// NewLog makes a log of text lines at out.
func NewLog(out io.Writer, level slog.Leveler) *Log {
	h := logbuf.New(out, 0, func(w io.Writer) slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	})
	return &Log{Logger: slog.New(h), buf: h}
}

// quiet holds the log back while writers stand still.
func (l *Log) quiet(on bool) {
	if on {
		l.buf.Hold()
	} else {
		l.buf.Release()
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
