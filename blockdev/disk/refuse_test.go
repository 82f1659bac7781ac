package disk

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// TestRefuse opens what must not be overwritten (C12). Each is refused by name, and not a byte of it changes.
func TestRefuse(t *testing.T) {
	looptest.NeedRoot(t)
	const size = 64 << 20
	cases := []struct {
		name  string
		setup func(t *testing.T) (path, file string) // file holds the bytes that must stay; "": none
		parts []string
		kind  error
		size  int64
	}{
		{"mounted", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{DirectIO: true})
			looptest.Mkfs(t, l.Dev, "ext4")
			looptest.Mount(t, l.Dev, "-o", "ro,noload")
			return l.Dev, l.File
		}, []string{"mounted on /", "unmount"}, sentinel.ErrRefused, 0},
		{"partition mounted", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{DirectIO: true})
			p := l.Partition(1, 1<<20, 60<<20)
			looptest.Mkfs(t, p, "ext4")
			looptest.Mount(t, p, "-o", "ro,noload")
			return l.Dev, l.File
		}, []string{"p1 is mounted on"}, sentinel.ErrRefused, 0},
		{"second disk of a btrfs", func(t *testing.T) (string, string) {
			a := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
			b := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
			looptest.Mkfs(t, b.Dev, "btrfs", a.Dev)
			looptest.Run(t, "btrfs", "device", "scan", a.Dev, b.Dev)
			looptest.Mount(t, a.Dev, "-o", "ro")
			return b.Dev, b.File
		}, []string{"mounted on"}, sentinel.ErrRefused, 0},
		{"swap", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{DirectIO: true})
			swapOn(t, l.Dev)
			return l.Dev, l.File
		}, []string{"active swap", "swapoff"}, sentinel.ErrRefused, 0},
		{"read-only", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			protect(t, l.Dev)
			return l.Dev, l.File
		}, []string{"read-only"}, sentinel.ErrRefused, 0},
		{"held by another", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			target(t, l.Dev, TargetOptions{})
			return l.Dev, l.File
		}, []string{"holds it"}, sentinel.ErrRefused, 0},
		{"a partition held by another", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			target(t, l.Partition(1, 1<<20, 1<<20), TargetOptions{})
			return l.Dev, l.File
		}, []string{"holds it"}, sentinel.ErrRefused, 0},
		{"the disk held by another", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			p := l.Partition(1, 1<<20, 1<<20)
			target(t, l.Dev, TargetOptions{})
			return p, l.File
		}, []string{"holds it"}, sentinel.ErrRefused, 0},
		{"small device", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			return l.Dev, l.File
		}, []string{"67108864", "67109376", "512 bytes are lacking"}, sentinel.ErrRefused, size + 512},
		{"device under a loop device", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			looptest.Attach(t, l.Dev, looptest.Options{})
			return l.Dev, l.File
		}, []string{"attached as loop device /dev/loop"}, sentinel.ErrRefused, 0},
		{"image under a loop device", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{})
			return l.File, l.File
		}, []string{"attached as loop device /dev/loop", "losetup -d"}, sentinel.ErrRefused, 0},
		{"small image", func(t *testing.T) (string, string) {
			path := image(t, 1000)
			return path, path
		}, []string{"has 1000 bytes", "1001"}, sentinel.ErrRefused, 1001},
		{"image held by another", func(t *testing.T) (string, string) {
			path := image(t, 1000)
			target(t, path, TargetOptions{})
			return path, path
		}, []string{"locked"}, sentinel.ErrRefused, 0},
		{"image of a virtual machine", func(t *testing.T) (string, string) {
			path := image(t, 1000)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1}
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
			return path, path
		}, []string{"locked", "virtual machine"}, sentinel.ErrRefused, 0},
		{"swap file", func(t *testing.T) (string, string) {
			l := looptest.New(t, 256<<20, looptest.Options{DirectIO: true})
			looptest.Mkfs(t, l.Dev, "ext4")
			path := filepath.Join(looptest.Mount(t, l.Dev), "swap")
			put(t, path, make([]byte, 16<<20))
			swapOn(t, path)
			return path, ""
		}, []string{"swap"}, sentinel.ErrRefused, 0},
		{"image on a read-only filesystem", func(t *testing.T) (string, string) {
			l := looptest.New(t, size, looptest.Options{DirectIO: true})
			looptest.Mkfs(t, l.Dev, "ext4")
			dir := looptest.Mount(t, l.Dev)
			put(t, filepath.Join(dir, "image"), make([]byte, 4096))
			looptest.Run(t, "mount", "-o", "remount,ro", dir)
			return filepath.Join(dir, "image"), ""
		}, []string{"read-only"}, sentinel.ErrRefused, 0},
		{"folder", func(t *testing.T) (string, string) { return looptest.Dir(t), "" }, []string{"a folder"}, sentinel.ErrRefused, 0},
		{"character device", func(t *testing.T) (string, string) { return "/dev/null", "" }, []string{"a character device"}, sentinel.ErrRefused, 0},
		{"pipe", func(t *testing.T) (string, string) {
			path := filepath.Join(looptest.Dir(t), "pipe")
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			return path, ""
		}, []string{"a pipe"}, sentinel.ErrRefused, 0},
		{"nothing", func(t *testing.T) (string, string) { return filepath.Join(looptest.Dir(t), "x"), "" },
			[]string{"does not exist"}, sentinel.ErrNotFound, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path, file := c.setup(t)
			link := filepath.Join(looptest.Dir(t), "link")
			symlink(t, path, link) // a name leads to the same answer
			before := sum(t, file)
			for _, p := range []string{path, link} {
				d, err := OpenTarget(p, TargetOptions{Size: c.size})
				if err == nil {
					d.Close()
					t.Fatalf("%s was opened", p)
				}
				want(t, err, c.kind, c.parts...)
			}
			if sum(t, file) != before {
				t.Error("the target was changed")
			}
		})
	}
}

