package dm

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// reply turns what is loaded into what the kernel would tell of it: next counts from the first spec.
func reply(table ...Target) []byte {
	b := loadRequest(0, table)
	o := binary.NativeEndian
	o.PutUint32(b[28:], unix.DM_STATUS_TABLE_FLAG|unix.DM_ACTIVE_PRESENT_FLAG)
	for at := header; at < len(b); {
		n := int(o.Uint32(b[at+20:]))
		o.PutUint32(b[at+20:], uint32(at+n-header))
		at += n
	}
	return append(b, make([]byte, 64)...)
}

func TestRequest(t *testing.T) {
	dev := unix.Mkdev(253, 0x12345)
	b := request(dev, 16384, 0)
	if got := binary.NativeEndian.Uint64(b[40:]); got != 0x12300000|253<<8|0x45 || userDev(got) != dev {
		t.Errorf("device number %#x", got)
	}
	table := []Target{{0, 1 << 20, "linear", "8:2 384"}, {1 << 20, 512, "striped", "2 128 8:0 0 8:16 0"}}
	got, err := Parse(reply(table...))
	if err != nil || !slices.Equal(got, table) {
		t.Errorf("%+v, %v", got, err)
	}
	full := reply(table...)
	binary.NativeEndian.PutUint32(full[28:], unix.DM_ACTIVE_PRESENT_FLAG|unix.DM_BUFFER_FULL_FLAG)
	if _, err := Parse(full); !errors.Is(err, errFull) {
		t.Errorf("a reply that did not fit: %v", err)
	}
	binary.NativeEndian.PutUint32(full[28:], unix.DM_STATUS_TABLE_FLAG)
	if _, err := Parse(full); !errors.Is(err, sentinel.ErrNotSupported) {
		t.Errorf("no active table: %v", err)
	}
}

func TestList(t *testing.T) {
	entry := func(dev uint64, next uint32, name string) []byte {
		b := make([]byte, 32)
		binary.NativeEndian.PutUint64(b, kernelDev(dev))
		binary.NativeEndian.PutUint32(b[8:], next)
		copy(b[12:], name)
		return b
	}
	b := append(request(0, header, 0), entry(unix.Mkdev(253, 0), 32, "vg-lv")...)
	b = append(b, entry(unix.Mkdev(253, 300), 0, "mover-snap")...)
	got, err := parseList(b)
	if err != nil || len(got) != 2 || got[0].Name != "vg-lv" || got[1] != (Device{Name: "mover-snap", Dev: unix.Mkdev(253, 300)}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseList(append(request(0, header, 0), make([]byte, 64)...)); err != nil || len(got) != 0 {
		t.Errorf("no devices: %+v, %v", got, err)
	}
	if _, err := parseList(append(request(0, header, 0), entry(unix.Mkdev(253, 0), 4, "a")...)); err == nil {
		t.Error("an entry that overlaps itself was taken")
	}
	long := "mover-snap-0123456789"
	for range 3 {
		long += long
	}
	if _, err := Create(long, ""); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("a name that is too long: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(reply(Target{0, 1 << 20, "linear", "8:2 384"}, Target{1 << 20, 5120, "crypt", "a b 0 8:2 1"}))
	f.Add(reply())
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if table, err := Parse(b); err != nil && table != nil {
			t.Error("a table and an error")
		}
		parseList(b)
	})
}
