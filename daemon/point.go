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

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// point takes a recovery point of all members at one moment. An error comes also when the moment is one, and some member has no point of it.
func (u *unit) point(ctx context.Context, r control.Request, progress func(mover.Progress)) (*mover.Report, error) {
	r.Leave = ""
	c, err := u.options(r)
	if err != nil {
		return nil, err
	}
	o := sender.PointOptions{Limit: c.Limit, Deadline: c.Deadline, NoSnapshot: u.group != nil && u.group.Snapshot == "off"}
	if every := u.schedule.Every; every > 0 {
		o.Timeout = max(min(every, 10*time.Minute), time.Minute)
	}
	done, err := u.hold(ctx, "point")
	if err != nil {
		return nil, err
	}
	defer done()
	if err := u.alone(); err != nil {
		return nil, err
	}
	o.Group = u.moment()
	w, err := u.together("point", progress, func(_ int, f *sender.Flow, tell func(mover.Progress)) (*mover.Report, error) {
		return f.Point(ctx, o, tell)
	})
	if w != nil {
		u.noteMoment(w, err, false)
	}
	return w, err
}

// noteMoment remembers what became of a moment. All writers go on, or stay stopped by a cutover: then it touches only the run folder.
func (u *unit) noteMoment(w *mover.Report, err error, rehearsed bool) {
	points := map[string]string{}
	members := w.Members
	if u.group == nil {
		members = []*mover.Report{w}
	}
	whole := w.Moment != ""
	for _, m := range members {
		points[m.Flow] = m.Point
		whole = whole && m.Point != ""
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case whole:
		u.taken++
		u.last = &mover.LastMoment{ID: mover.PointID(w.MomentTime, w.Moment), Time: w.MomentTime, Consistency: w.Consistency, Pause: w.Pause, Points: points,
			Worse: w.Worse, HookError: w.HookError, Rehearsed: rehearsed}
		if u.trouble = ""; w.HookError != "" {
			u.trouble = "the post hook failed: " + w.HookError
		}
		if err := keepMoment(u.run, u.name, u.last); err != nil {
			u.log.Warn("the last moment will not be known after a restart", "error", err)
		}
		u.log.Info("recovery point", "moment", w.Moment, "consistency", w.Consistency, "pause", time.Duration(w.Pause*float64(time.Second)).Round(time.Millisecond), "worse", w.Worse)
	case w.Moment == "" && w.Rounds == 0: // refused before it began
	case w.Kind == "point" || w.Moment != "" && err != nil:
		u.failed++
		u.trouble = w.PointError
		if err != nil {
			u.trouble = err.Error()
		}
		u.log.Error("no recovery point of this moment", "moment", w.Moment, "error", u.trouble)
	}
}

// scheduled takes the points that are due, until ctx ends.
func (u *unit) scheduled(ctx context.Context) error {
	for {
		u.mu.Lock()
		due, wait := u.schedule.Due(time.Now(), time.Since(u.started))
		u.mu.Unlock()
		if due {
			u.take(ctx)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// byschedule is who asks for points that are due.
const bySchedule = "schedule"

// take takes a point that is due, or says why there is none.
func (u *unit) take(ctx context.Context) {
	if why := u.notNow(); why != "" {
		u.mu.Lock()
		u.skipped++
		news := u.skip != why
		u.skip = why
		u.mu.Unlock()
		if news {
			u.log.Warn("a recovery point was due and is left out", "why", why)
		}
		return
	}
	u.mu.Lock()
	u.skip = ""
	u.mu.Unlock()
	report, err := u.point(ctx, control.Request{}, nil)
	if ctx.Err() != nil && report == nil {
		return
	}
	result := control.Result{Report: report}
	u.o.Log.append(audit.Record{Actor: bySchedule, Event: control.Point + ends, Flow: u.name, Details: outcome(result, err)})
	u.o.Log.note(ended(bySchedule, control.Point, u.name, result, err))
}

// notNow tells why no point can be taken; "" when it can.
func (u *unit) notNow() string {
	if at := u.at(); at != "" {
		return "a " + at + " is under way"
	}
	for _, p := range u.slots {
		s := p.status()
		scan := len(s.Tracking) >= 4 && s.Tracking[:4] == "scan"
		switch {
		case s.State == mover.Paused || s.State == mover.Stopped || s.State == mover.Done || s.State == mover.Connecting:
			return fmt.Sprintf("flow %s is %s: %s", s.Flow, s.State, s.Reason)
		case s.Pass != nil && s.Pass.Kind != mover.Delta.String() && !scan:
			return fmt.Sprintf("flow %s is in a %s pass", s.Flow, s.Pass.Kind)
		case s.Phase != mover.Point.String():
			return fmt.Sprintf("flow %s has no recovery point yet to build on", s.Flow)
		}
	}
	return ""
}

// view is what status tells of the unit; nil: nothing beyond its flow.
func (u *unit) view(members []mover.Status) *mover.Group {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.group == nil && u.last == nil && u.taken+u.failed == 0 {
		return nil
	}
	g := &mover.Group{State: "idle", Moment: u.last, Taken: u.taken, Failed: u.failed, Skipped: u.skipped, Trouble: u.trouble,
		Every: u.schedule.Every.Seconds(), Due: u.schedule.Next()}
	if u.group != nil {
		g.Name = u.name
	}
	over := 0
	for _, s := range members {
		g.Members = append(g.Members, s.Flow)
		if s.State == mover.Done {
			over++
		}
	}
	switch {
	case u.doing != "":
		g.State = u.doing
	case over == len(members) && !u.finishedAt().IsZero():
		g.State, g.Finished = "finished", u.finishedAt()
	case over == len(members):
		g.State, g.Next = "done", "moverctl rollback "+u.name+", or moverctl finish "+u.name+" when the target is yours for good"
	case over > 0 || slices.ContainsFunc(members, func(s mover.Status) bool { return s.HandOver == mover.HandOverDoubt }):
		g.State, g.Reason = "done in part", fmt.Sprintf("%d of %d members are handed over", over, len(members))
		g.Next = "moverctl rollback " + u.name
	case u.skip != "":
		g.Reason = "the last point that was due was left out: " + u.skip
	}
	return g
}

func momentPath(run, name string) string { return filepath.Join(run, "last-moment-"+name+".json") }

// keepMoment records a moment for the next process; the run folder is a tmpfs, which is never frozen.
func keepMoment(run, name string, m *mover.LastMoment) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := momentPath(run, name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func lastMoment(run, name string) (*mover.LastMoment, error) {
	b, err := os.ReadFile(momentPath(run, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	m := &mover.LastMoment{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", momentPath(run, name), err)
	}
	return m, nil
}

// refuseMember says that a flow goes with its group.
func (p *slot) refuseMember(verb string) error {
	return fmt.Errorf("flow %s is in group %s and has its moments with it: moverctl %s %s: %w", p.f.Name, p.unit.name, verb, p.unit.name, sentinel.ErrRefused)
}
