package cbt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

const (
	bpffs    = "/sys/fs/bpf"
	statePin = "state"
)

// What each leaf disk has pinned.
var (
	leafMaps  = []string{"dirty", "coarse", "taken", "cells", "flight", "control"}
	leafLinks = []string{"issue", "complete"}
)

func pinOf(leaf int, name string) string { return fmt.Sprintf("disk%d-%s", leaf, name) }

// pinName turns a flow's name into a file name that a bpffs takes (it refuses dots) and that no other name turns into.
func pinName(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	return b.String()
}

// makePinDir makes dir below pinDir on a bpffs, which is mounted at its usual place when it is missing there.
func makePinDir(pinDir, dir string) error {
	if strings.HasPrefix(pinDir+"/", bpffs+"/") && !onBPF(bpffs) {
		if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpffs at %s: %w", bpffs, err)
		}
	}
	above := pinDir
	for above != "/" && above != "." {
		if _, err := os.Stat(above); err == nil {
			break
		}
		above = filepath.Dir(above)
	}
	if !onBPF(above) {
		return fmt.Errorf("%w: pin folder %s is not on a bpffs; `mount -t bpf bpf DIR`, or leave it out for %s", sentinel.ErrUsage, pinDir, DefaultPinDir)
	}
	return os.MkdirAll(dir, 0o700)
}

func onBPF(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}

// lostPin names a pin that is not there any more; "" when all are.
func lostPin(dir string, leaves int) string {
	gone := func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err != nil
	}
	if gone(statePin) {
		return statePin
	}
	for i := range leaves {
		for _, name := range slices.Concat(leafMaps, leafLinks) {
			if gone(pinOf(i, name)) {
				return pinOf(i, name)
			}
		}
	}
	return ""
}

// removePins empties dir, the state first: without it the rest is known to be incomplete.
func removePins(dir string) error {
	if err := os.Remove(filepath.Join(dir, statePin)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	pins, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := os.Remove(filepath.Join(dir, p.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
