package flowtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

const granule = 4096

// volume is a disk in memory with a tracker that marks at completion, as the kernel's does (C1), and a freezer that stops writers.
// It outlives the processes of the tests, as a disk and pinned maps do.
type volume struct {
	*fault.Mem
	plan  *fault.Plan
	stamp uint64 // of writes; in every sector

	gate sync.RWMutex // writers share it, a freeze has it whole

	mu      sync.Mutex // guards all below
	dirty   *extent.Set
	taken   *extent.Set
	history blockdev.History
	lost    error
	free    *extent.Set // now
	// everFree is free and never written since: there the target may have zeros instead of the rest of a deleted file.
	everFree *extent.Set

	frozen   bool
	broken   bool // the freeze ended before Thaw
	kept     bool
	deadline *time.Timer
	voided   chan struct{}
	freezes  int
	onFreeze func() // called when writers have stopped
}

func newVolume(size int64) *volume {
	v := &volume{Mem: fault.NewMem(size), plan: &fault.Plan{}}
	v.SetIdentity(fmt.Sprintf("test-disk/%d", size))
	v.clear()
	return v
}

func (v *volume) clear() {
	v.dirty, v.taken = extent.NewSet(v.Size(), granule), extent.NewSet(v.Size(), granule)
	v.history = blockdev.History{Generation: randomID()}
}

func randomID() (id mover.ID) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// write fills an extent with self-describing sectors, as an application would: it waits while frozen.
func (v *volume) write(off, n int64) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	v.raw(off, n)
}

// raw writes past the filesystems: no freeze stops it.
func (v *volume) raw(off, n int64) {
	v.mu.Lock()
	v.stamp++
	stamp := v.stamp
	v.mu.Unlock()
	n = min(n, v.Size()-off)
	buf := make([]byte, n)
	for at := int64(0); at < n; at += 512 {
		s := buf[at:min(at+512, n)]
		r := rand.New(rand.NewPCG(stamp, uint64(off+at)))
		for i := 0; i+8 <= len(s); i += 8 {
			binary.LittleEndian.PutUint64(s[i:], r.Uint64()&0x0f0f0f0f0f0f0f0f)
		}
		if len(s) >= 16 {
			binary.LittleEndian.PutUint64(s, uint64(off+at))
			binary.LittleEndian.PutUint64(s[8:], stamp)
		}
	}
	v.put(buf, off)
}

// writeBytes is write with content of one's own.
func (v *volume) writeBytes(b []byte, off int64) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	v.put(b, off)
}

// zero writes zeros.
func (v *volume) zero(off, n int64) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	v.put(make([]byte, min(n, v.Size()-off)), off)
}

func (v *volume) put(buf []byte, off int64) {
	if _, err := v.Mem.WriteAt(buf, off); err != nil {
		panic(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dirty.Add(extent.Extent{Off: off, Len: int64(len(buf))})
	if v.free != nil {
		e := extent.Extent{Off: off, Len: int64(len(buf))}.Align(granule)
		v.free.Remove(e)
		v.everFree.Remove(e.Align(chunker.LeafSize)) // the leaf is sent whole
	}
}

// setFree says that the filesystem has freed e; what is in it stays there.
func (v *volume) setFree(e extent.Extent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.free == nil {
		v.free, v.everFree = extent.NewSet(v.Size(), granule), extent.NewSet(v.Size(), granule)
	}
	v.free.Add(e)
	v.everFree.Add(e)
}

func (v *volume) used(context.Context) (*extent.Set, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.free == nil {
		return nil, nil
	}
	return v.free.Clone(), nil
}

// tracker is the kernel's side of a volume, as a process opens it.
type tracker struct{ v *volume }

func (t tracker) Method() (string, string) { return "ebpf", "model" }

func (t tracker) History() blockdev.History {
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	return t.v.history
}

func (t tracker) Take(context.Context) (uint64, *extent.Set, error) {
	v := t.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lost != nil {
		return 0, nil, v.lost
	}
	v.taken.Union(v.dirty)
	v.dirty.Clear()
	v.history.Taken++
	return v.history.Taken, v.taken.Clone(), nil
}

func (t tracker) Retire(epoch uint64) error {
	v := t.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if epoch != v.history.Taken {
		return fmt.Errorf("retire %d, taken %d", epoch, v.history.Taken)
	}
	v.history.Retired = epoch
	v.taken.Clear()
	return nil
}

func (t tracker) Pending() int64 {
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	all := t.v.taken.Clone()
	all.Union(t.v.dirty)
	return all.Bytes()
}

func (t tracker) Since() (int64, error) {
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	return t.v.dirty.Bytes(), nil
}

func (t tracker) Prove(context.Context) (blockdev.Proof, error) {
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	if t.v.lost != nil {
		return blockdev.Unproven, t.v.lost
	}
	return blockdev.Proven, nil
}

func (t tracker) Restart() error {
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	t.v.lost = nil
	t.v.clear()
	return nil
}

func (t tracker) Close() error  { return nil }
func (t tracker) Remove() error { return nil }

// lose breaks the history; marks made meanwhile are gone (C2).
func (v *volume) lose() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dirty.Clear()
	v.taken.Clear()
	v.lost = fmt.Errorf("%w: the test says so", sentinel.ErrTrackLost)
}

// freezer is the volume's freezer, as a process has it.
type freezer struct{ v *volume }

func (f freezer) Names() []string { return []string{"model"} }

func (f freezer) Freeze(ctx context.Context, deadline time.Duration) error {
	v := f.v
	v.gate.Lock()
	if v.onFreeze != nil {
		v.onFreeze()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.frozen, v.broken, v.kept, v.voided = true, false, false, make(chan struct{})
	v.freezes++
	v.deadline = time.AfterFunc(deadline, func() { v.unfreeze(true) })
	return nil
}

func (v *volume) unfreeze(early bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.frozen || early && v.kept {
		return
	}
	v.frozen, v.broken = false, early
	close(v.voided)
	v.gate.Unlock()
}

func (f freezer) Thaw() error {
	v := f.v
	v.unfreeze(false)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.deadline != nil {
		v.deadline.Stop()
	}
	if v.broken {
		return errors.New("the deadline thawed it before")
	}
	return nil
}

func (f freezer) Keep() error {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if !f.v.frozen {
		return errors.New("not frozen any more")
	}
	f.v.kept = true
	return nil
}

func (f freezer) Held() bool {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	return f.v.frozen
}

func (f freezer) Thawed() <-chan struct{} {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	return f.v.voided
}

// leafAt is the leaf at off.
func leafAt(off, size int64) extent.Extent { return chunker.LeafExtent(size, off/chunker.LeafSize) }
