package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/mover"
)

// fleet is a server with several disks that are one group. Sources and targets are images on two XFS filesystems of their own, so that points
// are kept, and so that the bench can have a copy of a source in an instant.
type fleet struct {
	r     *Rig
	disks []*fleetDisk
}

type fleetDisk struct {
	RigDisk
	fs     string // ext4, xfs, raw
	image  string // what the loop device stands on
	size   int64
	dir    string // where it is mounted
	writer *Proc
}

// sourceState and targetState are the folders of the two filesystems.
const (
	sourceStore = "sources"
	targetStore = "targets"
)

// newFleet makes disks of these filesystems. Nothing is started.
func newFleet(ctx context.Context, bin string, o RigOptions, sector int, kinds ...string) (_ *fleet, err error) {
	o.Create = true
	r, err := NewRig(ctx, bin, o)
	if err != nil {
		return nil, err
	}
	f := &fleet{r: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	total := int64(0)
	for i, kind := range kinds {
		d := &fleetDisk{RigDisk: RigDisk{Name: fmt.Sprintf("disk%d", i+1)}, fs: kind,
			size: map[string]int64{"ext4": 96 << 20, "xfs": 304 << 20, "raw": 48 << 20}[kind]}
		f.disks = append(f.disks, d)
		total += d.size
	}
	for _, name := range []string{sourceStore, targetStore} {
		dev, err := r.Loop(ctx, r.path(name+".img"), 3*total+512<<20, 512, true)
		if err != nil {
			return nil, err
		}
		if err := Mkfs(ctx, dev, "xfs"); err != nil {
			return nil, err
		}
		if _, err := r.Mount(ctx, dev, name); err != nil {
			return nil, err
		}
		r.Defer(func() error { // before the patient one: mount namespaces of others may keep what is mounted inside
			_, err := Run(context.Background(), "umount", "-l", r.path(name))
			return err
		})
	}
	for _, d := range f.disks {
		d.image, d.Target = r.path(sourceStore+"/"+d.Name+".img"), r.path(targetStore+"/"+d.Name+".img")
		if d.Volume, err = r.Loop(ctx, d.image, d.size, sector, true); err != nil {
			return nil, err
		}
		if d.fs != "raw" {
			if err := Mkfs(ctx, d.Volume, d.fs); err != nil {
				return nil, err
			}
			if d.dir, err = r.Mount(ctx, d.Volume, "mnt-"+d.Name); err != nil {
				return nil, err
			}
		}
		r.o.Disks = append(r.o.Disks, d.RigDisk)
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context) error {
	if err := errors.Join(f.r.StartGateway(), f.r.StartSource()); err != nil {
		return err
	}
	return f.r.AwaitAll(ctx, "source", "at a first point", 2*time.Minute, func(st mover.Status) bool { return st.PointEpoch > 0 })
}

// replicating is the state of a flow that goes on.
func replicating(st mover.Status) bool {
	return st.State == mover.Idle || st.State == mover.Passing && st.Pass != nil && st.Pass.Acked > 0
}

// close lets nobody stay blocked.
func (f *fleet) close() error {
	for _, d := range f.disks {
		if d.writer != nil {
			d.writer.cmd.Process.Kill()
		}
	}
	return f.r.Close()
}

// points are those that are kept of a disk, the oldest first, without fuzzy ones.
func (f *fleet) points(ctx context.Context, d *fleetDisk) (good []mover.RecoveryPoint, err error) {
	out, err := f.r.Ctl(ctx, "gateway", "points", "demo/web1/"+d.Name, "-o", "json")
	if err != nil {
		return nil, err
	}
	var all struct {
		Points []mover.RecoveryPoint `json:"points"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("points of %s: %w: %s", d.Name, err, out)
	}
	for _, p := range all.Points {
		if p.Worth == "crash" || p.Worth == "app" {
			good = append(good, p)
		}
	}
	return good, nil
}

// restore writes a point of a disk into a new file below the folder of targets.
func (f *fleet) restore(ctx context.Context, d *fleetDisk, id, name string) (string, error) {
	to := f.r.path(targetStore + "/" + name + ".img")
	_, err := f.r.Ctl(ctx, "gateway", "restore", "demo/web1/"+d.Name, id, "--to", to)
	return to, err
}

// clone is a copy of a disk as its image is now, in an instant.
func clone(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())), dst.Close())
}

// truth is what the disks held under one freeze, seen by the bench itself.
type truth map[string]string // image by the disk's name

// watch waits for a freeze of the group and copies all disks under it. That the freeze held until the copies were made is asked from the kernel
// afterwards. It returns nil when ctx ended first.
func (f *fleet) watch(ctx context.Context, name string) truth {
	for n := 0; ctx.Err() == nil; n++ {
		if !f.frozen(ctx) {
			_ = pause(ctx, 4*time.Millisecond)
			continue
		}
		t, err := truth{}, error(nil)
		for _, d := range f.disks {
			to := fmt.Sprintf("%s.%s-%d", d.image, name, n)
			err = errors.Join(err, clone(d.image, to))
			t[d.Name] = to
		}
		held := err == nil
		for _, d := range f.disks {
			held = held && isFrozen(d.dir)
		}
		if held {
			return t
		}
		t.drop()
	}
	return nil
}

// frozen tells whether all flows say that their writers stand still; they say so a little longer than it is true.
func (f *fleet) frozen(ctx context.Context) bool {
	all, err := f.r.Statuses(ctx, "source")
	if err != nil || len(all) != len(f.disks) {
		return false
	}
	for _, st := range all {
		if st.State != mover.Frozen {
			return false
		}
	}
	return true
}

// isFrozen asks the kernel: what is frozen cannot be frozen again.
func isFrozen(dir string) bool {
	fd, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer fd.Close()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	err = unix.IoctlSetInt(int(fd.Fd()), fifreeze, 0)
	if err == nil {
		_ = unix.IoctlSetInt(int(fd.Fd()), fithaw, 0)
	}
	return errors.Is(err, unix.EBUSY)
}

func (t truth) drop() {
	for _, file := range t {
		_ = os.Remove(file)
	}
}
