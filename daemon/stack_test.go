package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// imageOn makes a disk image in dir, attaches it, and mounts a filesystem on it.
func imageOn(t *testing.T, dir, kind string, size int64) (l *looptest.Loop, mnt string) {
	t.Helper()
	image := filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	l = looptest.Attach(t, image, looptest.Options{})
	looptest.Mkfs(t, l.Dev, kind)
	mnt = looptest.Mount(t, l.Dev)
	t.Cleanup(func() { freeze.Thaw(mnt) })
	return l, mnt
}

// scribbler writes and syncs a file until it is stopped, and counts.
type scribbler struct {
	cmd  *exec.Cmd
	file string
}

func scribble(t *testing.T, dir string) *scribbler {
	t.Helper()
	s := &scribbler{file: filepath.Join(dir, "scribble")}
	s.cmd = exec.Command("sh", "-c", `while :; do echo x >> "$0"; done`, s.file)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		freeze.Thaw(dir)
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	s.runs(t)
	return s
}

func (s *scribbler) size() int64 {
	st, err := os.Stat(s.file)
	if err != nil {
		return -1
	}
	return st.Size()
}

func (s *scribbler) runs(t *testing.T) {
	t.Helper()
	for from, end := s.size(), time.Now().Add(20*time.Second); s.size() <= max(from, 0)+2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody writes %s", s.file)
		}
	}
}

// stands tells whether nothing is written any more.
func (s *scribbler) stands() bool {
	n := s.size()
	time.Sleep(50 * time.Millisecond)
	return n == s.size()
}

// freezeAndLook freezes f while each of dirs is being written, sees that all stand still in the order given, and thaws.
func freezeAndLook(t *testing.T, f *freezer, order, dirs []string) {
	t.Helper()
	var all []*scribbler
	for _, d := range dirs {
		all = append(all, scribble(t, d))
	}
	for range 3 {
		if err := f.Freeze(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := f.fs.Names(); !slices.Equal(got, order) {
			t.Errorf("frozen %v, want %v", got, order)
		}
		for i, s := range all {
			if !s.stands() {
				t.Errorf("%s is written while frozen", dirs[i])
			}
		}
		if err := f.Thaw(); err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			s.runs(t)
		}
	}
}

// TestStackLoops: an image on an image on a member, the middle one a partition of its loop device. What is mounted last is not what lies uppermost.
// C14.
func TestStackLoops(t *testing.T) {
	v, low := mounted(t, "xfs", 700<<20)
	mid, midDir := imageOn(t, low, "ext4", 380<<20)
	looptest.Unmount(t, midDir)
	part := mid.Partition(1, 1<<20, 370<<20)
	looptest.Mkfs(t, part, "ext4")
	looptest.MountAt(t, part, midDir)
	_, top := imageOn(t, midDir, "xfs", 310<<20)
	// Mounted anew, the lower ones come later in the mount table than what lies on them.
	bind := looptest.Mount(t, low, "--bind")
	f := groupFreezer(t, shm(t), config.Cutover{}, v)
	freezeAndLook(t, f, []string{top, midDir, low}, []string{top, midDir, bind})
}

// TestStackLater: a member whose filesystem lies, through a loop device, on another member that was mounted later. The order of mounting
// would freeze the lower one first, and the upper one could never be frozen.
func TestStackLater(t *testing.T) {
	lower, low := mounted(t, "ext4", 200<<20)
	l, top := imageOn(t, low, "ext4", 64<<20)
	again := looptest.Mount(t, lower.Path())
	looptest.Run(t, "umount", "-l", low) // the loop device still holds its file open
	upper := openVolume(t, l.Dev)
	f := groupFreezer(t, shm(t), config.Cutover{}, lower, upper)
	freezeAndLook(t, f, []string{top, again}, []string{top, again})
}

// TestStackOverlay: an overlay cannot be frozen; who writes through it stands still with the filesystem of its upper folder. An image in
// an overlay lies there too.
func TestStackOverlay(t *testing.T) {
	v, dir := mounted(t, "ext4", 400<<20)
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	over := looptest.Mount(t, "overlay", "-t", "overlay", "-o",
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir))
	_, top := imageOn(t, over, "ext4", 64<<20)
	f := groupFreezer(t, shm(t), config.Cutover{}, v)
	freezeAndLook(t, f, []string{top, dir}, []string{top, over, dir})
}

// TestStackElsewhere: a filesystem that is mounted only in another mount namespace is frozen through a process there.
func TestStackElsewhere(t *testing.T) {
	l := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	v := openVolume(t, l.Dev)
	dir := looptest.Dir(t)
	cmd := exec.Command("sh", "-c", `mount --make-rprivate / && mount "$0" "$1" && echo mounted && read x; umount "$1"`, l.Dev, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("mount in another namespace: %q, %v", line, err)
	}
	there := fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, dir)
	f := groupFreezer(t, shm(t), config.Cutover{}, v)
	freezeAndLook(t, f, []string{there}, []string{there})
}

// TestStackHidden: what nobody can reach is refused, with what and where.
func TestStackHidden(t *testing.T) {
	v, dir := mounted(t, "ext4", 64<<20)
	looptest.MountAt(t, "none", dir, "-t", "tmpfs")
	f := groupFreezer(t, shm(t), config.Cutover{}, v)
	err := f.Freeze(t.Context(), time.Minute)
	if !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), v.Path()) {
		t.Errorf("freeze of what is hidden: %v", err)
	}
}
