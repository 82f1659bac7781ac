package daemon

import (
	"context"
	"errors"
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
	hang chan struct{}
}

func (s *stuck) beat()                       { <-s.hang }
func (s *stuck) Status() []mover.Status      { return nil }
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

// The watchdog is fed while the loops answer, and starves when one hangs.
func TestWatchdog(t *testing.T) {
	count := pings(t)
	s := &stuck{hang: make(chan struct{})}
	close(s.hang)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- watchdog(ctx, s) }()
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
	go func() { done <- watchdog(ctx, hung) }()
	if n := count(); n > 1 {
		t.Errorf("%d pings of a daemon whose loop hangs", n)
	}
	close(hung.hang)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
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
