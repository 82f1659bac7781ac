package cbt

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/blockdev"
)

// The witness compares two accounts of one disk: the kernel's, in its stat file, and the sums of the programs. For every portion of a
// request the kernel runs the programs first and adds to its own account right after. So at any instant
//
//	kernel = base + programs + skipped + missed - underway
//
// where base is fixed, underway is what lies between the two additions just then, skipped counts bytes for whose completion the program was not
// run but whose note of the issue still stands (nothing is lost: Take includes what notes say), and missed those that nobody saw.
// A sample reads programs, kernel, notes, programs. Notes are of all writes that were issued and not seen complete, so skipped <= notes,
// and what leaves the notes has entered the programs' sums before. All accounts but the notes only grow, so:
//
//   - kernel > base + notes + second reading proves a miss, in any single sample: underway cannot be negative.
//   - kernel = base + notes + first reading = base + notes + second reading while the kernel has no request, twice with a
//     pause between, proves that nothing was missed: notes are then exactly the skipped.
//
// A merged discard's note does not tell its ranges, so it does not count among the notes: when its completion is skipped, that is a miss.
//
// The base is taken by the first Take of a generation, before it clears anything. Misses before that do no harm: what they wrote is
// on the disk before the rescan that a new generation begins with reads it. Notes are emptied first, so that none is of a skipped
// write. Each sample then gives kernel - second reading <= base, and a quiet one gives the base itself; the greatest of many samples
// is used. On a disk that is never quiet it could come out wrong; the price is a gap that was none, never a miss that is not seen.

const (
	baseSamples = 64                     // quiet-looking samples that agree before a busy disk's base is believed
	baseLimit   = 250 * time.Millisecond // for a base on a disk that is never quiet
	checkLimit  = 2 * time.Millisecond   // for a Take to find a sample in which both accounts agree
	quietPause  = 2 * time.Millisecond   // between the two samples that prove
	lateLimit   = 2 * time.Second        // the kernel may count less for so long on a quiet disk: requests that were put back
)

// account is a disk's bytes as one side counts them.
type account struct{ written, discarded uint64 }

func (a account) minus(b account) account {
	return account{a.written - b.written, a.discarded - b.discarded}
}

// over tells whether a is more than b in either count; the counts are modulo 2^64 but near each other.
func (a account) over(b account) bool {
	return int64(a.written-b.written) > 0 || int64(a.discarded-b.discarded) > 0
}

// sample is one look at both accounts. quiet means that the programs counted nothing while it was taken.
type sample struct {
	kernel, before, after account
	notes                 account
	underway              bool // the kernel knows of requests that have not ended
	events                events
}

type events struct{ passed, overflow uint64 }

func (s sample) quiet() bool { return s.before == s.after }

// rest is the base as far as this sample tells: never more than the true one plus what was skipped and missed.
func (s sample) rest() account { return s.kernel.minus(s.after) }

// diff is rest without all that may have been skipped.
func (s sample) diff() account { return s.rest().minus(s.notes) }

// still tells whether nothing at all happened from sample o to s, and the kernel has no request.
func (s sample) still(o sample) bool {
	return s.quiet() && !s.underway && !o.underway && s.kernel == o.kernel && s.notes == o.notes && s.before == o.after
}

// seen sums what the programs saw on all CPUs.
func (l *leaf) seen() (a account, e events) {
	for i := range l.cells {
		c := &l.cells[i]
		a.written += atomic.LoadUint64(&c.written)
		a.discarded += atomic.LoadUint64(&c.discarded)
		e.passed += atomic.LoadUint64(&c.passed)
		e.overflow += atomic.LoadUint64(&c.overflow)
	}
	return a, e
}

func (l *leaf) sample() (s sample, err error) {
	var buf [512]byte
	s.before, _ = l.seen()
	n, err := l.stat.ReadAt(buf[:], 0)
	if n == 0 && err != nil {
		return s, fmt.Errorf("disk %s is gone: %w", l.plan.disk, err)
	}
	for i := range l.flight {
		if atomic.LoadUint64(&l.flight[i].issued) == 0 {
			continue
		}
		switch b := uint64(atomic.LoadUint32(&l.flight[i].bytes)); atomic.LoadUint32(&l.flight[i].kind) {
		case kindWritten:
			s.notes.written += b
		case kindDiscarded:
			s.notes.discarded += b
		}
	}
	s.after, s.events = l.seen()
	s.kernel, s.underway, err = parseStat(buf[:n])
	return s, err
}

