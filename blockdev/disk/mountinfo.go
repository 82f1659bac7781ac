package disk

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLine is one mount of /proc/PID/mountinfo.
type mountLine struct {
	id      int64
	dev     uint64 // of the superblock; major 0 for filesystems that are not on one device
	root    string // what of the filesystem is mounted; "/" is all
	dir     string
	options string
	kind    string
	source  string
	super   string // options of the filesystem
	proc    string // folder through which dir is reached: "" in this process's own mount namespace
}

// parseMounts reads a mountinfo file.
func parseMounts(r io.Reader) ([]mountLine, error) {
	var out []mountLine
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		a, b := strings.Fields(left), strings.Split(right, " ")
		if !ok || len(a) < 6 || len(b) < 3 {
			return nil, fmt.Errorf("malformed line of mountinfo: %q", s.Text())
		}
		id, err := strconv.ParseInt(a[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("malformed line of mountinfo: %q", s.Text())
		}
		dev, err := parseDev(a[2])
		if err != nil {
			return nil, err
		}
		out = append(out, mountLine{id: id, dev: dev, root: unescape(a[3]), dir: unescape(a[4]), options: a[5],
			kind: b[0], source: unescape(b[1]), super: b[2]})
	}
	return out, s.Err()
}

// unescape undoes the kernel's octal escapes: \040 is a space.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// allMounts lists the mounts of this process's mount namespace, then those of every other namespace (containers, services with private
// mounts), reached through a process that lives there.
func allMounts() ([]mountLine, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := parseMounts(f)
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{own: true}
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		ns, err := os.Readlink(link)
		if err != nil || seen[ns] {
			continue // the process is gone
		}
		proc := filepath.Dir(filepath.Dir(link))
		if more, err := namespaceMounts(proc); err == nil {
			seen[ns] = true
			out = append(out, more...)
		}
	}
	return out, nil
}

func namespaceMounts(proc string) ([]mountLine, error) {
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := parseMounts(f)
	for i := range out {
		out[i].proc = proc + "/root"
	}
	return out, err
}

// path is where the mount can be reached, or "" when another mount hides it.
func (l mountLine) path() string {
	path := filepath.Join(l.proc, l.dir)
	if l.proc == "" {
		path = l.dir
	}
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x); err != nil {
		return ""
	}
	if x.Mask&unix.STATX_MNT_ID != 0 {
		if int64(x.Mnt_id) != l.id {
			return ""
		}
	} else if l.kind != "btrfs" && unix.Mkdev(x.Dev_major, x.Dev_minor) != l.dev { // before Linux 5.8
		return ""
	}
	return path
}

// pid is that of the process through which the mount is reached; 0 in the own namespace.
func (l mountLine) pid() int {
	n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(l.proc, "/proc/"), "/root"))
	return n
}

// devices lists the block devices that the filesystem lives on: of its superblock, its source, its logs, and all of a btrfs.
func (s *system) devices(l mountLine) []uint64 {
	var out []uint64
	add := func(d uint64) {
		for _, o := range out {
			if o == d {
				return
			}
		}
		out = append(out, d)
	}
	if unix.Major(l.dev) != 0 {
		add(l.dev)
	} else {
		for _, src := range strings.Split(l.source, ":") { // bcachefs names several
			if d, ok := blockDev(filepath.Join(l.proc, src), src); ok {
				add(d)
			}
		}
	}
	for _, o := range strings.Split(l.super, ",") {
		if k, v, _ := strings.Cut(o, "="); k == "logdev" || k == "rtdev" { // XFS
			if d, ok := blockDev(filepath.Join(l.proc, v), v); ok {
				add(d)
			}
		}
	}
	if l.kind == "btrfs" && len(out) > 0 {
		for _, d := range s.btrfsDevices(out[0]) {
			add(d)
		}
	}
	return out
}

// blockDev is the number of the block device that one of the paths names.
func blockDev(paths ...string) (uint64, bool) {
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			continue
		}
		if st, err := os.Stat(p); err == nil && isDevice(st) {
			return stat(st).Rdev, true
		}
	}
	return 0, false
}

// btrfsDevices lists the devices of the mounted btrfs that dev belongs to.
func (s *system) btrfsDevices(dev uint64) []uint64 {
	dirs, _ := filepath.Glob(filepath.Join(s.root, "fs/btrfs/*/devices"))
	for _, dir := range dirs {
		list, err := linked(dir)
		if err != nil {
			continue
		}
		for _, d := range list {
			if d == dev {
				return list
			}
		}
	}
	return nil
}
