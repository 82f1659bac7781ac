package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// fake is a service whose verbs are functions.
type fake struct {
	do func(ctx context.Context, verb string, r Request, progress func(mover.Progress)) (Result, error)
}

func (f *fake) Daemon() Daemon         { return Daemon{Role: "source", Version: "test", Pid: 1} }
func (f *fake) Status() []mover.Status { return []mover.Status{{Flow: "root", Role: "source"}} }
func (f *fake) Do(ctx context.Context, verb string, r Request, progress func(mover.Progress)) (Result, error) {
	return f.do(ctx, verb, r, progress)
}

func start(t *testing.T, f *fake) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "c.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := NewServer(ctx, f, slog.New(slog.DiscardHandler))
	done := make(chan error)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		cancel()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket is still there: %v", err)
		}
	})
	return NewClient(path)
}

func TestRead(t *testing.T) {
	c := start(t, &fake{})
	d, err := c.Daemon(t.Context())
	if err != nil || d.Version != "test" {
		t.Errorf("daemon %+v, %v", d, err)
	}
	all, err := c.Status(t.Context())
	if err != nil || len(all) != 1 || all[0].Flow != "root" {
		t.Errorf("status %+v, %v", all, err)
	}
	st, err := os.Stat(c.Socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", st.Mode(), err)
	}
}

func TestProgressThenResult(t *testing.T) {
	c := start(t, &fake{do: func(_ context.Context, verb string, r Request, progress func(mover.Progress)) (Result, error) {
		for i := range int64(3) {
			progress(mover.Progress{Step: "delta", Done: i, Total: 3})
		}
		return Result{Text: verb + " " + r.Flow, Report: &mover.Report{OK: true}}, nil
	}})
	var seen []int64
	got, err := c.Do(t.Context(), Cutover, Request{Flow: "root"}, func(p mover.Progress) { seen = append(seen, p.Done) })
	if err != nil || got.Text != "cutover root" || !got.Report.OK || fmt.Sprint(seen) != "[0 1 2]" {
		t.Errorf("%+v %v %v", got, seen, err)
	}
}

// An error keeps its text, its sentinel and its report on the way.
func TestFailure(t *testing.T) {
	for _, want := range []error{sentinel.ErrNotFound, sentinel.ErrUsage, sentinel.ErrNotConverged, sentinel.ErrDiffer, sentinel.ErrRefused,
		sentinel.ErrDenied, sentinel.ErrFenced, sentinel.ErrCorrupt, sentinel.ErrNotSupported, errors.New("other")} {
		c := start(t, &fake{do: func(context.Context, string, Request, func(mover.Progress)) (Result, error) {
			return Result{Report: &mover.Report{Flow: "root"}}, fmt.Errorf("verify root: %w", want)
		}})
		got, err := c.Do(t.Context(), Verify, Request{Flow: "root"}, nil)
		if err == nil || err.Error() != "verify root: "+want.Error() || got.Report == nil {
			t.Errorf("%v: %v %+v", want, err, got)
		}
		if is := errors.Is(err, want); is != (want.Error() != "other") {
			t.Errorf("%v: errors.Is %v", want, is)
		}
	}
}

// A client that hangs up ends a cutover before the freeze and does not end it afterwards.
func TestHangUp(t *testing.T) {
	for _, step := range []string{"delta", FreezeStep} {
		told, ended := make(chan struct{}), make(chan error, 1)
		release := make(chan struct{})
		c := start(t, &fake{do: func(ctx context.Context, _ string, _ Request, progress func(mover.Progress)) (Result, error) {
			progress(mover.Progress{Step: step})
			close(told)
			select {
			case <-ctx.Done():
				ended <- context.Cause(ctx)
				return Result{}, ctx.Err()
			case <-release:
				progress(mover.Progress{Step: "settle"}) // to nobody
				ended <- nil
				return Result{}, nil
			}
		}})
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := c.Do(ctx, Cutover, Request{Flow: "root"}, nil)
			gone <- err
		}()
		<-told
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: client got %v", step, err)
		}
		if step == FreezeStep {
			// The server has noticed when another request on a new connection was answered after the hang-up; the verb must still run.
			if _, err := c.Status(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case err := <-ended:
				t.Errorf("the cutover was ended past its freeze: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			close(release)
		}
		err := <-ended
		if want := map[string]error{"delta": ErrHangUp, FreezeStep: nil}[step]; !errors.Is(err, want) {
			t.Errorf("%s: ended with %v, want %v", step, err, want)
		}
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "another daemon answers") {
		t.Errorf("second daemon: %v", err)
	}
	ln.Close()

	// What a killed daemon left behind is replaced.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if ln, err = Listen(path); err != nil {
		t.Fatal(err)
	}
	ln.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("file in the way: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file in the way was harmed")
	}
}

func TestBadRequests(t *testing.T) {
	c := start(t, &fake{do: func(context.Context, string, Request, func(mover.Progress)) (Result, error) {
		t.Error("the service was asked")
		return Result{}, nil
	}})
	for _, body := range []string{"", "x", `{"flow": 3}`, `{"fl0w": "root"}`} {
		resp, err := c.http.Post("http://moverd/v1/sync", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", body, resp.Status)
		}
	}
	if _, err := c.Do(t.Context(), "explode", Request{}, nil); err == nil || !strings.Contains(err.Error(), `does not know "explode"`) {
		t.Errorf("unknown verb: %v", err)
	}
}

func TestNobody(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no daemon answers here; is it running?") {
		t.Errorf("%v", err)
	}
}
