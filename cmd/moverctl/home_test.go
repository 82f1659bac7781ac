package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
)

// asSource has this test program be a source on the config that it names.
const asSource = "MOVERCTL_TEST_SOURCE"

func sourceMain(file string) int {
	conf, err := config.Load(file, "source")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log := daemon.NewLog(os.Stderr, slog.LevelDebug)
	slog.SetDefault(log.Logger)
	err = daemon.Run(ctx, daemon.Options{Role: "source", File: file, Config: conf, Log: log})
	log.Close()
	if err != nil {
		return 1
	}
	return 0
}

// TestFrozenHome: a daemon whose program, config, certificates, state, audit trail and log lie on the filesystem that it freezes, as on a
// server whose root is moved. It rehearses, cuts over, is left frozen, is asked while frozen, and rolls back.
func TestFrozenHome(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, l.Dev, "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0")
	home := looptest.Mount(t, l.Dev)
	target := filepath.Join(t.TempDir(), "target")
	w := newWorld(t, l.Dev, target, "      cutover: {limit: 10s, freeze-deadline: 20s}\n")
	t.Cleanup(func() { freeze.Thaw(home) })
	looptest.Run(t, "cp", "-r", filepath.Join(w.dir, "pki"), home)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, "cp", self, filepath.Join(home, "moverd"))
	b, err := os.ReadFile(w.file("source"))
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/dev/shm", "home-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	text := strings.ReplaceAll(string(b), w.dir+"/pki", home+"/pki")
	text = strings.ReplaceAll(text, "state: "+w.dir+"/source", "state: "+home+"/state")
	text = strings.ReplaceAll(text, "run: "+w.dir+"/run", "run: "+run+"\n  socket: "+w.dir+"/run/source.sock")
	conf := filepath.Join(home, "source.yaml")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.begin("gateway")
	log, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(home, "moverd"))
	cmd.Env = append(os.Environ(), asSource+"="+conf)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, home
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	ended := false
	end := func(sig unix.Signal) error {
		if ended {
			return nil
		}
		ended = true
		cmd.Process.Signal(sig)
		late := time.AfterFunc(30*time.Second, func() { freeze.Thaw(home); cmd.Process.Kill() })
		defer late.Stop()
		return cmd.Wait()
	}
	t.Cleanup(func() {
		freeze.Thaw(home)
		end(unix.SIGKILL)
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(home, "log"))
			t.Logf("source: %s", b[max(0, len(b)-8000):])
		}
	})
	w.await("source", "at a point", func(s mover.Status) bool { return s.PointEpoch > 0 })

	scribbling := exec.Command("sh", "-c", `while :; do echo x >> "$0/scribble"; sleep 0.01; done`, home)
	if err := scribbling.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		freeze.Thaw(home)
		scribbling.Process.Kill()
		scribbling.Wait()
	})
	size := func() int64 {
		st, err := os.Stat(filepath.Join(home, "scribble"))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	goes := func() {
		t.Helper()
		for from, late := size(), time.Now().Add(10*time.Second); size() == from; time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("the writer stands still")
			}
		}
	}
	for range 3 {
		w.must(0, "source", "cutover", "root", "--rehearse")
		goes()
	}
	w.must(0, "source", "cutover", "root", "--yes")
	n := size()
	w.await("source", "cut over", is(mover.Done))
	w.must(0, "source", "status")
	if size() != n {
		t.Error("written after the cutover")
	}
	looptest.Run(t, "blockdev", "--flushbufs", l.Dev) // cmp reads through the page cache, the filesystem does not write through it
	equal(t, l.Dev, target)
	w.must(0, "source", "rollback", "root", "--yes")
	goes()
	w.must(0, "source", "sync", "root")
	if err := end(unix.SIGTERM); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	logged, err := os.ReadFile(filepath.Join(home, "log"))
	if err != nil || len(logged) == 0 {
		t.Errorf("log of %d bytes, %v", len(logged), err)
	}
}
