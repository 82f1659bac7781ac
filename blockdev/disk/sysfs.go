package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/sentinel"
)

// system is where the kernel is asked: /sys, and the device mapper's tables. Tests put a tree of files and recorded tables there.
type system struct {
	root  string // "/sys"
	table func(dev uint64) ([]dm.Target, error)
}

var live = &system{root: "/sys", table: dm.Table}

// dir is the sysfs folder of a block device, symlinks resolved.
func (s *system) dir(dev uint64) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(s.root, "dev/block", devNo(dev)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("block device %s is gone: %w", devNo(dev), sentinel.ErrNotFound)
	}
	return dir, err
}

// devNo is "8:1".
func devNo(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// parseDev reads "8:1".
func parseDev(s string) (uint64, error) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not a device number", s)
	}
	return unix.Mkdev(uint32(major), uint32(minor)), nil
}

// attr reads an attribute; "" when there is none.
func attr(dir string, name ...string) string {
	b, err := os.ReadFile(filepath.Join(append([]string{dir}, name...)...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", ""))
}

// number reads an attribute that must be there and be a number.
func number(dir string, name ...string) (int64, error) {
	path := filepath.Join(append([]string{dir}, name...)...)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// sectors reads an attribute in sectors of 512 bytes and returns bytes.
func sectors(dir string, name ...string) (int64, error) {
	n, err := number(dir, name...)
	return n * sector, err
}

func exists(dir string, name ...string) bool {
	_, err := os.Stat(filepath.Join(append([]string{dir}, name...)...))
	return err == nil
}

// devOf is the number of the device whose sysfs folder is dir.
func devOf(dir string) (uint64, error) { return parseDev(attr(dir, "dev")) }

// Name is what people call a block device now ("/dev/sda", "/dev/mapper/vg-root"); it is never an identity.
func Name(dev uint64) string { return live.name(dev) }

// name is the kernel's name, for people only: it is never an identity.
func (s *system) name(dev uint64) string {
	dir, err := s.dir(dev)
	if err != nil {
		return devNo(dev)
	}
	if n := attr(dir, "dm/name"); n != "" {
		return "/dev/mapper/" + n
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/")
}

// below lists the devices right below dev: the disk of a partition, the slaves of what is stacked.
func (s *system) below(dev uint64) ([]uint64, error) {
	dir, err := s.dir(dev)
	if err != nil {
		return nil, err
	}
	if exists(dir, "partition") {
		d, err := devOf(filepath.Dir(dir))
		return []uint64{d}, err
	}
	return linked(filepath.Join(dir, "slaves"))
}

// linked lists the devices that a folder of links (slaves, holders) names.
func linked(dir string) ([]uint64, error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []uint64
	for _, e := range list {
		if d, err := devOf(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// partitions lists the partitions of a whole disk.
func (s *system) partitions(dev uint64) ([]uint64, error) {
	dir, err := s.dir(dev)
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range list {
		if e.IsDir() && exists(dir, e.Name(), "partition") {
			if d, err := devOf(filepath.Join(dir, e.Name())); err == nil {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// kind names what a block device is.
func (s *system) kind(dev uint64) string {
	dir, err := s.dir(dev)
	uuid := attr(dir, "dm/uuid")
	switch {
	case err != nil:
		return Disk
	case exists(dir, "partition"):
		return Partition
	case strings.HasPrefix(uuid, "LVM-"):
		return LVM
	case strings.HasPrefix(uuid, "CRYPT-"):
		return Crypt
	case exists(dir, "dm"):
		return DM
	case exists(dir, "md"):
		return MD
	case strings.HasPrefix(filepath.Base(dir), "loop"):
		return Loop
	}
	return Disk
}
