package freeze

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

const (
	hookPrefix = "stopped-"
	startLimit = 5 * time.Minute // for a start command of a record, and the default of HookOptions.Limit
	hookOutput = 4 << 10         // bytes of a command's output that are kept: the last ones
)

// HookOptions say how the operator's commands run.
type HookOptions struct {
	Flow   string        // MOVER_FLOW of the commands
	Limit  time.Duration // of each command, which is killed with its children then; default 5 min
	RunDir string        // folder of the record of what is stopped; empty: no record
	Log    *slog.Logger
}

// Hook stops an application by the operator's command and starts it by another. Commands are argument vectors, not shell lines.
// They must be idempotent: start may run after a stop that failed half way, and again after a crash.
type Hook struct {
	stop, start []string
	o           HookOptions

	mu      sync.Mutex // guards all below; held while a command runs
	stopped bool
	kept    bool
	void    error // why the stop did not last until Thaw
	timer   *time.Timer
	over    chan struct{} // closed when what was stopped may run again
}

// NewHook makes a freezer of two commands. Either may be empty.
func NewHook(stop, start []string, o HookOptions) *Hook {
	if o.Limit <= 0 {
		o.Limit = startLimit
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := &Hook{stop: stop, start: start, o: o, over: make(chan struct{})}
	close(h.over)
	return h
}

// Names is the stop command.
func (h *Hook) Names() []string { return []string{"hook " + strings.Join(h.stop, " ")} }

// Freeze runs the stop command, which the deadline does not bound: it counts from the command's end, and then the start command runs.
// When stop fails, start runs at once.
func (h *Hook) Freeze(ctx context.Context, deadline time.Duration) error {
	if err := h.halt(ctx); err != nil {
		return err
	}
	h.arm(deadline)
	return nil
}

// halt is Freeze without a deadline.
func (h *Hook) halt(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return fmt.Errorf("run the stop hook: it has run already: %w", sentinel.ErrRefused)
	}
	if h.o.RunDir != "" {
		if err := os.MkdirAll(h.o.RunDir, 0o700); err != nil {
			return fmt.Errorf("make the folder for the record of stopped applications: %w", err)
		}
		if err := (record{Name: h.o.Flow, Start: h.start}).write(h.path()); err != nil {
			return err
		}
	}
	h.stopped, h.kept, h.void, h.over = true, false, nil, make(chan struct{})
	if err := runHookIn(ctx, h.stop, h.o.Flow, h.o.Limit, h.o.Log); err != nil {
		return errors.Join(fmt.Errorf("stop hook: %w", err), h.resume())
	}
	return nil
}

func (h *Hook) path() string { return recordPath(h.o.RunDir, hookPrefix, h.o.Flow) }

// arm sets the deadline.
func (h *Hook) arm(deadline time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var timer *time.Timer
	timer = time.AfterFunc(deadline, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.stopped && !h.kept && h.timer == timer {
			err := h.resume()
			h.void = errors.Join(fmt.Errorf("what the stop hook stopped was started at the deadline: %w", os.ErrDeadlineExceeded), err)
			h.o.Log.Warn("start hook ran at the deadline", "flow", h.o.Flow, "error", h.void)
		}
	})
	h.timer = timer
}

// resume runs the start command. mu is held. When it fails, the next Thaw tries again.
func (h *Hook) resume() error {
	if h.timer != nil {
		h.timer.Stop()
	}
	select {
	case <-h.over:
	default:
		close(h.over) // a start that fails may have started something
	}
	if err := runHookIn(context.Background(), h.start, h.o.Flow, h.o.Limit, h.o.Log); err != nil {
		return fmt.Errorf("start hook: %w; start the application by hand", err)
	}
	h.stopped = false
	if h.o.RunDir == "" {
		return nil
	}
	return remove(h.path())
}

// Thaw runs the start command. Calling it again does nothing, unless start failed.
func (h *Hook) Thaw() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.stopped {
		return h.void
	}
	return errors.Join(h.void, h.resume())
}

// Keep leaves the application stopped, beyond the deadline and this process.
func (h *Hook) Keep() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if closed(h.over) {
		return fmt.Errorf("keep stopped: the application is not stopped: %w", errors.Join(h.void, sentinel.ErrRefused))
	}
	h.kept = true
	if h.o.RunDir == "" {
		return nil
	}
	return record{Name: h.o.Flow, Kept: true, Start: h.start}.write(h.path())
}

// Held tells whether the application has been stopped without a break since Freeze.
func (h *Hook) Held() bool { return !closed(h.Thawed()) }

// Thawed is closed when the application may run.
func (h *Hook) Thawed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

func runHook(command []string, flow string, limit time.Duration) error {
	return runHookIn(context.Background(), command, flow, limit, slog.Default())
}

func runHookIn(ctx context.Context, command []string, flow string, limit time.Duration, log *slog.Logger) error {
	return runCommand(ctx, command, []string{"MOVER_FLOW=" + flow}, limit, log)
}

// runCommand runs one command in a process group of its own, and kills the group when limit or ctx ends. No command is no error.
func runCommand(ctx context.Context, command, env []string, limit time.Duration, log *slog.Logger) error {
	if len(command) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took more than %s", limit))
	defer cancel()
	out := &tail{}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a daemon that the command started may keep its output open
	begin := time.Now()
	err := cmd.Run()
	text := out.String()
	name := filepath.Base(command[0])
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		log.Info("hook ran", "command", command, "for", env, "seconds", time.Since(begin).Seconds(), "output", text)
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s was killed: %w; it said: %q", name, context.Cause(ctx), text)
	}
	return fmt.Errorf("%s: %w; it said: %q", name, err, text)
}

// tail keeps the last hookOutput bytes written to it.
type tail struct {
	mu  sync.Mutex
	b   []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-hookOutput):]...)
	if over := len(t.b) - hookOutput; over > 0 {
		t.b, t.cut = append(t.b[:0], t.b[over:]...), true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := string(bytes.TrimSpace(t.b))
	if t.cut {
		s = "... " + s
	}
	return s
}
