package discover

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/fsmap"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// look opens a chosen device and tells what is on it. The volume stays open.
func look(d device, s Tracking, o Options) (_ *Volume, err error) {
	vol, err := disk.OpenVolume(d.path)
	if err != nil {
		return nil, err
	}
	v := &Volume{Freezes: []string{}, NotFrozen: []string{}, Notes: []string{}, Device: d.path, Kind: vol.Kind(), Size: vol.Size(), Identity: vol.Identity(), Tracking: s, dev: d.dev, vol: vol, stat: d.dir}
	defer func() {
		if err != nil {
			vol.Close()
		}
	}()
	v.Path, v.Stable = live.stable(d)
	if why := vol.Unmapped(); why != nil {
		v.Tracking = Tracking{Method: cbt.MethodScan, Why: clean(why.Error())}
	} else if s.Method == cbt.MethodEBPF {
		v.Tracking.Granule = granule(vol.Map(), o.memory(), s.Variant)
	}
	all, depth := live.tree(d)
	for i, t := range all {
		l := Layer{Holds: []string{}, Mounts: []Mount{}, Users: []string{}, Device: t.path, Depth: depth[i], Kind: t.kind, Size: t.size, dev: t.dev}
		if found, err := disk.Inspect(t.path); err == nil {
			l.blank = found.Blank
			for _, s := range found.Signatures {
				l.Holds = append(l.Holds, clean(s.String()))
			}
		}
		v.Layers = append(v.Layers, l)
	}
	m := vol.Map()
	if m == nil {
		m = extent.Map{{Len: vol.Size(), Dev: vol.Device()}}
	}
	stack, err := disk.StackOn(m)
	if err != nil {
		return nil, err
	}
	if err := v.mounts(stack.Mounts); err != nil {
		return nil, err
	}
	v.InUse = min(v.InUse, v.Size)
	if err := v.swaps(stack.On); err != nil {
		return nil, err
	}
	if err := v.users(stack); err != nil {
		return nil, err
	}
	v.space(stack.Mounts)
	v.advise()
	return v, nil
}

func (o Options) memory() int64 {
	if o.Memory > 0 {
		return o.Memory
	}
	return 64 << 20
}

// granule is what one bit of the tracker would cover: its maps take half of the memory, each of its disks from the first to the last byte.
func granule(m extent.Map, memory int64, variant string) int64 {
	span := map[uint64]extent.Extent{}
	for _, s := range m {
		e, ok := span[s.Dev]
		if !ok {
			e = extent.Extent{Off: s.DevOff}
		}
		end := max(e.End(), s.DevOff+s.Len)
		e.Off = min(e.Off, s.DevOff)
		e.Len = end - e.Off
		span[s.Dev] = e
	}
	per := int64(8) // granules in a byte
	if variant == cbt.VariantBytemap {
		per = 1
	}
	for g := int64(4 << 10); ; g *= 2 {
		total := int64(0)
		for _, e := range span {
			total += e.Len / g / per
		}
		if total <= memory/2 || g >= 1<<30 {
			return g
		}
	}
}

func (v *Volume) layer(dev uint64) *Layer {
	for i := range v.Layers {
		if v.Layers[i].dev == dev {
			return &v.Layers[i]
		}
	}
	return &v.Layers[0]
}

