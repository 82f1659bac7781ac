package discover

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/moverd/mover/blockdev/disk"
)

// choose decides which devices become volumes, as an operator would: whole leaf disks, because that is what a cloud volume replaces; with
// o.Volumes what is top-most on them. Named devices are taken at their word.
func (s system) choose(o Options) (chosen []device, refused []Refused, err error) {
	var starts []device
	if len(o.Devices) > 0 {
		for _, path := range o.Devices {
			d, err := s.named(path)
			if err != nil {
				return nil, nil, err
			}
			starts = append(starts, d)
		}
	} else if starts, err = s.starts(o.All); err != nil {
		return nil, nil, err
	}
	seen := map[uint64]bool{}
	for _, d := range starts {
		tops := []device{d}
		if o.Volumes {
			tops = s.topmost(d)
		}
		for _, t := range tops {
			if seen[t.dev] {
				continue
			}
			seen[t.dev] = true
			if why := s.refuse(t, o.All || len(o.Devices) > 0); why != "" {
				refused = append(refused, Refused{t.path, t.kind, t.size, why})
				continue
			}
			chosen = append(chosen, t)
		}
	}
	return chosen, refused, nil
}

// starts are the disks at the bottom.
func (s system) starts(all bool) ([]device, error) {
	list, err := s.all()
	if err != nil {
		return nil, err
	}
	var out []device
	for _, d := range list {
		multipath := strings.HasPrefix(attr(d.dir, "dm/uuid"), "mpath-")
		_, holders := s.above(d)
		switch {
		case attr(d.dir, "hidden") == "1": // one path of an nvme that has several
		case (exists(d.dir, "dm") || exists(d.dir, "md")) && !multipath: // stacked
		case slices.ContainsFunc(holders, func(h device) bool { return strings.HasPrefix(attr(h.dir, "dm/uuid"), "mpath-") }):
			// One path of many; the multipath device stands for it.
		case !all && (passing(d) || d.size == 0):
		default:
			out = append(out, d)
		}
	}
	return out, nil
}

// passing tells disks that no server lives on.
func passing(d device) bool {
	name := filepath.Base(d.dir)
	for _, p := range []string{"loop", "ram", "zram", "fd", "sr"} {
		if rest, ok := strings.CutPrefix(name, p); ok && strings.Trim(rest, "0123456789") == "" {
			return true
		}
	}
	return false
}

// topmost are the devices above d on which nothing is stacked.
func (s system) topmost(d device) []device {
	var out []device
	all, _ := s.tree(d)
	for _, t := range all {
		if parts, holders := s.above(t); len(parts)+len(holders) == 0 && !internal(t) {
			out = append(out, t)
		}
	}
	return out
}

// internal tells logical volumes that LVM keeps for itself: pools, their metadata, snapshots' stores.
func internal(d device) bool {
	uuid := attr(d.dir, "dm/uuid")
	return strings.HasPrefix(uuid, "LVM-") && len(uuid) > len("LVM-")+64
}

// refuse says why d is not proposed; "" when it is.
func (s system) refuse(d device, meant bool) string {
	queue := d.dir
	if d.kind == disk.Partition {
		queue = filepath.Dir(d.dir)
	}
	zoned := attr(queue, "queue/zoned")
	switch {
	case d.size == 0:
		return "it has no medium"
	case zoned != "" && zoned != "none":
		return "it is a zoned disk (" + zoned + "), which no cloud volume can stand for"
	case attr(queue, "queue/dax") == "1":
		return "it is persistent memory (DAX): programs write to it without the kernel seeing it; remount without dax on a plain disk first"
	case attr(d.dir, "ro") == "1":
		return "it is read-only: nothing changes on it, a plain copy will do"
	case attr(queue, "removable") == "1" && !meant:
		return "it is a removable medium; name it if it is part of the server"
	}
	return ""
}
