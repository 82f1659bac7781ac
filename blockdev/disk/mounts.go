package disk

import (
	"errors"
	"slices"
	"strings"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// Mount is a mounted filesystem.
type Mount struct {
	Dir      string     // where it can be reached; "" when other mounts hide every mount of it: it cannot be frozen then
	Type     string     // "ext4", "xfs", "btrfs", ...
	Source   string     // as mount(8) shows it
	Dev      uint64     // block device of the filesystem, the first of several
	Map      extent.Map // Dev on the leaf disks; nil when it has no fixed map or the filesystem has several devices
	ReadOnly bool       // the filesystem, not just this mount of it
	Pid      int        // of a process in whose mount namespace it is mounted; 0: in the own one
	Over     bool       // StackOn: it lies there only through a loop device

	super uint64   // number of the superblock
	devs  []uint64 // all its devices
}

// lacking are filesystems without a freeze. FAT is made read-only instead, which fails while files on it are open for writing.
var lacking = []string{"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus", "ufs", "udf", "ocfs2"}

// Stopped tells whether nothing has to be frozen: it is read-only, or cannot be frozen and lies on what is.
func (m Mount) Stopped() bool { return m.ReadOnly || m.Over && slices.Contains(lacking, m.Type) }

// Mounts lists the mounted filesystems that keep bytes on the leaf extents of m, one entry for each filesystem, whichever mount namespace it
// is mounted in. Those on devices without a fixed map are listed as soon as something of theirs may lie there.
func Mounts(m extent.Map) ([]Mount, error) {
	lines, err := allMounts()
	if err != nil {
		return nil, err
	}
	return live.mounts(lines, m)
}

func (s *system) mounts(lines []mountLine, m extent.Map) ([]Mount, error) {
	type group struct {
		lines []mountLine
		devs  []uint64
	}
	var order []uint64 // superblocks in the order of mounting
	groups := map[uint64]*group{}
	for _, l := range lines {
		g := groups[l.dev]
		if g == nil {
			devs := s.devices(l)
			if len(devs) == 0 {
				continue
			}
			g = &group{devs: devs}
			groups[l.dev] = g
			order = append(order, l.dev)
		}
		g.lines = append(g.lines, l)
	}
	var out []Mount
	for _, key := range order {
		g := groups[key]
		hit := false
		for _, d := range g.devs {
			touches, err := s.touches(d, m, 0)
			if err != nil {
				return nil, err
			}
			hit = hit || touches
		}
		if !hit {
			continue
		}
		e := choose(g.lines)
		e.Dev, e.super, e.devs = g.devs[0], key, g.devs
		if len(g.devs) == 1 {
			e.Map, _ = s.resolve(e.Dev, 0) // an error was judged above
		}
		out = append(out, e)
	}
	return out, nil
}

// choose picks the mount through which a filesystem is best reached: one of its root, in the own namespace, not hidden.
func choose(lines []mountLine) Mount {
	l := lines[0]
	e := Mount{Type: l.kind, Source: l.source, ReadOnly: slices.Contains(strings.Split(l.super, ","), "ro"), Pid: l.pid()}
	for _, whole := range []bool{true, false} {
		for _, l := range lines {
			if (l.root == "/") != whole {
				continue
			}
			if e.Dir = l.path(); e.Dir != "" {
				e.Pid = l.pid()
				return e
			}
		}
	}
	return e
}

// touches tells whether anything of dev lies on the leaf extents of m. Where a layer has no fixed map, everything below it counts.
func (s *system) touches(dev uint64, m extent.Map, depth int) (bool, error) {
	own, err := s.resolve(dev, 0)
	if err == nil {
		return overlap(own, m), nil
	}
	if errors.Is(err, sentinel.ErrNotFound) || depth > maxDepth {
		return false, nil // gone since the list was read
	}
	below, err := s.below(dev)
	if err != nil {
		return false, err
	}
	for _, d := range below {
		if hit, err := s.touches(d, m, depth+1); hit || err != nil {
			return hit, err
		}
	}
	for _, seg := range m { // a leaf that cannot be tracked may still be named in m by its owner
		if seg.Dev == dev {
			return true, nil
		}
	}
	return false, nil
}

// overlap tells whether two maps share a byte of a leaf disk.
func overlap(a, b extent.Map) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Dev == y.Dev && !(extent.Extent{Off: x.DevOff, Len: x.Len}).Intersect(extent.Extent{Off: y.DevOff, Len: y.Len}).Empty() {
				return true
			}
		}
	}
	return false
}
