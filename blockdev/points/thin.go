package points

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/lvm"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	thinPrefix = "mover-pt-"      // then OWNER-NAME
	thinOwner  = "mover.owner="   // tag; only what carries it is ever removed
	thinFlow   = "mover.flow="    // tag: says whose snapshot it is
	fullest    = 100 - reserve    // percent of a pool's data or metadata in use, from which on no state is kept
	askLimit   = 20 * time.Second // for a report of LVM
	openLimit  = 2 * time.Second  // for a snapshot that somebody else gave up just now
	lvmBusy    = "in use"         // part of what LVM says of a device that is open
	lvmFormat  = "LVM-"           // how the uuid of a mapped device of LVM begins
	lvmThin    = "thin"           // type of a segment
	lvmMissing = "Failed to find" // part of what LVM says of a volume that is not there
	mapperDir  = "/dev/mapper/"   //
)

// thin keeps snapshots in the pool of a thin volume: VG/mover-pt-OWNER-NAME, read-only, not active but while it is read. They share their blocks
// with the volume until it changes them.
type thin struct {
	o      Options
	vg, lv string
}

// openThin: the kernel's own table tells; no command is run.
func openThin(o Options, dev uint64) (*thin, error) {
	in, err := dm.Look(dev)
	if err != nil || !strings.HasPrefix(in.UUID, lvmFormat) {
		return nil, unsupported(o, LVMThin, "is no logical volume; of block devices, thin volumes of LVM can have points")
	}
	vg, lv, ok := lvm.Split(in.Name)
	if !ok || lvm.Check(vg) != nil || lvm.Check(lv) != nil {
		return nil, unsupported(o, LVMThin, fmt.Sprintf("is mapped device %s, which LVM keeps for itself", in.Name))
	}
	table, err := dm.Table(dev)
	if err != nil {
		return nil, fmt.Errorf("recovery points of %s: %w", o.Target, err)
	}
	if len(table) != 1 || table[0].Type != lvmThin {
		return nil, unsupported(o, LVMThin, "is a logical volume outside of a thin pool; a snapshot of it would slow down every write")
	}
	if !lvm.Installed() {
		return nil, unsupported(o, LVMThin, "is a thin volume, but LVM's commands are not installed here (package lvm2)")
	}
	return &thin{o, vg, lv}, nil
}

func (s *thin) Method() string { return LVMThin }

func (s *thin) name(point string) string { return thinPrefix + s.o.Owner + "-" + point }

func (s *thin) Take(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	all, err := s.volumes(ctx)
	if err != nil {
		return err
	}
	if _, ok := find(all, s.name(name)); ok {
		return fmt.Errorf("recovery point %s/%s exists: %w", s.vg, s.name(name), sentinel.ErrRefused)
	}
	if err := s.room(all); err != nil {
		return err
	}
	undo := func() {
		ctx, cancel := context.WithTimeout(context.Background(), askLimit)
		defer cancel()
		_ = s.Remove(ctx, name) // if not, the next sweep does
	}
	err = lvm.Run(ctx, undo, "lvcreate", "--yes", "--quiet", "--snapshot", "--name", s.name(name), "--permission", "r", "--setactivationskip", "y",
		"--addtag", thinOwner+s.o.Owner, "--addtag", lvm.Tag(thinFlow+s.o.Flow), s.vg+"/"+s.lv)
	if err != nil {
		return fmt.Errorf("recovery point of %s: %w", s.o.Target, err)
	}
	return nil
}

// room: every block that the target writes after a snapshot needs a new place, and a pool that is full stops the target itself.
func (s *thin) room(all []lvm.Volume) error {
	v, ok := find(all, s.lv)
	if !ok {
		return fmt.Errorf("recovery point of %s: LVM does not know %s/%s: %w", s.o.Target, s.vg, s.lv, sentinel.ErrNotFound)
	}
	pool, ok := find(all, v.Pool)
	if !ok || v.Type != lvmThin {
		return fmt.Errorf("recovery point of %s: %s/%s has no thin pool: %w", s.o.Target, s.vg, s.lv, sentinel.ErrNotSupported)
	}
	switch {
	case pool.Health != "":
		return fmt.Errorf("recovery point of %s: its thin pool %s/%s is not well (%s); mend it: %w", s.o.Target, s.vg, pool.Name, pool.Health, sentinel.ErrRefused)
	case pool.Data >= fullest || pool.Metadata >= fullest:
		return fmt.Errorf("recovery point of %s: its thin pool %s/%s is nearly full (data %.1f %%, metadata %.1f %%, bound %d %%); remove points or enlarge it: %w",
			s.o.Target, s.vg, pool.Name, pool.Data, pool.Metadata, fullest, sentinel.ErrRefused)
	}
	return nil
}

