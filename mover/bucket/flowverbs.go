package bucket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Pause stops the pass under way; it goes on where it was.
func (f *Flow) Pause() error {
	if n := f.noted(); n.Phase != phaseMoving {
		return f.isOver()
	}
	if err := f.change(func(n *note) { n.Paused = true }); err != nil {
		return err
	}
	f.mu.Lock()
	if f.cancel != nil {
		f.cancel()
	}
	f.answer(fmt.Errorf("flow %s was paused: %w", f.cfg.Name, sentinel.ErrRefused))
	f.mu.Unlock()
	f.stir()
	return nil
}

// Resume goes on, and tries again at once what failed.
func (f *Flow) Resume() error {
	if n := f.noted(); n.Phase != phaseMoving {
		return f.isOver()
	}
	if err := f.change(func(n *note) { n.Paused = false }); err != nil {
		return err
	}
	f.tryRefused()
	f.stir()
	return nil
}

// tryRefused has the next pass try again what was refused.
func (f *Flow) tryRefused() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals = true
}

// isOver refuses a verb of a flow that does not move any more.
func (f *Flow) isOver() error {
	n := f.noted()
	if n.Phase == phaseFinished {
		return fmt.Errorf("flow %s was finished at %s; to move again, move %s away and restart moverd: %w", f.cfg.Name, n.Finished.Format(time.RFC3339), f.cfg.Dir, sentinel.ErrRefused)
	}
	return fmt.Errorf("flow %s was cut over at %s; rollback lets it go on: %w", f.cfg.Name, n.Done.Format(time.RFC3339), sentinel.ErrRefused)
}

