package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/internal/looptest"
)

// What thaw --stale has thawed without a daemon is in the audit trail, also when that lies on the very filesystem (it would wait for ever before
// the thaw); a thaw that had nothing to do is not.
func TestThawStaleIsRecorded(t *testing.T) {
	looptest.NeedRoot(t)
	l := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	mnt := looptest.Mount(t, l.Dev)
	t.Cleanup(func() { freeze.Thaw(mnt) })
	run, state := t.TempDir(), filepath.Join(mnt, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	ctl := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if code := run0(args, &out); code != 0 {
			t.Fatalf("moverctl %s: exit %d\n%s", strings.Join(args, " "), code, out.String())
		}
		return out.String()
	}
	ctl("thaw", "--stale", "--run", run, "--state", state)
	if _, err := os.Stat(filepath.Join(state, "audit")); err == nil {
		t.Error("nothing was thawed, and yet the trail was written")
	}
	var st unix.Stat_t
	if err := unix.Stat(mnt, &st); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"name":"root","kept":false,"mounts":[{"dir":%q,"dev":"%d:%d","how":"freeze"}]}`, mnt, unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(filepath.Join(run, "frozen-root.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, "fsfreeze", "-f", mnt)
	if out := ctl("thaw", "--stale", "--run", run, "--state", state); !strings.Contains(out, "thawed "+mnt) {
		t.Errorf("%s", out)
	}
	if out := ctl("audit", "show", filepath.Join(state, "audit")); !strings.Contains(out, "thaw.stale") || !strings.Contains(out, mnt) || !strings.Contains(out, fmt.Sprintf("uid:0/pid:%d", os.Getpid())) {
		t.Errorf("%s", out)
	}
	ctl("audit", "verify", filepath.Join(state, "audit"))
}

func run0(args []string, out *bytes.Buffer) int {
	return run(context.Background(), args, &terminal{in: strings.NewReader(""), out: out, err: out, now: time.Now})
}
