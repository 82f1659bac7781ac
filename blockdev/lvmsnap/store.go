package lvmsnap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/lvm"
	"github.com/moverd/mover/internal/sentinel"
)

// lend makes the store for old content: a volume in the free space of the group, else, for a thin volume, in its pool.
func (s *Snapshotter) lend(ctx context.Context, table []dm.Target) (dev uint64, err error) {
	g, err := lvm.GroupOf(ctx, s.vg)
	if err != nil {
		return 0, err
	}
	if g.Shared {
		return 0, unsupported(s.o, "other hosts share volume group %s", s.vg)
	}
	expect := int64(0)
	if s.o.Expect != nil {
		expect = s.o.Expect()
	}
	size, where := storeSize(s.o.Size, expect, g.Free, g.Extent), []string{s.vg}
	if size == 0 && table[0].Type == "thin" {
		if size, where, err = s.inPool(ctx, expect, g.Extent); err != nil {
			return 0, err
		}
	}
	if size == 0 {
		return 0, refused(s.o, "volume group %s has %d MiB free, of which %d %% stay free; old content needs %d MiB and more while the view is read", s.vg,
			g.Free>>20, keepFree, least(s.o.Size, expect)>>20)
	}
	name := s.name("")
	args := []string{"lvcreate", "--yes", "--quiet", "--name", name, "--addtag", tag, "--addtag", lvm.Tag("mover.flow=" + s.o.Flow),
		"--setactivationskip", "y", "--ignoreactivationskip", "--activate", "y"}
	switch len(where) {
	case 1:
		// Wiped: what was there before must not be found by its label.
		args = append(args, "--wipesignatures", "y", "--zero", "y", "--size", fmt.Sprintf("%db", size), s.vg)
	default:
		args = append(args, "--virtualsize", fmt.Sprintf("%db", size), "--thinpool", where[1], s.vg)
	}
	if err := lvm.Run(ctx, nil, args...); err != nil {
		return 0, fmt.Errorf("snapshot of %s: make a store for old content: %w", s.o.Path, err)
	}
	in, err := dm.Find(lvm.Mapped(s.vg, name))
	return in.Dev, err
}

// storeSize is how large a store is to be; 0: there is no room for one. All in bytes.
func storeSize(volume, expect, free, unit int64) int64 {
	if unit <= 0 {
		return 0
	}
	have := (free - free*keepFree/100) / unit * unit
	all := (volume + volume/50 + 16<<20 + unit - 1) / unit * unit // every chunk once: more is never used
	want := all
	if expect > 0 { // bursts are held by half of what is free, or more where more is expected: it is given back soon, and costs nothing to make
		want = min(all, max(have/2, 4*least(volume, expect))/unit*unit)
	}
	got := min(want, have)
	if got < least(volume, expect) {
		return 0
	}
	return got
}

// least is the store without which a view is not begun.
func least(volume, expect int64) int64 {
	return min(max(minStore, spread*expect), volume+volume/50+16<<20)
}

// inPool finds room for a store in the pool of a thin volume: half of what is free below the bound that points keep too.
func (s *Snapshotter) inPool(ctx context.Context, expect, unit int64) (size int64, where []string, err error) {
	all, err := lvm.Volumes(ctx, s.vg)
	if err != nil {
		return 0, nil, err
	}
	in, err := dm.Look(s.o.Dev)
	if err != nil {
		return 0, nil, err
	}
	_, name, _ := lvm.Split(in.Name)
	i := slices.IndexFunc(all, func(v lvm.Volume) bool { return v.Name == name })
	if i < 0 {
		return 0, nil, refused(s.o, "LVM does not know %s/%s", s.vg, name)
	}
	p := slices.IndexFunc(all, func(v lvm.Volume) bool { return v.Name == all[i].Pool })
	if p < 0 || lvm.Check(all[p].Name) != nil {
		return 0, nil, refused(s.o, "LVM does not know the pool of %s/%s", s.vg, name)
	}
	free := int64(float64(all[p].Size) * (100 - all[p].Data) / 100)
	if all[p].Health != "" || all[p].Metadata > 100-keepFree {
		return 0, nil, nil
	}
	return storeSize(s.o.Size, expect, free/2, unit), []string{s.vg, all[p].Name}, nil
}

// Drop takes the view away. What a killed process left of the same flow is found by its name.
func (s *Snapshotter) Drop(ctx context.Context) error {
	s.mu.Lock()
	v := s.volume
	s.volume, s.snapped = nil, false
	s.mu.Unlock()
	if v != nil {
		v.Volume.Close()
	}
	s.own, s.real, s.view = nil, 0, 0
	return drop(ctx, s.id)
}

