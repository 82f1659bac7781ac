// Package hooktest tests the hooks of the folder hooks against real servers.
package hooktest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server is a database on folders of its own, whose hook is run with env.
type server struct {
	t    *testing.T
	dir  string
	name string // of the hook
	env  []string
}

// newServer makes a folder that belongs to the server's user.
func newServer(t *testing.T, hook, owner string) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the servers run as their own users, which only root can bring about")
	}
	dir, err := os.MkdirTemp("", "hook-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u, err := user.Lookup(owner)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return &server{t: t, dir: dir, name: hook, env: []string{"MOVER_HOOK_CONF=/nonexistent", "MOVER_GROUP=db", "MOVER_HOOK_RUN=" + t.TempDir()}}
}

// start runs the server until the test ends, and waits until ready succeeds.
func (s *server) start(ready func() error, name string, args ...string) {
	s.t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		late.Stop()
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			cmd.Process.Kill()
			cmd.Wait()
			s.t.Fatalf("%s is not ready: %v: %s", name, err, said.String())
		}
	}
}

// hook runs a phase and returns what it said.
func (s *server) hook(phase string, env ...string) (string, error) {
	cmd := exec.Command("../../hooks/" + s.name)
	cmd.Env = append(append(os.Environ(), s.env...), append(env, "MOVER_PHASE="+phase)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *server) must(phase string, env ...string) string {
	s.t.Helper()
	out, err := s.hook(phase, env...)
	if err != nil {
		s.t.Fatalf("%s %s: %v: %s", s.name, phase, err, out)
	}
	return out
}

// fails runs a phase that has to fail with a text.
func (s *server) fails(phase, want string, env ...string) {
	s.t.Helper()
	if out, err := s.hook(phase, env...); err == nil || !strings.Contains(out, want) {
		s.t.Errorf("%s %s: %v: %q, want an error with %q", s.name, phase, err, out, want)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestPostgreSQL(t *testing.T) {
	s := newServer(t, "postgresql", "postgres")
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		t.Fatal("postgresql is not installed")
	}
	bin, data := found[len(found)-1], filepath.Join(s.dir, "data")
	run(t, "runuser", "-u", "postgres", "--", filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "--no-sync")
	s.env = append(s.env, "PGHOST="+s.dir, "PGPORT=5499")
	s.fails("pre", "no checkpoint")
	sql := func(text string) (string, error) {
		out, err := exec.Command("psql", "-h", s.dir, "-p", "5499", "-U", "postgres", "-XqAtc", text).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	s.start(func() error { _, err := sql("SELECT 1"); return err },
		"runuser", "-u", "postgres", "--", filepath.Join(bin, "postgres"), "-D", data, "-k", s.dir, "-p", "5499", "-h", "")
	redo := func() string {
		t.Helper()
		out, err := sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1); SELECT redo_lsn FROM pg_control_checkpoint()")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := redo()
	if out := s.must("pre"); !strings.HasPrefix(out, "checkpoint at ") {
		t.Errorf("pre said %q", out)
	}
	if after := redo(); after == before {
		t.Errorf("there was no checkpoint after %s", before)
	}
	s.must("post")
	s.fails("pre", "there is no user", "MOVER_PG_USER=nobody-of-this-name")
	s.fails("pre", "is not installed", "MOVER_PG_PSQL=/nonexistent/psql")
	s.fails("neither", "usage")
}

func TestMySQL(t *testing.T) {
	s := newServer(t, "mysql", "mysql")
	data, socket := filepath.Join(s.dir, "data"), filepath.Join(s.dir, "sock")
	run(t, "mariadb-install-db", "--no-defaults", "--user=mysql", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=socket")
	client := "mariadb --no-defaults --socket=" + socket
	s.env = append(s.env, "MOVER_MYSQL_CLIENT="+client)
	s.fails("pre", "no read lock")
	sql := func(text string) (string, error) {
		args := append(strings.Fields(client)[1:], "-BNe", text)
		out, err := exec.Command("mariadb", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	s.start(func() error { _, err := sql("SELECT 1"); return err },
		"mariadbd", "--no-defaults", "--user=mysql", "--datadir="+data, "--socket="+socket, "--skip-networking", "--innodb-buffer-pool-size=16M")
	if _, err := sql("CREATE DATABASE d; CREATE TABLE d.t (n int) ENGINE=MyISAM"); err != nil {
		t.Fatal(err)
	}
	locked := func() bool {
		t.Helper()
		_, err := sql("SET lock_wait_timeout=1; INSERT INTO d.t VALUES (1)")
		if err != nil && !strings.Contains(err.Error(), "Lock wait timeout") {
			t.Fatal(err)
		}
		return err != nil
	}
	if out := s.must("pre"); !strings.Contains(out, "read lock held") {
		t.Errorf("pre said %q", out)
	}
	if !locked() {
		t.Error("writers run after pre")
	}
	s.must("post")
	if locked() {
		t.Error("writers are locked after post")
	}
	if out := s.must("post"); out != "" {
		t.Errorf("a second post said %q", out)
	}

	// Nobody runs post: the lock ends by itself.
	s.must("pre", "MOVER_MYSQL_HOLD=2")
	for end := time.Now().Add(20 * time.Second); locked(); {
		if time.Now().After(end) {
			t.Fatal("the lock outlives its time")
		}
	}
	if out := s.must("post"); !strings.Contains(out, "had ended before") {
		t.Errorf("post after the lock's time said %q", out)
	}

	// A statement that runs long keeps the lock from being had; then nobody waits for it any more.
	long := exec.Command("mariadb", append(strings.Fields(client)[1:], "-e", "LOCK TABLES d.t WRITE; SELECT SLEEP(8)")...)
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	begin := time.Now()
	s.fails("pre", "no read lock", "MOVER_MYSQL_WAIT=1")
	if took := time.Since(begin); took > 6*time.Second {
		t.Errorf("it took %s to give up", took)
	}
	long.Process.Kill()
	long.Wait()
	s.fails("pre", "whole seconds", "MOVER_MYSQL_HOLD=soon")
}

func TestRedis(t *testing.T) {
	for _, aof := range []string{"no", "yes"} {
		t.Run("appendonly "+aof, func(t *testing.T) {
			s := newServer(t, "redis", "root")
			socket := filepath.Join(s.dir, "sock")
			cli := func(args ...string) (string, error) {
				out, err := exec.Command("redis-cli", append([]string{"-s", socket, "-a", "secret", "--no-auth-warning"}, args...)...).CombinedOutput()
				return strings.TrimSpace(string(out)), err
			}
			s.env = append(s.env, "MOVER_REDIS_CLI=redis-cli -s "+socket)
			s.fails("pre", "no answer")
			s.start(func() error {
				if out, err := cli("ping"); err != nil || out != "PONG" {
					return fmt.Errorf("%s: %v", out, err)
				}
				return nil
			}, "redis-server", "--port", "0", "--unixsocket", socket, "--dir", s.dir, "--appendonly", aof, "--save", "", "--requirepass", "secret")
			if out, err := cli("set", "key", "acknowledged"); err != nil || out != "OK" {
				t.Fatal(out, err)
			}
			s.fails("pre", "NOAUTH")
			s.must("pre", "REDISCLI_AUTH=secret")
			file := "dump.rdb"
			if aof == "yes" {
				file = "appendonlydir/appendonly.aof.1.incr.aof"
			}
			if b, err := os.ReadFile(filepath.Join(s.dir, file)); err != nil || !bytes.Contains(b, []byte("acknowledged")) {
				t.Errorf("%s does not hold what was acknowledged: %v", file, err)
			}
			s.must("post")
		})
	}
}

// TestSeveral: in order for pre, in reverse for post; a failure ends pre, and not post.
func TestSeveral(t *testing.T) {
	dir := t.TempDir()
	for name, code := range map[string]int{"one": 0, "two": 3, "three": 0} {
		text := fmt.Sprintf("#!/bin/sh\necho %s\nexit %d\n", name, code)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	several := func(phase string, names ...string) (string, error) {
		for i, n := range names {
			names[i] = filepath.Join(dir, n)
		}
		cmd := exec.Command("../../hooks/several", names...)
		cmd.Env = append(os.Environ(), "MOVER_PHASE="+phase)
		out, err := cmd.CombinedOutput()
		return strings.Join(strings.Fields(string(out)), " "), err
	}
	for _, c := range []struct {
		phase string
		names []string
		want  string
		ok    bool
	}{
		{"pre", []string{"one", "three"}, "one three", true},
		{"post", []string{"one", "three"}, "three one", true},
		{"pre", []string{"one", "two", "three"}, "one two", false},
		{"post", []string{"one", "two", "three"}, "three two one", false},
	} {
		if got, err := several(c.phase, c.names...); got != c.want || (err == nil) != c.ok {
			t.Errorf("%s %v: %q, %v", c.phase, c.names, got, err)
		}
	}
	if out, err := several("pre", "missing"); err == nil || !strings.Contains(out, "not there") {
		t.Errorf("a hook that is not there: %q, %v", out, err)
	}
}
