package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// deviceUsers says who uses a block device or a partition of it, each with what would end the use; nil: nobody.
func (s *system) deviceUsers(dev uint64) ([]string, error) {
	parts, err := s.partitions(dev)
	if err != nil {
		return nil, err
	}
	all := append([]uint64{dev}, parts...)
	var out []string
	lines, err := allMounts()
	if err != nil {
		return nil, err
	}
	said := map[uint64]bool{}
	for _, l := range lines {
		for _, d := range s.devices(l) {
			if slices.Contains(all, d) && !said[d] {
				said[d] = true
				out = append(out, fmt.Sprintf("%s is mounted on %s (unmount it)", s.name(d), filepath.Join("/", l.proc, l.dir)))
			}
		}
	}
	swaps, err := allSwaps()
	if err != nil {
		return nil, err
	}
	for _, a := range swaps {
		if !a.File && slices.Contains(all, a.Dev) {
			out = append(out, fmt.Sprintf("%s is active swap (swapoff it)", s.name(a.Dev)))
		}
	}
	for _, d := range all {
		dir, err := s.dir(d)
		if err != nil {
			return nil, err
		}
		holders, err := linked(filepath.Join(dir, "holders"))
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			out = append(out, fmt.Sprintf("%s is part of %s, %s (stop that first)", s.name(d), s.name(h), s.kind(h)))
		}
	}
	loops, err := s.loopsOn(func(b *unix.LoopInfo64) bool { return slices.Contains(all, b.Rdevice) })
	for _, l := range loops {
		out = append(out, fmt.Sprintf("it is attached as loop device %s (detach it: losetup -d %s)", l, l))
	}
	return out, err
}

// fileUsers says who uses an image file.
func (s *system) fileUsers(st *unix.Stat_t) ([]string, error) {
	var out []string
	loops, err := s.loopsOn(func(b *unix.LoopInfo64) bool { return b.Device == st.Dev && b.Inode == st.Ino })
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		out = append(out, fmt.Sprintf("it is attached as loop device %s (detach it: losetup -d %s)", l, l))
	}
	swaps, err := allSwaps()
	if err != nil {
		return nil, err
	}
	for _, a := range swaps {
		var sw unix.Stat_t
		if a.File && unix.Stat(a.Path, &sw) == nil && sw.Dev == st.Dev && sw.Ino == st.Ino {
			out = append(out, fmt.Sprintf("it is active swap (swapoff %s)", a.Path))
		}
	}
	return out, nil
}

// loopsOn lists the loop devices whose backing file fits.
func (s *system) loopsOn(fits func(*unix.LoopInfo64) bool) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.root, "block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		node := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(f))))
		d, err := os.Open(node)
		if err != nil {
			continue // detached since
		}
		b, err := unix.IoctlLoopGetStatus64(int(d.Fd()))
		d.Close()
		if err == nil && fits(b) {
			out = append(out, node)
		}
	}
	return out, nil
}
