package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// worker is a role whose verbs are a function.
type worker struct {
	stuck
	do func() (control.Result, error)
}

func (w *worker) Do(context.Context, string, control.Request, func(mover.Progress)) (control.Result, error) {
	return w.do()
}

func trailFor(t *testing.T, r role) (*audited, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	tr, err := audit.New(audit.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return &audited{role: r, log: &Log{Logger: slog.New(slog.DiscardHandler), trail: tr}, parked: map[string]bool{}}, dir
}

func events(t *testing.T, dir string) (all []string) {
	t.Helper()
	if _, err := audit.Verify(dir, func(r audit.Record) error { all = append(all, r.Event); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestVerbsAreRecorded(t *testing.T) {
	a, dir := trailFor(t, &worker{do: func() (control.Result, error) {
		return control.Result{Report: &mover.Report{SourceRoot: "aa", Pause: 0.2}}, errors.New("no")
	}})
	if _, err := a.Do(t.Context(), control.Cutover, control.Request{Flow: "root"}, nil); err == nil {
		t.Error("the verb's error is lost")
	}
	if got := fmt.Sprint(events(t, dir)); got != "[audit.continued cutover.begin cutover.end]" {
		t.Error(got)
	}
}

// Without a trail that can be written nothing begins that has to be recorded; the rest goes on.
func TestNoTrailNoCutover(t *testing.T) {
	began := 0
	a, _ := trailFor(t, &worker{do: func() (control.Result, error) { began++; return control.Result{}, nil }})
	tr, err := audit.New(audit.Config{Dir: "/proc/audit"}) // cannot be made
	if err != nil {
		t.Fatal(err)
	}
	a.log.trail = tr
	for _, verb := range []string{control.Cutover, control.Claim, control.Rollback} {
		if _, err := a.Do(t.Context(), verb, control.Request{Flow: "root"}, nil); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if began != 0 {
		t.Errorf("%d began", began)
	}
	if _, err := a.Do(t.Context(), control.Thaw, control.Request{Flow: "root"}, nil); err != nil || began != 1 {
		t.Errorf("thaw: %v", err)
	}
}

// A flood of refused connections leaves ten records and a count.
func TestFlood(t *testing.T) {
	a, dir := trailFor(t, &worker{})
	log := slog.New(&tee{Handler: slog.NewTextHandler(io.Discard, nil), to: a}).With("role", Gateway)
	for i := range 1000 {
		log.Info("connection refused", "peer", fmt.Sprint("10.0.0.", i), "error", errors.New("tls: bad certificate"))
	}
	r, told := a.shots.due(time.Now(), true)
	if !told || r.Details["attempts"] != 990 {
		t.Errorf("%v %v", r, told)
	}
	if n := strings.Count(fmt.Sprint(events(t, dir)), "link.refused"); n != toldPerMinute {
		t.Errorf("%d records", n)
	}
}

func TestChanges(t *testing.T) {
	var got []string
	for _, r := range changes(mover.Status{Conns: 2}, mover.Status{State: mover.Stopped, Phase: "released", Gap: "reboot", Rescans: 1}) {
		got = append(got, r.Event)
	}
	if fmt.Sprint(got) != "[flow.released flow.gap flow.stopped link.down]" {
		t.Error(got)
	}
}
