// Package sender is the source's end of a flow: it reads a volume, sends passes to the gateway, and cuts over.
package sender

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

// Config of one flow. Zero values are the defaults.
type Config struct {
	Flow         string        // name of the flow, as the gateway knows it
	Device       string        // for people
	Gateway      string        // address, for people
	Agent        string        // what HELLO tells about this program
	Conns        int           // connections; default 4
	Interval     time.Duration // from the end of a pass to the next one; 0: back to back
	Window       int64         // plain bytes sent and not acked; default 256 MiB
	QueueDepth   int           // reads under way; default 16
	ReadRate     int64         // bytes per second; 0: no cap
	CPU          int           // cores for the whole process; 0: all
	Compression  string        // auto (default), off, fastest, default, better, best
	OnReadError  string        // stop (default), skip
	BackOff      time.Duration // first wait after a lost connection; default 500 ms, doubling up to 16 times that
	SnapshotFrom time.Duration // pause of a point from which on it is read from a snapshot, where that is possible; default 250 ms
	ConnBytes    int64         // sent on a connection before it is replaced by one with new keys; default wire.MaxConnBytes
}

// Deps is what a Flow works with. The Flow owns none of it: who made it closes it after Run has returned.
type Deps struct {
	Volume  blockdev.Volume
	Tracker blockdev.Tracker
	// Used returns the extents that the filesystem says are free; nil or an error that is ErrNotSupported: all is in use.
	// It is asked after the Take.
	Used    func(ctx context.Context) (free *extent.Set, err error)
	Freezer blockdev.Freezer
	Paths   []uplink.Path // to the gateway, at least one
	Table   string        // path of the digest table
	Buffers *buffers.Pool // of chunker.BatchSize bytes each; may be shared by flows
	Log     *slog.Logger
	// Quiet is called with true before a freeze and with false after the thaw: nothing may be written to disk in between. May be nil.
	Quiet func(bool)
	// Leave does what cutover was asked to leave the source as, "read-only" or "stopped", while it is still frozen; undo takes it
	// back (rollback; runs the start hook too). May be nil where nothing but "frozen" is offered.
	Leave func(ctx context.Context, as string, undo bool) error
	// Record keeps the report of a cutover for Report after a restart (nil: forget), on storage that is not frozen. May be nil.
	Record func(*mover.Report) error
	// Recorded is what Record kept before this start, or nil.
	Recorded *mover.Report
	// Snapshot gives what makes a view of the volume for one moment; an error says why there is none. May be nil.
	Snapshot func() (blockdev.Snapshotter, error)
	// Note is told what a report tells later: passes that ended, histories that were lost. It must not wait. May be nil.
	Note func(mover.Event)
	// Priority is shared by all flows of the process; nil: I/O priorities are left alone.
	Priority *Priority
}

// CutoverOptions say how far a cutover may go.
type CutoverOptions struct {
	Limit    time.Duration // longest pause that is asked for; default 1 s
	Deadline time.Duration // longest pause that is possible on the way to the verdict; default 10 s
	Timeout  time.Duration // for the rounds before the freeze; default 10 min
	Leave    string        // frozen (default), read-only, stopped
	Rehearse bool          // thaw after the verdict and go on
	Group    *Group        // those that do the same at the same moment, with equal options; nil: nobody
}

// VerifyOptions say what is compared.
type VerifyOptions struct {
	All bool // read every leaf again at both ends, not only those that were touched since they were last read
}

func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Conns, 4)
	def(&c.QueueDepth, 16)
	if c.Window == 0 {
		c.Window = 256 << 20
	}
	if c.CPU == 0 {
		c.CPU = runtime.NumCPU()
	}
	if c.Compression == "" {
		c.Compression = "auto"
	}
	if c.OnReadError == "" {
		c.OnReadError = "stop"
	}
	if c.BackOff == 0 {
		c.BackOff = 500 * time.Millisecond
	}
	if c.SnapshotFrom == 0 {
		c.SnapshotFrom = 250 * time.Millisecond
	}
	if c.ConnBytes == 0 {
		c.ConnBytes = wire.MaxConnBytes
	}
	if c.Agent == "" {
		c.Agent = "moverd"
	}
	return c
}

// Validate names the first field that is wrong.
func (c Config) Validate() error {
	bad := func(field string, v any, want string) error {
		return fmt.Errorf("%w: %s is %v, want %s", sentinel.ErrUsage, field, v, want)
	}
	switch {
	case c.Flow == "" || len(c.Flow) > 128:
		return bad("Flow", c.Flow, "1 to 128 bytes")
	case c.Conns < 0 || c.Conns > 16:
		return bad("Conns", c.Conns, "1 to 16")
	case c.QueueDepth < 0 || c.QueueDepth > 1024:
		return bad("QueueDepth", c.QueueDepth, "1 to 1024")
	case c.Window < 0 || c.ReadRate < 0 || c.CPU < 0 || c.Interval < 0 || c.BackOff < 0:
		return bad("Window, ReadRate, CPU, Interval or BackOff", "negative", "0 or more")
	case c.OnReadError != "" && c.OnReadError != "stop" && c.OnReadError != "skip":
		return bad("OnReadError", c.OnReadError, "stop or skip")
	}
	if _, ok := levels[c.Compression]; !ok && c.Compression != "" && c.Compression != "auto" {
		return bad("Compression", c.Compression, "auto, off, fastest, default, better or best")
	}
	return nil
}

// levels by name; the index is chunker.Level and mover.Levels' level.
var levels = map[string]int{"off": 0, "fastest": 1, "default": 2, "better": 3, "best": 4}

func (o CutoverOptions) withDefaults() CutoverOptions {
	if o.Limit == 0 {
		o.Limit = time.Second
	}
	if o.Deadline == 0 {
		o.Deadline = 10 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	if o.Leave == "" {
		o.Leave = "frozen"
	}
	return o
}

func (o CutoverOptions) validate() error {
	if o.Leave != "frozen" && o.Leave != "read-only" && o.Leave != "stopped" {
		return fmt.Errorf("%w: leave is %q, want frozen, read-only or stopped", sentinel.ErrUsage, o.Leave)
	}
	if o.Limit < 0 || o.Deadline < 0 || o.Timeout < 0 {
		return fmt.Errorf("%w: limit, deadline and timeout cannot be negative", sentinel.ErrUsage)
	}
	return nil
}