// restore gives the volume its own table back after a swap that failed half-way, and lets it go on whatever happened.
func (s *Snapshotter) restore() error { return detach(s.o.Dev, s.real) }

// Sweep removes what killed processes of this run folder left, of any flow. It is called before the flows begin.
func Sweep(ctx context.Context, runDir string) error { return drop(ctx, owner(runDir)) }

// drop removes all whose ID begins with id. Each step may be the last one of a killed process; the next drop goes on from there.
func drop(ctx context.Context, id string) error {
	if !exists() {
		return nil
	}
	all, err := dm.List()
	if err != nil {
		return err
	}
	lvs := false
	for _, d := range all {
		switch kind, ok := part(d.Name, id); {
		case ok && kind == "-real":
			err = release(ctx, d.Dev, all)
		case !ok && !lvs:
			in, ierr := dm.Look(d.Dev)
			lvs = ierr == nil && len(in.UUID) > 4 && in.UUID[:4] == "LVM-"
		}
		if err != nil {
			return err
		}
	}
	for _, layer := range []string{"-view", "-real"} {
		for _, d := range all {
			if kind, ok := part(d.Name, id); ok && kind == layer {
				if err := remove(ctx, d.Dev); err != nil {
					return err
				}
			}
		}
	}
	if !lvs || !lvm.Installed() {
		return nil // no group is active here, so that no store was ever lent since the boot
	}
	return giveBack(ctx, id)
}

// part takes the name of one of our devices apart.
func part(name, id string) (layer string, ok bool) {
	if len(name) <= len(prefix)+idLen || name[:len(prefix)] != prefix || name[len(prefix):len(prefix)+len(id)] != id {
		return "", false
	}
	return name[len(prefix)+idLen:], true
}

// release finds the volume that goes through real, and gives it its own table back: a copy of it is real's. Nothing does, when LVM has given
// the volume another table since.
func release(ctx context.Context, real uint64, all []dm.Device) error {
	for _, d := range all {
		if d.Dev == real {
			continue
		}
		if above(d.Dev, real) {
			vg, _, ok := lvm.Split(d.Name)
			if !ok {
				return fmt.Errorf("mapped device %s goes through a snapshot that was left behind: %w", d.Name, sentinel.ErrRefused)
			}
			lock, cancel := context.WithTimeout(ctx, gone)
			unlock, err := lvm.Lock(lock, vg)
			cancel()
			if err != nil {
				return err
			}
			err = detach(d.Dev, real)
			unlock()
			if err != nil {
				return fmt.Errorf("give %s its table back: %w", d.Name, err)
			}
		}
	}
	return nil
}

// above tells whether the active or the loaded table of dev is the one that leads to real.
func above(dev, real uint64) bool {
	for _, ask := range []func(uint64) ([]dm.Target, error){dm.Table, dm.Loaded} {
		if table, err := ask(dev); err == nil && leads(table, real) {
			return true
		}
	}
	return false
}

func leads(table []dm.Target, real uint64) bool {
	return len(table) == 1 && table[0].Type == "snapshot-origin" && table[0].Params == devNo(real)
}

// detach: the caller holds the group's lock, so that LVM does not load a table between the look and the swap.
func detach(dev, real uint64) error {
	loaded, err := dm.Loaded(dev)
	if err != nil {
		return err
	}
	if leads(loaded, real) {
		if err := dm.Clear(dev); err != nil {
			return err
		}
	}
	active, err := dm.Table(dev)
	if err != nil {
		return err
	}
	if leads(active, real) {
		own, err := dm.Table(real)
		if err != nil {
			return err
		}
		if err := dm.Load(dev, own); err != nil {
			return err
		}
		if err := dm.Swap(dev); err != nil {
			return err
		}
	}
	in, err := dm.Look(dev)
	if err == nil && in.Suspended {
		err = dm.Swap(dev) // a swap that failed half-way: with no table loaded, the device goes on with its own
	}
	return err
}

// remove waits for those who only looked, such as udev.
func remove(ctx context.Context, dev uint64) error {
	for end := time.Now().Add(gone); ; {
		err := dm.Remove(dev)
		if err == nil || !isBusy(err) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// giveBack removes the stores.
func giveBack(ctx context.Context, id string) error {
	all, err := lvm.Volumes(ctx, "")
	if err != nil {
		return err
	}
	for _, v := range all {
		if _, ok := part(v.Name+"-", id); !ok || !slices.Contains(v.Tags, tag) || lvm.Check(v.VG) != nil || lvm.Check(v.Name) != nil {
			continue
		}
		if err := lvm.Run(ctx, nil, "lvremove", "--yes", "--quiet", "--force", v.VG+"/"+v.Name); err != nil {
			return fmt.Errorf("remove the store of a snapshot: %w", err)
		}
	}
	return nil
}

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) }