func (s *thin) volumes(ctx context.Context) ([]lvm.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	all, err := lvm.Volumes(ctx, s.vg)
	if err != nil {
		return nil, fmt.Errorf("recovery points of %s: %w", s.o.Target, err)
	}
	return all, nil
}

func find(all []lvm.Volume, name string) (lvm.Volume, bool) {
	i := slices.IndexFunc(all, func(v lvm.Volume) bool { return v.Name == name })
	if i < 0 {
		return lvm.Volume{}, false
	}
	return all[i], true
}

// tagged: a volume that only has our kind of name is somebody else's.
func (s *thin) tagged(v lvm.Volume) bool {
	return s.o.Owner != "" && v.Type == lvmThin && slices.Contains(v.Tags, thinOwner+s.o.Owner)
}

func (s *thin) List(ctx context.Context) ([]blockdev.Snapshot, error) {
	all, err := s.volumes(ctx)
	if err != nil {
		return nil, err
	}
	var out []blockdev.Snapshot
	for _, v := range all {
		if name, mine := strings.CutPrefix(v.Name, s.name("")); mine && s.tagged(v) {
			out = append(out, blockdev.Snapshot{Name: name, Time: v.Time})
		}
	}
	slices.SortFunc(out, func(a, b blockdev.Snapshot) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// Open activates the snapshot; the last Close anywhere deactivates it.
func (s *thin) Open(ctx context.Context, name string) (blockdev.Kept, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	all, err := s.volumes(ctx)
	if err != nil {
		return nil, err
	}
	full := s.vg + "/" + s.name(name)
	if v, ok := find(all, s.name(name)); !ok || !s.tagged(v) {
		return nil, fmt.Errorf("recovery point %s: %w", full, sentinel.ErrNotFound)
	}
	path := mapperDir + lvm.Mapped(s.vg, s.name(name))
	for end := time.Now().Add(openLimit); ; {
		if err := lvm.Run(ctx, nil, "lvchange", "--quiet", "--activate", "y", "--ignoreactivationskip", full); err != nil {
			return nil, fmt.Errorf("recovery point %s: %w", full, err)
		}
		f, err := os.Open(path) // who closed it just now may have deactivated it in between
		if err != nil && time.Now().Before(end) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("recovery point %s: %w", full, err)
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &kept{File: f, size: size, path: path, end: func() error { return s.deactivate(full) }}, nil
	}
}

// deactivate leaves what others still read.
func (s *thin) deactivate(full string) error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	err := lvm.Run(ctx, nil, "lvchange", "--quiet", "--activate", "n", full)
	if err != nil && (strings.Contains(err.Error(), lvmBusy) || strings.Contains(err.Error(), lvmMissing)) {
		return nil
	}
	return err
}

func (s *thin) Remove(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	all, err := s.volumes(ctx)
	if err != nil {
		return err
	}
	v, ok := find(all, s.name(name))
	if !ok {
		return nil
	}
	full := s.vg + "/" + v.Name
	if !s.tagged(v) {
		return fmt.Errorf("%s does not carry the tag of its flow and is left alone: %w", full, sentinel.ErrRefused)
	}
	if err := lvm.Run(ctx, nil, "lvremove", "--yes", "--quiet", "--force", full); err != nil {
		if strings.Contains(err.Error(), lvmBusy) {
			err = fmt.Errorf("%w; end who reads it: %w", err, sentinel.ErrRefused)
		}
		return fmt.Errorf("remove recovery point %s: %w", full, err)
	}
	return nil
}

// Holds: a snapshot that is not active is no path.
func (s *thin) Holds(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	var st unix.Stat_t
	if unix.Stat(real, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return false
	}
	in, err := dm.Look(st.Rdev)
	if err != nil {
		return false
	}
	vg, lv, ok := lvm.Split(in.Name)
	return ok && vg == s.vg && strings.HasPrefix(lv, thinPrefix)
}
