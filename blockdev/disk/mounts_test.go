package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

func mustResolve(t *testing.T, path string) (uint64, extent.Map) {
	t.Helper()
	v := volume(t, path)
	defer v.Close()
	if v.Map() == nil {
		t.Fatal(v.Unmapped())
	}
	return v.Device(), v.Map()
}

func mounts(t *testing.T, m extent.Map) []Mount {
	t.Helper()
	list, err := Mounts(m)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestMounts: filesystems on partitions of one disk are found through the whole disk and through their own partition only.
func TestMounts(t *testing.T) {
	l := looptest.New(t, 1<<30, looptest.Options{DirectIO: true})
	disk, whole := mustResolve(t, l.Dev)
	kinds := []string{"ext4", "xfs", "btrfs"}
	dirs := map[string]string{}
	maps := map[string]extent.Map{}
	for i, kind := range kinds {
		off := int64(1<<20 + i*(320<<20))
		p := l.Partition(i+1, off, 310<<20)
		looptest.Mkfs(t, p, kind)
		dirs[kind] = looptest.Mount(t, p)
		_, maps[kind] = mustResolve(t, p)
		if w := (extent.Map{{Len: 310 << 20, Dev: disk, DevOff: off}}); !sameMap(maps[kind], w) {
			t.Errorf("partition %d resolves to %v", i+1, maps[kind])
		}
	}
	if got := mounts(t, whole); len(got) != 3 {
		t.Errorf("on the disk: %+v", got)
	}
	for _, kind := range kinds {
		got := mounts(t, maps[kind])
		if len(got) != 1 || got[0].Dir != dirs[kind] || got[0].Type != kind || !sameMap(got[0].Map, maps[kind]) || got[0].ReadOnly {
			t.Errorf("on the %s partition: %+v", kind, got)
		}
	}
	for _, dir := range dirs {
		looptest.Unmount(t, dir)
	}
	if got := mounts(t, whole); len(got) != 0 {
		t.Errorf("after unmounting: %+v", got)
	}
}

// TestMountsOnce: bind mounts and subvolumes are the same filesystem; its root is preferred; a hidden mount is not offered for freezing.
func TestMountsOnce(t *testing.T) {
	for _, kind := range []string{"ext4", "btrfs"} {
		l := looptest.New(t, 512<<20, looptest.Options{DirectIO: true})
		looptest.Mkfs(t, l.Dev, kind)
		_, m := mustResolve(t, l.Dev)
		first := filepath.Join(looptest.Dir(t), "with space\tand tab")
		if err := os.Mkdir(first, 0o700); err != nil {
			t.Fatal(err)
		}
		looptest.MountAt(t, l.Dev, first)
		if kind == "btrfs" {
			looptest.Run(t, "btrfs", "subvolume", "create", filepath.Join(first, "sub"))
		} else if err := os.Mkdir(filepath.Join(first, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		bind := looptest.Mount(t, filepath.Join(first, "sub"), "--bind")
		if got := mounts(t, m); len(got) != 1 || got[0].Dir != first {
			t.Errorf("%s: %+v", kind, got)
		}
		upper := looptest.New(t, 16<<20, looptest.Options{})
		looptest.Mkfs(t, upper.Dev, "ext2")
		looptest.MountAt(t, upper.Dev, first)
		if got := mounts(t, m); len(got) != 1 || got[0].Dir != bind {
			t.Errorf("%s below another mount: %+v", kind, got)
		}
		looptest.MountAt(t, upper.Dev, bind)
		if got := mounts(t, m); len(got) != 1 || got[0].Dir != "" {
			t.Errorf("%s below other mounts: %+v", kind, got)
		}
		looptest.Unmount(t, bind)
		looptest.Unmount(t, first)
		looptest.Run(t, "mount", "-o", "remount,ro", first)
		if got := mounts(t, m); len(got) != 1 || !got[0].ReadOnly {
			t.Errorf("%s read-only: %+v", kind, got)
		}
	}
}

// TestMountsOfBtrfsOnTwoDisks: each disk of a filesystem leads to it.
func TestMountsOfBtrfsOnTwoDisks(t *testing.T) {
	a := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
	b := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, a.Dev, "btrfs", b.Dev)
	looptest.Run(t, "btrfs", "device", "scan", a.Dev, b.Dev)
	dir := looptest.Mount(t, b.Dev)
	for _, dev := range []string{a.Dev, b.Dev} {
		_, m := mustResolve(t, dev)
		if got := mounts(t, m); len(got) != 1 || got[0].Dir != dir || got[0].Map != nil {
			t.Errorf("on %s: %+v", dev, got)
		}
	}
}

// TestMountsElsewhere: a filesystem that is mounted in another mount namespace only is found, and can be reached.
func TestMountsElsewhere(t *testing.T) {
	l := looptest.New(t, 64<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, l.Dev, "ext4")
	_, m := mustResolve(t, l.Dev)
	p := startElsewhere(t, l.Dev, looptest.Dir(t))
	got := mounts(t, m)
	if len(got) != 1 || !strings.HasPrefix(got[0].Dir, "/proc/") {
		t.Fatalf("%+v", got)
	}
	if _, err := os.Stat(filepath.Join(got[0].Dir, "lost+found")); err != nil {
		t.Errorf("reach it: %v", err)
	}
	_, err := OpenTarget(l.Dev, TargetOptions{})
	if err == nil || !strings.Contains(err.Error(), "mounted on /proc/") {
		t.Errorf("open it as a target: %v", err)
	}
	p()
	if got := mounts(t, m); len(got) != 0 {
		t.Errorf("after its end: %+v", got)
	}
}

func TestSwaps(t *testing.T) {
	l := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
	_, m := mustResolve(t, l.Dev)
	p, q := l.Partition(1, 1<<20, 16<<20), l.Partition(2, 32<<20, 200<<20)
	looptest.Mkfs(t, q, "ext4")
	file := filepath.Join(looptest.Mount(t, q), "swap file")
	put(t, file, make([]byte, 8<<20))
	swapOn(t, p)
	swapOn(t, file)
	got, err := Swaps(m)
	if err != nil || len(got) != 2 || got[0].File || got[0].Path != p || !got[1].File || got[1].Path != file {
		t.Errorf("%+v, %v", got, err)
	}
	_, mp := mustResolve(t, p)
	if got, err := Swaps(mp); err != nil || len(got) != 1 {
		t.Errorf("on the partition: %+v, %v", got, err)
	}
	other, err := Swaps(extent.Map{{Len: 1 << 20, Dev: unix.Mkdev(4000, 0)}})
	if err != nil || len(other) != 0 {
		t.Errorf("on another disk: %+v, %v", other, err)
	}
}
