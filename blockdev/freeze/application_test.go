package freeze

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newApplication makes one whose commands append to a file that said reads; run is the folder of its records.
func newApplication(t *testing.T, run, pre, post string) (a *Application, said func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "said")
	sh := func(s string) []string {
		return []string{"/bin/sh", "-c", `echo $MOVER_PHASE-$MOVER_GROUP-$MOVER_MOMENT >> ` + file + "; " + strings.ReplaceAll(s, "SAID", file)}
	}
	a = NewApplication(ApplicationOptions{Group: "db", Pre: sh(pre), Post: sh(post), Limit: time.Second, RunDir: run, Log: slog.New(slog.DiscardHandler)})
	return a, func() string {
		b, _ := os.ReadFile(file)
		return strings.Join(strings.Fields(string(b)), " ")
	}
}

func TestApplication(t *testing.T) {
	run := runDir(t)
	a, said := newApplication(t, run, "true", "true")
	if err := a.Post(); err != nil || said() != "" {
		t.Errorf("post without pre: %v, %q", err, said())
	}
	if err := a.Pre(t.Context(), "m1"); err != nil || said() != "pre-db-m1" || len(records(t, run)) != 1 {
		t.Errorf("pre: %v, %q, %v", err, said(), records(t, run))
	}
	for range 2 {
		if err := a.Post(); err != nil || said() != "pre-db-m1 post-db-m1" || len(records(t, run)) != 0 {
			t.Errorf("post: %v, %q, %v", err, said(), records(t, run))
		}
	}
}

// TestApplicationFails: post runs after a pre that fails, that takes too long, or that is called off; and a post that fails is owed.
func TestApplicationFails(t *testing.T) {
	a, said := newApplication(t, runDir(t), "echo no such database >&2; exit 3", "true")
	err := a.Pre(t.Context(), "m")
	if err == nil || !strings.Contains(err.Error(), "no such database") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("pre that fails: %v", err)
	}
	if said() != "pre-db-m post-db-m" || len(records(t, a.o.RunDir)) != 0 {
		t.Errorf("after it: %q", said())
	}

	a, said = newApplication(t, runDir(t), "(sleep 3; echo too-late >> SAID) & sleep 100", "true")
	begin := time.Now()
	err = a.Pre(t.Context(), "m")
	if took := time.Since(begin); err == nil || !strings.Contains(err.Error(), "more than 1s") || took > 3*time.Second {
		t.Errorf("pre that takes too long: %v after %s", err, took)
	}
	if said() != "pre-db-m post-db-m" {
		t.Errorf("after it: %q", said())
	}

	off, cancel := context.WithCancel(t.Context())
	cancel()
	a, said = newApplication(t, runDir(t), "true", "true")
	if err := a.Pre(off, "m"); !errors.Is(err, context.Canceled) || !strings.HasSuffix(said(), "post-db-m") {
		t.Errorf("pre that is called off: %v, %q", err, said())
	}

	marker := filepath.Join(t.TempDir(), "mended")
	a, said = newApplication(t, runDir(t), "true", "test -e "+marker)
	if err := a.Pre(t.Context(), "m1"); err != nil {
		t.Fatal(err)
	}
	if a.Post() == nil || len(records(t, a.o.RunDir)) != 1 {
		t.Error("post that fails: no error, or no record")
	}
	if err := a.Pre(t.Context(), "m2"); err == nil || strings.Contains(said(), "m2") {
		t.Errorf("a moment began before post had run: %v, %q", err, said())
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.Pre(t.Context(), "m2"); err != nil || !strings.HasSuffix(said(), "post-db-m1 pre-db-m2") {
		t.Errorf("after it was mended: %v, %q", err, said())
	}
}

// TestApplicationKilled: a process that is gone owes post; the next one runs it, at once or before its own pre.
func TestApplicationKilled(t *testing.T) {
	run := runDir(t)
	a, said := newApplication(t, run, "true", "true")
	if err := a.Pre(t.Context(), "m1"); err != nil {
		t.Fatal(err)
	}
	ran, err := PostStale(run, a.o.Log)
	if err != nil || len(ran) != 1 || said() != "pre-db-m1 post-db-m1" || len(records(t, run)) != 0 {
		t.Errorf("%v, %v, %q", ran, err, said())
	}
	if ran, err := PostStale(run, a.o.Log); err != nil || len(ran) != 0 {
		t.Errorf("again: %v, %v", ran, err)
	}

	a, _ = newApplication(t, run, "true", "true")
	if err := a.Pre(t.Context(), "m2"); err != nil {
		t.Fatal(err)
	}
	b, said := newApplication(t, run, "true", "true")
	if err := b.Pre(t.Context(), "m3"); err != nil || said() != "post-db-m2 pre-db-m3" {
		t.Errorf("%v, %q", err, said())
	}
}
