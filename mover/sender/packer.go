package sender

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// lineMeter measures what the line takes, as the kernel's counters of the connections tell it.
type lineMeter struct {
	mu   sync.Mutex // guards all below
	rate mover.LineRate
	last map[*conn]wire.Sent // at the last look
	when time.Time
}

// look takes in what has gone over conns since the last look. held: a lease lets no more out now.
func (m *lineMeter) look(conns []*conn, held bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var n int64
	full := held
	next := make(map[*conn]wire.Sent, len(conns))
	for _, c := range conns {
		sent, ok := c.Sent()
		if !ok {
			continue
		}
		before, known := m.last[c]
		if known {
			n += sent.Acked - before.Acked
		}
		// A peer that is busy makes no line thin: stronger compression would only give it more to do.
		full = full || sent.Waiting > 0 && known && sent.PeerFull-before.PeerFull < now.Sub(m.when)/4
		next[c] = sent
	}
	if !m.when.IsZero() {
		m.rate.Look(n, now.Sub(m.when), full)
	}
	m.last, m.when = next, now
}

// perSecond is the line's rate in bytes, 0 when it is not known.
func (m *lineMeter) perSecond() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rate.PerSecond()
}

// packer compresses for all runs of a flow.
type packer struct {
	codec   *chunker.Codec
	fixed   int     // level, or -1 for auto
	cores   float64 // the most that may be used
	workers int
	meter   lineMeter
	free    chan *[]byte

	mu     sync.Mutex // guards all below but last
	levels mover.Levels
	spare  float64      // cores that compressing may have now
	busy   float64      // seconds of cores spent on compressing since the last look
	plain  int          // batches in a row that were not to be compressed
	last   atomic.Int32 // level used last, for status
}

func newPacker(codec *chunker.Codec, cfg Config) *packer {
	fixed := -1
	if l, ok := levels[cfg.Compression]; ok {
		fixed = l
	}
	workers := max(cfg.Conns, min(cfg.CPU, 4)) + 1
	return &packer{codec: codec, fixed: fixed, cores: float64(cfg.CPU), workers: workers, spare: leastSpare, free: make(chan *[]byte, workers)}
}

// scratch is memory for compressed bytes, one for each packer, kept between runs.
func (k *packer) scratch() *[]byte {
	select {
	case b := <-k.free:
		return b
	default:
		return new([]byte)
	}
}

func (k *packer) done(b *[]byte) {
	select {
	case k.free <- b:
	default:
	}
}

// level picks how hard to compress now, weakest at least; or that this batch goes plain, and a part of it is compressed to learn from.
func (k *packer) level(weakest int) (l int, probe bool) {
	if k.fixed >= 0 {
		return k.fixed, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l = k.levels.Choose(k.meter.perSecond(), k.spare, weakest)
	if l > 0 {
		k.plain = 0
		return max(weakest, k.levels.Try(l)), false
	}
	k.plain++
	return 0, k.plain%probeEvery == 0
}

// compresses tells whether the last batch was, or all are.
func (k *packer) compresses() bool { return k.fixed > 0 || k.fixed < 0 && k.last.Load() > 0 }

const (
	// probeEvery is how many batches go plain for one of which a part is compressed to see what that would do: what does not shrink may be followed
	// by what does, and a level that is not used is not measured.
	probeEvery = 16
	probeSize  = 128 << 10 // of that part, so that all of them cost less than a hundredth of the digests
)

// spareLook is the weight of one look: a batch of the strongest level keeps a core for half a second, and counts when it is done.
const spareLook = 0.3

// leastSpare is what compressing gets even on a machine without an idle core: a thin line is worth that.
const leastSpare = 0.25

// look takes in how many cores were idle over the last d. Only those, and what compressing has used itself, are spare: where reading,
// digesting or the peer on the same machine needs the cores, writers that wait do not mean that the line is thin.
func (k *packer) look(idle float64, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := max(leastSpare, min(k.cores, idle+k.busy/d.Seconds()))
	k.spare += (now - k.spare) * spareLook
	k.busy = 0
}

// compress returns plain itself where compressing does not pay.
func (k *packer) compress(plain []byte, scratch *[]byte, weakest int) (codec uint8, payload []byte) {
	l, probe := k.level(weakest)
	k.last.Store(int32(l))
	if probe && len(plain) > 0 {
		from := len(plain) / 2
		k.encode(plain[from:min(len(plain), from+probeSize)], scratch, 1)
	}
	if l == 0 || len(plain) == 0 {
		return wire.CodecPlain, plain
	}
	if out, ok := k.encode(plain, scratch, l); ok {
		return wire.CodecZstd, out
	}
	return wire.CodecPlain, plain
}

// encode compresses, and notes what that has cost and brought.
func (k *packer) encode(plain []byte, scratch *[]byte, l int) (out []byte, ok bool) {
	if cap(*scratch) == 0 {
		*scratch = make([]byte, 0, chunker.Bound(chunker.BatchSize))
	}
	took := onCore(func() { out, ok = k.codec.Compress((*scratch)[:0], plain, chunker.Level(l)) })
	n := len(plain)
	if ok {
		n = len(out)
	}
	k.mu.Lock()
	k.levels.Observe(l, int64(len(plain)), int64(n), took)
	k.busy += took
	k.mu.Unlock()
	return out, ok
}
