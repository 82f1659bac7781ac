package disk

import (
	"bufio"
	"os/exec"
	"syscall"
	"testing"
)

// startElsewhere mounts dev on dir in a mount namespace of its own, which lives until the returned function or the test's end.
func startElsewhere(t *testing.T, dev, dir string) func() {
	t.Helper()
	cmd := exec.Command("sh", "-c", `mount --make-rprivate / && mount "$0" "$1" && echo mounted && read x; umount "$1"`, dev, dir)
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
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		in.Close()
		cmd.Wait()
	}
	t.Cleanup(end)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("mount in another namespace: %q, %v", line, err)
	}
	return end
}
