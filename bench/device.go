package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Run runs a command and returns its trimmed output; the error carries it.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// Loop attaches a new sparse file of size bytes as a loop device and returns it; r detaches it.
func (r *Rig) Loop(ctx context.Context, file string, size int64, sector int, direct bool) (string, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	err = f.Truncate(size)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	args := []string{"--find", "--show", "--sector-size", fmt.Sprint(sector)}
	if direct {
		args = append(args, "--direct-io=on")
	}
	dev, err := Run(ctx, "losetup", append(args, file)...)
	if err != nil {
		return "", err
	}
	r.Defer(func() error { return detach(dev) })
	return dev, nil
}

// detach waits for the last user of a loop device that is being given up.
func detach(dev string) error {
	var err error
	for range 50 {
		if _, err = Run(context.Background(), "losetup", "-d", dev); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Mkfs makes a filesystem whose unused space is known to be zero, which lets cmp compare whole devices.
func Mkfs(ctx context.Context, dev, kind string) error {
	args := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev},
		"xfs":   {"mkfs.xfs", "-q", "-f", dev},
		"btrfs": {"mkfs.btrfs", "-q", "-f", dev},
	}[kind]
	if args == nil {
		return fmt.Errorf("no recipe for a filesystem of kind %q", kind)
	}
	_, err := Run(ctx, args[0], args[1:]...)
	return err
}

// Mount mounts dev on a new folder of the rig.
func (r *Rig) Mount(ctx context.Context, dev, name string, opts ...string) (string, error) {
	dir := r.path(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := Run(ctx, "mount", append(opts, dev, dir)...); err != nil {
		return "", err
	}
	r.Defer(func() error { return Unmount(dir) })
	return dir, nil
}

// Thaw lets a filesystem go on; it is no error when it is not frozen.
func Thaw(dir string) { Run(context.Background(), "fsfreeze", "-u", dir) }

// Unmount thaws and unmounts dir; it is no error when it is not mounted any more.
func Unmount(dir string) error {
	if _, err := Run(context.Background(), "mountpoint", "-q", dir); err != nil {
		return nil
	}
	Thaw(dir)
	var err error
	for range 50 {
		if _, err = Run(context.Background(), "umount", dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// released waits until no loop device stands on an image any more. After umount it may: whoever made a mount namespace of his own while it was mounted has
// it mounted still, and until he is gone the filesystem is in use, its log is open and a check of it means nothing.
func released(ctx context.Context, image string) error {
	for end := time.Now().Add(time.Minute); ; {
		out, err := Run(ctx, "losetup", "--noheadings", "--associated", image)
		if err != nil || strings.TrimSpace(out) == "" {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is unmounted and still in use by a mount namespace: %s", image, out)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// Cmp compares two devices or files over size bytes with cmp, a program that knows nothing of Mover. The page caches of both are
// dropped first.
func Cmp(ctx context.Context, a, b string, size int64) error {
	for _, p := range []string{a, b} {
		if strings.HasPrefix(p, "/dev/") {
			if _, err := Run(ctx, "blockdev", "--flushbufs", p); err != nil {
				return err
			}
		}
	}
	_, err := Run(ctx, "cmp", "-n", fmt.Sprint(size), a, b)
	return err
}
