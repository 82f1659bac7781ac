// Package lvmsnap makes views of logical volumes that outlive a freeze: a snapshot of the device mapper, whose store for old content is a volume
// that LVM lends while the view lives.
//
//	before                 while the view lives
//	vg-lv: its table       vg-lv: snapshot-origin ▶ mover-snap-ID-real: vg-lv's table
//	                       mover-snap-ID-view: snapshot of ...-real, old content in vg/mover-snap-ID
//
// All is laid out before the freeze, and a view that is laid out follows the volume. The instant that it holds begins when the kernel swaps the
// volume's table, within the freeze: one call, done as a whole or not at all, so that killing this process leaves one of both tables, and with
// either the volume works. lvcreate -s would not do: its suspend wants to freeze the filesystem itself, which kernels before 6.8 refuse for one that is
// frozen already, and it would stand suspended if killed at the wrong moment.
//
// The names say whose a view is, so that what a killed process left needs no record to be found: ID is of the run folder and the flow.
// The store keeps its index in memory (a transient snapshot): after a reboot there is an unused volume, nothing else.
package lvmsnap

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/lvm"
	"github.com/moverd/mover/internal/sentinel"
)

const (
	prefix  = "mover-snap-"
	tag     = "mover.snapshot" // of every store
	idLen   = 16               // hex: 8 of the run folder, 8 of the flow
	sectorB = 512

	chunk     = 16 << 10 // what is copied aside at a first write; a leaf
	minStore  = 64 << 20 // bytes; less overflows at the first burst
	spread    = 5        // chunk over the usual random write of 4 KiB, and some: bytes of store for each byte that is expected to change
	keepFree  = 10       // percent of a group that no store takes
	lockLimit = time.Second
	gone      = 10 * time.Second // for udev and others to close what they looked at
)

// Options of a Snapshotter.
type Options struct {
	Flow   string // the snapshots of different flows and run folders never meet
	RunDir string // of the daemon
	Path   string // of the volume
	Dev    uint64 // of the volume
	Size   int64  // of the volume, bytes
	ID     string // the volume's identity, which the view has too
	// Expect tells how many bytes the writers may change while the view is read; nil or 0: unknown, take what there is.
	Expect func() int64
	// Open opens a block device for reading, past the page cache.
	Open func(path string) (blockdev.Volume, error)
}

// Snapshotter implements blockdev.Snapshotter for a logical volume of linear, striped or thin segments.
type Snapshotter struct {
	o    Options
	id   string
	vg   string
	own  []dm.Target // the volume's own table, when the view was laid out
	real uint64      // device numbers; 0: not made
	view uint64

	mu      sync.Mutex // guards below
	volume  *view
	snapped bool
}

var _ blockdev.Snapshotter = (*Snapshotter)(nil)

// New looks at the volume. ErrNotSupported: no view can be made of it; the text says why.
func New(o Options) (*Snapshotter, error) {
	s := &Snapshotter{o: o, id: owner(o.RunDir) + owner(o.Flow)}
	if _, err := s.origin(); err != nil {
		return nil, err
	}
	return s, nil
}

// owner is part of an ID.
func owner(s string) string {
	d := digest.Sum([]byte(s))
	return hex.EncodeToString(d[:idLen/4])
}

func unsupported(o Options, format string, args ...any) error {
	return fmt.Errorf("snapshot of %s: %s: %w", o.Path, fmt.Sprintf(format, args...), sentinel.ErrNotSupported)
}

func refused(o Options, format string, args ...any) error {
	return fmt.Errorf("snapshot of %s: %s: %w", o.Path, fmt.Sprintf(format, args...), sentinel.ErrRefused)
}

// origin gives the volume's own table, and finds its group.
func (s *Snapshotter) origin() ([]dm.Target, error) {
	if s.o.Dev == 0 {
		return nil, unsupported(s.o, "it is no device")
	}
	in, err := dm.Look(s.o.Dev)
	if err != nil {
		return nil, unsupported(s.o, "it is no logical volume")
	}
	vg, _, ok := lvm.Split(in.Name)
	if !ok || !strings.HasPrefix(in.UUID, "LVM-") {
		return nil, unsupported(s.o, "it is no logical volume")
	}
	if !lvm.Installed() {
		return nil, unsupported(s.o, "LVM's commands are not installed")
	}
	s.vg = vg
	table, err := dm.Table(s.o.Dev)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	for _, t := range table {
		switch t.Type {
		case "linear", "striped", "thin":
		default:
			return nil, unsupported(s.o, "its segment of type %s cannot be put below a snapshot", t.Type)
		}
		size += t.Len
	}
	if size != s.o.Size {
		return nil, refused(s.o, "it has %d bytes now and was opened with %d", size, s.o.Size)
	}
	return table, nil
}

func (s *Snapshotter) name(layer string) string { return prefix + s.id + layer }

// originTable is what the volume has while a view lives.
func (s *Snapshotter) originTable() []dm.Target {
	return []dm.Target{{Len: s.o.Size, Type: "snapshot-origin", Params: devNo(s.real)}}
}

