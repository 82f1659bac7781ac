package looptest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix = "looptest-"
	fithaw = 0xc0045878
)

// Mkfs makes a filesystem of kind ext2, ext3, ext4, xfs, btrfs or swap on dev; args go to the program that makes it.
func Mkfs(t testing.TB, dev, kind string, args ...string) {
	t.Helper()
	var cmd []string
	switch kind {
	case "ext2", "ext3", "ext4":
		cmd = []string{"mkfs." + kind, "-q", "-F"}
	case "xfs", "btrfs":
		cmd = []string{"mkfs." + kind, "-q", "-f"}
	case "swap":
		cmd = []string{"mkswap"}
	default:
		t.Fatalf("no recipe for a filesystem of kind %q", kind)
	}
	cmd = append(append(cmd, args...), dev)
	Run(t, cmd[0], cmd[1:]...)
}

// Run runs a program and returns its output; anything but exit code 0 ends the test.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out))
}

// Mount mounts dev on a new folder and returns the folder; opts go to mount(8).
func Mount(t testing.TB, dev string, opts ...string) string {
	t.Helper()
	NeedRoot(t)
	dir := filepath.Join(Dir(t), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	MountAt(t, dev, dir, opts...)
	return dir
}

// MountAt is Mount on a folder that exists.
func MountAt(t testing.TB, dev, dir string, opts ...string) {
	t.Helper()
	Run(t, "mount", append(opts, dev, dir)...)
	t.Cleanup(func() { Unmount(t, dir) })
}

// Unmount thaws and unmounts what is mounted on dir, if anything is. It is called at the test's end; a test may call it earlier.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	if err := unmount(dir); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

func unmount(dir string) error {
	if f, err := os.Open(dir); err == nil {
		for unix.IoctlSetInt(int(f.Fd()), fithaw, 0) == nil { // a frozen filesystem would hang the unmount
		}
		f.Close()
	}
	dev := mountedOn(dir)
	err := retryBusy(func() error { return unix.Unmount(dir, 0) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted (any more)
	}
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
	} else if dev != "" {
		settle(dev)
	}
	return err
}

// mountedOn is the device of the filesystem that is mounted on dir, or "".
func mountedOn(dir string) string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		head, tail, _ := strings.Cut(line, " - ")
		at, on := strings.Fields(head), strings.Fields(tail)
		if len(at) > 4 && len(on) > 1 && at[4] == dir && strings.HasPrefix(on[1], "/dev/") {
			return on[1]
		}
	}
	return ""
}

// settle waits until nobody holds the filesystem on dev any more. A mount namespace that another test has just made holds a copy of every mount
// that there was, and so long the filesystem is not unmounted at all: its journal is not empty.
func settle(dev string) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
			return
		}
		b, _ := os.ReadFile("/proc/self/mountinfo")
		if !errors.Is(err, unix.EBUSY) || strings.Contains(string(b), " "+dev+" ") {
			return // gone, or mounted on another folder too
		}
	}
}

// sweep takes down the mounts and folders of test processes that are gone. Their loop devices went with their last user.
func sweep() {
	for _, dir := range staleMounts() {
		unmount(dir)
	}
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		if stale(dir) {
			os.RemoveAll(dir)
		}
	}
}

// staleMounts lists mount points of gone processes, the latest mount first.
func staleMounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 4 && stale(w[4]) {
			out = append([]string{w[4]}, out...)
		}
	}
	return out
}

// stale tells whether path lies in a folder that Dir made for a process that is gone.
func stale(path string) bool {
	rest, ok := strings.CutPrefix(path, filepath.Join(os.TempDir(), prefix))
	if !ok {
		return false
	}
	no, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(no)
	if err != nil {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/%d", pid))
	return errors.Is(err, os.ErrNotExist)
}
