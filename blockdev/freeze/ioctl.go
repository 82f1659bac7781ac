package freeze

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

const (
	fifreeze = 0xc0045877 // FIFREEZE of linux/fs.h: _IOWR('X', 119, int)
	fithaw   = 0xc0045878 // FITHAW: _IOWR('X', 120, int)
)

// How a filesystem is kept from being written.
const (
	byFreeze  = "freeze"    // FIFREEZE
	byRemount = "read-only" // the whole filesystem is made read-only: FAT has no freeze, and EFI system partitions are FAT
)

// stop keeps the filesystem of the open folder fd from being written. It blocks while the kernel writes back what is dirty.
func stop(fd int, how string) error {
	if how == byRemount {
		return reconfigure(fd, "ro")
	}
	return retryEINTR(func() error { return unix.IoctlSetInt(fd, fifreeze, 0) })
}

// start undoes stop. EINVAL: somebody else had done so.
func start(fd int, how string) error {
	if how == byRemount {
		if ro, err := readOnly(fd); err != nil || !ro {
			return errors.Join(err, unix.EINVAL)
		}
		return reconfigure(fd, "rw")
	}
	return retryEINTR(func() error { return unix.IoctlSetInt(fd, fithaw, 0) })
}

// stopped tells whether a filesystem that this process stopped still is. There is no way to ask; but a second FIFREEZE is refused with
// EBUSY exactly while the first one holds. Where it is not refused, somebody had thawed, and the accidental freeze is undone.
func stopped(fd int, how string) (bool, error) {
	if how == byRemount {
		return readOnly(fd)
	}
	switch err := stop(fd, how); {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case err != nil:
		return false, err
	}
	return false, start(fd, how)
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readOnly tells whether the filesystem of fd is; that only this mount of it is (systemd's ProtectSystem) does not count.
func readOnly(fd int) (bool, error) {
	e, err := entryOf(fd, "")
	if !errors.Is(err, sentinel.ErrNotFound) {
		return e.ro, err
	}
	var s unix.Statfs_t // unmounted lazily, or mounted in another namespace
	err = retryEINTR(func() error { return unix.Fstatfs(fd, &s) })
	return s.Flags&unix.ST_RDONLY != 0, err
}

// reconfigure makes the filesystem of fd "ro" or "rw". It goes through the open folder, so that a lazy unmount does not matter.
func reconfigure(fd int, flag string) error {
	ctx, err := unix.Fspick(fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetFlag(ctx, flag); err != nil {
		return err
	}
	return unix.FsconfigReconfigure(ctx)
}

// flush writes back what is dirty before the freeze does, while writers still run: again while it takes long, as much is dirty anew.
func flush(fd int) error {
	for range 3 {
		begin := time.Now()
		if err := unix.Syncfs(fd); err != nil {
			return err
		}
		if time.Since(begin) < 200*time.Millisecond {
			return nil
		}
	}
	return nil
}

// Thaw thaws the filesystem mounted on dir, whoever froze it. One that is not frozen is no error.
func Thaw(dir string) error {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	defer f.Close()
	if err := start(int(f.Fd()), byFreeze); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", dir, err)
	}
	return nil
}

// explain words the errno of a freeze for people.
func explain(dir string, errno unix.Errno) error {
	switch errno {
	case unix.EBUSY:
		return fmt.Errorf("freeze %s: somebody else has frozen it, or has files open that keep it from becoming read-only; "+
			"it was left alone; thaw it (fsfreeze -u) or close them, then try again: %w", dir, errno)
	case unix.EOPNOTSUPP:
		return fmt.Errorf("freeze %s: its filesystem cannot be frozen; unmount it or give a stop hook: %w", dir, errno)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("freeze %s: CAP_SYS_ADMIN is needed: %w", dir, fs.ErrPermission)
	}
	return fmt.Errorf("freeze %s: %w", dir, errno)
}
