package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/daemon/metrics"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guardian" {
		freeze.GuardianMain()
		return
	}
	os.Exit(m.Run())
}

func fileOf(fd int) *os.File { return os.NewFile(uintptr(fd), "device") }

// stuck is a role whose loop may hang.
type stuck struct {
	control.Service
	hang   chan struct{}
	pulses []mover.Pulse
}

func (s *stuck) beat() []mover.Pulse         { <-s.hang; return s.pulses }
func (s *stuck) Status() []mover.Status      { return nil }
func (s *stuck) Daemon() control.Daemon      { return control.Daemon{} }
func (s *stuck) run(context.Context) error   { return nil }
func (s *stuck) reload(*config.Config) error { return nil }
func (s *stuck) totals() []metrics.Total     { return nil }
func (s *stuck) close() error                { return nil }

// pings receives what a daemon tells systemd.
func pings(t *testing.T) func() int {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "400000")
	t.Setenv("WATCHDOG_PID", "")
	os.Unsetenv("WATCHDOG_PID")
	return func() (n int) {
		b := make([]byte, 4096)
		c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			k, err := c.Read(b)
			if err != nil {
				return n
			}
			if strings.Contains(string(b[:k]), "WATCHDOG=1") {
				n++
			}
			if n == 3 {
				return n
			}
		}
	}
}

// answering serves a control socket for r.
func answering(t *testing.T, r role) string {
	path := filepath.Join(t.TempDir(), "s.sock")
	ln, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(t.Context(), r, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(context.Background()), <-done); err != nil {
			t.Error(err)
		}
	})
	return path
}

// The watchdog is fed while the loops and the control socket answer and no flow hangs, and starves otherwise.
func TestWatchdog(t *testing.T) {
	count := pings(t)
	log := slog.New(slog.DiscardHandler)
	s := &stuck{hang: make(chan struct{}), pulses: []mover.Pulse{{Flow: "root", Working: true}}}
	close(s.hang)
	socket := answering(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- watchdog(ctx, s, socket, log) }()
	if n := count(); n < 3 {
		t.Errorf("only %d pings of a daemon that is well", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	count() // what was on its way

	hung := &stuck{hang: make(chan struct{})}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- watchdog(ctx, hung, socket, log) }()
	if n := count(); n > 1 {
		t.Errorf("%d pings of a daemon whose loop hangs", n)
	}
	cancel()
	close(hung.hang)
	if err := <-done; err != nil {
		t.Error(err)
	}

	// A socket that lets in and never answers: its queue takes connections, and nobody serves them.
	silent := filepath.Join(t.TempDir(), "silent.sock")
	ln, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- watchdog(ctx, s, silent, log) }()
	if n := count(); n > 1 {
		t.Errorf("%d pings of a daemon whose control socket hangs", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A flow that is at work and does nothing starves the watchdog; the log says which. One that goes on again feeds it again.
func TestWatchdogHang(t *testing.T) {
	var said strings.Builder
	s := &stuck{hang: make(chan struct{}), pulses: []mover.Pulse{{Flow: "root", Done: 7, Working: true}}}
	close(s.hang)
	d := &dog{role: s, socket: answering(t, s), log: slog.New(slog.NewTextHandler(&said, nil)), limit: time.Minute, stalls: mover.Stalls{After: time.Millisecond}}
	d.look(t.Context())
	if !d.well.Load() {
		t.Errorf("the first look finds a hang: %s", &said)
	}
	time.Sleep(2 * time.Millisecond)
	d.look(t.Context())
	if d.well.Load() || !strings.Contains(said.String(), "root hangs: at work, and nothing done") {
		t.Errorf("a flow that hangs is not told: %s", &said)
	}
	s.pulses[0].Done++
	d.look(t.Context())
	if !d.well.Load() {
		t.Error("not well again")
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(path, Source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path, Source); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "another moverd source runs already (pid ") {
		t.Errorf("second daemon: %v", err)
	}
	unlock()
	unlock, err = lock(path, Source)
	if err != nil {
		t.Errorf("after the first one ended: %v", err)
	}
	unlock()
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	if r, err := recorded(dir, "root"); r != nil || err != nil {
		t.Errorf("nothing recorded: %+v, %v", r, err)
	}
	record := recorder(dir, "root")
	if err := record(&mover.Report{Flow: "root", Left: "frozen"}); err != nil {
		t.Fatal(err)
	}
	if r, err := recorded(dir, "root"); err != nil || r == nil || r.Left != "frozen" {
		t.Errorf("recorded: %+v, %v", r, err)
	}
	if err := errors.Join(record(nil), record(nil)); err != nil {
		t.Error(err)
	}
	if r, err := recorded(dir, "root"); r != nil || err != nil {
		t.Errorf("forgotten: %+v, %v", r, err)
	}
}

// Holding the log back is per flow, and saying it twice or letting go of what was not held changes nothing.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := NewLog(&out, nil)
		a, b := l.quiet(), l.quiet()
		a(false)
		a(true)
		a(true)
		b(true)
		l.Info("while frozen")
		a(false)
		synctest.Wait()
		if strings.Contains(out.String(), "while frozen") {
			t.Error("one flow let the log go while another one was frozen")
		}
		b(false)
		synctest.Wait()
		if !strings.Contains(out.String(), "while frozen") {
			t.Error("the log was not written after the thaw")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSummary(t *testing.T) {
	all := []mover.Status{{Flow: "root", State: mover.Passing, Rate: 210 << 20, Pass: &mover.Pass{Acked: 5, Total: 12}}, {Flow: "data", State: mover.Idle}}
	if got, want := summary(all), "root pass 41% 210 MiB/s, data idle"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := summary(append(append(all, all...), all...)); !strings.HasSuffix(got, "and 2 more") {
		t.Errorf("got %q", got)
	}
}
