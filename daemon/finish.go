package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// finish ends the way back after a cutover: tracking ends, and no start replicates again. Nothing is thawed.
func (u *unit) finish(ctx context.Context) (control.Result, error) {
	done, err := u.hold(ctx, "finish")
	if err != nil {
		return control.Result{}, err
	}
	defer done()
	for _, p := range u.slots {
		if at, is := p.isFinished(); is {
			if len(u.slots) == 1 {
				return control.Result{}, fmt.Errorf("flow %s was finished at %s: %w", p.f.Name, at.Format(time.RFC3339), sentinel.ErrRefused)
			}
			continue
		}
		if s := p.status(); s.State != mover.Done {
			return control.Result{}, fmt.Errorf("flow %s is %s, not cut over, so there is nothing to finish: %s: %w", s.Flow, s.State, s.Reason, sentinel.ErrRefused)
		}
	}
	now := time.Now().UTC()
	volatile := false
	var errs []error
	for _, p := range u.slots {
		if _, is := p.isFinished(); is {
			continue
		}
		short, err := p.finish(now)
		volatile = volatile || short
		if err != nil {
			errs = append(errs, fmt.Errorf("flow %s: %w", p.f.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return control.Result{}, err
	}
	text := u.name + " is finished: its source is not tracked any more, and no rollback takes the target back"
	if volatile {
		text += ". The state folder lies on what is frozen, so this source forgets it at its next boot; moverctl finish at the gateway is what lasts"
	}
	return control.Result{Text: text}, nil
}

// finished is the mark of a flow.
type finished struct {
	Time time.Time `json:"time"`
}

func finishedPaths(run, state, flow string) (inRun, inState string) {
	return filepath.Join(run, "finished-"+flow+".json"), filepath.Join(state, "flows", flow, "finished.json")
}

// readFinished looks for the mark of a flow. The state folder is looked at last: it may lie on what is frozen, which only reading survives.
func readFinished(run, state, flow string) (time.Time, error) {
	a, b := finishedPaths(run, state, flow)
	for _, path := range []string{a, b} {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return time.Time{}, err
		}
		var m finished
		if err := json.Unmarshal(text, &m); err != nil || m.Time.IsZero() {
			return time.Time{}, fmt.Errorf("%s: is no mark of a finished flow; remove it if this flow is to be replicated: %w", path, sentinel.ErrCorrupt)
		}
		return m.Time, nil
	}
	return time.Time{}, nil
}

// finish marks the flow, ends it and removes its tracker. volatile: the mark lasts until the next boot only.
func (p *slot) finish(now time.Time) (volatile bool, err error) {
	text, err := json.Marshal(finished{now})
	if err != nil {
		return false, err
	}
	run, state := finishedPaths(string(p.c.Run), string(p.c.State), p.f.Name)
	if err := writeDurable(run, text); err != nil {
		return false, err
	}
	if volatile = p.unit.stateFrozen(); !volatile {
		if err := writeDurable(state, text); err != nil {
			return false, err
		}
	}
	p.mu.Lock()
	p.ended, p.parked = now, nil
	stop := p.stop
	p.mu.Unlock()
	if stop != nil {
		stop()
	}
	p.wake()
	select {
	case <-p.untracked:
	case <-time.After(closeLimit):
		return volatile, errors.New("it is finished, but its tracking has not ended yet; see the log")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return volatile, p.why
}

// writeDurable replaces a file so that it is whole after a crash.
func writeDurable(path string, text []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// isFinished tells whether the way back was given up.
func (p *slot) isFinished() (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended, !p.ended.IsZero()
}

// finishedAt is when the last member was finished; zero: not all are.
func (u *unit) finishedAt() (last time.Time) {
	for _, p := range u.slots {
		at, is := p.isFinished()
		if !is {
			return time.Time{}
		}
		if at.After(last) {
			last = at
		}
	}
	return last
}

// untrack ends tracking for good.
func (p *slot) untrack() error {
	p.mu.Lock()
	v, t := p.volume, p.tracker
	p.flow, p.volume, p.tracker = nil, nil, nil
	p.mu.Unlock()
	if v == nil {
		return nil
	}
	return errors.Join(t.Remove(), v.Close())
}

// holdsState tells whether the daemon's own state lies on what the unit freezes.
func (u *unit) holdsState() bool {
	fr := u.freezer()
	var state unix.Stat_t
	if fr == nil || unix.Stat(u.state, &state) != nil {
		return false
	}
	dirs, err := fr.dirs()
	return err == nil && slices.ContainsFunc(dirs, func(dir string) bool {
		var st unix.Stat_t
		return unix.Stat(dir, &st) == nil && st.Dev == state.Dev
	})
}

// stateFrozen tells whether a write to the state folder would wait for a thaw: some unit that was cut over and left frozen holds it. A doubt
// counts as yes.
func (u *unit) stateFrozen() bool {
	for _, o := range u.source.units {
		for _, p := range o.slots {
			if r, err := recorded(u.run, p.f.Name); (err != nil || r != nil && r.Left == "frozen") && (o.freezer() == nil || o.holdsState()) {
				return true
			}
		}
	}
	return false
}
