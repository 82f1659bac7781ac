package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// Signature is the mark of something that lives, or lived, on a device.
type Signature struct {
	Type  string // "ext4", "xfs", "LVM2", "LUKS", "md", "gpt", ...
	Off   int64  // of the magic, bytes; negative never
	Label string
	UUID  string
}

func (s Signature) String() string {
	out := s.Type
	if s.Label != "" {
		out += fmt.Sprintf(" %q", s.Label)
	}
	if s.UUID != "" {
		out += " " + s.UUID
	}
	return out
}

// magic is one place where one kind of content has its mark. Offsets of label and uuid count from the mark.
type magic struct {
	kind  string
	off   int64 // negative: from the end of the device
	bytes string
	label [2]int // offset and length of text
	uuid  int    // offset of 16 bytes; 0: none
	text  [2]int // offset and length of a uuid in text
	more  func(s *Signature, at func(off int64, n int) []byte) bool
}

var magics = func() []magic {
	m := []magic{
		{kind: "ext2", off: 1080, bytes: "\x53\xef", uuid: 48, label: [2]int{64, 16}, more: extKind},
		{kind: "xfs", off: 0, bytes: "XFSB", uuid: 32, label: [2]int{108, 12}},
		{kind: "btrfs", off: 64<<10 + 64, bytes: "_BHRfS_M", uuid: -32, label: [2]int{235, 256}},
		{kind: "LUKS", off: 0, bytes: "LUKS\xba\xbe", text: [2]int{168, 40}},
		{kind: "gpt", off: 512, bytes: "EFI PART", more: gptGUID},
		{kind: "gpt", off: 4096, bytes: "EFI PART", more: gptGUID},
		{kind: "gpt", off: -512, bytes: "EFI PART", more: gptGUID},
		{kind: "gpt", off: -4096, bytes: "EFI PART", more: gptGUID},
		{kind: "mbr", off: 510, bytes: "\x55\xaa", more: mbrTable},
		{kind: "ntfs", off: 3, bytes: "NTFS    "},
		{kind: "exfat", off: 3, bytes: "EXFAT   "},
		{kind: "vfat", off: 54, bytes: "FAT1"},
		{kind: "vfat", off: 82, bytes: "FAT32   "},
		{kind: "iso9660", off: 32769, bytes: "CD001"},
		{kind: "f2fs", off: 1024, bytes: "\x10\x20\xf5\xf2"},
		{kind: "squashfs", off: 0, bytes: "hsqs"},
		{kind: "qcow2", off: 0, bytes: "QFI\xfb"},
		{kind: "bcache", off: 4096 + 24, bytes: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", uuid: 16},
		{kind: "ceph bluestore", off: 0, bytes: "bluestore block device\n", text: [2]int{23, 36}},
		{kind: "zfs", off: 128 << 10, more: zfsUberblocks},
		{kind: "md", off: 0, bytes: mdMagic, uuid: 16, label: [2]int{32, 32}},
		{kind: "md", off: 4096, bytes: mdMagic, uuid: 16, label: [2]int{32, 32}},
		{kind: "md", off: -8 << 10, bytes: mdMagic, uuid: 16, label: [2]int{32, 32}}, // version 1.0, ends in the last 8 KiB
		{kind: "md", off: -64 << 10, bytes: mdMagic, more: md90},                     // version 0.90, in the last whole 64 KiB
	}
	for _, page := range []int64{4096, 16 << 10, 64 << 10} {
		m = append(m, magic{kind: "swap", off: page - 10, bytes: "SWAPSPACE2", more: swapNames(page)})
	}
	for i := range int64(4) {
		m = append(m, magic{kind: "LVM2", off: i * 512, bytes: "LABELONE", more: lvmUUID})
	}
	return m
}()

const mdMagic = "\xfc\x4e\x2b\xa9"

// scan finds what signatures r has; parts that cannot be read have none. Each kind with its uuid is named once.
func scan(r io.ReaderAt, size int64) []Signature {
	at := func(off int64, n int) []byte {
		b := make([]byte, n)
		if off < 0 || off+int64(n) > size {
			return b
		}
		if _, err := r.ReadAt(b, off); err != nil && err != io.EOF {
			return make([]byte, n)
		}
		return b
	}
	var out []Signature
	seen := map[Signature]bool{}
	for _, m := range magics {
		off := m.place(size)
		if off < 0 || m.bytes != string(at(off, len(m.bytes))) {
			continue
		}
		s := Signature{Type: m.kind}
		if m.uuid != 0 {
			s.UUID = uuidText(at(off+int64(m.uuid), 16))
		}
		if m.text[1] != 0 {
			s.UUID = text(at(off+int64(m.text[0]), m.text[1]))
		}
		if m.label[1] != 0 {
			s.Label = text(at(off+int64(m.label[0]), m.label[1]))
		}
		rel := func(o int64, n int) []byte { return at(off+o, n) }
		if m.more != nil && !m.more(&s, rel) {
			continue
		}
		if !seen[s] {
			seen[s] = true
			s.Off = off
			out = append(out, s)
		}
	}
	return out
}

// place is the magic's offset on a device of size bytes.
func (m magic) place(size int64) int64 {
	switch {
	case m.off >= 0:
		return m.off
	case m.off == -8<<10:
		return (size - 8<<10) &^ 4095
	case m.off == -64<<10:
		return size&^(64<<10-1) - 64<<10
	}
	return size + m.off
}

// text is what stands before the first NUL, unless it is no printable text.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	s := strings.TrimSpace(string(b))
	for _, r := range s {
		if r < ' ' || r == '\ufffd' || r == 0x7f {
			return ""
		}
	}
	return s
}

