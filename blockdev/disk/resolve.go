package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	maxDepth    = 16   // of stacked devices; a table cannot refer to itself, a fake one could
	maxSegments = 4096 // translating a change walks them all
)

// Resolve maps a block device to the leaf disks below it: request-based disks, with offsets on the whole disk. ErrNotSupported names
// the layer that has no fixed map (thin, snapshot, cache, raid levels other than 1, bio-based disks); such a volume is moved in scan mode.
func Resolve(dev uint64) (extent.Map, error) { return live.resolve(dev, 0) }

func (s *system) resolve(dev uint64, depth int) (extent.Map, error) {
	dir, err := s.dir(dev)
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, unsupported(dir, "more than %d devices are stacked", maxDepth)
	}
	size, err := sectors(dir, "size")
	if err != nil {
		return nil, err
	}
	switch {
	case exists(dir, "partition"):
		start, err := sectors(dir, "start")
		if err != nil {
			return nil, err
		}
		disk, err := devOf(filepath.Dir(dir))
		if err != nil {
			return nil, err
		}
		return s.compose(nil, extent.Segment{Len: size, Dev: disk, DevOff: start}, dir, depth)
	case exists(dir, "dm"):
		return s.resolveDM(dev, dir, size, depth)
	case exists(dir, "md"):
		return s.resolveMD(dir, size, depth)
	}
	return leaf(dev, dir, size)
}

// compose appends what seg, on a device that may itself be stacked, means on the leaf disks.
func (s *system) compose(m extent.Map, seg extent.Segment, dir string, depth int) (extent.Map, error) {
	below, err := s.resolve(seg.Dev, depth+1)
	if err != nil {
		return nil, err
	}
	covered := int64(0) // leftmost byte that no segment has reached; segments ascend except for mirrors
	for _, b := range below.Down(extent.Extent{Off: seg.DevOff, Len: seg.Len}) {
		b.Off += seg.Off - seg.DevOff
		if b.Off-seg.Off <= covered {
			covered = max(covered, b.Off+b.Len-seg.Off)
		}
		m = append(m, b)
	}
	if covered < seg.Len {
		return nil, fmt.Errorf("%s refers to bytes behind the end of the device below it", filepath.Base(dir))
	}
	if len(m) > maxSegments {
		return nil, unsupported(dir, "it is scattered over more than %d places", maxSegments)
	}
	return m, nil
}

// leaf accepts request-based disks, whose completions the kernel reports as themselves.
func leaf(dev uint64, dir string, size int64) (extent.Map, error) {
	switch zoned := attr(dir, "queue/zoned"); {
	case strings.Contains(dir, "/virtual/nvme-subsystem/"):
		return nil, unsupported(dir, "it is the head of an nvme native multipath")
	case exists(dir, "bcache"):
		return nil, unsupported(dir, "bcache has no fixed map")
	case !exists(dir, "mq"):
		return nil, unsupported(dir, "it is a bio-based disk")
	case zoned != "" && zoned != "none":
		return nil, unsupported(dir, "it is a zoned disk (%s)", zoned)
	case attr(dir, "queue/dax") == "1":
		return nil, unsupported(dir, "DAX writes are invisible")
	case size == 0:
		return nil, fmt.Errorf("%s has no medium: %w", filepath.Base(dir), sentinel.ErrNotFound)
	}
	return extent.Map{{Len: size, Dev: dev}}, nil
}

func (s *system) resolveDM(dev uint64, dir string, size int64, depth int) (extent.Map, error) {
	table, err := s.table(dev)
	if err != nil {
		return nil, err
	}
	var m extent.Map
	at := int64(0)
	for _, t := range table {
		if t.Off != at {
			return nil, fmt.Errorf("device-mapper table of %s has a hole at byte %d", filepath.Base(dir), at)
		}
		at += t.Len
		if t.Type == "multipath" && exists(dir, "mq") {
			return leaf(dev, dir, size)
		}
		segs, err := dmSegments(t)
		if err != nil {
			return nil, unsupported(dir, "%v", err)
		}
		if len(m)+len(segs) > maxSegments {
			return nil, unsupported(dir, "its %s target has more than %d pieces", t.Type, maxSegments)
		}
		for _, seg := range segs {
			if m, err = s.compose(m, seg, dir, depth); err != nil {
				return nil, err
			}
		}
	}
	if at != size {
		return nil, fmt.Errorf("device-mapper table of %s has %d bytes, the device %d", filepath.Base(dir), at, size)
	}
	return m, nil
}

