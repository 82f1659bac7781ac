// Package dm speaks the device mapper's ioctls: tables are read, loaded, swapped. It knows nothing of LVM.
package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// A call is a struct dm_ioctl of 312 bytes, then what the call takes or gives: for tables one struct dm_target_spec of 40 bytes and a C string
// for each target. Integers are the machine's own.
//
//	dm_ioctl        0 version [3]u32, 12 data size u32, 16 data start u32, 20 targets u32, 24 open count i32, 28 flags u32, 32 event u32, 40 dev u64,
//	                48 name [128], 176 uuid [129]
//	dm_target_spec  0 start sector u64, 8 sectors u64, 16 status i32, 20 next u32, 24 type [16], 40 parameters
//	dm_name_list    0 dev u64, 8 next u32, 12 name
//
// next counts from the first spec on in what the kernel gives, from its own spec on in what it is given.
const (
	header   = 312
	spec     = 40
	sector   = 512
	maxReply = 64 << 20
	nameLen  = 128
	uuidLen  = 129
)

// Target is one line of a table; Off and Len are bytes on the mapped device. Params of a crypt target hold its key: never print them.
type Target struct {
	Off, Len int64
	Type     string
	Params   string
}

// Device is what the kernel tells of a mapped device.
type Device struct {
	Name, UUID string
	Dev        uint64
	Open       int  // holders
	Suspended  bool // all I/O waits
	Active     bool // has an active table
	Inactive   bool // a table is loaded that the next resume makes active
}

var (
	errFull = errors.New("reply does not fit")
	errForm = errors.New("malformed reply of the device mapper")
)

// Table gives the active table of dev.
func Table(dev uint64) ([]Target, error) {
	return table(dev, unix.DM_STATUS_TABLE_FLAG)
}

// Loaded gives the table of dev that the next resume would make active.
func Loaded(dev uint64) ([]Target, error) {
	return table(dev, unix.DM_STATUS_TABLE_FLAG|unix.DM_QUERY_INACTIVE_TABLE_FLAG)
}

// Status gives what the targets of dev say of themselves, in Params.
func Status(dev uint64) ([]Target, error) { return table(dev, unix.DM_NOFLUSH_FLAG) }

func table(dev uint64, flags uint32) ([]Target, error) {
	b, err := growing(unix.DM_TABLE_STATUS, dev, flags)
	if err != nil {
		return nil, fmt.Errorf("ask for the device-mapper table of %s: %w", number(dev), err)
	}
	out, err := Parse(b)
	clear(b) // keys
	runtime.KeepAlive(b)
	return out, err
}

// growing repeats a call with more room until its reply fits.
func growing(call uintptr, dev uint64, flags uint32) ([]byte, error) {
	for size := 16 << 10; size <= maxReply; size *= 4 {
		b := request(dev, size, flags)
		if err := ioctl(call, b); err != nil {
			return nil, err
		}
		if binary.NativeEndian.Uint32(b[28:])&unix.DM_BUFFER_FULL_FLAG == 0 {
			return b, nil
		}
		clear(b)
	}
	return nil, fmt.Errorf("the reply is over %d bytes: %w", maxReply, sentinel.ErrNotSupported)
}

// ioctl: ENXIO is a device that is gone.
func ioctl(call uintptr, b []byte) error {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), call, uintptr(unsafe.Pointer(&b[0])))
		switch e {
		case 0:
			return nil
		case unix.EINTR: // a signal to this thread, of Go's own scheduler too
		case unix.ENXIO:
			return fmt.Errorf("no such mapped device: %w", sentinel.ErrNotFound)
		default:
			return e
		}
	}
}

func number(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// request is a header with room for size bytes in all.
func request(dev uint64, size int, flags uint32) []byte {
	b := make([]byte, size)
	o := binary.NativeEndian
	o.PutUint32(b[0:], 4)
	o.PutUint32(b[12:], uint32(size))
	o.PutUint32(b[16:], header)
	o.PutUint32(b[28:], flags)
	o.PutUint64(b[40:], kernelDev(dev))
	return b
}

// kernelDev is the kernel's own encoding of a device number.
func kernelDev(dev uint64) uint64 {
	major, minor := uint64(unix.Major(dev)), uint64(unix.Minor(dev))
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func userDev(d uint64) uint64 {
	return unix.Mkdev(uint32(d>>8&0xfff), uint32(d&0xff|d>>12&0xfff00))
}

// Parse reads the reply to a call for a table.
func Parse(b []byte) ([]Target, error) {
	if len(b) < header {
		return nil, errForm
	}
	o := binary.NativeEndian
	flags, n, start := o.Uint32(b[28:]), o.Uint32(b[20:]), o.Uint32(b[16:])
	if flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return nil, errFull
	}
	if flags&(unix.DM_ACTIVE_PRESENT_FLAG|unix.DM_QUERY_INACTIVE_TABLE_FLAG) == 0 {
		return nil, fmt.Errorf("no device-mapper table is active: %w", sentinel.ErrNotSupported)
	}
	if uint64(start) > uint64(len(b)) {
		return nil, errForm
	}
	specs := b[start:]
	var out []Target
	at := uint64(0)
	for range n {
		if at+spec > uint64(len(specs)) {
			return nil, errForm
		}
		s := specs[at:]
		params := s[spec:]
		end := bytes.IndexByte(params, 0)
		off, length := o.Uint64(s[0:]), o.Uint64(s[8:])
		if end < 0 || off > 1<<54 || length > 1<<54 {
			return nil, errForm
		}
		out = append(out, Target{int64(off) * sector, int64(length) * sector, unix.ByteSliceToString(s[24:40]), string(params[:end])})
		next := uint64(o.Uint32(s[20:]))
		if next <= at && len(out) < int(n) {
			return nil, errForm
		}
		at = next
	}
	return out, nil
}