func image(t *testing.T, n int64) string {
	t.Helper()
	path := filepath.Join(looptest.Dir(t), "image")
	put(t, path, devtest.Content(1, n))
	return path
}

func sum(t *testing.T, file string) string {
	t.Helper()
	if file == "" {
		return ""
	}
	return looptest.Run(t, "sha256sum", file)
}

func swapOn(t *testing.T, path string) {
	t.Helper()
	looptest.Mkfs(t, path, "swap")
	looptest.Run(t, "swapon", path)
	t.Cleanup(func() { looptest.Run(t, "swapoff", path) })
}

func TestCreate(t *testing.T) {
	looptest.NeedRoot(t)
	path := filepath.Join(looptest.Dir(t), "image")
	d := target(t, path, TargetOptions{Size: 1 << 30, Create: true})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != 1<<30 || st.Blocks > 64 || st.Mode&0o777 != 0o600 {
		t.Errorf("created with size %d, %d blocks, mode %o (%v)", st.Size, st.Blocks, st.Mode, err)
	}
	id := d.Identity()
	if _, err := d.WriteAt(devtest.Content(1, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = target(t, path, TargetOptions{Size: 1 << 20, Create: true}) // exists: taken as it is
	got := devtest.Buffer(4096)
	if _, err := d.ReadAt(got, 4096); err != nil || d.Size() != 1<<30 || d.Identity() != id {
		t.Errorf("opened again: size %d, %v", d.Size(), err)
	}
	devtest.Same(t, got, devtest.Content(1, 4096), 4096)

	_, err := OpenTarget("/dev/mover-test-no-such-device", TargetOptions{Size: 1 << 20, Create: true})
	want(t, err, sentinel.ErrNotFound, "no device")
	if _, err := os.Lstat("/dev/mover-test-no-such-device"); err == nil {
		t.Error("a file was made in /dev")
	}
	_, err = OpenTarget(path+"2", TargetOptions{Create: true})
	want(t, err, sentinel.ErrUsage, "size")
	dangling := filepath.Join(looptest.Dir(t), "dangling")
	symlink(t, path+"3", dangling)
	if _, err = OpenTarget(dangling, TargetOptions{Size: 4096, Create: true}); err == nil {
		t.Error("a link that leads nowhere was written through")
	}
}

// TestTargetFull: an image file on a full filesystem says so, in a write or at the latest in the sync.
func TestTargetFull(t *testing.T) {
	l := looptest.New(t, 32<<20, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, l.Dev, "ext4")
	d := target(t, filepath.Join(looptest.Mount(t, l.Dev), "image"), TargetOptions{Size: 1 << 30, Create: true})
	p := devtest.Content(1, 1<<20)
	var err error
	for off := int64(0); err == nil && off < 64<<20; off += int64(len(p)) {
		_, err = d.WriteAt(p, off)
	}
	if err == nil {
		err = d.Sync()
	}
	want(t, err, unix.ENOSPC, "image", "more space")
}

// TestSyncNeverForgets: after a lost write no later sync says that everything is durable.
func TestSyncNeverForgets(t *testing.T) {
	l := looptest.New(t, 4<<20, looptest.Options{DirectIO: true})
	d := target(t, l.Dev, TargetOptions{})
	file := image(t, 1<<20)
	f := target(t, file, TargetOptions{})
	for _, d := range []*Target{d, f} {
		lost := &IOError{Op: "sync", Path: "x", Err: unix.EIO}
		d.broken = lost
		for range 2 {
			want(t, d.Sync(), unix.EIO)
		}
	}
}

// protect makes a device read-only until the test's end.
func protect(t *testing.T, dev string) {
	t.Helper()
	t.Cleanup(func() {
		if err := SetReadOnly(dev, false); err != nil {
			t.Error(err)
		}
	})
	if err := SetReadOnly(dev, true); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	l := looptest.New(t, 4<<20, looptest.Options{})
	protect(t, l.Dev)
	for _, ro := range []bool{true, true, false} {
		if err := SetReadOnly(l.Dev, ro); err != nil {
			t.Fatal(err)
		}
		if now, err := IsReadOnly(l.Dev); err != nil || now != ro {
			t.Errorf("read-only %v (%v), want %v", now, err, ro)
		}
	}
	target(t, l.Dev, TargetOptions{})
	want(t, SetReadOnly(l.File, true), sentinel.ErrNotSupported, "no block device")
	want(t, SetReadOnly("/dev/mover-test-no-such-device", true), sentinel.ErrNotFound)
}
