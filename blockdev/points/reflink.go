package points

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	folder  = ".points" // after the image's name
	suffix  = ".img"
	partial = ".new"             // after a copy's name until it is whole and durable
	flowTag = "user.mover.flow"  // says whose copy it is
	ownTag  = "user.mover.owner" // only what carries it is ever removed
)

// reflink keeps copies that share their blocks with the image: IMAGE.points/OWNER-NAME.img.
type reflink struct {
	image, dir string
	o          Options
}

func openReflink(o Options) (*reflink, error) {
	image, err := filepath.EvalSymlinks(o.Target)
	if errors.Is(err, fs.ErrNotExist) {
		image, err = filepath.Abs(o.Target)
	}
	if err != nil {
		return nil, fmt.Errorf("recovery points of %s: %w", o.Target, err)
	}
	r := &reflink{image: image, dir: image + folder, o: o}
	if _, err := os.Stat(r.dir); err == nil && o.Owner != "" {
		return r, nil // tried before; on a full disk points must still be read and removed
	}
	return r, r.try()
}

// try clones a block next to the image: filesystems of one kind can or cannot, depending on how they were made.
func (r *reflink) try() error {
	a, err := os.CreateTemp(filepath.Dir(r.image), ".mover-reflink-")
	if err != nil {
		return fmt.Errorf("recovery points of %s: try a reflink copy: %w", r.o.Target, err)
	}
	defer os.Remove(a.Name())
	defer a.Close()
	b, err := os.CreateTemp(filepath.Dir(r.image), ".mover-reflink-")
	if err != nil {
		return fmt.Errorf("recovery points of %s: try a reflink copy: %w", r.o.Target, err)
	}
	defer os.Remove(b.Name())
	defer b.Close()
	if _, err := a.Write(make([]byte, 4096)); err != nil {
		return fmt.Errorf("recovery points of %s: try a reflink copy: %w", r.o.Target, err)
	}
	switch err := unix.IoctlFileClone(int(b.Fd()), int(a.Fd())); {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EXDEV):
		return unsupported(r.o, Reflink, "lies on a filesystem that cannot share blocks between files; use XFS (reflink=1) or btrfs")
	default:
		return fmt.Errorf("recovery points of %s: try a reflink copy: %w", r.o.Target, err)
	}
}

func (r *reflink) Method() string { return Reflink }

func (r *reflink) path(name string) string {
	return filepath.Join(r.dir, r.o.Owner+"-"+name+suffix)
}

func (r *reflink) Take(ctx context.Context, name string) error {
	if err := errors.Join(checkName(name), r.room()); err != nil {
		return err
	}
	if _, err := os.Lstat(r.path(name)); err == nil {
		return fmt.Errorf("recovery point %s exists: %w", r.path(name), sentinel.ErrRefused)
	}
	err := bounded(ctx, func() error { return r.clone(ctx, name) }, func() { _ = r.remove(name) })
	if err != nil {
		return fmt.Errorf("recovery point of %s: %w", r.o.Target, noRoom(err))
	}
	return nil
}

func noRoom(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, sentinel.ErrRefused)
	}
	return err
}

// room: every block that the image writes after a copy needs a new place.
func (r *reflink) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.image), &st); err != nil {
		return err
	}
	if st.Blocks > 0 && st.Bavail < st.Blocks*reserve/100 {
		return fmt.Errorf("recovery point of %s: less than %d %% of its filesystem is free; remove points or enlarge it: %w", r.o.Target, reserve, sentinel.ErrRefused)
	}
	return nil
}

// clone makes the copy under a temporary name, makes it durable, and gives it its name.
func (r *reflink) clone(ctx context.Context, name string) (err error) {
	if err := os.Mkdir(r.dir, 0o700); err == nil {
		err = syncDir(filepath.Dir(r.dir))
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	src, err := os.Open(r.image)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := r.path(name) + partial
	dst, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, dst.Close()); err != nil {
			os.Remove(tmp)
		}
	}()
	fd := int(dst.Fd())
	for tag, value := range map[string]string{ownTag: r.o.Owner, flowTag: r.o.Flow} {
		if err := unix.Fsetxattr(fd, tag, []byte(value), 0); err != nil {
			return fmt.Errorf("tag the copy: %w", err)
		}
	}
	if err := unix.IoctlFileClone(fd, int(src.Fd())); err != nil {
		return fmt.Errorf("reflink copy: %w", err)
	}
	if err := errors.Join(dst.Chmod(0o400), dst.Sync()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // the target may be changing already
	}
	if err := os.Rename(tmp, r.path(name)); err != nil {
		return err
	}
	return syncDir(r.dir)
}

func (r *reflink) List(context.Context) ([]blockdev.Snapshot, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []blockdev.Snapshot
	for _, e := range entries {
		name, mine := strings.CutPrefix(e.Name(), r.o.Owner+"-")
		name, ok := strings.CutSuffix(strings.TrimSuffix(name, partial), suffix)
		if !mine || !ok || r.o.Owner == "" || !e.Type().IsRegular() || !r.tagged(filepath.Join(r.dir, e.Name())) {
			continue
		}
		in, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		out = append(out, blockdev.Snapshot{Name: name, Time: in.ModTime()})
	}
	slices.SortFunc(out, func(a, b blockdev.Snapshot) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// tagged: a file that only has our kind of name is somebody else's, but for an empty one, which was cut off before its tags.
func (r *reflink) tagged(path string) bool {
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(path, ownTag, buf)
	if err == nil {
		return string(buf[:n]) == r.o.Owner
	}
	st, serr := os.Lstat(path)
	return errors.Is(err, unix.ENODATA) && serr == nil && st.Size() == 0 && strings.HasSuffix(path, partial)
}

func (r *reflink) Open(_ context.Context, name string) (blockdev.Kept, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := os.Open(r.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("recovery point %s: %w", r.path(name), sentinel.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &kept{File: f, size: st.Size(), path: r.path(name)}, nil
}

func (r *reflink) Remove(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return r.remove(name)
}

func (r *reflink) remove(name string) error {
	for _, path := range []string{r.path(name) + partial, r.path(name)} {
		if !r.tagged(path) {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s does not carry the tag of its flow and is left alone: %w", path, sentinel.ErrRefused)
			}
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(r.dir)
}

func (r *reflink) Holds(path string) bool {
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return false
	}
	if whole, err := filepath.EvalSymlinks(path); err == nil {
		real = filepath.Dir(whole)
	}
	a, aerr := os.Stat(real)
	b, berr := os.Stat(r.dir)
	return aerr == nil && berr == nil && os.SameFile(a, b)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// kept is a state that is a file or a device.
type kept struct {
	*os.File
	size int64
	path string
	end  func() error
}

func (k *kept) Size() int64  { return k.size }
func (k *kept) Path() string { return k.path }
func (k *kept) Close() error {
	err := k.File.Close()
	if k.end != nil {
		err = errors.Join(err, k.end())
	}
	return err
}
