package looptest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoop(t *testing.T) {
	var l *Loop
	t.Run("use", func(t *testing.T) {
		for _, sector := range []int{512, 4096} {
			l = New(t, 300<<20, Options{SectorSize: sector, DirectIO: true})
			if n, err := unix.IoctlGetInt(int(l.f.Fd()), unix.BLKSSZGET); err != nil || n != sector {
				t.Fatalf("sector size %d, %v; want %d", n, err, sector)
			}
			p := l.Partition(1, 1<<20, 200<<20)
			Mkfs(t, p, "ext4")
			dir := Mount(t, p)
			if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			Run(t, "fsfreeze", "-f", dir) // the cleanup has to thaw it
		}
	})
	if _, err := os.Stat(l.File); err == nil {
		t.Errorf("%s was left behind", l.File)
	}
	if _, err := os.Stat(l.Dev + "p1"); err == nil {
		t.Errorf("%sp1 was left behind", l.Dev)
	}
}

func TestStale(t *testing.T) {
	for path, want := range map[string]bool{
		os.TempDir() + "/looptest-999999999-1/mnt": true,
		Dir(t) + "/mnt":       false,
		"/":                   false,
		"/tmp/looptest-x-1/a": false,
	} {
		if stale(path) != want {
			t.Errorf("stale(%s) is not %v", path, want)
		}
	}
}

// TestUnmountWaits: a mount namespace that another test makes meanwhile holds the filesystem for a while.
func TestUnmountWaits(t *testing.T) {
	l := New(t, 64<<20, Options{})
	Mkfs(t, l.Dev, "ext4")
	dir := Mount(t, l.Dev)
	c := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "echo ready; sleep 1")
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	Unmount(t, dir)
	f, err := os.OpenFile(l.Dev, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatalf("unmounted, but %v", err)
	}
	f.Close()
}
