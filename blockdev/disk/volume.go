package disk

import (
	"errors"
	"fmt"
	"os"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/sentinel"
)

// Volume is a block device or an image file that is read.
type Volume struct {
	h   *handle
	m   extent.Map
	why error
}

var _ blockdev.Volume = (*Volume)(nil)

// OpenVolume opens a block device or an image file for reading.
func OpenVolume(path string) (*Volume, error) {
	h, err := open(path, os.O_RDONLY, false)
	if err != nil {
		return nil, err
	}
	v := &Volume{h: h}
	if h.dev == 0 {
		v.why = fmt.Errorf("%s is an image file, no disk: %w", path, sentinel.ErrNotSupported)
	} else {
		v.m, v.why = Resolve(h.dev)
	}
	if v.why != nil && !errors.Is(v.why, sentinel.ErrNotSupported) {
		return nil, errors.Join(v.why, h.close())
	}
	return v, nil
}

// ReadAt reads from any offset into any memory; what is aligned to BlockSize and 4096-byte memory costs no copy. An *IOError names the
// bytes that could not be read; those before it are in p.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) { return v.h.readAt(p, off) }

// Size is in bytes; of a device, those that whole logical blocks hold.
func (v *Volume) Size() int64      { return v.h.size }
func (v *Volume) BlockSize() int   { return int(min(v.h.align, memUnit)) }
func (v *Volume) Identity() string { return withSize(v.h.id, v.h.size) }
func (v *Volume) Path() string     { return v.h.path }

// Kind is one of the constants Disk, Partition, ...
func (v *Volume) Kind() string { return v.h.kind }

// Device is the device number; 0 for an image file.
func (v *Volume) Device() uint64 { return v.h.dev }

// Map is the volume on its leaf disks; nil when it has no fixed map, then Unmapped says why.
func (v *Volume) Map() extent.Map { return v.m }

// Unmapped says why there is no map (ErrNotSupported); nil when there is one.
func (v *Volume) Unmapped() error { return v.why }

// Check tells a volume that is not what was opened any more: resized, or unplugged and back (ErrTrackLost), another device or file under
// the name, or another map to the disks below (ErrRefused, ErrTrackLost), gone (ErrNotFound).
func (v *Volume) Check() error {
	if err := v.h.check(); err != nil || v.h.dev == 0 {
		return err
	}
	m, err := Resolve(v.h.dev)
	if err != nil && !errors.Is(err, sentinel.ErrNotSupported) {
		return err
	}
	if !sameMap(m, v.m) {
		return fmt.Errorf("%s lies on other disks or places than when it was opened: %w", v.h.path, sentinel.ErrTrackLost)
	}
	return nil
}

func sameMap(a, b extent.Map) bool {
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

// Close is idempotent.
func (v *Volume) Close() error { return v.h.close() }
