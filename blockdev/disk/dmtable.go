package disk

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

// The device mapper's ioctl: struct dm_ioctl of 312 bytes, then one struct dm_target_spec of 40 bytes and a C string for each target.
// Integers are the machine's own.
//
//	dm_ioctl        0 version [3]u32, 12 data size u32, 16 data start u32, 20 targets u32, 28 flags u32, 40 dev u64, 48 name, 176 uuid
//	dm_target_spec  0 start sector u64, 8 sectors u64, 16 status i32, 20 next u32 (from the first spec on), 24 type [16], 40 parameters
const (
	dmHeader     = 312
	dmSpec       = 40
	dmFlagTable  = 1 << 4 // STATUS_TABLE: the table, not the status
	dmFlagActive = 1 << 5 // ACTIVE_PRESENT: a table is loaded
	dmFlagFull   = 1 << 8 // BUFFER_FULL: ask again with more room
	dmMaxReply   = 64 << 20
)

// dmTarget is one line of a device-mapper table; bytes on the mapped device. Params of a crypt target hold its key: never print them.
type dmTarget struct {
	Off, Len int64
	Type     string
	Params   string
}

// dmTable asks the kernel for the active table of dev.
func dmTable(dev uint64) ([]dmTarget, error) {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("ask for a device-mapper table: %w", err)
	}
	defer f.Close()
	for size := 16 << 10; size <= dmMaxReply; size *= 4 {
		b := dmRequest(dev, size)
		_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(&b[0])))
		if e == unix.ENXIO {
			return nil, fmt.Errorf("device mapper device %s is gone: %w", devNo(dev), sentinel.ErrNotFound)
		}
		if e != 0 {
			return nil, fmt.Errorf("ask for the device-mapper table of %s: %w", devNo(dev), e)
		}
		table, err := dmParse(b)
		clear(b) // keys
		runtime.KeepAlive(b)
		if !errors.Is(err, errDMFull) {
			return table, err
		}
	}
	return nil, fmt.Errorf("the device-mapper table of %s is over %d bytes: %w", devNo(dev), dmMaxReply, sentinel.ErrNotSupported)
}

func dmRequest(dev uint64, size int) []byte {
	b := make([]byte, size)
	o := binary.NativeEndian
	o.PutUint32(b[0:], 4)
	o.PutUint32(b[12:], uint32(size))
	o.PutUint32(b[16:], dmHeader)
	o.PutUint32(b[28:], dmFlagTable)
	major, minor := uint64(unix.Major(dev)), uint64(unix.Minor(dev))
	o.PutUint64(b[40:], minor&0xff|major<<8|minor&^0xff<<12) // the kernel's own encoding
	return b
}

var (
	errDMFull = errors.New("reply does not fit")
	errDMForm = errors.New("malformed reply of the device mapper")
)

// dmParse reads the reply to a DM_TABLE_STATUS.
func dmParse(b []byte) ([]dmTarget, error) {
	if len(b) < dmHeader {
		return nil, errDMForm
	}
	o := binary.NativeEndian
	flags, n, start := o.Uint32(b[28:]), o.Uint32(b[20:]), o.Uint32(b[16:])
	if flags&dmFlagFull != 0 {
		return nil, errDMFull
	}
	if flags&dmFlagActive == 0 {
		return nil, fmt.Errorf("no device-mapper table is active: %w", sentinel.ErrNotSupported)
	}
	if uint64(start) > uint64(len(b)) {
		return nil, errDMForm
	}
	specs := b[start:]
	var out []dmTarget
	at := uint64(0)
	for range n {
		if at+dmSpec > uint64(len(specs)) {
			return nil, errDMForm
		}
		s := specs[at:]
		params := s[dmSpec:]
		end := bytes.IndexByte(params, 0)
		off, length := o.Uint64(s[0:]), o.Uint64(s[8:])
		if end < 0 || off > 1<<54 || length > 1<<54 {
			return nil, errDMForm
		}
		out = append(out, dmTarget{int64(off) * sector, int64(length) * sector, unix.ByteSliceToString(s[24:40]), string(params[:end])})
		next := uint64(o.Uint32(s[20:]))
		if next <= at && len(out) < int(n) {
			return nil, errDMForm
		}
		at = next
	}
	return out, nil
}
