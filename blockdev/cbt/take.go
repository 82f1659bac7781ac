package cbt

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// Take begins an epoch and returns everything dirty or taken (C1, C9). ErrTrackLost: the history has a gap, and every Take fails until
// Restart (C2).
func (t *Tracker) Take(ctx context.Context) (uint64, *extent.Set, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if err := t.check(); err != nil {
		return 0, nil, err
	}
	if t.st.Based == 0 {
		for _, l := range t.leaves {
			if err := l.setBase(); err != nil {
				return 0, nil, t.gap(err.Error())
			}
		}
		t.st.Based = 1
	}
	epoch := t.st.Taken + 1
	t.st.Taken = epoch // before anything is cleared: a kill leaves an epoch that was taken and not retired
	set := extent.NewSet(t.o.Size, t.plan.granule)
	for _, l := range t.leaves {
		if err := t.takeLeaf(l, set); err != nil {
			return 0, nil, fmt.Errorf("take epoch %d of %s: %w", epoch, t.o.Name, err)
		}
	}
	t.pendingAt = time.Time{}
	return epoch, set, nil
}

// takeLeaf translates what one leaf disk has taken into the volume's extents.
func (t *Tracker) takeLeaf(l *leaf, set *extent.Set) error {
	for e := range l.noted() { // before dirty is read: what leaves the notes is dirty by then
		for _, up := range t.plan.layout.Up(l.plan.disk.dev, e) {
			set.Add(up)
		}
	}
	if m := t.plan.layout; len(m) == 1 && m[0].Off == 0 { // the usual case: granules of the disk are granules of the volume
		return l.take(func(word int64, granules uint64) { set.AddWord(word*64, granules) })
	}
	g := t.plan.granule
	var from, to int64 // a run of granules that is still growing
	flush := func() {
		if to > from {
			for _, e := range t.plan.layout.Up(l.plan.disk.dev, extent.Extent{Off: l.plan.start + from*g, Len: (to - from) * g}) {
				set.Add(e)
			}
		}
	}
	err := l.take(func(word int64, granules uint64) {
		for granules != 0 {
			bit := int64(bits.TrailingZeros64(granules))
			n := int64(bits.TrailingZeros64(^(granules >> bit)))
			if word*64+bit != to {
				flush()
				from = word*64 + bit
			}
			to = word*64 + bit + n
			granules &^= ^uint64(0) >> (64 - n) << bit
		}
	})
	flush()
	return err
}

// Retire empties taken after the commit of epoch, which has to be the last one taken (C4). Retiring it again does nothing.
func (t *Tracker) Retire(epoch uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	if cause := t.st.cause(); cause != "" {
		return t.lost(cause)
	}
	if epoch == 0 || epoch != t.st.Taken {
		return fmt.Errorf("retire epoch %d of %s: %w: the last one taken is %d", epoch, t.o.Name, sentinel.ErrRefused, t.st.Taken)
	}
	if epoch == t.st.Retired {
		return nil
	}
	for _, l := range t.leaves {
		if err := l.retire(); err != nil {
			return fmt.Errorf("retire epoch %d of %s: %w", epoch, t.o.Name, err)
		}
	}
	t.st.Retired = epoch
	t.pendingAt = time.Time{}
	return nil
}

// Pending is dirty plus taken, in bytes of whole granules, as of a moment ago: counting a big volume takes milliseconds, and no more
// than a twentieth of the time is spent on it.
func (t *Tracker) Pending() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || time.Since(t.pendingAt) < 20*t.pendingIn {
		return t.pending
	}
	begin := time.Now()
	var n int64
	for _, l := range t.leaves {
		c, err := l.count()
		if err != nil {
			return t.pending
		}
		n += c
	}
	t.pending = min(n*t.plan.granule, t.o.Size)
	t.pendingAt = time.Now()
	t.pendingIn = t.pendingAt.Sub(begin)
	return t.pending
}

