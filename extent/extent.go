// Package extent has byte ranges on volumes: one range, sets of granules, and maps from a device to the disks below it.
package extent

import (
	"fmt"
	"iter"
	"math"
)

// Extent is the half-open byte range [Off, Off+Len) on a volume.
type Extent struct{ Off, Len int64 }

// End is the first byte behind the extent, at most the largest offset there is.
func (e Extent) End() int64 {
	if e.Len > math.MaxInt64-e.Off && e.Off >= 0 {
		return math.MaxInt64
	}
	return e.Off + e.Len
}

// Empty tells whether the extent holds no byte.
func (e Extent) Empty() bool { return e.Len <= 0 }

// Intersect returns what both extents share; it may be empty.
func (e Extent) Intersect(o Extent) Extent {
	off, end := max(e.Off, o.Off), min(e.End(), o.End())
	return Extent{off, max(0, end-off)}
}

// Align grows e outward to multiples of unit.
func (e Extent) Align(unit int64) Extent {
	off, end := e.Off/unit*unit, e.End()
	if over := end % unit; over > 0 {
		end += min(unit-over, math.MaxInt64-end)
	}
	return Extent{off, end - off}
}

func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Off, e.End()) }

// Segment maps [Off, Off+Len) of a device to [DevOff, DevOff+Len) of a disk below it.
type Segment struct {
	Off, Len int64
	Dev      uint64 // device number of the disk: unix.Mkdev(major, minor)
	DevOff   int64
}

// Map is the whole of a device as segments. Several segments may cover the same bytes (mirrors).
type Map []Segment

// Up translates an extent of disk dev into the extents of the mapped device that it backs.
func (m Map) Up(dev uint64, e Extent) []Extent {
	var out []Extent
	for _, s := range m {
		if s.Dev != dev {
			continue
		}
		if x := e.Intersect(Extent{s.DevOff, s.Len}); !x.Empty() {
			out = append(out, Extent{s.Off + x.Off - s.DevOff, x.Len})
		}
	}
	return out
}

// Down translates an extent of the mapped device into the segments below it.
func (m Map) Down(e Extent) []Segment {
	var out []Segment
	for _, s := range m {
		if x := e.Intersect(Extent{s.Off, s.Len}); !x.Empty() {
			out = append(out, Segment{x.Off, x.Len, s.Dev, s.DevOff + x.Off - s.Off})
		}
	}
	return out
}

// Merge yields ascending, disjoint extents with those that lie at most gap bytes apart made one.
func Merge(extents iter.Seq[Extent], gap int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		var last Extent
		for e := range extents {
			switch {
			case last.Empty():
				last = e
			case e.Off-last.End() <= gap && e.Off >= last.Off:
				last.Len = max(last.Len, e.End()-last.Off)
			default:
				if !yield(last) {
					return
				}
				last = e
			}
		}
		if !last.Empty() {
			yield(last)
		}
	}
}
