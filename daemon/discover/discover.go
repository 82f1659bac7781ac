// Package discover looks at a host and tells what of it can be moved and how: which volumes, what is on them, how changes would be tracked,
// how much changes, and what that means for a line. It changes nothing on the host. Stages of Run: choose devices from sysfs, look at
// each (contents, users, bytes in use), measure the rate of change, estimate. YAML and Table print the result.
package discover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/internal/sentinel"
)

// Options of Run. The zero value looks at every disk of the host and measures nothing.
type Options struct {
	Devices []string      // paths to look at instead of all disks of the host
	All     bool          // also loop, ram, floppy, optical and removable disks
	Volumes bool          // partitions and what is stacked on them, instead of whole disks
	Measure time.Duration // how long the rate of change is measured; 0: not
	Line    float64       // bytes per second that the line moves; 0: no estimates
	Limit   time.Duration // pause that a cutover may take; 0: 1 s
	Memory  int64         // bytes of tracking memory for each volume; 0: 64 MiB, as the config's default
	PinDir  string        // bpffs below which trackers are pinned for the measurement; "": /sys/fs/bpf
}

// Host is the result. Sizes are bytes, rates bytes per second, times seconds.
type Host struct {
	Name        string    `json:"name"`
	Support     Tracking  `json:"tracking"`
	Volumes     []*Volume `json:"volumes"`
	Refused     []Refused `json:"refused"`
	Measured    float64   `json:"measured_seconds"`
	Interrupted bool      `json:"interrupted"`
	Line        float64   `json:"line_bytes_per_second,omitempty"`
	Limit       float64   `json:"limit_seconds"`
	Estimate    *Estimate `json:"estimate,omitempty"` // of all volumes, moved at the same time over the one line
	Whole       bool      `json:"whole_disks"`        // false: partitions and logical volumes
}

// Refused is a device that is not proposed.
type Refused struct {
	Device string `json:"device"`
	Kind   string `json:"kind"`
	Size   int64  `json:"size_bytes"`
	Why    string `json:"why"`
}

// Volume is one flow of the proposed config.
type Volume struct {
	Name      string    `json:"name"`   // of the flow
	Path      string    `json:"path"`   // the most stable one that there is
	Stable    bool      `json:"stable"` // Path does not depend on the order of discovery
	Device    string    `json:"device"` // the kernel's name
	Kind      string    `json:"kind"`
	Size      int64     `json:"size_bytes"`
	Identity  string    `json:"identity"`
	Layers    []Layer   `json:"layers"`
	InUse     int64     `json:"in_use_bytes"`     // by mounted filesystems
	FirstPass int64     `json:"first_pass_bytes"` // the volume without the free space that a full pass skips
	Tracking  Tracking  `json:"tracking"`
	Freezes   []string  `json:"freezes"`    // mounts that a cutover freezes
	NotFrozen []string  `json:"not_frozen"` // writers that it does not stop
	Notes     []string  `json:"notes"`      // what else an operator should know
	Dirty     *Dirty    `json:"dirty"`      // null: not measured
	Estimate  *Estimate `json:"estimate"`   // null: no line was given
	dev       uint64
	vol       *disk.Volume
	stat      string // sysfs folder
}

// Layer is a device on a volume: itself, its partitions, and what is stacked on those.
type Layer struct {
	Device string   `json:"device"`
	Depth  int      `json:"depth"`
	Kind   string   `json:"kind"`
	Size   int64    `json:"size_bytes"`
	Holds  []string `json:"holds"` // signatures
	Mounts []Mount  `json:"mounts"`
	Swap   bool     `json:"swap"`
	Users  []string `json:"users"` // who has it open or attached, past any filesystem
	dev    uint64
	blank  bool
}

// Mount is a mounted filesystem. Dir is "" when nobody can reach it.
type Mount struct {
	Dir      string `json:"dir"`
	Type     string `json:"type"`
	Used     int64  `json:"used_bytes"`
	Size     int64  `json:"size_bytes"`
	ReadOnly bool   `json:"read_only"`
}

// Tracking is how changes would be found.
type Tracking struct {
	Method  string `json:"method"` // ebpf or scan
	Variant string `json:"variant,omitempty"`
	Granule int64  `json:"granule_bytes,omitempty"`
	Why     string `json:"why,omitempty"` // it is not something better
}

// ErrInterrupted comes with a Host whose measurement was cut short.
var ErrInterrupted = errors.New("the measurement was interrupted")

// Run looks at the host. With ErrInterrupted the Host is good, but measured for a shorter time. Errors: ErrDenied (not root), ErrNotFound
// (nothing to move; the Host tells what was refused), ErrUsage (a device that does not exist).
func Run(ctx context.Context, o Options) (*Host, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root may look at disks, mounts of all namespaces and eBPF; run it as root: %w", sentinel.ErrDenied)
	}
	h := &Host{Line: o.Line, Limit: o.limit().Seconds(), Whole: !o.Volumes, Volumes: []*Volume{}, Refused: []Refused{}}
	h.Name, _ = os.Hostname()
	s := cbt.Probe()
	h.Support = Tracking{Method: s.Method, Variant: s.Variant, Why: s.Reason}
	found, refused, err := live.choose(o)
	h.Refused = append(h.Refused, refused...)
	if err != nil {
		return h, err
	}
	defer func() {
		for _, v := range h.Volumes {
			v.vol.Close()
		}
	}()
	for _, d := range found {
		v, err := look(d, h.Support, o)
		if err != nil {
			h.Refused = append(h.Refused, Refused{d.path, d.kind, d.size, clean(err.Error())})
			continue
		}
		if o.Volumes && v.swap() && !slices.Contains(o.Devices, d.path) {
			v.vol.Close()
			h.Refused = append(h.Refused, Refused{d.path, d.kind, d.size, "it is swap, which nobody needs elsewhere: make a new one at the target"})
			continue
		}
		h.Volumes = append(h.Volumes, v)
	}
	if len(h.Volumes) == 0 {
		return h, fmt.Errorf("nothing on this host can be moved (%d devices were refused); name a device, or see --all: %w", len(h.Refused), sentinel.ErrNotFound)
	}
	nameFlows(h.Volumes)
	err = h.measure(ctx, o)
	h.estimate(o)
	return h, err
}

func (o Options) limit() time.Duration {
	if o.Limit > 0 {
		return o.Limit
	}
	return time.Second
}
