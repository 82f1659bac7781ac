package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/discover"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/pki"
)

// ctl runs a command and returns what it printed and its exit code.
func ctl(args ...string) (out, errs string, code int) {
	var o, e bytes.Buffer
	code = run(context.Background(), args, &terminal{in: strings.NewReader(""), out: &o, err: &e, now: time.Now})
	return o.String(), e.String(), code
}

func TestDiscoverBad(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string
	}{
		{"--line 100Mbps", `--line "100Mbps"`},
		{"--line 100", `--line "100"`},
		{"--line 0", `--line "0"`},
		{"--line -5MiB/s", `--line "-5MiB/s"`},
		{"--measure 5", "--measure"},
		{"--measure -1s", "--measure -1s"},
		{"--measure 1ms", "outside 1s to 24h"},
		{"--limit 0s", "--limit"},
		{"--limit 11m", "--limit"},
		{"--gateway gw", `--gateway "gw"`},
		{"--ca ca.pem", `--ca "ca.pem"`},
		{"-o json --config -", "standard output"},
		{"-o yaml", "neither table nor json"},
		{"--config " + full, "nothing is overwritten"},
		{"--config " + dir + "/link", "nothing is overwritten"},
		{"--config " + dir + "/none/x", "folder does not exist"},
		{"--measure 0 /dev/nonexistent", "/dev/nonexistent"},
		{"--measure 0 " + full, "is no block device"},
		{"--frobnicate", "frobnicate"},
	} {
		out, errs, code := ctl(append([]string{"discover"}, strings.Fields(c.args)...)...)
		if code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, %s%s", c.args, code, out, errs)
		}
	}
	if b, _ := os.ReadFile(full); string(b) != "mine" {
		t.Errorf("the file was changed: %q", b)
	}
}

// Only the thread of the call is nobody: os.Geteuid asks the thread.
func TestDiscoverNoRoot(t *testing.T) {
	looptest.NeedRoot(t)
	type result struct {
		errs string
		code int
		e    unix.Errno
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		keep := ^uintptr(0)
		_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, 65534, keep)
		_, errs, code := ctl("discover", "--measure", "0")
		done <- result{errs, code, e}
	}()
	if r := <-done; r.e != 0 || r.code != 1 || !strings.Contains(r.errs, "run it as root") {
		t.Errorf("%+v", r)
	}
}

// What discover writes, check accepts; what it left open, check names.
func TestDiscoverConfig(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	looptest.Mount(t, l.Dev)
	dir := t.TempDir()
	if err := errors.Join(pki.Init(dir, "test"), pki.IssueHost(dir, dir, "acme", "db1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "moverd.yaml")
	out, errs, code := ctl("discover", "--measure", "1s", "--line", "1Gbit/s", "--limit", "20s", "--config", file, "--gateway", "127.0.0.1:1",
		"--ca", dir+"/ca.pem", "--cert", dir+"/db1.pem", "--key", dir+"/db1.key", l.Dev)
	if code != 0 || !strings.Contains(out, l.Dev) || !strings.Contains(out, file+" is written") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if out, errs, code := ctl("check", "-c", file); code != 0 {
		t.Errorf("check: exit %d\n%s%s", code, out, errs)
	}

	out, errs, code = ctl("discover", "--measure", "0", "--config", "-", l.Dev)
	if code != 0 || !strings.HasPrefix(out, "# moverd.yaml") || !strings.Contains(errs, "FLOW") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	open := filepath.Join(dir, "open.yaml")
	if err := os.WriteFile(open, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := ctl("check", "-c", open); code != 2 || !strings.Contains(errs, discover.FillIn) {
		t.Errorf("check of placeholders: exit %d, %s", code, errs)
	}

	out, _, code = ctl("discover", "--measure", "0", "-o", "json", l.Dev)
	var h discover.Host
	if err := json.Unmarshal([]byte(out), &h); err != nil || code != 0 || len(h.Volumes) != 1 || h.Volumes[0].Size != 64<<20 || strings.Contains(out, `s": null`) {
		t.Errorf("%v, exit %d\n%s", err, code, out)
	}
}

// hangup is a terminal that goes away as soon as something is being measured.
type hangup struct{ bytes.Buffer }

func (h *hangup) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "measuring") {
		go func() {
			pins := "/sys/fs/bpf/mover-discover-" + strconv.Itoa(os.Getpid())
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
				if list, _ := os.ReadDir(pins); len(list) > 0 {
					break
				}
			}
			_ = unix.Kill(os.Getpid(), unix.SIGHUP)
		}()
	}
	return h.Buffer.Write(p)
}

func TestDiscoverHangup(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 64<<20, looptest.Options{})
	file := filepath.Join(t.TempDir(), "moverd.yaml")
	var out bytes.Buffer
	errs := &hangup{}
	code := run(t.Context(), []string{"discover", "--measure", "1h", "--config", file, l.Dev}, &terminal{in: strings.NewReader(""), out: &out, err: errs, now: time.Now})
	if code != 1 || !strings.Contains(errs.String(), "interrupted") || !strings.Contains(out.String(), l.Dev) {
		t.Errorf("exit %d\n%s%s", code, out.String(), errs.String())
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("half a measurement was written as a config")
	}
	if left, _ := os.Stat("/sys/fs/bpf/mover-discover-" + strconv.Itoa(os.Getpid())); left != nil {
		t.Error("pins were left")
	}
}
