package discover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/internal/sentinel"
)

// system is where the kernel is asked; tests put a tree of files there.
type system struct{ sys, dev string }

var live = system{"/sys", "/dev"}

// device is a block device as sysfs shows it.
type device struct {
	dir  string // in sysfs, links resolved
	path string // /dev/sda
	kind string // as blockdev/disk names it
	size int64  // bytes
	dev  uint64
}

func attr(dir string, name ...string) string {
	b, err := os.ReadFile(filepath.Join(append([]string{dir}, name...)...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// at reads the device whose sysfs folder is dir.
func (s system) at(dir string) (device, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return device{}, err
	}
	d := device{dir: dir, path: filepath.Join(s.dev, strings.ReplaceAll(filepath.Base(dir), "!", "/")), kind: disk.Disk}
	var major, minor uint32
	if _, err := fmt.Sscanf(attr(dir, "dev"), "%d:%d", &major, &minor); err != nil {
		return d, fmt.Errorf("%s has no device number: %w", dir, err)
	}
	d.dev = unix.Mkdev(major, minor)
	n, _ := strconv.ParseInt(attr(dir, "size"), 10, 54)
	d.size = n * 512
	uuid := attr(dir, "dm/uuid")
	switch {
	case exists(dir, "partition"):
		d.kind = disk.Partition
	case strings.HasPrefix(uuid, "LVM-"):
		d.kind = disk.LVM
	case strings.HasPrefix(uuid, "CRYPT-"):
		d.kind = disk.Crypt
	case exists(dir, "dm"):
		d.kind = disk.DM
	case exists(dir, "md"):
		d.kind = disk.MD
	case strings.HasPrefix(filepath.Base(dir), "loop"):
		d.kind = disk.Loop
	}
	if n := attr(dir, "dm/name"); n != "" {
		d.path = filepath.Join(s.dev, "mapper", n)
	}
	return d, nil
}

// above lists the partitions of d and what is stacked on it.
func (s system) above(d device) (parts, holders []device) {
	list, _ := os.ReadDir(d.dir)
	for _, e := range list {
		if e.IsDir() && exists(filepath.Join(d.dir, e.Name()), "partition") {
			if p, err := s.at(filepath.Join(d.dir, e.Name())); err == nil && p.size > 1024 { // an extended partition is no content
				parts = append(parts, p)
			}
		}
	}
	slices.SortFunc(parts, func(a, b device) int { return int(a.dev&0xff) - int(b.dev&0xff) })
	list, _ = os.ReadDir(filepath.Join(d.dir, "holders"))
	for _, e := range list {
		if h, err := s.at(filepath.Join(d.dir, "holders", e.Name())); err == nil {
			holders = append(holders, h)
		}
	}
	return parts, holders
}

// tree is d and all above it, each once, with its depth.
func (s system) tree(d device) (all []device, depth []int) {
	seen := map[uint64]bool{}
	var walk func(device, int)
	walk = func(d device, n int) {
		if seen[d.dev] || n > 16 {
			return
		}
		seen[d.dev] = true
		all, depth = append(all, d), append(depth, n)
		parts, holders := s.above(d)
		for _, c := range slices.Concat(parts, holders) {
			walk(c, n+1)
		}
	}
	walk(d, 0)
	return all, depth
}

// all lists the devices that sysfs has in block: whole disks and what is stacked.
func (s system) all() ([]device, error) {
	list, err := os.ReadDir(filepath.Join(s.sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list the disks of this host: %w", err)
	}
	var out []device
	for _, e := range list {
		if d, err := s.at(filepath.Join(s.sys, "block", e.Name())); err == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// named finds the device that path names.
func (s system) named(path string) (device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return device{}, fmt.Errorf("%s: %v; name a block device: %w", path, err, sentinel.ErrUsage)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return device{}, fmt.Errorf("%s is no block device; discover looks at disks, an image file is a volume by its own path: %w", path, sentinel.ErrUsage)
	}
	return s.at(filepath.Join(s.sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))))
}

// stable is the most lasting path of d, and whether it outlives another order of discovery.
func (s system) stable(d device) (string, bool) {
	if d.kind == disk.LVM || d.kind == disk.Crypt || d.kind == disk.DM {
		return d.path, true // named by people
	}
	for _, folder := range []string{"by-id", "by-partuuid", "by-path"} {
		best, rank := "", 0
		list, _ := os.ReadDir(filepath.Join(s.dev, "disk", folder))
		for _, e := range list {
			link := filepath.Join(s.dev, "disk", folder, e.Name())
			to, err := filepath.EvalSymlinks(link)
			if err != nil || to != d.path {
				continue
			}
			// Those with model and serial tell people more than numbers.
			r := 2
			for _, p := range []string{"wwn-", "nvme-eui.", "nvme-uuid.", "nvme-nvme.", "scsi-3", "lvm-pv-"} {
				if strings.HasPrefix(e.Name(), p) {
					r = 1
				}
			}
			if r > rank {
				best, rank = link, r
			}
		}
		if best != "" {
			return best, true
		}
	}
	return d.path, false
}
