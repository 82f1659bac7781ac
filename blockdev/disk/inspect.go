package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// Found is what lives on a would-be target.
type Found struct {
	Path       string
	Kind       string // Disk, Partition, ..., File
	Size       int64  // bytes
	Identity   string
	Blank      bool        // the first and last 4 MiB and samples between are zero
	Signatures []Signature // of filesystems, partition tables, volume managers, encryption
	Users      []string    // who uses it now; a target with users is refused
}

// String is one line for a person who has to decide whether it may be overwritten.
func (f Found) String() string {
	what := "blank"
	if len(f.Signatures) > 0 {
		var names []string
		for _, s := range f.Signatures {
			names = append(names, s.String())
		}
		what = "holds " + strings.Join(names, ", ")
	} else if !f.Blank {
		what = "holds data of an unknown kind"
	}
	if len(f.Users) > 0 {
		what += "; in use: " + strings.Join(f.Users, "; ")
	}
	return fmt.Sprintf("%s: %s of %d bytes, %s: %s", f.Path, f.Kind, f.Size, f.Identity, what)
}

const (
	inspectEnds    = 4 << 20
	inspectSamples = 256
	inspectSample  = 64 << 10
)

// Inspect looks at a block device or an image file without changing or claiming it.
func Inspect(path string) (Found, error) {
	h, err := open(path, os.O_RDONLY, false)
	if err != nil {
		return Found{}, err
	}
	defer h.close()
	f := Found{Path: path, Kind: h.kind, Size: h.size, Identity: withSize(h.id, h.size)}
	if h.dev != 0 {
		f.Users, err = live.deviceUsers(h.dev)
	} else {
		f.Users, err = live.fileUsers(&unix.Stat_t{Dev: h.ino[0], Ino: h.ino[1]})
	}
	if err != nil {
		return f, err
	}
	if f.Blank, err = h.blank(); err != nil {
		return f, err
	}
	f.Signatures = scan(readerAt(h.readAt), h.size)
	return f, nil
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// blank reads both ends and samples of what lies between.
func (h *handle) blank() (bool, error) {
	buf := alignedBuffer(inspectEnds + memUnit)
	zero := func(off, n int64) (bool, error) {
		n = min(n, h.size-off)
		if n <= 0 {
			return true, nil
		}
		if _, err := h.readAt(buf[:n], off); err != nil {
			return false, err
		}
		return len(bytes.TrimLeft(buf[:n], "\x00")) == 0, nil
	}
	if ok, err := zero(0, inspectEnds); !ok || err != nil {
		return false, err
	}
	if ok, err := zero(max(0, h.size-inspectEnds)/memUnit*memUnit, inspectEnds+memUnit); !ok || err != nil {
		return false, err
	}
	step := h.size / inspectSamples / memUnit * memUnit
	for i := range int64(inspectSamples) {
		if ok, err := zero(i*step, inspectSample); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// SetReadOnly sets or takes away the write protection of a block device. It holds until the device goes, for every user of the device;
// what a mounted filesystem has cached is not written by it, so freeze or unmount first.
func SetReadOnly(path string, ro bool) error {
	f, err := openNode(path)
	if err != nil {
		return err
	}
	defer f.Close()
	v := 0
	if ro {
		v = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, v); err != nil {
		return fmt.Errorf("set the write protection of %s: %w", path, err)
	}
	now, err := IsReadOnly(path)
	if err == nil && now != ro {
		err = fmt.Errorf("the driver of %s keeps its write protection at %v: %w", path, now, sentinel.ErrNotSupported)
	}
	return err
}

// IsReadOnly tells whether a block device is write protected.
func IsReadOnly(path string) (bool, error) {
	f, err := openNode(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	v, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	if err != nil {
		return false, fmt.Errorf("ask %s for its write protection: %w", path, err)
	}
	return v != 0, nil
}

func openNode(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(path, err)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !isDevice(st) {
		err = fmt.Errorf("%s is no block device and has no write protection of its own: %w", path, sentinel.ErrNotSupported)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
