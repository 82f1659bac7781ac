package disk

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moverd/mover/extent"
)

// Swap is an active swap area. It is written past any filesystem: a freeze does not stop it.
type Swap struct {
	Path string
	File bool   // a swap file, else a device
	Dev  uint64 // the device, or that of the filesystem that has the file
	Used int64  // bytes
}

// Swaps lists the active swap areas on the leaf extents of m. A swap file counts wherever its filesystem counts.
func Swaps(m extent.Map) ([]Swap, error) {
	all, err := allSwaps()
	if err != nil {
		return nil, err
	}
	var out []Swap
	for _, a := range all {
		hit, err := live.touches(a.Dev, m, 0)
		if err != nil {
			return nil, err
		}
		if hit {
			out = append(out, a)
		}
	}
	return out, nil
}

// allSwaps reads /proc/swaps and finds the device of each area.
func allSwaps() ([]Swap, error) {
	f, err := os.Open("/proc/swaps")
	if os.IsNotExist(err) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := parseSwaps(f)
	if err != nil {
		return nil, err
	}
	var out []Swap
	for _, a := range list {
		st, err := os.Stat(strings.TrimSuffix(a.Path, " (deleted)"))
		if err != nil {
			continue // removed from the folder; the kernel names no other way to it
		}
		a.Dev = stat(st).Rdev
		if a.File {
			a.Dev = fileDevice(a.Path, stat(st).Dev)
		}
		out = append(out, a)
	}
	return out, nil
}

// fileDevice is the block device below a file whose st_dev may be anonymous (btrfs).
func fileDevice(path string, dev uint64) uint64 {
	if _, err := live.dir(dev); err == nil {
		return dev
	}
	lines, err := allMounts()
	if err != nil {
		return dev
	}
	best := ""
	for _, l := range lines {
		if l.proc == "" && len(l.dir) >= len(best) && strings.HasPrefix(path, strings.TrimSuffix(l.dir, "/")+"/") {
			if d := live.devices(l); len(d) > 0 {
				best, dev = l.dir, d[0]
			}
		}
	}
	return dev
}

func parseSwaps(r io.Reader) ([]Swap, error) {
	var out []Swap
	s := bufio.NewScanner(r)
	for s.Scan() {
		w := strings.Fields(s.Text())
		if len(w) == 0 || w[0] == "Filename" {
			continue
		}
		if len(w) < 4 {
			return nil, fmt.Errorf("malformed line of swaps: %q", s.Text())
		}
		used, err := strconv.ParseInt(w[3], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("malformed line of swaps: %q", s.Text())
		}
		out = append(out, Swap{Path: unescape(w[0]), File: w[1] == "file", Used: used << 10})
	}
	return out, s.Err()
}