// Sync returns when a pass has ended that began after the call.
func (f *Flow) Sync(ctx context.Context) error {
	switch n := f.noted(); {
	case n.Phase != phaseMoving:
		return f.isOver()
	case n.Paused:
		return fmt.Errorf("flow %s is paused; moverctl resume: %w", f.cfg.Name, sentinel.ErrRefused)
	}
	f.mu.Lock()
	f.asked++
	f.refusals = true
	want := f.asked
	f.mu.Unlock()
	f.stir()
	for {
		f.mu.Lock()
		served, done := f.served, f.done
		f.mu.Unlock()
		if served >= want {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		err := f.why
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// VerifyOptions of Verify and Cutover.
type VerifyOptions struct {
	Read           bool // read every byte of the target again
	WithoutRefused bool // cutover: although some objects cannot be carried
}

// sampled is of how many objects the attributes are compared where not all are read.
const sampled = 256

// mostExamples is how many objects that differ a report names.
const mostExamples = 100

// Verify compares the target with what was written there. What differs is copied again by the next pass, unless the flow was cut over.
func (f *Flow) Verify(ctx context.Context, o VerifyOptions, progress func(mover.Progress)) (*mover.Report, error) {
	if err := f.hold(ctx); err != nil {
		return nil, err
	}
	defer f.release()
	defer f.stir() // what differs is copied again now
	defer f.settle()
	r := f.report("verify")
	err := f.open(ctx)
	if err == nil {
		err = f.verify(ctx, o, r, progress)
	}
	return r.end(err)
}

// report is one that has begun.
type report struct{ mover.Report }

func (f *Flow) report(kind string) *report {
	return &report{mover.Report{Flow: f.cfg.Name, Kind: kind, Started: time.Now().UTC(), Consistency: "object", Left: "running", Bucket: &mover.BucketReport{}}}
}

func (r *report) end(err error) (*mover.Report, error) {
	r.Ended, r.OK = time.Now().UTC(), err == nil
	if err != nil {
		r.Error = err.Error()
	}
	return &r.Report, err
}

// step runs and times one step.
func (r *report) step(name string, progress func(mover.Progress), tell func() mover.Progress, run func() error) error {
	began := time.Now()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			p := tell()
			p.Step = name
			progress(p)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	err := run()
	close(stop)
	<-ended // nothing is told after the verb has ended
	r.Steps = append(r.Steps, mover.Step{Name: name, Seconds: time.Since(began).Seconds()})
	return err
}

func (f *Flow) verify(ctx context.Context, o VerifyOptions, r *report, progress func(mover.Progress)) error {
	l, err := f.known()
	if err != nil {
		return err
	}
	f.stand(mover.Settling, "comparing the target with the ledger", "")
	moving := f.noted().Phase == phaseMoving
	var missed error
	differ := func(key, how string) {
		if len(r.Bucket.Examples) < mostExamples {
			r.Bucket.Examples = append(r.Bucket.Examples, fmt.Sprintf("%q: %s", key, how))
		}
		if moving {
			missed = errors.Join(missed, l.again(key, "verify found: "+how))
		}
	}
	var v Verified
	text := "comparing listings"
	if o.Read {
		text = "reading the target"
	}
	all := l.State()
	cfg := VerifyConfig{To: f.s.to, Copy: f.cfg.Copy, Read: o.Read, Attrs: sampled, Differ: differ}
	if o.Read && moving {
		cfg.From = f.s.from
	}
	err = r.step("verify", progress, func() mover.Progress { return mover.Progress{Text: text, Total: all.Bytes} }, func() (err error) {
		v, err = l.Verify(ctx, cfg)
		return err
	})
	b := r.Bucket
	b.Pass, b.Objects, b.Bytes, b.Differ, b.Others, b.Read, b.Attributes = all.Pass, v.Objects, v.Bytes, v.Differ, v.Others, o.Read, v.Attrs
	b.Refused, b.Partly, b.Versions = all.NowRefused, all.NowPartly, all.Versions.String()
	if err != nil || missed != nil {
		f.close()
		return errors.Join(err, missed)
	}
	if v.Differ > 0 {
		next := "the next pass copies them again"
		if !moving {
			next = "rollback lets the flow go on and copy them again"
		}
		return fmt.Errorf("%d objects at %s are not what they should be; %s: %w", v.Differ, f.s.to, next, sentinel.ErrDiffer)
	}
	return nil
}

// again notes that an object is to be copied again although the source's has not changed.
func (l *Ledger) again(key, why string) error {
	return l.update(func(c change) error {
		r, found, err := l.record(key)
		if err != nil || !found {
			return err
		}
		c.stands(r, -1)
		r.Outcome, r.Sure, r.Why = Failed, false, why
		c.stands(r, 1)
		return c.Set(objectKey(key), r.append(nil), nil)
	})
}

// Manifest writes the manifest to a new file, or to the flow's folder where path is empty.
func (f *Flow) Manifest(path string) (Closing, string, error) {
	f.use.RLock()
	defer f.use.RUnlock()
	l, err := f.known()
	if err != nil {
		return Closing{}, "", err
	}
	if path == "" {
		path = filepath.Join(f.cfg.Dir, fmt.Sprintf("manifest-%06d.jsonl", l.State().Pass))
	} else if _, err := os.Lstat(path); err == nil {
		return Closing{}, "", fmt.Errorf("%s is there already; name a new file: %w", path, sentinel.ErrUsage)
	}
	var c Closing
	err = durably(path, func(w *os.File) (err error) { c, err = l.Manifest(w, f.notCarried()...); return err })
	return c, path, err
}

// notCarried is what the flow carries of no object at all.
func (f *Flow) notCarried() (all []string) {
	c := f.cfg.Copy
	if !c.Modified {
		all = append(all, "the time of last modification, which no store lets set: it stands here, or with keep-modified: true in the user metadata "+modifiedName)
	}
	if c.Class == "" {
		all = append(all, "the storage class: objects have the target's standard class")
	}
	if c.NoTags {
		all = append(all, "tags (tags: false)")
	}
	if !c.Grants {
		all = append(all, "who may read an object (grants: false)")
	}
	return all
}

// mostPage is how many objects a page of Objects has at most.
const mostPage = 1000

// Objects gives objects behind the key after whose outcome is among some ("partly": copied without something); none: all but those that were copied wholly. next is
// nil at the end.
func (f *Flow) Objects(ctx context.Context, after []byte, some []string) (out []mover.BucketObject, next []byte, err error) {
	f.use.RLock()
	defer f.use.RUnlock()
	l, err := f.known()
	if err != nil {
		return nil, nil, err
	}
	if len(some) == 0 {
		some = []string{"refused", "failed", "partly", "gone"}
	}
	errFull := errors.New("full")
	err = l.scan(span{after: string(after)}, func(key string, r Record) error {
		name := r.Outcome.String()
		if r.Outcome == Copied && len(r.Lost) > 0 {
			name = "partly"
		}
		if !slices.Contains(some, name) {
			return ctx.Err()
		}
		o := mover.BucketObject{Outcome: name, Size: r.Size, Why: r.Why, Lost: r.Lost}
		if utf8.ValidString(key) {
			o.Key = key
		} else {
			o.KeyBytes = []byte(key)
		}
		out = append(out, o)
		if len(out) == mostPage {
			next = []byte(key)
			return errFull
		}
		return nil
	})
	if errors.Is(err, errFull) {
		err = nil
	}
	return out, next, err
}

// Rollback lets a flow that was cut over go on.
func (f *Flow) Rollback(ctx context.Context) error {
	if err := f.hold(ctx); err != nil {
		return err
	}
	defer f.release()
	switch n := f.noted(); n.Phase {
	case phaseMoving:
		return fmt.Errorf("flow %s was not cut over: %w", f.cfg.Name, sentinel.ErrRefused)
	case phaseFinished:
		return f.isOver()
	}
	if f.cfg.Stopper != nil {
		if err := f.cfg.Stopper.Start(); err != nil {
			return err
		}
	}
	err := f.change(func(n *note) { *n = note{Begun: n.Begun} })
	f.stir()
	return err
}

// Finish gives up the way back.
func (f *Flow) Finish(ctx context.Context) error {
	if err := f.hold(ctx); err != nil {
		return err
	}
	defer f.release()
	switch n := f.noted(); n.Phase {
	case phaseMoving:
		return fmt.Errorf("flow %s was not cut over, so there is nothing to finish: %w", f.cfg.Name, sentinel.ErrRefused)
	case phaseFinished:
		return f.isOver()
	}
	err := f.change(func(n *note) { n.Phase, n.Finished = phaseFinished, time.Now().UTC() })
	f.settle()
	f.stir()
	return err
}