func (v *Volume) mounts(mounts []disk.Mount) error {
	for _, m := range mounts {
		out := Mount{Dir: clean(m.Dir), Type: clean(m.Type), ReadOnly: m.ReadOnly}
		if m.Over {
			v.over(m, out.Dir)
			continue
		}
		var fs unix.Statfs_t
		if m.Dir != "" && unix.Statfs(m.Dir, &fs) == nil {
			out.Size = int64(fs.Blocks) * fs.Frsize
			out.Used = int64(fs.Blocks-fs.Bfree) * fs.Frsize
			v.InUse += v.share(m, out.Used)
		}
		if m.Map == nil && v.vol.Map() != nil {
			v.Notes = append(v.Notes, fmt.Sprintf("%s (%s) has no fixed place and may reach over other disks: its bytes in use are counted in full", out.Dir, out.Type))
		}
		l := v.layer(m.Dev)
		l.Mounts = append(l.Mounts, out)
		switch {
		case m.ReadOnly:
		case m.Dir == "":
			return fmt.Errorf("%s (%s) is mounted on it where nobody can reach it, so that it could not be frozen; unmount what hides it: %w", clean(m.Source), m.Type, sentinel.ErrRefused)
		default:
			v.Freezes = append(v.Freezes, out.Dir)
			if strings.HasPrefix(m.Dir, "/proc/") {
				v.Notes = append(v.Notes, out.Dir+" is mounted in another mount namespace (a container, a service); the freeze reaches it from there")
			}
		}
	}
	return nil
}

// over notes a filesystem in an image that lies on the volume.
func (v *Volume) over(m disk.Mount, dir string) {
	switch {
	case m.ReadOnly:
	case m.Stopped():
		v.Notes = append(v.Notes, fmt.Sprintf("%s (%s) lies in an image there and cannot be frozen; it stands still with what the image lies on", dir, m.Type))
	case m.Dir == "":
		v.Notes = append(v.Notes, fmt.Sprintf("%s (%s) lies in an image there and is mounted where nobody can reach it: a freeze is refused until it is unmounted", clean(m.Source), m.Type))
	default:
		v.Freezes = append(v.Freezes, dir)
	}
}

// share is how much of n bytes of a filesystem lie on the volume, when it lies on other disks too.
func (v *Volume) share(m disk.Mount, n int64) int64 {
	mine, all := int64(0), int64(0)
	for _, s := range m.Map {
		all += s.Len
		for _, o := range v.vol.Map() {
			if o.Dev == s.Dev {
				mine += max(0, extent.Extent{Off: s.DevOff, Len: s.Len}.Intersect(extent.Extent{Off: o.DevOff, Len: o.Len}).Len)
			}
		}
	}
	if all == 0 {
		return n
	}
	return int64(float64(n) * min(1, float64(mine)/float64(all)))
}

func (v *Volume) swaps(m extent.Map) error {
	swaps, err := disk.Swaps(m)
	if err != nil {
		return err
	}
	for _, a := range swaps {
		path := clean(a.Path)
		if !a.File {
			v.layer(a.Dev).Swap = true
		}
		v.NotFrozen = append(v.NotFrozen, fmt.Sprintf("%s is active swap: swapoff it before a cutover, or what is swapped meanwhile makes it fail", path))
	}
	return nil
}

// swap tells whether the volume is a swap area and nothing else.
func (v *Volume) swap() bool {
	l := v.Layers[0]
	return l.Swap || len(v.Layers) == 1 && len(l.Holds) == 1 && strings.HasPrefix(l.Holds[0], "swap")
}

// users finds who writes past any filesystem: processes that have a device open, exports, loop devices, and ZFS, which the kernel does not show.
func (v *Volume) users(stack disk.Stack) error {
	raw, err := stack.RawUsers()
	if err != nil {
		return err
	}
	for _, u := range raw {
		for i := range v.Layers {
			if v.Layers[i].dev == u.Dev {
				v.Layers[i].Users = append(v.Layers[i].Users, clean(u.Who))
			}
		}
		v.NotFrozen = append(v.NotFrozen, fmt.Sprintf("%s; stop it by a stop-hook for a cutover, and by a pre hook of its group for points that are not fuzzy", clean(u.String())))
	}
	for _, dev := range stack.Bare {
		v.NotFrozen = append(v.NotFrozen, fmt.Sprintf("%s is attached there as a loop device without a filesystem: who opens it writes past every freeze", dev))
	}
	for _, l := range v.Layers {
		for _, s := range l.Holds {
			if strings.Contains(s, "zfs") {
				v.NotFrozen = append(v.NotFrozen, l.Device+" is part of a ZFS pool, which cannot be frozen; give the flow a stop-hook that exports it")
			}
		}
	}
	return nil
}