// parseStat reads a disk's stat file: sectors written, requests underway, sectors discarded.
func parseStat(b []byte) (a account, underway bool, err error) {
	f := bytes.Fields(b)
	if len(f) < 15 {
		return a, false, fmt.Errorf("the kernel's account has %d fields, not 15: %q", len(f), b)
	}
	var v [15]uint64
	for i := range v {
		if v[i], err = strconv.ParseUint(string(f[i]), 10, 64); err != nil {
			return a, false, fmt.Errorf("the kernel's account is not numbers: %q", b)
		}
	}
	return account{v[6] * 512, v[13] * 512}, v[8] != 0, nil
}

// setBase finds and records the base of a leaf.
func (l *leaf) setBase() error {
	for i := range l.flight {
		atomic.StoreUint64(&l.flight[i].issued, 0)
	}
	last, err := l.sample()
	if err != nil {
		return err
	}
	best, agree := last.rest(), 0
	for end := time.Now().Add(baseLimit); agree < baseSamples && time.Now().Before(end); {
		if !last.underway {
			time.Sleep(quietPause)
		}
		s, err := l.sample()
		if err != nil {
			return err
		}
		if s.still(last) {
			best = s.diff()
			break
		}
		d := s.rest()
		if d.over(best) {
			best = account{maxWrap(best.written, d.written), maxWrap(best.discarded, d.discarded)}
			agree = 0
		}
		if d == best && s.quiet() {
			agree++
		}
		last = s
	}
	_, e := l.seen()
	l.st.Written, l.st.Discarded = best.written, best.discarded
	l.st.Passed, l.st.Overflow = e.passed, e.overflow
	return nil
}

func maxWrap(a, b uint64) uint64 {
	if int64(b-a) > 0 {
		return b
	}
	return a
}

// verdict of one sample: a gap's cause, or whether both accounts agree.
func (l *leaf) verdict(s sample) (cause string, agree bool) {
	base := account{l.st.Written, l.st.Discarded}
	switch {
	case s.events.passed != l.st.Passed:
		return fmt.Sprintf("%d pass-through writes reached %s, and nobody knows which blocks they changed", s.events.passed-l.st.Passed, l.plan.disk), false
	case s.events.overflow != l.st.Overflow:
		return fmt.Sprintf("requests on %s had too many ranges to be marked", l.plan.disk), false
	case s.diff().over(base):
		d := s.diff().minus(base)
		return fmt.Sprintf("the kernel counts %d bytes written and %d discarded on %s that the tracker did not see", int64(d.written), int64(d.discarded), l.plan.disk), false
	}
	return "", s.quiet() && (s.diff() == base || s.rest() == base)
}

// missed looks for a proof that a leaf missed something, for a moment only; "" means that none was found.
func (l *leaf) missed() string {
	for end := time.Now().Add(checkLimit); ; {
		s, err := l.sample()
		if err != nil {
			return err.Error()
		}
		if cause, agree := l.verdict(s); cause != "" || agree || time.Now().After(end) {
			return cause
		}
	}
}

// Prove compares both accounts until they agree on all disks at a quiet moment, differ (ErrTrackLost), or ctx ends (Unproven).
func (t *Tracker) Prove(ctx context.Context) (blockdev.Proof, error) {
	var last []sample
	var low time.Time // since when all is still and the kernel counts less
	for {
		now, equal, err := t.look()
		if err != nil {
			return blockdev.Unproven, err
		}
		still := len(now) > 0 && len(now) == len(last)
		for i := 0; still && i < len(now); i++ {
			still = now[i].still(last[i])
		}
		switch {
		case still && equal:
			return blockdev.Proven, nil
		case !still:
			low = time.Time{}
		case low.IsZero():
			low = time.Now()
		case time.Since(low) > lateLimit:
			t.mu.Lock()
			defer t.mu.Unlock()
			return blockdev.Unproven, t.gap("the kernel counts less than the tracker saw, so misses could hide; was its I/O accounting off for a while?")
		}
		last = now
		select {
		case <-ctx.Done():
			return blockdev.Unproven, nil
		case <-time.After(quietPause):
		}
	}
}

// look samples all leaves once; equal: the accounts agree on each to the byte. No samples are given before the first Take, when there is
// nothing to prove.
func (t *Tracker) look() (samples []sample, equal bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkStill(); err != nil || t.st.Based == 0 {
		return nil, false, err
	}
	equal = true
	for _, l := range t.leaves {
		s, err := l.sample()
		if err != nil {
			return nil, false, t.gap(err.Error())
		}
		cause, _ := l.verdict(s)
		if cause != "" {
			return nil, false, t.gap(cause)
		}
		equal = equal && s.diff() == (account{l.st.Written, l.st.Discarded})
		samples = append(samples, s)
	}
	return samples, equal, nil
}
