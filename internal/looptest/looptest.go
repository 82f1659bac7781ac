// Package looptest gives privileged tests real block devices: loop devices over sparse files, partitions on them,
// filesystems and mounts. Everything is taken down when the test ends, also when it fails; what a killed test left behind is
// taken down by the next process that uses the package.
package looptest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NeedRoot fails t for anyone but root: what these tests hold is not to be taken for tested because nobody looked.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("loop devices, mounts and eBPF need root: run the tests as root")
	}
	sweepOnce.Do(sweep)
}

// Options of a loop device. The zero value is 512-byte sectors through the page cache of the backing file.
type Options struct {
	SectorSize int  // bytes: 0 (512), 512, 1024, 2048 or 4096
	DirectIO   bool // the loop driver opens the file past the page cache, as a real disk would behave
	ReadOnly   bool
}

// Loop is an attached loop device.
type Loop struct {
	Dev  string // "/dev/loop7"
	File string // the sparse file behind it

	t     testing.TB
	f     *os.File // of Dev; the kernel detaches the device when the last user has closed it
	parts []int
}

// Dir is a folder for the test's files that is removed at its end, on a real disk's filesystem.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	return dir
}

// New attaches a new sparse file of size bytes as a loop device.
func New(t testing.TB, size int64, o Options) *Loop {
	t.Helper()
	NeedRoot(t)
	path := filepath.Join(Dir(t), "disk")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(size)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return Attach(t, path, o)
}

// Attach attaches an existing file as a loop device.
func Attach(t testing.TB, path string, o Options) *Loop {
	t.Helper()
	NeedRoot(t)
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dev, err := attach(file, o)
	if err != nil {
		t.Fatalf("attach %s as a loop device: %v", path, err)
	}
	l := &Loop{Dev: dev.Name(), File: path, t: t, f: dev}
	t.Cleanup(l.Detach)
	return l
}

// attach finds a free loop device; other processes look for one at the same time, so a lost race is tried again.
func attach(file *os.File, o Options) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(o.SectorSize)}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if o.DirectIO {
		c.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if o.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(c.Info.File_name[:63], file.Name())
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &c)
		if err == nil && !o.ReadOnly {
			// A write protection set by hand outlives the file that was attached then.
			err = unix.IoctlSetPointerInt(int(dev.Fd()), unix.BLKROSET, 0)
		}
		if err == nil {
			err = scanned(dev.Name())
		}
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("all free loop devices were taken by others")
}

// scanned opens the device once: kernels that scan partition tables do it at the first opening, and drop the partitions that they did not find.
func scanned(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	return f.Close()
}

// Resize changes the size of the file and of the device in bytes.
func (l *Loop) Resize(size int64) {
	l.t.Helper()
	err := os.Truncate(l.File, size)
	if err == nil {
		err = unix.IoctlSetInt(int(l.f.Fd()), unix.LOOP_SET_CAPACITY, 0)
	}
	if err != nil {
		l.t.Fatalf("resize %s: %v", l.Dev, err)
	}
}

// blkpgPart and blkpgArg are struct blkpg_partition and struct blkpg_ioctl_arg of linux/blkpg.h.
type blkpgPart struct {
	start, length int64
	no            int32
	_             [128]byte
	_             [4]byte
}

type blkpgArg struct {
	op, flags, length int32
	_                 int32
	data              unsafe.Pointer
}

const (
	blkpg    = 0x1269
	blkpgAdd = 1
	blkpgDel = 2
)

func (l *Loop) blkpg(op int32, no int, off, length int64) error {
	p := blkpgPart{start: off, length: length, no: int32(no)}
	a := blkpgArg{op: op, length: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, l.f.Fd(), blkpg, uintptr(unsafe.Pointer(&a))); e != 0 {
		return e
	}
	return nil
}

// Partition tells the kernel of partition no (from 1) at byte off, length bytes, without writing a partition table, and returns its device.
func (l *Loop) Partition(no int, off, length int64) string {
	l.t.Helper()
	if err := l.blkpg(blkpgAdd, no, off, length); err != nil {
		l.t.Fatalf("add partition %d to %s: %v", no, l.Dev, err)
	}
	l.parts = append(l.parts, no)
	return fmt.Sprintf("%sp%d", l.Dev, no)
}

// Detach gives the device up. It is called at the test's end; a test may call it earlier. The kernel lets the device go when its last
// user (a mount, an open file) has.
func (l *Loop) Detach() {
	if l.f == nil {
		return
	}
	for _, no := range l.parts {
		err := retryBusy(func() error { return l.blkpg(blkpgDel, no, 0, 0) })
		if err != nil {
			l.t.Errorf("remove partition %d of %s: %v", no, l.Dev, err)
		}
	}
	l.f.Close()
	l.f = nil
}

// retryBusy tries again for a while what fails with EBUSY: a killed process may still be closing its files.
func retryBusy(f func() error) error {
	err := f()
	for end := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = f() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

var sweepOnce sync.Once
