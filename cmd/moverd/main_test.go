package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
)

const asMoverd = "MOVERD_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMoverd) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("source:\n  limitz: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"version", 0, "moverd devel"},
		{"--help", 0, "source"},
		{"explode", 2, `unknown command "explode"`},
		{"source --explode", 2, "unknown flag: --explode; see moverd source --help"},
		{"source now", 2, `"now" is one argument too many`},
		{"source -c " + dir + "/none.yaml", 2, "none.yaml: no such file; write one as in moverd.yaml(5)"},
		{"gateway -c " + bad, 2, "bad.yaml:2: source.limitz: unknown key"},
		{"source --log-level loud -c " + bad, 2, "--log-level loud: is none of debug, info, warn, error"},
		{"check -c " + bad, 2, "bad.yaml:2: source.limitz: unknown key"},
		{"check sideways -c " + bad, 2, `"sideways" is neither source nor gateway`},
		{"worker -c " + bad, 2, "bad.yaml:2: source.limitz: unknown key"},
		{"check source gateway", 2, `"gateway" is one argument too many`},
	} {
		var out bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), &out, &out)
		if code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("moverd %s: exit %d, want %d with %q\n%s", c.args, code, c.code, c.want, out.String())
		}
		if code == 2 && strings.Count(out.String(), "\n") != 1 {
			t.Errorf("moverd %s: not one line:\n%s", c.args, out.String())
		}
	}
}

// Without root a daemon says what it needs root for, and touches nothing.
func TestNoRoot(t *testing.T) {
	looptest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "moverd-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "moverd")
	conf := filepath.Join(dir, "moverd.yaml")
	if err := errors.Join(os.Chmod(dir, 0o755), copyFile(os.Args[0], exe)); err != nil {
		t.Fatal(err)
	}
	text := "gateway:\n  state: " + dir + "/state\n  run: " + dir + "/run\n  flows: [{tenant: a, host: b, name: c, target: /nonexistent}]\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// The certificates are the gateway's; as a source there are none to be read, so the config of the other role serves.
	cmd := exec.Command(exe, "source", "-c", conf)
	cmd.Env = []string{asMoverd + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "moverd source needs root") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("it made its state folder")
	}
	bucketsWithoutRoot(t, dir, exe)
}

// bucketsWithoutRoot runs a source that moves only buckets as another user: the example to try it, at another place.
func bucketsWithoutRoot(t *testing.T, dir, exe string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/examples/buckets-try.yaml")
	if err != nil {
		t.Fatal(err)
	}
	home, conf := filepath.Join(dir, "home"), filepath.Join(dir, "try.yaml")
	for _, d := range []string{home, filepath.Join(home, "from"), filepath.Join(home, "to")} {
		if err := errors.Join(os.Mkdir(d, 0o700), os.Chown(d, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(home, "from", "a")
	if err := errors.Join(os.WriteFile(conf, bytes.ReplaceAll(text, []byte("/tmp/mover-try"), []byte(home)), 0o644), os.WriteFile(name, []byte("x"), 0o600), os.Chown(name, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(exe, "source", "-c", conf)
	cmd.Env, cmd.Stdout, cmd.Stderr = []string{asMoverd + "=1"}, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	copied := false
	for end := time.Now().Add(20 * time.Second); !copied && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(home, "to", "a"))
		copied = err == nil && string(b) == "x"
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil || !copied {
		t.Errorf("copied: %v; %v\n%s", copied, err, out.String())
	}
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
