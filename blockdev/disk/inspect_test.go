package disk

import (
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/internal/looptest"
)

// TestInspect: what real programs make is found with label and uuid.
func TestInspect(t *testing.T) {
	looptest.NeedRoot(t)
	uuid := "" // each filesystem has its own: btrfs refuses one that it has seen
	for _, c := range []struct {
		kind, want string
		make       func(dev string)
	}{
		{"ext2", "ext2", func(d string) { looptest.Mkfs(t, d, "ext2", "-L", "name", "-U", uuid) }},
		{"ext3", "ext3", func(d string) { looptest.Mkfs(t, d, "ext3", "-L", "name", "-U", uuid) }},
		{"ext4", "ext4", func(d string) { looptest.Mkfs(t, d, "ext4", "-L", "name", "-U", uuid) }},
		{"xfs", "xfs", func(d string) { looptest.Mkfs(t, d, "xfs", "-L", "name", "-m", "uuid="+uuid) }},
		{"btrfs", "btrfs", func(d string) { looptest.Mkfs(t, d, "btrfs", "-L", "name", "-U", uuid) }},
		{"swap", "swap", func(d string) { looptest.Mkfs(t, d, "swap", "-L", "name", "-U", uuid) }},
	} {
		uuid = strings.TrimSpace(looptest.Run(t, "cat", "/proc/sys/kernel/random/uuid"))
		l := looptest.New(t, 512<<20, looptest.Options{DirectIO: true})
		c.make(l.Dev)
		f, err := Inspect(l.Dev)
		if err != nil || f.Blank || f.Kind != Loop || f.Size != 512<<20 || len(f.Signatures) != 1 {
			t.Errorf("%s: %+v, %v", c.kind, f, err)
			continue
		}
		if s := f.Signatures[0]; s.Type != c.want || s.Label != "name" || s.UUID != uuid {
			t.Errorf("%s: %+v", c.kind, s)
		}
		if c.kind == "ext4" {
			dir := looptest.Mount(t, l.Dev)
			if f, err := Inspect(l.Dev); err != nil || len(f.Users) != 1 || !strings.Contains(f.String(), dir) {
				t.Errorf("mounted: %v, %v", f, err)
			}
		}
	}
}

// TestSignatures lays the marks out by hand, at the places that their formats give.
func TestSignatures(t *testing.T) {
	looptest.NeedRoot(t)
	const size = 2<<20 + 512
	at := func(off int, s string) map[int]string { return map[int]string{off: s} }
	le := func(off int, v uint64) map[int]string {
		return at(off, string(binary.LittleEndian.AppendUint64(nil, v)))
	}
	for _, c := range []struct {
		want  string
		parts []map[int]string
	}{
		{"LUKS 0a0b", []map[int]string{at(0, "LUKS\xba\xbe\x00\x02"), at(168, "0a0b")}},
		{"LVM2 abcdef-ghij-klmn-opqr-stuv-wxyz-012345", []map[int]string{at(512, "LABELONE"), at(536, "LVM2 001abcdefghijklmnopqrstuvwxyz012345")}},
		{"gpt 03020100-0504-0706-0809-0a0b0c0d0e0f", []map[int]string{at(512, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00"), at(568, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f")}},
		{"gpt 00000000-0000-0000-0000-000000000000", []map[int]string{at(size-512, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")}},
		{"mbr 12345678", []map[int]string{at(440, "\x78\x56\x34\x12"), at(446, "\x80\x00\x00\x00\x83\x00\x00\x00\x00\x08\x00\x00\x00\x10\x00\x00"), at(510, "\x55\xaa")}},
		{`md "host:0" 00010203-0405-0607-0809-0a0b0c0d0e0f`, []map[int]string{at(4096, mdMagic), at(4112, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0fhost:0")}},
		{"md 00000000-0000-0000-0000-000000000000", []map[int]string{at((size-8192)&^4095, mdMagic)}},
		{"md 00000000-0000-0000-0000-000000000000", []map[int]string{at(size&^65535-65536, mdMagic)}},
		{"zfs", []map[int]string{le(128<<10+4096, 0x00bab10c)}},
		{"ceph bluestore 0a0b", []map[int]string{at(0, "bluestore block device\n0a0b")}},
		{"bcache 00000000-0000-0000-0000-000000000000", []map[int]string{at(4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")}},
		{"qcow2", []map[int]string{at(0, "QFI\xfb")}},
		{"", nil},
		{"", []map[int]string{at(510, "\x55\xaa")}},                                   // a boot sector without partitions
		{"", []map[int]string{at(1080, "\x53\xef")}},                                  // two bytes alone are no ext2
		{"", []map[int]string{at(446, "\x17"), at(450, "\x83"), at(510, "\x55\xaa")}}, // no partition table
	} {
		b := make([]byte, size)
		for _, p := range c.parts {
			for off, s := range p {
				copy(b[off:], s)
			}
		}
		path := filepath.Join(looptest.Dir(t), "image")
		put(t, path, b)
		f, err := Inspect(path)
		if err != nil || f.Blank != (c.parts == nil) || f.Kind != File {
			t.Errorf("%q: %+v, %v", c.want, f, err)
		}
		var got []string
		for _, s := range f.Signatures {
			got = append(got, s.String())
		}
		if strings.Join(got, ";") != c.want {
			t.Errorf("found %q, want %q", got, c.want)
		}
	}
}

// TestBlank: one byte at either end, or data in the middle, is seen.
func TestBlank(t *testing.T) {
	looptest.NeedRoot(t)
	const size = 1<<30 + 777
	path := filepath.Join(looptest.Dir(t), "image")
	d := target(t, path, TargetOptions{Size: size, Create: true})
	for _, off := range []int64{-1, 0, 4<<20 - 1, size - 1, size - 4<<20, 300 << 20} {
		n := 1
		if off == 300<<20 {
			n = 16 << 20
		}
		p := make([]byte, n)
		for i := range p {
			p[i] = 1
		}
		if off >= 0 {
			if _, err := d.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		f, err := Inspect(path)
		if err != nil || f.Blank != (off < 0) {
			t.Errorf("%d bytes at %d: %v, %v", n, off, f, err)
		}
		clear(p)
		if off >= 0 {
			if _, err := d.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, path := range []string{"/dev/null", "/tmp"} {
		if f, err := Inspect(path); err == nil {
			t.Errorf("%+v", f)
		}
	}
}
