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
//	kernel = base + programs + missed - underway
//
// where base is fixed, missed counts bytes for which no copy ran, and underway is what lies between the two additions just then.
// A sample reads programs, kernel, programs. All accounts only grow, so:
//
//   - kernel > base + second reading proves a miss, in any single sample: underway cannot be negative.
//   - kernel = base + first reading = base + second reading, twice with a pause between, proves that nothing was missed: for a
//     miss to hide, just as many bytes would have to be underway, for the whole pause.
//
// The base is taken by the first Take of a generation, before it clears anything. Misses before that do no harm: what they wrote is
// on the disk before the rescan that a new generation begins with reads it. Each sample gives kernel - second reading <= base, and a
// quiet one gives the base itself; the greatest of many samples is used. On a disk that is never quiet it could come out too small;
// the price is a gap that was none, never a miss that is not seen.

const (
	baseSamples = 64                     // quiet-looking samples that agree before a busy disk's base is believed
	baseLimit   = 250 * time.Millisecond // for a base on a disk that is never quiet
	checkLimit  = 2 * time.Millisecond   // for a Take to find a sample in which both accounts agree
	quietPause  = 2 * time.Millisecond   // between the two samples that prove
	lateSamples = 5                      // quiet samples in which the kernel counted less, before that is a gap
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
	underway              bool // the kernel knows of requests that have not ended
	events                events
}

type events struct{ passed, overflow uint64 }

func (s sample) quiet() bool { return s.before == s.after }

// diff is the base as far as this sample tells: never more than the true one plus what was missed.
func (s sample) diff() account { return s.kernel.minus(s.after) }

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
	var best account
	agree, first := 0, true
	var last sample
	for end := time.Now().Add(baseLimit); time.Now().Before(end); {
		s, err := l.sample()
		if err != nil {
			return err
		}
		d := s.diff()
		if first || d.over(best) {
			if first {
				best = d
			}
			best = account{maxWrap(best.written, d.written), maxWrap(best.discarded, d.discarded)}
			agree = 0
		}
		if d == best && s.quiet() {
			agree++
			if !s.underway && !last.underway && !first && s.kernel == last.kernel && s.after == last.before {
				break // nothing moved between two samples
			}
		}
		if agree >= baseSamples {
			break
		}
		first, last = false, s
		if !s.underway {
			time.Sleep(quietPause)
		}
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
		return fmt.Sprintf("%d requests on %s had too many ranges to be marked", s.events.overflow-l.st.Overflow, l.plan.disk), false
	case s.diff().over(base):
		d := s.diff().minus(base)
		return fmt.Sprintf("the kernel counts %d bytes written and %d discarded on %s that the tracker did not see", int64(d.written), int64(d.discarded), l.plan.disk), false
	}
	return "", s.quiet() && s.diff() == base
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
	late := 0
	for {
		now, agree, low, err := t.look()
		if err != nil {
			return blockdev.Unproven, err
		}
		still := len(now) > 0 && len(now) == len(last)
		for i := range last {
			still = still && now[i].kernel == last[i].kernel && now[i].after == last[i].before
		}
		if still && agree {
			return blockdev.Proven, nil
		}
		if still && low {
			if late++; late >= lateSamples {
				return blockdev.Unproven, t.fail("the kernel counts less than the tracker saw: I/O accounting was switched off for a while")
			}
		} else {
			late = 0
		}
		last = now
		select {
		case <-ctx.Done():
			return blockdev.Unproven, nil
		case <-time.After(quietPause):
		}
	}
}

// look samples all leaves once. agree: all accounts agree and nothing is underway; low: nothing is underway but some account of the kernel
// is short. No samples are given before the first Take, when there is nothing to prove.
func (t *Tracker) look() (samples []sample, agree, low bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkStill(); err != nil || t.st.Based == 0 {
		return nil, false, false, err
	}
	agree, idle := true, true
	for _, l := range t.leaves {
		s, err := l.sample()
		if err != nil {
			return nil, false, false, t.gap(err.Error())
		}
		cause, ok := l.verdict(s)
		if cause != "" {
			return nil, false, false, t.gap(cause)
		}
		agree = agree && ok
		idle = idle && s.quiet() && !s.underway
		samples = append(samples, s)
	}
	return samples, agree && idle, !agree && idle, nil
}
