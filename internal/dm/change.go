package dm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// quiet tells udev's rules, in the upper half of an event's cookie, that a device is nobody's business: no links by label or UUID, no scan for
// volume groups. Its content is a copy of another device's, and must not be found in that one's place.
const quiet = (1 | // DM_UDEV_DISABLE_DM_RULES_FLAG
	1<<1 | // DISABLE_SUBSYSTEM_RULES
	1<<2 | // DISABLE_DISK_RULES
	1<<3 | // DISABLE_OTHER_RULES
	1<<5 | // DISABLE_LIBRARY_FALLBACK
	1<<6) << 16 // PRIMARY_SOURCE

// List gives all mapped devices, with Name and Dev only.
func List() ([]Device, error) {
	b, err := growing(unix.DM_LIST_DEVICES, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list mapped devices: %w", err)
	}
	return parseList(b)
}

func parseList(b []byte) ([]Device, error) {
	o := binary.NativeEndian
	if len(b) < header || uint64(o.Uint32(b[16:])) > uint64(len(b)) {
		return nil, errForm
	}
	list := b[o.Uint32(b[16:]):]
	var out []Device
	for len(list) >= 13 {
		dev, next := o.Uint64(list), o.Uint32(list[8:])
		if dev == 0 {
			break // none at all
		}
		out = append(out, Device{Name: unix.ByteSliceToString(list[12:min(len(list), 12+nameLen)]), Dev: userDev(dev)})
		if next == 0 {
			break
		}
		if next < 13 || uint64(next) > uint64(len(list)) {
			return nil, errForm
		}
		list = list[next:]
	}
	return out, nil
}

// Find gives the device of that name. ErrNotFound: there is none.
func Find(name string) (Device, error) {
	b := request(0, header, 0)
	copy(b[48:48+nameLen-1], name)
	if err := ioctl(unix.DM_DEV_STATUS, b); err != nil {
		return Device{}, fmt.Errorf("mapped device %s: %w", name, err)
	}
	return device(b), nil
}

// Look tells how a device stands.
func Look(dev uint64) (Device, error) {
	b := request(dev, header, 0)
	if err := ioctl(unix.DM_DEV_STATUS, b); err != nil {
		return Device{}, fmt.Errorf("mapped device %s: %w", number(dev), err)
	}
	return device(b), nil
}

func device(b []byte) Device {
	o := binary.NativeEndian
	flags := o.Uint32(b[28:])
	return Device{
		Name: unix.ByteSliceToString(b[48 : 48+nameLen]), UUID: unix.ByteSliceToString(b[176 : 176+uuidLen]), Dev: userDev(o.Uint64(b[40:])), Open: int(int32(o.Uint32(b[24:]))),
		Suspended: flags&unix.DM_SUSPEND_FLAG != 0, Active: flags&unix.DM_ACTIVE_PRESENT_FLAG != 0, Inactive: flags&unix.DM_INACTIVE_PRESENT_FLAG != 0,
	}
}

// Create makes a device without a table. ErrRefused: the name or the uuid is taken.
func Create(name, uuid string) (dev uint64, err error) {
	if len(name) >= nameLen || len(uuid) >= uuidLen {
		return 0, fmt.Errorf("mapped device %s: name or uuid is too long: %w", name, sentinel.ErrUsage)
	}
	b := request(0, header, 0)
	copy(b[48:], name)
	copy(b[176:], uuid)
	if err := ioctl(unix.DM_DEV_CREATE, b); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", err, sentinel.ErrRefused)
		}
		return 0, fmt.Errorf("make mapped device %s: %w", name, err)
	}
	return device(b).Dev, nil
}

// Load gives dev a table that the next Resume makes active.
func Load(dev uint64, table []Target) error {
	if err := ioctl(unix.DM_TABLE_LOAD, loadRequest(dev, table)); err != nil {
		return fmt.Errorf("load a table into mapped device %s: %w", number(dev), err)
	}
	return nil
}

func loadRequest(dev uint64, table []Target) []byte {
	b := request(dev, header, 0)
	o := binary.NativeEndian
	for _, t := range table {
		s := make([]byte, (spec+len(t.Params)+1+7)/8*8)
		o.PutUint64(s[0:], uint64(t.Off/sector))
		o.PutUint64(s[8:], uint64(t.Len/sector))
		o.PutUint32(s[20:], uint32(len(s)))
		copy(s[24:39], t.Type)
		copy(s[spec:], t.Params)
		b = append(b, s...)
	}
	o.PutUint32(b[12:], uint32(len(b)))
	o.PutUint32(b[20:], uint32(len(table)))
	return b
}

// Start makes the loaded table of a new device active, unseen by udev's rules.
func Start(dev uint64) error { return resume(dev, quiet) }

// Swap makes the loaded table active in one call: the kernel waits for the I/O under way, holds back new one, swaps, and goes on. A filesystem
// on the device is not asked to freeze: it is frozen already, or it does not matter. Killing this process does not cut it in two.
func Swap(dev uint64) error { return resume(dev, 0) }

// Resume without a loaded table lets a suspended device go on with its own.
func resume(dev uint64, cookie uint32) error {
	b := request(dev, header, unix.DM_SKIP_LOCKFS_FLAG)
	binary.NativeEndian.PutUint32(b[32:], cookie)
	if err := ioctl(unix.DM_DEV_SUSPEND, b); err != nil {
		return fmt.Errorf("resume mapped device %s: %w", number(dev), err)
	}
	return nil
}

// Clear forgets a loaded table.
func Clear(dev uint64) error {
	if err := ioctl(unix.DM_TABLE_CLEAR, request(dev, header, 0)); err != nil {
		return fmt.Errorf("clear the loaded table of mapped device %s: %w", number(dev), err)
	}
	return nil
}

// Remove takes a device away. EBUSY: somebody has it open.
func Remove(dev uint64) error {
	b := request(dev, header, 0)
	binary.NativeEndian.PutUint32(b[32:], quiet)
	if err := ioctl(unix.DM_DEV_REMOVE, b); err != nil {
		return fmt.Errorf("remove mapped device %s: %w", number(dev), err)
	}
	return nil
}
