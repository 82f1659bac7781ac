package dir

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beneath is how every path is resolved: it never leaves the folder, and no symbolic link is followed, wherever it leads.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// open opens a path below the folder.
func (s *Store) open(path string, flags int, mode uint32) (*os.File, error) {
	return openAt(s.root, path, flags, mode)
}

func openAt(dir *os.File, path string, flags int, mode uint32) (*os.File, error) {
	if path == "" {
		path = "."
	}
	if flags |= unix.O_CLOEXEC; flags&unix.O_PATH == 0 {
		flags |= unix.O_NOCTTY
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: beneath})
		switch {
		case err == unix.EINTR || err == unix.EAGAIN: // a folder was renamed meanwhile
			continue
		case err == unix.ENOSYS:
			return nil, fmt.Errorf("this kernel has no openat2: Linux 5.6 or newer is needed: %w", err)
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), "/proc/self/fd/"+strconv.Itoa(fd)), nil // the name is good for what package os does by name
	}
}

func (s *Store) openDir(path string) (*os.File, error) {
	return s.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// stat tells what a path is, without following it.
func (s *Store) stat(path string) (st unix.Stat_t, err error) {
	f, err := s.open(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return st, err
	}
	defer f.Close()
	return statOf(f)
}

func statAt(dir *os.File, name string) (st unix.Stat_t, err error) {
	err = wrap("stat", name, unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW))
	return st, err
}

func statOf(f *os.File) (st unix.Stat_t, err error) {
	return st, wrap("stat", "file", unix.Fstat(int(f.Fd()), &st))
}

func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

func split(path string) (dir, name string) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return "", path
}

// unlink removes a file, or an empty folder.
func (s *Store) unlink(path string, isDir bool) error {
	dir, name := split(path)
	d, err := s.openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unlinkAt(d, name, isDir)
}

func unlinkAt(dir *os.File, name string, isDir bool) error {
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
	}
	return wrap("remove", name, unix.Unlinkat(int(dir.Fd()), name, flags))
}

// renameAt moves a name; fresh: only if to is not there (EEXIST).
func renameAt(from *os.File, name string, to *os.File, as string, fresh bool) error {
	if !fresh {
		return wrap("rename", as, unix.Renameat(int(from.Fd()), name, int(to.Fd()), as))
	}
	err := unix.Renameat2(int(from.Fd()), name, int(to.Fd()), as, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // filesystems that cannot may still link
		if err = unix.Linkat(int(from.Fd()), name, int(to.Fd()), as, 0); err == nil {
			err = unix.Unlinkat(int(from.Fd()), name, 0)
		}
	}
	return wrap("rename", as, err)
}

func regular(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }
func isDir(st unix.Stat_t) bool   { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// kind names what is no object.
func kind(st unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFREG:
		return "a file"
	}
	return "a device, pipe or socket"
}

// nobody tells whether an error says that there is no such file; over a symbolic link there is none.
func nobody(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}

// syncDir makes the names of a folder durable.
func (s *Store) syncDir(path string) error {
	d, err := s.openDir(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
