package freeze

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"golang.org/x/sys/unix"
)

// mountElsewhere mounts dev on a folder in a mount namespace of its own, where two processes live. It returns the folder as each of them
// reaches it, and kills the first.
func mountElsewhere(t *testing.T, dev string) (first, second string, kill func()) {
	t.Helper()
	dir := looptest.Dir(t)
	cmd := exec.Command("sh", "-c", `mount --make-rprivate / && mount "$0" "$1" || exit 1
		sleep 1000 & echo $!; read x; kill $!; umount "$1"`, dev, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(line)
	path := func(pid any) string { return filepath.Join("/proc", fmt.Sprint(pid), "root", dir) }
	return path(pid), path(cmd.Process.Pid), func() {
		p := 0
		fmt.Sscan(pid, &p)
		unix.Kill(p, unix.SIGKILL)
		waitFor(t, "the process to die", func() bool { _, err := os.Stat(path(pid)); return err != nil })
	}
}

// TestOtherNamespace freezes a filesystem that is mounted only in another mount namespace. When the process through which it was
// reached has gone, it is thawed through another one.
func TestOtherNamespace(t *testing.T) {
	l := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	first, second, kill := mountElsewhere(t, l.Dev)
	t.Cleanup(func() { Thaw(second) })
	f := newFreezer(t, first)
	mustFreeze(t, f, time.Minute)
	if !frozen(t, second) || !f.Held() {
		t.Fatal("not frozen")
	}
	if err := f.Thaw(); err != nil || frozen(t, second) {
		t.Fatalf("thaw: %v", err)
	}
	mustFreeze(t, f, time.Minute)
	if err := f.Keep(); err != nil {
		t.Fatal(err)
	}
	kill()
	if names, err := ThawRecorded(f.o.RunDir); err != nil || len(names) != 1 || frozen(t, second) {
		t.Errorf("thaw what was reached through a process that is gone: %v, %v", names, err)
	}
	gone := records(t, f.o.RunDir)
	if len(gone) != 0 {
		t.Errorf("records are left: %v", gone)
	}
}