func devNo(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// Prepare lays the view out; nothing of the volume's own I/O changes by that.
func (s *Snapshotter) Prepare(ctx context.Context) (err error) {
	if err := s.Drop(ctx); err != nil {
		return err
	}
	table, err := s.origin()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Drop(context.WithoutCancel(ctx)))
		}
	}()
	store, err := s.lend(ctx, table)
	if err != nil {
		return err
	}
	if s.real, err = s.create("-real", table); err != nil {
		return err
	}
	snap := []dm.Target{{Len: s.o.Size, Type: "snapshot", Params: fmt.Sprintf("%s %s N %d", devNo(s.real), devNo(store), chunk/sectorB)}}
	if s.view, err = s.create("-view", snap); err != nil {
		return err
	}
	s.own = table
	return nil
}

func same(a, b []dm.Target) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (s *Snapshotter) lock(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	return lvm.Lock(ctx, s.vg)
}

// create makes one of the view's devices. The uuid begins like LVM's own, and LVM's commands do not look for volume groups inside of such. What
// follows the 64 characters of an id says that the device is no volume but something below or beside one.
func (s *Snapshotter) create(layer string, table []dm.Target) (uint64, error) {
	var id [32]byte
	rand.Read(id[:])
	dev, err := dm.Create(s.name(layer), "LVM-"+hex.EncodeToString(id[:])+"-mover")
	if err != nil {
		return 0, err
	}
	if err := dm.Load(dev, table); err != nil {
		return dev, err
	}
	return dev, dm.Start(dev)
}

// Snap begins the instant that the view holds.
func (s *Snapshotter) Snap(ctx context.Context) error {
	if s.real == 0 || s.view == 0 {
		return refused(s.o, "it is not prepared")
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := dm.Table(s.o.Dev)
	if err != nil {
		return err
	}
	in, err := dm.Look(s.o.Dev)
	if err != nil {
		return err
	}
	if !same(now, s.own) || in.Inactive || in.Suspended {
		return refused(s.o, "an LVM command changed the volume since the snapshot was prepared")
	}
	// Not loaded before: the resume of any LVM command would make it active.
	if err := dm.Load(s.o.Dev, s.originTable()); err != nil {
		return err
	}
	if err := dm.Swap(s.o.Dev); err != nil {
		return errors.Join(err, s.restore())
	}
	if err := s.holds(); err != nil {
		return err
	}
	s.mu.Lock()
	s.snapped = true
	s.mu.Unlock()
	return nil
}

// holds tells whether the volume's writes still go past the view's store, and the store has held all old content.
func (s *Snapshotter) holds() error {
	table, err := dm.Table(s.o.Dev)
	if err != nil {
		return err
	}
	if !same(table, s.originTable()) {
		return refused(s.o, "the volume's table was changed while the view was read (an LVM command?), so that the view is not of one instant")
	}
	status, err := dm.Status(s.view)
	if err != nil {
		return err
	}
	return s.judge(status)
}

// judge reads the status of the view: "USED/TOTAL META" in sectors, or a word.
func (s *Snapshotter) judge(status []dm.Target) error {
	if len(status) != 1 || status[0].Type != "snapshot" {
		return refused(s.o, "the view is no snapshot any more")
	}
	var used, total, meta int64
	if n, err := fmt.Sscanf(status[0].Params, "%d/%d %d", &used, &total, &meta); n == 3 && err == nil {
		return nil
	}
	return refused(s.o, "the store for old content overflowed (%s): more was written while the view was read than it holds; leave more space free in volume group %s",
		status[0].Params, s.vg)
}

// Volume gives the view.
func (s *Snapshotter) Volume() (blockdev.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.snapped {
		return nil, refused(s.o, "no view was made")
	}
	if s.volume != nil {
		return s.volume, nil
	}
	v, err := s.o.Open(node(s.view))
	if err != nil {
		return nil, err
	}
	if v.Size() != s.o.Size {
		return nil, errors.Join(refused(s.o, "the view has %d bytes, the volume %d", v.Size(), s.o.Size), v.Close())
	}
	s.volume = &view{Volume: v, s: s}
	return s.volume, nil
}

// node is the kernel's own path of a mapped device, which needs no udev.
func node(dev uint64) string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)) }

// view reads like the volume that it is of.
type view struct {
	blockdev.Volume
	s *Snapshotter
}

func (v *view) Identity() string { return v.s.o.ID }
func (v *view) Check() error     { return errors.Join(v.s.holds(), v.Volume.Check()) }

// ReadAt: what an overflowed view cannot give is no bad place on a medium that may be skipped.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.Volume.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		if why := v.s.holds(); why != nil {
			return 0, why
		}
	}
	return n, err
}

// exists tells whether the device mapper has been used at all since the boot.
func exists() bool {
	_, err := os.Stat("/dev/mapper/control")
	return err == nil
}
