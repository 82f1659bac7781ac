// Package fault wraps volumes and targets so that they fail as real ones do: unreadable places, random errors, short and slow writes, a
// full disk, a device that vanishes, a power cut that drops any part of what was not synced. Mem is a volume and a target in memory.
package fault

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
)

// Op is an operation that can fail.
type Op int

const (
	Read Op = 1 << iota
	Write
	Zero
	Sync
	Any = Read | Write | Zero | Sync
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Zero:
		return "zero"
	case Sync:
		return "sync"
	}
	return fmt.Sprintf("op %#x", int(o))
}

// Plan says what goes wrong. The zero value lets everything pass. It may be changed while it is in use, and be shared.
type Plan struct {
	mu    sync.Mutex // guards all below
	rules []rule
	check error
	full  int64 // bytes that may still be written
	limit bool  // whether full counts
	ops   map[Op]int64
	hook  func(Op, extent.Extent) error
}

type rule struct {
	ops   Op
	e     extent.Extent // all when Len < 0
	err   error
	rnd   *rand.Rand // nil: always
	p     float64
	short bool
	delay time.Duration
	times int // how often it still strikes; negative: for ever
}

// All stands for every byte in a rule.
var All = extent.Extent{Len: -1}

func (p *Plan) add(r rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, r)
}

// Fail makes ops that touch e fail with err; nil stands for EIO. Reads and writes transfer what lies before e.
func (p *Plan) Fail(ops Op, e extent.Extent, err error) {
	p.add(rule{ops: ops, e: e, err: orEIO(err), times: -1})
}

// FailTimes is Fail of anything that strikes n times.
func (p *Plan) FailTimes(ops Op, n int, err error) {
	p.add(rule{ops: ops, e: All, err: orEIO(err), times: n})
}

// Random makes ops fail with EIO with the given chance, by seed.
func (p *Plan) Random(seed uint64, ops Op, chance float64) {
	p.add(rule{ops: ops, e: All, err: unix.EIO, rnd: rand.New(rand.NewPCG(seed, 1)), p: chance, times: -1})
}

// Short makes writes end early at a random sector, with EIO, with the given chance, by seed. What came before is written.
func (p *Plan) Short(seed uint64, chance float64) {
	p.add(rule{ops: Write, e: All, err: unix.EIO, rnd: rand.New(rand.NewPCG(seed, 2)), p: chance, short: true, times: -1})
}

// Delay makes ops take d longer.
func (p *Plan) Delay(ops Op, d time.Duration) {
	p.add(rule{ops: ops, e: All, delay: d, times: -1})
}

// Full lets n more bytes be written, then ENOSPC. Zeroing takes no space.
func (p *Plan) Full(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.full, p.limit = n, true
}

// Vanish makes everything fail as on an unplugged device, Check too.
func (p *Plan) Vanish() {
	p.Fail(Any, All, unix.ENXIO)
	p.SetCheck(fmt.Errorf("the device is gone: %w", unix.ENXIO))
}

// SetCheck is what Volume.Check returns; nil asks the volume.
func (p *Plan) SetCheck(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.check = err
}

// Hook is called before every operation, outside of locks: it may block, as a slow device would, or return an error.
func (p *Plan) Hook(f func(Op, extent.Extent) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// Clear lets everything pass again.
func (p *Plan) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.check, p.limit, p.hook = nil, nil, false, nil
}

// Ops is how often op was asked for.
func (p *Plan) Ops(op Op) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ops[op]
}

func orEIO(err error) error {
	if err == nil {
		return unix.EIO
	}
	return err
}

// judge says how many bytes of e may be transferred and the error that follows them.
func (p *Plan) judge(op Op, e extent.Extent) (int64, error) {
	p.mu.Lock()
	hook := p.hook
	if p.ops == nil {
		p.ops = map[Op]int64{}
	}
	p.ops[op]++
	p.mu.Unlock()
	if hook != nil {
		if err := hook(op, e); err != nil {
			return 0, err
		}
	}
	n, delay, err := p.strike(op, e)
	if delay > 0 {
		time.Sleep(delay)
	}
	return n, err
}

func (p *Plan) strike(op Op, e extent.Extent) (n int64, delay time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = e.Len
	for i := range p.rules {
		r := &p.rules[i]
		hit := r.e.Intersect(e)
		if r.ops&op == 0 || r.times == 0 || r.e.Len >= 0 && hit.Empty() || r.rnd != nil && r.rnd.Float64() >= r.p {
			continue
		}
		if r.times > 0 {
			r.times--
		}
		delay += r.delay
		if r.err == nil {
			continue
		}
		reach := int64(0)
		switch {
		case r.short && e.Len >= 512:
			reach = r.rnd.Int64N(e.Len/512) * 512
		case r.e.Len >= 0:
			reach = (hit.Off - e.Off) &^ 511
		}
		if err == nil || reach < n {
			n, err = reach, r.err
		}
	}
	if p.limit && op == Write {
		if n > p.full {
			n, err = p.full, unix.ENOSPC
		}
		p.full -= n
	}
	return n, delay, err
}

// Volume is a volume that fails as its plan says.
type Volume struct {
	blockdev.Volume
	plan *Plan
}

// NewVolume wraps v.
func NewVolume(v blockdev.Volume, p *Plan) *Volume { return &Volume{v, p} }

func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	return v.plan.read(v.Volume.ReadAt, p, off)
}

// Check returns the plan's error, else the volume's.
func (v *Volume) Check() error {
	v.plan.mu.Lock()
	err := v.plan.check
	v.plan.mu.Unlock()
	if err != nil {
		return err
	}
	return v.Volume.Check()
}

// Target is a target that fails as its plan says.
type Target struct {
	blockdev.Target
	plan *Plan
}

// NewTarget wraps t.
func NewTarget(t blockdev.Target, p *Plan) *Target { return &Target{t, p} }

func (t *Target) ReadAt(p []byte, off int64) (int, error) {
	return t.plan.read(t.Target.ReadAt, p, off)
}

func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.plan.judge(Write, extent.Extent{Off: off, Len: int64(len(p))})
	if err == nil {
		return t.Target.WriteAt(p, off)
	}
	done := 0
	if n > 0 {
		var e error
		if done, e = t.Target.WriteAt(p[:n], off); e != nil {
			err = e
		}
	}
	return done, failed("write", off+int64(done), int64(len(p)-done), err)
}

func (t *Target) Zero(e extent.Extent) error {
	if _, err := t.plan.judge(Zero, e); err != nil {
		return failed("zero", e.Off, e.Len, err)
	}
	return t.Target.Zero(e)
}

func (t *Target) Sync() error {
	if _, err := t.plan.judge(Sync, extent.Extent{}); err != nil {
		return fmt.Errorf("injected: sync: %w", err)
	}
	return t.Target.Sync()
}

func (p *Plan) read(next func([]byte, int64) (int, error), b []byte, off int64) (int, error) {
	n, err := p.judge(Read, extent.Extent{Off: off, Len: int64(len(b))})
	if err == nil {
		return next(b, off)
	}
	done := 0
	if n > 0 {
		var e error
		if done, e = next(b[:n], off); e != nil {
			err = e
		}
	}
	return done, failed("read", off+int64(done), int64(len(b)-done), err)
}

func failed(op string, off, n int64, err error) error {
	return fmt.Errorf("injected: %s bytes %v: %w", op, extent.Extent{Off: off, Len: n}, err)
}
