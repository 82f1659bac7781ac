package freeze

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"golang.org/x/sys/unix"
)

// TestMain plays three parts: the tests; the guardian, that this same program is started as; and a daemon that can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "guardian":
			GuardianMain()
		case "daemon":
			daemonMain(os.Args[2:])
		}
	}
	os.Exit(m.Run())
}

// daemonMain freezes args[3:] with the deadline args[1], records in args[2], then as args[0] says: "hold" waits to be killed,
// "keep" keeps and exits. It tells each step on standard output.
func daemonMain(args []string) {
	deadline, err := time.ParseDuration(args[1])
	f := New(args[3:], Options{RunDir: args[2], Name: "daemon"})
	if err == nil {
		fmt.Println("started")
		err = f.Freeze(noContext, deadline)
	}
	if err == nil {
		fmt.Println("frozen", f.cur.cmd.Process.Pid)
		if args[0] == "keep" {
			err = f.Keep()
			fmt.Println("kept")
		} else {
			io.ReadAll(os.Stdin)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// daemon is a child process that freezes.
type daemon struct {
	*exec.Cmd
	lines *bufio.Scanner
}

func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"daemon"}, args...)...)
	stdin, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	d := &daemon{cmd, bufio.NewScanner(out)}
	t.Cleanup(func() {
		stdin.Close()
		d.Process.Kill()
		d.Wait()
	})
	return d
}

// await reads lines until one begins with word, and returns its rest.
func (d *daemon) await(t *testing.T, word string) string {
	t.Helper()
	for d.lines.Scan() {
		if rest, ok := strings.CutPrefix(d.lines.Text(), word); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("the daemon ended without telling %q, but %q", word, d.lines.Text())
	return ""
}

// newFS makes and mounts a filesystem, and thaws it at the test's end whatever happens.
func newFS(t *testing.T, kind string) string {
	t.Helper()
	l := looptest.New(t, 320<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, kind)
	dir := looptest.Mount(t, l.Dev)
	t.Cleanup(func() { Thaw(dir) })
	return dir
}

// runDir is a folder of records on another filesystem than those under test.
func runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "freeze-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func records(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// frozen tells whether dir is. If it is not, it is for an instant.
func frozen(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	held, err := stopped(int(f.Fd()), byFreeze)
	if err != nil {
		t.Fatalf("is %s frozen: %v", dir, err)
	}
	return held
}

// writer writes and syncs without pause, and knows how long it ever had to wait.
type writer struct {
	n     atomic.Int64
	since atomic.Int64 // CLOCK_MONOTONIC ns of the last completed write
	most  atomic.Int64 // longest stall, ns
	stop  atomic.Bool
	done  chan error
}

func startWriter(t *testing.T, dir string) *writer {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "written"))
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{done: make(chan error, 1)}
	w.since.Store(monotonic())
	go func() {
		buf := make([]byte, 4096)
		for !w.stop.Load() {
			copy(buf, fmt.Sprint(w.n.Load()))
			if _, err := f.WriteAt(buf, w.n.Load()%64*4096); err != nil {
				w.done <- err
				return
			}
			if w.n.Load()%16 == 0 {
				f.Sync()
			}
			now := monotonic()
			w.most.Store(max(w.most.Load(), now-w.since.Load()))
			w.since.Store(now)
			w.n.Add(1)
		}
		w.done <- f.Close()
	}()
	t.Cleanup(func() {
		Thaw(dir) // a blocked writer cannot be killed
		w.end(t)
	})
	w.advance(t)
	return w
}

// advance waits until a write completes that began after the call.
func (w *writer) advance(t *testing.T) {
	t.Helper()
	from := w.n.Load()
	waitFor(t, "the writer to go on", func() bool { return w.n.Load() >= from+2 })
}

func (w *writer) end(t *testing.T) {
	if !w.stop.Swap(true) {
		if err := <-w.done; err != nil {
			t.Errorf("write: %v", err)
		}
	}
}

// waitFor polls until ok holds; 20 s are too long.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}
