package disk

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

// Stack is what lies on some extents of leaf disks, directly or through loop devices on files there.
type Stack struct {
	// Mounts are the mounted filesystems in the order in which they have to be frozen: what lies on another one comes before that one. A
	// filesystem that is frozen after what lies below it cannot write its own end of the freeze, and hangs.
	Mounts []Mount
	// On is the asked extents and every loop device that is attached to a file or device on them.
	On extent.Map
	// Bare are the nodes of those loop devices on which no mounted filesystem was found: nobody writes there but who opens them.
	Bare []string
}

const whole = 1 << 62 // bytes: any device is smaller

// StackOn looks at the mounts of every namespace and at all loop devices, for what has to be frozen first (C14).
func StackOn(m extent.Map) (Stack, error) {
	lines, err := allMounts()
	if err != nil {
		return Stack{}, err
	}
	loops, err := live.loops()
	if err != nil {
		return Stack{}, err
	}
	for i := range loops {
		loops[i].super = live.superOf(lines, loops[i].path, loops[i].info.Device, loops[i].info.Inode)
	}
	return live.stack(lines, loops, m)
}

// loop is an attached loop device.
type loop struct {
	dev   uint64
	node  string // /dev/loop7
	path  string // of the backing file or device, as the kernel tells it
	info  unix.LoopInfo64
	super uint64 // of the filesystem that has the backing file; 0: a device, or not known
}

// lies tells whether the backing of the loop is among on or in one of the filesystems.
func (s *system) lies(l loop, mounts []Mount, on extent.Map) (bool, error) {
	if l.info.Rdevice != 0 {
		return s.touches(l.info.Rdevice, on, 0)
	}
	return l.super != 0 && slices.ContainsFunc(mounts, func(m Mount) bool { return m.super == l.super }), nil
}

func (s *system) stack(lines []mountLine, loops []loop, m extent.Map) (Stack, error) {
	st := Stack{On: slices.Clone(m)}
	var direct []uint64
	for grown := true; grown; {
		mounts, err := s.mounts(lines, st.On)
		if err != nil {
			return Stack{}, err
		}
		if direct == nil {
			direct = []uint64{}
			for _, m := range mounts {
				direct = append(direct, m.super)
			}
		}
		grown = false
		for _, l := range loops {
			if slices.ContainsFunc(st.On, func(g extent.Segment) bool { return g.Dev == l.dev }) {
				continue
			}
			hit, err := s.lies(l, mounts, st.On)
			if err != nil {
				return Stack{}, err
			}
			if hit {
				st.On = append(st.On, extent.Segment{Len: whole, Dev: l.dev})
				grown = true
			}
		}
		st.Mounts = mounts
	}
	for i := range st.Mounts {
		st.Mounts[i].Over = !slices.Contains(direct, st.Mounts[i].super)
	}
	if err := s.bare(&st, loops); err != nil {
		return Stack{}, err
	}
	var err error
	st.Mounts, err = s.uppermostFirst(st.Mounts, loops)
	return st, err
}

func (s *system) bare(st *Stack, loops []loop) error {
	for _, l := range loops {
		if !slices.ContainsFunc(st.On, func(g extent.Segment) bool { return g.Dev == l.dev && g.Len == whole }) {
			continue
		}
		used := false
		for _, m := range st.Mounts {
			for _, d := range m.devs {
				hit, err := s.touches(d, extent.Map{{Len: whole, Dev: l.dev}}, 0)
				if err != nil {
					return err
				}
				used = used || hit
			}
		}
		if !used {
			st.Bare = append(st.Bare, l.node)
		}
	}
	return nil
}