// Since is what was written since the last Take, in bytes of whole granules: also where Pending does not grow because the same
// granules were taken before. A cutover asks it to find writers that no freeze has stopped.
func (t *Tracker) Since() (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errClosed
	}
	var n int64
	for _, l := range t.leaves {
		c, err := l.marked()
		if err != nil {
			return 0, err
		}
		n += c
	}
	return min(n*t.plan.granule, t.o.Size), nil
}

// lost is the error of a gap.
func (t *Tracker) lost(cause string) error {
	return fmt.Errorf("track %s: %w: %s", t.o.Name, sentinel.ErrTrackLost, cause)
}

// gap records the end of this history and returns its error.
func (t *Tracker) gap(cause string) error {
	t.st.setGap(cause)
	return t.lost(cause)
}

// checkStill looks for every gap but those that the witness finds. mu is held.
func (t *Tracker) checkStill() error {
	if t.closed {
		return errClosed
	}
	if cause := t.st.cause(); cause != "" {
		return t.lost(cause)
	}
	if pin := lostPin(t.dir, len(t.plan.leaves)); pin != "" {
		return t.gap("pin " + pin + " is gone from " + t.dir)
	}
	for _, l := range t.leaves {
		if why := l.plan.disk.changed(l.st); why != "" {
			return t.gap(why)
		}
	}
	if t.o.Identity != nil {
		id, err := t.o.Identity()
		if err != nil {
			return t.gap(fmt.Sprintf("the volume's identity cannot be read: %v", err))
		}
		if id != t.plan.identity {
			return t.gap(fmt.Sprintf("the volume is %q and was %q", id, t.plan.identity))
		}
	}
	if t.o.Remap != nil {
		m, err := t.o.Remap()
		if err != nil {
			return t.gap(fmt.Sprintf("the volume's map cannot be read: %v", err))
		}
		if mapDigest(m, t.o.Size) != t.plan.digest {
			return t.gap("the volume lies elsewhere on its disks than before")
		}
	}
	return nil
}

// check looks for every gap. mu is held.
func (t *Tracker) check() error {
	if err := t.checkStill(); err != nil || t.st.Based == 0 {
		return err
	}
	for _, l := range t.leaves {
		if cause := l.missed(); cause != "" {
			return t.gap(cause)
		}
	}
	return nil
}

// Restart begins a new generation with empty bitmaps. Programs that are alive go on; what was lost is attached anew. Nothing is missed
// by that: a Take and a rescan follow, and they see all that was written before (C2).
func (t *Tracker) Restart() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	o := t.o
	if o.Remap != nil {
		m, err := o.Remap()
		if err != nil {
			return fmt.Errorf("restart %s: read the volume's map: %w", o.Name, err)
		}
		o.Map = m
	}
	p, err := makePlan(o)
	if err != nil {
		return fmt.Errorf("restart %s: %w", o.Name, err)
	}
	t.pendingAt = time.Time{}
	if len(t.leaves) > 0 && t.st.unlike(p) == "" && lostPin(t.dir, len(p.leaves)) == "" {
		return t.renew()
	}
	t.st.setGap("a restart did not come to its end")
	t.unmap()
	t.o, t.plan = o, p
	if err := t.attach(); err != nil {
		t.unmap()
		t.st.setGap(fmt.Sprintf("tracking could not be attached again: %v", err))
		return fmt.Errorf("restart %s: %w", o.Name, err)
	}
	return nil
}

// renew begins a generation on what is attached. A kill on the way leaves it not ready, so that the next Open attaches afresh.
func (t *Tracker) renew() error {
	t.st.Ready = 0
	for _, l := range t.leaves {
		if err := l.clear(); err != nil {
			t.st.setGap("a restart did not come to its end")
			return fmt.Errorf("restart %s: %w", t.o.Name, err)
		}
	}
	t.st.Taken, t.st.Retired, t.st.Based = 0, 0, 0
	t.st.Generation = newID()
	t.st.Gap = 0
	t.st.Ready = 1
	return nil
}