// space estimates what a full pass has to look at: all but the free space of mounted ext4 and XFS, and of what lies there
// cleanly unmounted; of swap, only the header.
func (v *Volume) space(mounts []disk.Mount) {
	v.FirstPass = v.Size
	if v.vol.Map() == nil {
		return // nor does a pass ask then
	}
	mounted := map[uint64]bool{}
	for _, m := range mounts {
		mounted[m.Dev] = true
		var fs unix.Statfs_t
		if m.Over || m.Dir == "" || m.Map == nil || !slices.Contains([]string{"ext2", "ext3", "ext4", "xfs"}, m.Type) || unix.Statfs(m.Dir, &fs) != nil {
			continue
		}
		v.FirstPass -= v.share(m, int64(fs.Bfree)*fs.Frsize)
	}
	for _, l := range v.Layers {
		if l.dev != v.dev && l.Kind != disk.Partition || mounted[l.dev] {
			continue
		}
		p, err := disk.OpenVolume(l.Device)
		if err != nil {
			continue
		}
		free := int64(0)
		if _, err := fsmap.Unmounted(p, p.Size(), func(e extent.Extent) error { free += e.Len; return nil }); err == nil {
			v.FirstPass -= free
		}
		p.Close()
	}
	v.FirstPass = max(v.FirstPass, min(v.InUse, v.Size))
}

// advise adds what does not follow from one fact alone.
func (v *Volume) advise() {
	if !v.Stable && v.Kind != disk.Loop {
		v.Notes = append(v.Notes, "no stable name is known; after a reboot the kernel may call another disk "+v.Device+" (the identity is checked, nothing is mixed up)")
	}
	if len(v.Freezes) == 0 && len(v.NotFrozen) == 0 {
		v.Notes = append(v.Notes, "nothing is mounted on it: at a cutover nobody may write to it")
	}
	if v.Layers[0].blank {
		v.Notes = append(v.Notes, "it looks blank: leave it out if it is not used")
	}
	for _, l := range v.Layers[1:] {
		if l.Kind == disk.MD {
			v.Notes = append(v.Notes, "it is a member of "+l.Device+": all members have to be moved, or only the array (--volumes)")
		}
		if l.Kind == disk.LVM && v.spans(l) {
			v.Notes = append(v.Notes, l.Device+" reaches over other disks too: move and cut over all of them")
		}
	}
}

// spans tells whether a layer has bytes on disks that are not the volume's.
func (v *Volume) spans(l Layer) bool {
	m, err := disk.Resolve(l.dev)
	if errors.Is(err, sentinel.ErrNotSupported) || err != nil {
		return false
	}
	for _, s := range m {
		if !slices.ContainsFunc(v.vol.Map(), func(o extent.Segment) bool { return o.Dev == s.Dev }) {
			return true
		}
	}
	return false
}

// nameFlows gives each volume a name that a person recognises and no other has: root for what holds /, else the shortest mount's last
// folder, else the device's name.
func nameFlows(all []*Volume) {
	used := map[string]bool{}
	for _, v := range all {
		name := filepath.Base(v.Device)
		if slices.Contains(v.Freezes, "/") {
			name = "root"
		} else if len(v.Freezes) > 0 {
			best := slices.MinFunc(v.Freezes, func(a, b string) int { return len(a) - len(b) })
			name = filepath.Base(best)
		}
		name = flowName(name)
		for n, base := 2, name; used[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		used[name] = true
		v.Name = name
	}
}

// flowName keeps of s what a flow's name may have.
func flowName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '_':
			return r
		}
		return '-'
	}, strings.ToLower(s))
	s = strings.Trim(s[:min(len(s), 40)], "._-")
	if s == "" {
		return "disk"
	}
	return s
}

// clean makes text from a disk's label or a mount's name safe for a terminal and for one line of a comment.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
