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

	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

// newHook makes a hook whose commands append a line with MOVER_FLOW to the file that said reads.
func newHook(t *testing.T, stop, start string) (h *Hook, said func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "said")
	sh := func(s string) []string { return []string{"/bin/sh", "-c", strings.ReplaceAll(s, "SAID", file)} }
	h = NewHook(sh(stop), sh(start), HookOptions{Flow: "db/1", Limit: 5 * time.Second, RunDir: runDir(t), Log: slog.New(slog.DiscardHandler)})
	return h, func() string {
		b, _ := os.ReadFile(file)
		return strings.Join(strings.Fields(string(b)), " ")
	}
}

const (
	stops  = "echo stop-$MOVER_FLOW >> SAID"
	starts = "echo start-$MOVER_FLOW >> SAID"
)

func TestHook(t *testing.T) {
	h, said := newHook(t, stops, starts)
	if h.Thaw() != nil || h.Keep() == nil || h.Held() || said() != "" {
		t.Error("something happened before the stop")
	}
	if err := h.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if !h.Held() || said() != "stop-db/1" || len(records(t, h.o.RunDir)) != 1 {
		t.Errorf("stopped: %q", said())
	}
	if err := h.Freeze(t.Context(), time.Minute); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("stopped twice: %v", err)
	}
	for range 2 {
		if err := h.Thaw(); err != nil {
			t.Error(err)
		}
	}
	if h.Held() || said() != "stop-db/1 start-db/1" || len(records(t, h.o.RunDir)) != 0 {
		t.Errorf("started: %q", said())
	}
}

func TestHookFails(t *testing.T) {
	big := "head -c 100000 /dev/zero | tr '\\0' x; echo the end; exit 3"
	h, said := newHook(t, stops+"; "+big, starts)
	err := h.Freeze(t.Context(), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the end") || len(err.Error()) > 2*hookOutput {
		t.Errorf("a stop hook that fails: %v", err)
	}
	if said() != "stop-db/1 start-db/1" || h.Held() {
		t.Errorf("after a failed stop: %q", said())
	}

	h, said = newHook(t, stops, starts+"; exit 1")
	if err := h.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := h.Thaw(); err == nil || h.Held() {
		t.Error("a start hook that fails: no error")
	}
	if err := h.Thaw(); err == nil || said() != "stop-db/1 start-db/1 start-db/1" {
		t.Errorf("a start that failed was not tried again: %q", said())
	}
	if len(records(t, h.o.RunDir)) != 1 {
		t.Error("no record of what is still stopped")
	}
	missing := NewHook([]string{"/nonexistent"}, nil, HookOptions{})
	if err := missing.Freeze(t.Context(), time.Minute); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
}

// TestHookLimit: a hook that hangs is killed with its children.
func TestHookLimit(t *testing.T) {
	h, said := newHook(t, "sleep 1000 & echo $! >> SAID; wait", starts)
	h.o.Limit = 300 * time.Millisecond
	err := h.Freeze(t.Context(), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "more than 300ms") {
		t.Errorf("a hook that hangs: %v", err)
	}
	child, _, _ := strings.Cut(said(), " ")
	waitFor(t, "the child to die", func() bool {
		b, err := os.ReadFile("/proc/" + child + "/stat")
		return err != nil || strings.Contains(string(b), ") Z ")
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	h.o.Limit = time.Minute
	if err := h.Freeze(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("a hook that is called off: %v", err)
	}
}

func TestHookDeadline(t *testing.T) {
	h, said := newHook(t, stops, starts)
	if err := h.Freeze(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-h.Thawed()
	if err := h.Thaw(); !errors.Is(err, os.ErrDeadlineExceeded) || h.Keep() == nil || said() != "stop-db/1 start-db/1" {
		t.Errorf("after the deadline: %v, %q", err, said())
	}
	if err := h.Freeze(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := h.Keep(); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond)
	if names, err := ThawStale(h.o.RunDir); !h.Held() || err != nil || len(names) > 0 {
		t.Error("keep did not outlive the deadline")
	}
	if names, err := ThawRecorded(h.o.RunDir); err != nil || len(names) != 1 || !strings.HasSuffix(said(), "stop-db/1 start-db/1") {
		t.Errorf("started by record: %v, %v, %q", names, err, said())
	}
}

func TestBoth(t *testing.T) {
	dir := newFS(t, "ext4")
	w := startWriter(t, dir)
	in := filepath.Join(dir, "hooks")
	h, _ := newHook(t, "echo stop >> "+in, "echo start >> "+in) // writes to what is frozen: works only in the right order
	p := Both(h, newFreezer(t, dir))
	said := func() string {
		b, _ := os.ReadFile(in)
		return strings.Join(strings.Fields(string(b)), " ")
	}
	if n := p.Names(); len(n) != 2 {
		t.Errorf("names: %v", n)
	}
	if err := p.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if !p.Held() || !frozen(t, dir) || said() != "stop" {
		t.Errorf("frozen: %q", said())
	}
	if err := p.Thaw(); err != nil {
		t.Error(err)
	}
	if p.Held() || !closed(p.Thawed()) || said() != "stop start" {
		t.Errorf("thawed: %q", said())
	}

	if err := p.Freeze(t.Context(), 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	<-p.Thawed()
	w.advance(t)
	if err := p.Thaw(); !errors.Is(err, os.ErrDeadlineExceeded) || said() != "stop start stop start" {
		t.Errorf("after the deadline: %v, %q", err, said())
	}

	unix.Unlink(in)
	foreign, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	h.start = []string{"/bin/sh", "-c", "true"}
	h.stop = []string{"/bin/sh", "-c", "fsfreeze -f " + dir} // the freeze that follows is refused
	if err := p.Freeze(t.Context(), time.Minute); !errors.Is(err, unix.EBUSY) || h.stopped {
		t.Errorf("a freeze that is refused after the stop: %v", err)
	}
	if err := Thaw(dir); err != nil {
		t.Error(err)
	}
	h.stop = nil
	if err := p.Freeze(t.Context(), 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	<-time.After(600 * time.Millisecond)
	if !p.Held() || !frozen(t, dir) {
		t.Error("keep did not outlive the deadline")
	}
	if err := p.Thaw(); err != nil {
		t.Error(err)
	}
	w.advance(t)
}
