package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

// TargetOptions say what a target has to be.
type TargetOptions struct {
	Size   int64 // bytes that it must hold at least; of a file that is created, exactly
	Create bool  // make the image file when it does not exist
}

// Target is a block device or an image file that is written, held against every other user while it is open.
type Target struct {
	h      *handle
	cached *os.File // image files: the same file through the page cache, for writes; nil for devices

	mixed     bool         // image files: large pieces are written past the page cache
	unflushed atomic.Int64 // image files: bytes written since write-back was last asked for

	edge sync.Mutex // one read-modify-write of a device block at a time

	mu     sync.Mutex // guards broken
	broken error      // the first error of a sync: what was written before may be lost, whatever later syncs say (C3)
}

var _ blockdev.Target = (*Target)(nil)

// OpenTarget opens what will be overwritten. Before anything is written it refuses (ErrRefused) what is mounted, part of another device,
// swap, attached as a loop device, read-only, too small, held by another process, or neither block device nor file (C12). Whether it
// may be overwritten at all, its claim and its identity, is for the caller to decide.
func OpenTarget(path string, o TargetOptions) (*Target, error) {
	if o.Size < 0 {
		return nil, fmt.Errorf("target %s: size %d: %w", path, o.Size, sentinel.ErrUsage)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !o.Create {
			return nil, fmt.Errorf("target %s does not exist; connect the device or let the image file be created: %w", path, sentinel.ErrNotFound)
		}
		real = path
		err = create(path, o.Size)
	}
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(real)
	if err != nil {
		return nil, missing(real, err)
	}
	if isDevice(st) {
		return openDevice(path, real, o.Size)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("target %s is %s, not a block device or an image file: %w", path, typeName(st.Mode()), sentinel.ErrRefused)
	}
	return openImage(path, real, o.Size)
}

// create makes a sparse image file that nobody else may read. A path in /dev is a device that is not there.
func create(path string, size int64) (err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if strings.HasPrefix(abs, "/dev/") && !strings.HasPrefix(abs, "/dev/shm/") {
		return fmt.Errorf("target %s is no device now, and an image file is not created in /dev; connect the device: %w", path, sentinel.ErrNotFound)
	}
	if size <= 0 {
		return fmt.Errorf("target %s does not exist and cannot be created without a size: %w", path, sentinel.ErrUsage)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create the target: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(path)
		}
	}()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("create the target with %d bytes: %w", size, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func refused(path, why string) error {
	return fmt.Errorf("target %s: %s: %w", path, why, sentinel.ErrRefused)
}

// openDevice: O_EXCL is what keeps others away; the look-ups before it give the reason by name, and see users that take no claim.
func openDevice(path, real string, size int64) (*Target, error) {
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return nil, missing(path, err)
	}
	dir, err := live.dir(st.Rdev)
	if err != nil {
		return nil, err
	}
	users, err := live.deviceUsers(st.Rdev)
	if err != nil {
		return nil, err
	}
	if len(users) > 0 {
		return nil, refused(path, strings.Join(users, "; "))
	}
	if attr(dir, "ro") == "1" {
		return nil, refused(path, "it is read-only (blockdev --setrw, or check its lock switch)")
	}
	h, err := open(real, os.O_RDWR, true)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, refused(path, "another process holds it (a gateway, a filesystem, a device on top); end that use first")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS), errors.Is(err, unix.EPERM):
		return nil, refused(path, fmt.Sprintf("it cannot be opened for writing: %v", cause(err)))
	case err != nil:
		return nil, err
	}
	h.path = path
	t := &Target{h: h}
	if h.dev != st.Rdev {
		return nil, errors.Join(refused(path, "it became another device while it was opened; try again"), t.Close())
	}
	if err := t.holds(size); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func openImage(path, real string, size int64) (*Target, error) {
	h, err := open(real, os.O_RDWR, false)
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, refused(path, fmt.Sprintf("it cannot be opened for writing: %v", cause(err)))
	case errors.Is(err, unix.ETXTBSY):
		return nil, refused(path, "it is active swap or a running program")
	case err != nil:
		return nil, err
	}
	h.path = path
	t := &Target{h: h}
	if err := t.lockImage(real, size); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// lockImage takes the locks that movers (flock) and hypervisors (record locks of the open file) look at, then looks for other users.
func (t *Target) lockImage(real string, size int64) error {
	fd := int(t.h.f.Fd())
	err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return refused(t.h.path, "another process has locked it (a gateway or a virtual machine); end that use first")
	}
	if err != nil && !errors.Is(err, unix.ENOLCK) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("lock target %s: %w", t.h.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	users, err := live.fileUsers(&st)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return refused(t.h.path, strings.Join(users, "; "))
	}
	if err := t.holds(size); err != nil {
		return err
	}
	t.cached, err = os.OpenFile(real, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var again unix.Stat_t
	if err := unix.Fstat(int(t.cached.Fd()), &again); err != nil {
		return err
	}
	if again.Dev != st.Dev || again.Ino != st.Ino {
		return refused(t.h.path, "it became another file while it was opened; try again")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	t.mixed = t.h.direct && t.h.align <= memUnit && (fs.Type == unix.EXT4_SUPER_MAGIC || fs.Type == unix.XFS_SUPER_MAGIC)
	return nil
}

// holds refuses a target that is too small.
func (t *Target) holds(size int64) error {
	if t.h.size < size {
		return refused(t.h.path, fmt.Sprintf("it has %d bytes, the volume %d: %d bytes are lacking; take a larger one", t.h.size, size, size-t.h.size))
	}
	return nil
}

// Size is in bytes and may exceed the volume's.
func (t *Target) Size() int64      { return t.h.size }
func (t *Target) BlockSize() int   { return int(t.h.align) }
func (t *Target) Identity() string { return withSize(t.h.id, t.h.size) }
func (t *Target) Path() string     { return t.h.path }
func (t *Target) Kind() string     { return t.h.kind }

// Device is the device number; 0 for an image file.
func (t *Target) Device() uint64 { return t.h.dev }

// Check tells a target that is not what was opened any more, as Volume.Check does.
func (t *Target) Check() error { return t.h.check() }

// Close gives the target up; it does not sync. It is idempotent.
func (t *Target) Close() error {
	err := t.h.close()
	if t.cached != nil {
		if e := t.cached.Close(); e != nil && !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}
