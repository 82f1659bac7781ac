// Package receiver is the gateway's end of docs/protocol.md: it takes batches from sources, makes them durable, and brings targets from
// recovery point to recovery point.
//
// The way of a batch:
//
//	reader (one per connection)    frames into messages; payloads into buffers of the budget
//	handler (one per connection)   table and dedup answer offers; decode, digest (C7)
//	staged: append to redo log     direct: intent, write to the target, table
//	round (one per pass)           fdatasync of the log, or sync of target and table; then the ack (C3)
//	finish (one per flow)          after the commit record: apply the log, record the point, discard the log (C5, C6)
//
// Whoever changes what a flow stands on (OPEN, COMMIT, KEEP, ABORT, READBACK, RELEASE) holds the whole of the flow's gate; batches and
// questions hold a share. Lock order: attach, gate, seq, pass.roundMu, intents.mu, flow.recMu, flow.mu.
package receiver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/catalog"
	"github.com/moverd/mover/wire"
)

// Config of a Server. Zero values are the defaults given.
type Config struct {
	StateDir     string
	Flows        []FlowConfig
	Straight     []StraightConfig // that go past the gateway and may have a lease
	Lines        []LineConfig     // that sources come over; none: nothing is shared out
	TLS          *tls.Config      // as wire.ServerTLS gives
	Memory       int64            // bytes of buffers over all flows; 256 MiB, at least 96 MiB
	LogLimit     int64            // bytes of redo log per flow; 1 GiB, at least 1 MiB
	IndexMemory  int64            // bytes of the dedup index; 64 MiB
	NoDedup      bool             // the index is neither asked nor filled
	TenantDedup  bool             // offers are answered from the leaves of all hosts of a tenant; a host can then find out what the others hold
	TableMemory  int64            // bytes of each flow's digest table; 8 MiB
	Conns        int              // most connections whose peer is known; 256
	ConnsPerLink int              // most connections of one link; 16
	Handshake    time.Duration    // TLS and HELLO together; 10 s
	Window       uint64           // unacked bytes that a source is allowed; 128 MiB
	Readers      int              // parallel reads of a target; 16
	Agent        string           // name and version for logs

	// Audit hears of every peer that is let in, refused or ended; true: the log should tell it too. It must not block. May be nil.
	Audit func(Event) bool
	// Policy may refuse what Flows allows: ErrDenied for what will not do until the policy changes, ErrRefused for what is too large, a
	// *wire.Error busy for what may be asked again. It must not block. May be nil.
	Policy func(Ask) error
	// Objects serves bucket flows, whose connections come by the same door. May be nil.
	Objects Objects
	// OpenTarget opens a target of at least size bytes (0: not known yet) exclusively, with all checks of C12; create makes an image
	// file of that size where none is.
	OpenTarget func(path string, size int64, create bool) (blockdev.Target, error)
	// Inspect looks at a target without opening it for writing. Nothing there: ErrNotFound.
	Inspect func(path string) (Found, error)
	// OpenPoints finds how states of a target can be kept (nil: not at all); owner is empty when it is only tried. What the target cannot
	// have: ErrNotSupported. Without this function nothing is kept.
	OpenPoints func(method, target, owner, flow string) (blockdev.Points, error)
	// OpenCopy opens where a point is copied to, with the checks of OpenTarget, making a file when there is none.
	OpenCopy func(path string, size int64) (blockdev.Target, error)
	Log      *slog.Logger
	// Note is told what a report tells later: passes that were committed, points that were kept or missed. It must not wait. May be nil.
	Note func(mover.Event)
}

// FlowConfig names a flow and its target.
type FlowConfig struct {
	Tenant, Host, Name string
	Target             string // path of a block device or an image file
	LogLimit           int64  // bytes; 0: Config.LogLimit
	Points             PointsConfig
}

// PointsConfig says which recovery points of a flow are kept.
type PointsConfig struct {
	Method string // auto, reflink, none; empty: none
	Keep   mover.Keep
	Fuzzy  bool          // also points of no single moment
	Limit  time.Duration // longest time that the next pass waits for a point; 30 s
}

// Key is TENANT/HOST/NAME.
func (f FlowConfig) Key() string { return f.Tenant + "/" + f.Host + "/" + f.Name }

// Found is what is on a target that nobody has claimed.
type Found struct {
	Size       int64
	Identity   string
	Blank      bool
	Signatures []string // for people: "ext4 filesystem", "partition table"
}

const (
	inBuffer    = wire.MaxPlain + 64<<10 // holds the payload of every bulk frame, shifted for alignment
	applyBuffer = wire.MaxPlain + 512<<10
	minMemory   = 96 << 20
	minLogLimit = 1 << 20
)

func orElse[T int | int64 | uint64 | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// withDefaults fills in the defaults and checks the rest; errors name the field.
func (c Config) withDefaults() (Config, error) {
	c.Memory = orElse(c.Memory, 256<<20)
	c.LogLimit = orElse(c.LogLimit, 1<<30)
	c.IndexMemory = orElse(c.IndexMemory, catalog.DefaultIndexMemory)
	c.TableMemory = orElse(c.TableMemory, 8<<20)
	c.Conns = orElse(c.Conns, 256)
	c.ConnsPerLink = min(orElse(c.ConnsPerLink, wire.MaxConns), wire.MaxConns)
	c.Handshake = orElse(c.Handshake, 10*time.Second)
	c.Window = orElse(c.Window, 128<<20)
	c.Readers = orElse(c.Readers, 16)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	bad := func(field, why string) error {
		return fmt.Errorf("gateway config: %s: %s: %w", field, why, sentinel.ErrUsage)
	}
	switch {
	case c.StateDir == "":
		return c, bad("StateDir", "is missing")
	case c.OpenTarget == nil || c.Inspect == nil:
		return c, bad("OpenTarget and Inspect", "are missing")
	case c.Memory < minMemory:
		return c, bad("Memory", fmt.Sprintf("%d bytes are too little, at least %d are needed", c.Memory, minMemory))
	case c.LogLimit < minLogLimit:
		return c, bad("LogLimit", fmt.Sprintf("%d bytes are too little, at least %d are needed", c.LogLimit, minLogLimit))
	}
	paths, keys := map[string]string{}, map[string]bool{}
	for _, f := range c.Flows {
		if err := catalog.CheckName(f.Tenant, f.Host, f.Name); err != nil {
			return c, err
		}
		switch o, taken := paths[f.Target]; {
		case f.Target == "":
			return c, bad(f.Key(), "has no target")
		case keys[f.Key()]:
			return c, bad(f.Key(), "is configured twice")
		case taken:
			return c, bad(f.Key(), fmt.Sprintf("target %s is that of flow %s", f.Target, o))
		case f.LogLimit != 0 && f.LogLimit < minLogLimit:
			return c, bad(f.Key(), fmt.Sprintf("log limit of %d bytes is too little, at least %d are needed", f.LogLimit, minLogLimit))
		}
		paths[f.Target], keys[f.Key()] = f.Key(), true
	}
	return c, nil
}

const (
	leafSize  = chunker.LeafSize
	groupSize = chunker.GroupSize
	stretch   = 64 << 20 // bytes of target that one intent bit covers
)
