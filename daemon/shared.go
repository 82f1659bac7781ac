package daemon

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// part is a volume and what it stands still with.
type part struct {
	flow, unit string // unit: for people
	map_       extent.Map
}

// share is what lies on volumes that do not stand still together.
type share struct {
	text  string
	flows []string
}

// sharing names what lies on volumes of more than one unit: filesystems, and logical volumes over several disks. Cut over at different moments,
// such volumes hold two halves that never belonged together.
func sharing(parts []part) (out []share, err error) {
	on := map[string][]part{}
	var order []string
	add := func(what string, p part) {
		if !slices.ContainsFunc(on[what], func(o part) bool { return o.flow == p.flow }) {
			if on[what] == nil {
				order = append(order, what)
			}
			on[what] = append(on[what], p)
		}
	}
	for _, p := range parts {
		mounts, err := disk.Mounts(p.map_)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			add(fmt.Sprintf("filesystem %s (%s on %s)", m.Dir, m.Type, m.Source), p)
		}
	}
	tops, err := mapped()
	if err != nil {
		return nil, err
	}
	for name, m := range tops {
		for _, p := range parts {
			if overlap(m, p.map_) {
				add("device "+name, p)
			}
		}
	}
	for _, what := range order {
		units := map[string]bool{}
		var flows []string
		for _, p := range on[what] {
			units[p.unit] = true
			flows = append(flows, p.flow)
		}
		if len(units) > 1 {
			slices.Sort(flows)
			out = append(out, share{fmt.Sprintf("%s lies on the volumes of flows %s, which stand still at different moments; put them into one group", what, strings.Join(flows, " and ")), flows})
		}
	}
	slices.SortFunc(out, func(a, b share) int { return cmp.Compare(a.text, b.text) })
	return out, nil
}

// mapped are the devices of the device mapper with a fixed map, by their names.
func mapped() (map[string]extent.Map, error) {
	dirs, err := filepath.Glob("/sys/block/dm-*")
	if err != nil {
		return nil, err
	}
	out := map[string]extent.Map{}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			continue // it went away
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
			continue
		}
		m, err := disk.Resolve(unix.Mkdev(major, minor))
		if err != nil {
			continue // no fixed map: thin, cache; its filesystems are told by their mounts
		}
		name, _ := os.ReadFile(filepath.Join(dir, "dm/name"))
		out["/dev/mapper/"+strings.TrimSpace(string(name))] = m
	}
	return out, nil
}

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

// alone refuses a moment of a unit that shares a filesystem with another one.
func (u *unit) alone() error {
	shared, err := u.source.sharing()
	if err != nil {
		return err
	}
	for _, sh := range shared {
		for _, p := range u.slots {
			if slices.Contains(sh.flows, p.f.Name) {
				return fmt.Errorf("%s: %w", sh.text, sentinel.ErrRefused)
			}
		}
	}
	return nil
}

// sharing looks at the volumes that are open.
func (s *source) sharing() ([]share, error) {
	if len(s.units) < 2 {
		return nil, nil
	}
	var parts []part
	for _, u := range s.units {
		for _, p := range u.slots {
			p.mu.Lock()
			v := p.volume
			p.mu.Unlock()
			if v != nil {
				parts = append(parts, part{p.f.Name, u.what(), extents(v)})
			}
		}
	}
	return sharing(parts)
}
