// Package points keeps states of targets: reflink copies of image files on XFS and btrfs, snapshots of thin volumes of LVM. Whether a target can
// have them is found by trying.
package points

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/sentinel"
)

// Methods that Open knows.
const (
	Auto    = "auto"
	Reflink = "reflink"
	LVMThin = "lvm-thin"
	None    = "none"
)

// Options of Open.
type Options struct {
	Method string // one of the above
	Target string // block device or image file; an image that does not exist yet is judged by its folder
	Owner  string // of the states: 8 to 32 letters and digits that nobody else has; empty: only try
	Flow   string // for people who find a state: TENANT/HOST/NAME
}

// minOwner keeps the names of two owners apart.
const minOwner = 8

// reserve is the share of a filesystem in percent, that has to be free before a state is kept: what the target writes from then on
// needs room of its own.
const reserve = 10

// Open finds how states of a target can be kept. With Auto a target that can have none gives nil and no error, as None does. A method that
// the target cannot have: ErrNotSupported, with the reason.
func Open(o Options) (blockdev.Points, error) {
	p, err := open(o)
	if o.Method == Auto && errors.Is(err, sentinel.ErrNotSupported) {
		return nil, nil
	}
	return p, err
}

// Why says what keeps a target from having points with Auto; nil: nothing.
func Why(target string) error {
	_, err := open(Options{Method: Auto, Target: target})
	return err
}

func open(o Options) (blockdev.Points, error) {
	switch o.Method {
	case None:
		return nil, nil
	case Auto, Reflink, LVMThin:
	default:
		return nil, fmt.Errorf("recovery points of %s: method %q is none of auto, reflink, lvm-thin, none: %w", o.Target, o.Method, sentinel.ErrUsage)
	}
	if o.Owner != "" && (len(o.Owner) < minOwner || !plain(o.Owner)) {
		return nil, fmt.Errorf("recovery points of %s: owner %q: %w", o.Target, o.Owner, sentinel.ErrUsage)
	}
	st, err := os.Stat(o.Target)
	device := err == nil && st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("recovery points: %w", err)
	}
	if err != nil && strings.HasPrefix(o.Target, "/dev/") && !strings.HasPrefix(o.Target, "/dev/shm/") {
		return nil, fmt.Errorf("recovery points of %s: no such device now: %w", o.Target, sentinel.ErrNotFound)
	}
	var p blockdev.Points
	switch {
	case device && o.Method == Reflink:
		err = unsupported(o, Reflink, "is a block device; reflink copies are of image files on XFS or btrfs")
	case device:
		p, err = openThin(o, uint64(st.Sys().(*syscall.Stat_t).Rdev))
	case o.Method == LVMThin:
		err = unsupported(o, LVMThin, "is no block device; snapshots are of thin volumes of LVM")
	default:
		p, err = openReflink(o)
	}
	if err != nil {
		return nil, err // p may be a typed nil
	}
	return p, nil
}

func unsupported(o Options, method, why string) error {
	return fmt.Errorf("recovery points of %s by %s: it %s: %w", o.Target, method, why, sentinel.ErrNotSupported)
}

func plain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') })
}

// checkName refuses what could leave the folder, or be taken for an option.
func checkName(name string) error {
	if len(name) > 64 || strings.HasPrefix(name, "-") || !plain(strings.ReplaceAll(name, "-", "")) {
		return fmt.Errorf("recovery point %q: letters, digits and '-' make a name: %w", name, sentinel.ErrUsage)
	}
	return nil
}

// bounded runs work, which nothing can stop half-way, and stops waiting when ctx ends. What work makes after that is undone by undo.
func bounded(ctx context.Context, work func() error, undo func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		err := work()
		select {
		case done <- err:
		case <-ctx.Done():
			undo()
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
