package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// devices are the loop devices of the conformance runs: file size and sector. 512-byte ones are also of odd sizes.
var devices = []struct {
	name   string
	size   int64
	sector int
	direct bool
}{
	{"512", 5 << 20, 512, true},
	{"512 odd", 5<<20 + 512*3, 512, true},
	{"4096", 5 << 20, 4096, true},
	{"4096 odd leaf", 5<<20 + 4096, 4096, true},
	{"4096 cached", 5 << 20, 4096, false},
}

var files = []int64{5 << 20, 5<<20 + 512, 5<<20 + 4096*3 + 777, 1000}

func volume(t *testing.T, path string) *Volume {
	t.Helper()
	v, err := OpenVolume(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func target(t *testing.T, path string, o TargetOptions) *Target {
	t.Helper()
	d, err := OpenTarget(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVolumeConformance(t *testing.T) {
	for _, d := range devices {
		t.Run(d.name, func(t *testing.T) {
			devtest.Volume(t, d.size, func(t *testing.T, content []byte) blockdev.Volume {
				path := filepath.Join(looptest.Dir(t), "disk")
				put(t, path, content)
				v := volume(t, looptest.Attach(t, path, looptest.Options{SectorSize: d.sector, DirectIO: d.direct}).Dev)
				if v.BlockSize() != d.sector || v.Kind() != Loop {
					t.Errorf("block size %d, kind %s", v.BlockSize(), v.Kind())
				}
				return v
			})
		})
	}
	for _, size := range files {
		t.Run(fmt.Sprintf("file %d", size), func(t *testing.T) {
			devtest.Volume(t, size, func(t *testing.T, content []byte) blockdev.Volume {
				path := filepath.Join(looptest.Dir(t), "image")
				put(t, path, content)
				return volume(t, path)
			})
		})
	}
	t.Run("partition", func(t *testing.T) {
		const start, size = 1<<20 + 512, 4<<20 - 1536
		devtest.Volume(t, size, func(t *testing.T, content []byte) blockdev.Volume {
			l := looptest.New(t, 8<<20, looptest.Options{DirectIO: true})
			p := l.Partition(1, start, size)
			d := target(t, p, TargetOptions{Size: size})
			if _, err := d.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Sync(), d.Close()); err != nil {
				t.Fatal(err)
			}
			v := volume(t, p)
			if v.Kind() != Partition {
				t.Errorf("kind %s", v.Kind())
			}
			return v
		})
	})
}

func TestVolumeWithoutDirectIO(t *testing.T) {
	looptest.NeedRoot(t)
	for _, size := range files {
		devtest.Volume(t, size, func(t *testing.T, content []byte) blockdev.Volume {
			path := filepath.Join(looptest.Dir(t), "image")
			put(t, path, content)
			v := volume(t, path)
			v.h.direct = false
			if _, err := unix.FcntlInt(v.h.f.Fd(), unix.F_SETFL, 0); err != nil { // O_DIRECT off
				t.Fatal(err)
			}
			return v
		})
	}
}

func TestTargetConformance(t *testing.T) {
	for _, d := range devices {
		t.Run(d.name, func(t *testing.T) {
			l := looptest.New(t, d.size, looptest.Options{SectorSize: d.sector, DirectIO: d.direct})
			open := func(t *testing.T) blockdev.Target { return target(t, l.Dev, TargetOptions{Size: d.size}) }
			devtest.Target(t, d.size, open, open)
		})
	}
	for _, size := range files[:3] {
		t.Run(fmt.Sprintf("file %d", size), func(t *testing.T) {
			path := filepath.Join(looptest.Dir(t), "image")
			open := func(t *testing.T) blockdev.Target { return target(t, path, TargetOptions{Size: size, Create: true}) }
			devtest.Target(t, size, open, open)
		})
	}
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run("file on "+kind, func(t *testing.T) {
			l := looptest.New(t, 512<<20, looptest.Options{DirectIO: true})
			looptest.Mkfs(t, l.Dev, kind)
			path := filepath.Join(looptest.Mount(t, l.Dev), "image")
			open := func(t *testing.T) blockdev.Target {
				return target(t, path, TargetOptions{Size: files[2], Create: true})
			}
			devtest.Target(t, files[2], open, open)
		})
	}
	t.Run("partition", func(t *testing.T) {
		l := looptest.New(t, 8<<20, looptest.Options{DirectIO: true})
		p := l.Partition(1, 1<<20+512, 5<<20-512)
		open := func(t *testing.T) blockdev.Target { return target(t, p, TargetOptions{}) }
		devtest.Target(t, 5<<20-512, open, open)
	})
}

// TestLastHalfBlock: what the kernel lets nobody address is not part of the size.
func TestLastHalfBlock(t *testing.T) {
	l := looptest.New(t, 1<<20+512, looptest.Options{SectorSize: 4096, DirectIO: true})
	v := volume(t, l.Dev)
	if v.Size() != 1<<20 {
		t.Errorf("size %d", v.Size())
	}
	if err := v.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
}

// Test64TiB reads and writes at the very end of the largest volume.
func Test64TiB(t *testing.T) {
	const size = 64 << 40
	host := looptest.New(t, 1<<30, looptest.Options{DirectIO: true})
	looptest.Mkfs(t, host.Dev, "xfs")
	path := filepath.Join(looptest.Mount(t, host.Dev), "image")
	d := target(t, path, TargetOptions{Size: size, Create: true})
	end := devtest.Content(1, 16<<10)
	if _, err := d.WriteAt(end, size-16<<10); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(extent.Extent{Off: 0, Len: size - 16<<10}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		t.Fatal(err)
	}
	l := looptest.Attach(t, path, looptest.Options{SectorSize: 4096, DirectIO: true})
	for _, p := range []string{path, l.Dev} {
		v := volume(t, p)
		if v.Size() != size {
			t.Fatalf("size %d", v.Size())
		}
		got := devtest.Buffer(16 << 10)
		if _, err := v.ReadAt(got, size-16<<10); err != nil {
			t.Fatal(err)
		}
		devtest.Same(t, got, end, 0)
		f, err := Inspect(p)
		if err != nil || f.Blank || f.Size != size {
			t.Errorf("%v, %v", f, err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	dev := target(t, l.Dev, TargetOptions{Size: size})
	if err := dev.Zero(extent.Extent{Off: size - 8<<10, Len: 8 << 10}); err != nil {
		t.Fatal(err)
	}
	got := devtest.Buffer(16 << 10)
	if _, err := dev.ReadAt(got, size-16<<10); err != nil {
		t.Fatal(err)
	}
	clear(end[8<<10:])
	devtest.Same(t, got, end, 0)
	dev.Close()
	l.Detach()
}

func TestCheckVolume(t *testing.T) {
	l := looptest.New(t, 4<<20, looptest.Options{DirectIO: true})
	v := volume(t, l.Dev)
	l.Resize(8 << 20)
	want(t, v.Check(), sentinel.ErrTrackLost, "4194304", "8388608")
	l.Resize(4 << 20)
	want(t, v.Check(), nil)

	// A name that leads to another device.
	dir := looptest.Dir(t)
	link := filepath.Join(dir, "link")
	symlink(t, l.Dev, link)
	w := volume(t, link)
	other := looptest.New(t, 4<<20, looptest.Options{})
	symlink(t, other.Dev, link)
	want(t, w.Check(), sentinel.ErrRefused, "another device")
	os.Remove(link)
	want(t, w.Check(), sentinel.ErrNotFound, "gone")

	// The same medium under another device: what was tracked is lost.
	symlink(t, l.Dev, link)
	again := looptest.Attach(t, l.File, looptest.Options{})
	symlink(t, again.Dev, link)
	want(t, w.Check(), sentinel.ErrTrackLost, "came back")
	if volume(t, again.Dev).Identity() != v.Identity() {
		t.Error("the identity is of the name, not of the medium")
	}

	// A loop device that was given back to the kernel.
	alone := looptest.New(t, 4<<20, looptest.Options{})
	gone := volume(t, alone.Dev)
	id := alone.Dev
	alone.Detach()
	gone.h.f.Close()
	if w, err := os.ReadFile("/sys/block/" + filepath.Base(id) + "/loop/backing_file"); err != nil { // nobody else took it
		want(t, gone.Check(), sentinel.ErrNotFound, "no file is attached")
		_, err = OpenVolume(id)
		want(t, err, sentinel.ErrNotFound, "no medium")
	} else {
		t.Logf("%s was taken by %s meanwhile", id, w)
	}

	// A partition's identity is its disk and its beginning.
	a, b := volume(t, l.Partition(1, 1<<20, 1<<20)), volume(t, l.Partition(2, 2<<20, 1<<20))
	if a.Identity() == b.Identity() || a.Identity() == v.Identity() {
		t.Errorf("identities %s and %s of partitions of %s", a.Identity(), b.Identity(), v.Identity())
	}
	a.Close()
	b.Close()
}

func TestCheckFile(t *testing.T) {
	looptest.NeedRoot(t)
	path := filepath.Join(looptest.Dir(t), "image")
	put(t, path, make([]byte, 10000))
	v := volume(t, path)
	want(t, v.Check(), nil)
	if err := os.Truncate(path, 20000); err != nil {
		t.Fatal(err)
	}
	want(t, v.Check(), sentinel.ErrTrackLost, "10000", "20000")
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	n, err := v.ReadAt(devtest.Buffer(8192), 0)
	var ioe *IOError
	if !errors.As(err, &ioe) || n != 5000 || ioe.Extent != (extent.Extent{Off: 5000, Len: 3192}) {
		t.Errorf("read of a file that shrank: %d, %v", n, err)
	}
	put(t, path+"2", make([]byte, 10000))
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	want(t, v.Check(), sentinel.ErrRefused, "another file")
	if volume(t, path).Identity() == v.Identity() {
		t.Error("another file has the same identity")
	}
	os.Remove(path)
	want(t, v.Check(), sentinel.ErrNotFound, "gone")
}

// TestUnreadable: a place that the medium cannot give is named, and what lies before it is read.
func TestUnreadable(t *testing.T) {
	l := looptest.New(t, 4<<20, looptest.Options{DirectIO: true})
	v := volume(t, l.Dev)
	d := target(t, l.Dev, TargetOptions{})
	if err := os.Truncate(l.File, 1<<20); err != nil { // the loop driver meets the file's end: EIO
		t.Fatal(err)
	}
	p := devtest.Buffer(1 << 20)
	_, err := v.ReadAt(p, 2<<20)
	var ioe *IOError
	if !errors.As(err, &ioe) || !errors.Is(err, unix.EIO) || ioe.Op != "read" || ioe.Extent.End() != 3<<20 {
		t.Errorf("read: %v", err)
	}
	if _, err := d.ReadAt(p, 2<<20); !errors.Is(err, unix.EIO) {
		t.Errorf("read of the target: %v", err)
	}
	if _, err := v.ReadAt(p, 0); err != nil {
		t.Errorf("read before the bad place: %v", err)
	}
}

func symlink(t *testing.T, to, link string) {
	t.Helper()
	os.Remove(link)
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
}

// want checks an error's kind and that its text names every part.
func want(t *testing.T, err, kind error, parts ...string) {
	t.Helper()
	if kind == nil && err != nil || kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %v, want %v", err, kind)
		return
	}
	for _, p := range parts {
		if err != nil && !bytes.Contains([]byte(err.Error()), []byte(p)) {
			t.Errorf("error %q does not name %q", err, p)
		}
	}
}