// dmSegments translates one line of a table. The parameters may hold a key and never get into an error.
func dmSegments(t dm.Target) ([]extent.Segment, error) {
	w := strings.Fields(t.Params)
	switch t.Type {
	case "linear":
		if len(w) < 2 {
			return nil, fmt.Errorf("malformed linear target")
		}
		return dmSegment(t, w[0], w[1])
	case "snapshot-origin": // writes go on to the device below, at the same place; old content is copied aside before
		if len(w) != 1 {
			return nil, fmt.Errorf("malformed snapshot-origin target")
		}
		return dmSegment(t, w[0], "0")
	case "crypt": // cipher, key, iv offset, device, offset, optional: count, words
		if len(w) < 5 {
			return nil, fmt.Errorf("malformed crypt target")
		}
		for _, o := range w[5:] {
			if strings.HasPrefix(o, "integrity:") {
				return nil, fmt.Errorf("target type crypt with integrity has no fixed map")
			}
		}
		return dmSegment(t, w[3], w[4])
	case "striped":
		return dmStripes(t, w)
	}
	return nil, fmt.Errorf("target type %s has no fixed map", t.Type)
}

func dmSegment(t dm.Target, device, offset string) ([]extent.Segment, error) {
	dev, err := parseDev(device)
	off, err2 := strconv.ParseInt(offset, 10, 54)
	if err != nil || err2 != nil || off < 0 {
		return nil, fmt.Errorf("malformed %s target", t.Type)
	}
	return []extent.Segment{{Off: t.Off, Len: t.Len, Dev: dev, DevOff: off * sector}}, nil
}

// dmStripes: chunk i of the target lies on leg i mod n. Parameters: n, sectors in a chunk, n times (device, offset).
func dmStripes(t dm.Target, w []string) ([]extent.Segment, error) {
	bad := fmt.Errorf("malformed striped target")
	if len(w) < 4 {
		return nil, bad
	}
	n, err := strconv.Atoi(w[0])
	chunk, err2 := strconv.ParseInt(w[1], 10, 40)
	if err != nil || err2 != nil || n < 1 || n > 1024 || chunk < 1 || len(w) < 2+2*n {
		return nil, bad
	}
	chunk *= sector
	if n == 1 {
		return dmSegment(t, w[2], w[3])
	}
	if t.Len/chunk > maxSegments {
		return nil, fmt.Errorf("target type striped has %d pieces, over %d", t.Len/chunk, maxSegments)
	}
	var out []extent.Segment
	for i := int64(0); i*chunk < t.Len; i++ {
		leg := i % int64(n)
		seg, err := dmSegment(t, w[2+2*leg], w[3+2*leg])
		if err != nil {
			return nil, err
		}
		s := seg[0]
		s.Off += i * chunk
		s.Len = min(chunk, t.Len-i*chunk)
		s.DevOff += i / int64(n) * chunk
		out = append(out, s)
	}
	return out, nil
}

// resolveMD: every leg of a raid1 holds the whole device from its data offset on.
func (s *system) resolveMD(dir string, size int64, depth int) (extent.Map, error) {
	if level := attr(dir, "md/level"); level != "raid1" {
		return nil, unsupported(dir, "md level %s has no fixed map", level)
	}
	legs, err := filepath.Glob(filepath.Join(dir, "md/rd[0-9]*"))
	if err != nil {
		return nil, err
	}
	var m extent.Map
	for _, leg := range legs {
		if strings.Contains(attr(leg, "state"), "faulty") {
			continue
		}
		off, err := sectors(leg, "offset")
		if err != nil {
			return nil, err
		}
		dev, err := devOf(filepath.Join(leg, "block"))
		if err != nil {
			return nil, err
		}
		if m, err = s.compose(m, extent.Segment{Len: size, Dev: dev, DevOff: off}, dir, depth); err != nil {
			return nil, err
		}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("%s has no working leg: %w", filepath.Base(dir), os.ErrNotExist)
	}
	return m, nil
}

func unsupported(dir, format string, args ...any) error {
	return fmt.Errorf("map %s to its disks: %s: %w", filepath.Base(dir), fmt.Sprintf(format, args...), sentinel.ErrNotSupported)
}