// uppermostFirst sorts: a filesystem comes when nothing that is still to come lies on it; of those, what was mounted last comes first.
func (s *system) uppermostFirst(mounts []Mount, loops []loop) ([]Mount, error) {
	over := make(map[[2]uint64]bool) // upper and lower superblock
	for _, l := range loops {
		if !slices.ContainsFunc(mounts, func(m Mount) bool { return m.super == l.super }) {
			continue
		}
		for _, upper := range mounts {
			for _, d := range upper.devs {
				hit, err := s.touches(d, extent.Map{{Len: whole, Dev: l.dev}}, 0)
				if err != nil {
					return nil, err
				}
				if hit {
					over[[2]uint64{upper.super, l.super}] = true
				}
			}
		}
	}
	left := slices.Clone(mounts)
	var out []Mount
	for len(left) > 0 {
		next := len(left) - 1 // when all lie on each other, which cannot be
		for i := len(left) - 1; i >= 0; i-- {
			if !slices.ContainsFunc(left, func(m Mount) bool { return m.super != left[i].super && over[[2]uint64{m.super, left[i].super}] }) {
				next = i
				break
			}
		}
		out = append(out, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return out, nil
}

// loops lists the attached loop devices. One that is detached meanwhile is left out.
func (s *system) loops() ([]loop, error) {
	files, err := filepath.Glob(filepath.Join(s.root, "block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	var out []loop
	for _, f := range files {
		dir := filepath.Dir(filepath.Dir(f))
		l := loop{node: filepath.Join("/dev", filepath.Base(dir)), path: strings.TrimSuffix(attr(f), " (deleted)")}
		d, err := os.Open(l.node)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(d.Fd()))
		d.Close()
		if err != nil {
			continue
		}
		l.info = *info
		if l.dev, err = devOf(dir); err == nil {
			out = append(out, l)
		}
	}
	return out, nil
}

// superOf finds the filesystem of a file that is known by st_dev and inode, and by a path in some mount namespace: that of its superblock, for
// an overlay that of its upper folder, where what is written goes. 0: not known.
func (s *system) superOf(lines []mountLine, path string, dev, ino uint64) uint64 {
	for _, l := range lines {
		if l.dev == dev {
			return s.written(lines, l, 0)
		}
	}
	// A number of its own for each subvolume (btrfs) or layer (overlay): by path, in whichever namespace it leads to that file.
	for _, proc := range namespaces(lines) {
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/", proc, path), &st) == nil && st.Dev == dev && st.Ino == ino {
			return s.superAt(lines, proc, path, 0)
		}
	}
	return 0
}

// namespaces lists the folders through which the lines are reached, the own one ("") first.
func namespaces(lines []mountLine) (out []string) {
	for _, l := range lines {
		if !slices.Contains(out, l.proc) {
			out = append(out, l.proc)
		}
	}
	return out
}

// superAt finds the filesystem of a path in a namespace: the last mount on its way.
func (s *system) superAt(lines []mountLine, proc, path string, depth int) uint64 {
	if real, err := filepath.EvalSymlinks(filepath.Join("/", proc, path)); err == nil && proc == "" {
		path = real
	}
	var best *mountLine
	for i, l := range lines {
		if l.proc == proc && (path == l.dir || strings.HasPrefix(path, strings.TrimSuffix(l.dir, "/")+"/")) &&
			(best == nil || len(l.dir) >= len(best.dir)) {
			best = &lines[i]
		}
	}
	if best == nil {
		return 0
	}
	return s.written(lines, *best, depth)
}

// written is the superblock that takes what is written to l: its own, but for an overlay.
func (s *system) written(lines []mountLine, l mountLine, depth int) uint64 {
	if l.kind != "overlay" {
		return l.dev
	}
	for _, o := range strings.Split(l.super, ",") {
		dir, ok := strings.CutPrefix(o, "upperdir=")
		if !ok || depth == maxDepth {
			continue
		}
		// The path is that of who mounted it: mostly somebody in the own namespace, for the container that lives on the overlay.
		for _, proc := range []string{"", l.proc} {
			if st, err := os.Stat(filepath.Join("/", proc, unescape(dir))); err == nil && st.IsDir() {
				return s.superAt(lines, proc, unescape(dir), depth+1)
			}
		}
	}
	return 0
}
