package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// lockDir is where LVM's commands lock groups against each other.
const lockDir = "/run/lock/lvm"

// Lock keeps every LVM command away from a group until unlock, as LVM's commands do among each other. It is tried until ctx ends: ErrRefused.
func Lock(ctx context.Context, vg string) (unlock func(), err error) {
	if err := Check(vg); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(lockDir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(lockDir, "V_"+vg)
	for {
		f, err := lockFile(path)
		if err != nil {
			return nil, fmt.Errorf("lock volume group %s: %w", vg, err)
		}
		if f != nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("an LVM command holds volume group %s: %w", vg, sentinel.ErrRefused)
		case <-time.After(time.Millisecond):
		}
	}
}

// lockFile: who unlocks removes the file, so a lock counts only while its file stands under the name. nil: somebody has it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, nil
		}
		return nil, err
	}
	have, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && os.SameFile(have, now) {
			return f, nil
		}
	}
	f.Close()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return nil, err
}