func uuidText(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// extKind tells ext2, 3 and 4 by their features, as the kernel would mount them.
func extKind(s *Signature, at func(int64, int) []byte) bool {
	o := binary.LittleEndian
	f := at(36, 12) // compatible, incompatible, read-only compatible
	const journal, journalDevice, extents, bit64, flexBG = 0x4, 0x8, 0x40, 0x80, 0x200
	incompat := o.Uint32(f[4:])
	switch {
	case incompat&journalDevice != 0:
		s.Type = "ext4 journal"
	case incompat&(extents|bit64|flexBG) != 0:
		s.Type = "ext4"
	case o.Uint32(f)&journal != 0:
		s.Type = "ext3"
	}
	return o.Uint32(at(-52, 4)) != 0 // blocks; two bytes of magic alone are weak
}

func gptGUID(s *Signature, at func(int64, int) []byte) bool {
	g := at(56, 16)
	o := binary.LittleEndian
	s.UUID = fmt.Sprintf("%08x-%04x-%04x-%x-%x", o.Uint32(g), o.Uint16(g[4:]), o.Uint16(g[6:]), g[8:10], g[10:16])
	return o.Uint32(at(12, 4)) >= 92 // bytes of the header
}

// mbrTable wants one entry that is in use, and flags that are valid: boot sectors of filesystems end in the same two bytes.
func mbrTable(s *Signature, at func(int64, int) []byte) bool {
	used := false
	for i := range int64(4) {
		e := at(-64+16*i, 16)
		if e[0] != 0 && e[0] != 0x80 {
			return false
		}
		used = used || e[4] != 0 && binary.LittleEndian.Uint32(e[12:]) != 0
	}
	s.UUID = fmt.Sprintf("%08x", binary.LittleEndian.Uint32(at(440-510, 4)))
	return used
}

// swapNames: the header begins at byte 1024, its mark ends the first page.
func swapNames(page int64) func(*Signature, func(int64, int) []byte) bool {
	return func(s *Signature, at func(int64, int) []byte) bool {
		header := 1024 - (page - 10)
		if binary.LittleEndian.Uint32(at(header, 4)) == 1 {
			s.UUID, s.Label = uuidText(at(header+12, 16)), text(at(header+28, 16))
		}
		return true
	}
}

func lvmUUID(s *Signature, at func(int64, int) []byte) bool {
	u := string(at(32, 32))
	s.UUID = strings.Join([]string{u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:]}, "-")
	return string(at(24, 8)) == "LVM2 001"
}

// zfsUberblocks looks through the ring of the first label.
func zfsUberblocks(s *Signature, at func(int64, int) []byte) bool {
	ring := at(0, 128<<10)
	for i := 0; i < len(ring); i += 1024 {
		if m := ring[i : i+8]; binary.LittleEndian.Uint64(m) == 0x00bab10c || binary.BigEndian.Uint64(m) == 0x00bab10c {
			return true
		}
	}
	return false
}

func md90(s *Signature, at func(int64, int) []byte) bool {
	a, b := at(20, 4), at(52, 12)
	s.UUID = uuidText(append(a, b...))
	return true
}
