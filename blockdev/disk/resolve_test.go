package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/sentinel"
)

// fakeSys is a tree like /sys, with device-mapper tables beside it.
type fakeSys struct {
	*system
	t      *testing.T
	tables map[uint64][]byte // replies of the ioctl
}

func newFake(t *testing.T) *fakeSys {
	f := &fakeSys{t: t, tables: map[uint64][]byte{}}
	f.system = &system{root: t.TempDir(), table: func(dev uint64) ([]dm.Target, error) {
		b, ok := f.tables[dev]
		if !ok {
			return nil, fmt.Errorf("no table of %s: %w", devNo(dev), sentinel.ErrNotFound)
		}
		return dm.Parse(b)
	}}
	return f
}

// add makes a block device in folder path (below devices) with attributes; "mq/" makes a folder.
func (f *fakeSys) add(path, no string, size int64, attrs ...string) uint64 {
	f.t.Helper()
	dir := filepath.Join(f.root, "devices", path)
	put := func(name, value string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			f.t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			os.MkdirAll(p, 0o700)
			return
		}
		if err := os.WriteFile(p, []byte(value+"\n"), 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	put("dev", no)
	put("size", fmt.Sprint(size/sector))
	for _, a := range attrs {
		k, v, _ := strings.Cut(a, "=")
		put(k, v)
	}
	links := filepath.Join(f.root, "dev/block")
	os.MkdirAll(links, 0o700)
	if err := os.Symlink(dir, filepath.Join(links, no)); err != nil {
		f.t.Fatal(err)
	}
	dev, err := parseDev(no)
	if err != nil {
		f.t.Fatal(err)
	}
	return dev
}

func (f *fakeSys) link(path, name, to string) {
	p := filepath.Join(f.root, "devices", path, name)
	os.MkdirAll(filepath.Dir(p), 0o700)
	if err := os.Symlink(filepath.Join(f.root, "devices", to), p); err != nil {
		f.t.Fatal(err)
	}
}

// dm adds a mapped device with a table as the kernel replies it.
func (f *fakeSys) dm(no string, uuid string, lines ...string) uint64 {
	size := int64(0)
	for _, l := range lines {
		var off, n int64
		fmt.Sscan(l, &off, &n)
		size = max(size, (off+n)*sector)
	}
	minor := strings.TrimPrefix(no, "253:")
	dev := f.add("virtual/block/dm-"+minor, no, size, "dm/uuid="+uuid, "dm/name=name"+minor)
	f.tables[dev] = dmReply(lines...)
	return dev
}

// dmReply lays lines like "0 2048 linear 8:2 384" out as DM_TABLE_STATUS does: specs aligned to 8 bytes, next counted from the first.
func dmReply(lines ...string) []byte {
	o := binary.NativeEndian
	const dmHeader, dmSpec = 312, 40
	b := make([]byte, dmHeader)
	o.PutUint32(b[0:], 4)
	o.PutUint32(b[16:], dmHeader)
	o.PutUint32(b[20:], uint32(len(lines)))
	o.PutUint32(b[28:], unix.DM_STATUS_TABLE_FLAG|unix.DM_ACTIVE_PRESENT_FLAG)
	for _, l := range lines {
		w := strings.SplitN(l, " ", 4)
		var off, n uint64
		fmt.Sscan(w[0], &off)
		fmt.Sscan(w[1], &n)
		spec := make([]byte, dmSpec)
		o.PutUint64(spec[0:], off)
		o.PutUint64(spec[8:], n)
		copy(spec[24:], w[2])
		spec = append(append(spec, w[3]...), 0)
		for len(spec)%8 != 0 {
			spec = append(spec, 0)
		}
		o.PutUint32(spec[20:], uint32(len(b)-dmHeader+len(spec)))
		b = append(b, spec...)
	}
	o.PutUint32(b[12:], uint32(len(b)))
	return append(b, make([]byte, 64)...)
}

const gib = 1 << 30

// TestSnapshotOrigin: a volume keeps its map while a snapshot is attached to it, or tracking would end at every one.
func TestSnapshotOrigin(t *testing.T) {
	f := newFake(t)
	f.disks()
	lines := []string{"0 2048 linear 8:2 384", "2048 4096 linear 8:16 2048"}
	before, err := f.resolve(f.dm("253:0", "LVM-x", lines...), 0)
	if err != nil {
		t.Fatal(err)
	}
	f.dm("253:1", "LVM-x-real", lines...)
	after, err := f.resolve(f.dm("253:2", "LVM-x", "0 6144 snapshot-origin 253:1"), 0)
	if err != nil || !sameMap(before, after) {
		t.Errorf("%v, %v; was %v", after, err, before)
	}
}

// disks adds two SCSI disks; the first has two partitions.
func (f *fakeSys) disks() (sda, sda1, sda2, sdb uint64) {
	const a, b = "pci0000:00/0000:00:05.0/virtio2/host2/target2:0:0/2:0:0:0/block/sda", "pci0000:00/0000:00:06.0/host3/target3:0:0/3:0:0:1/block/sdb"
	sda = f.add(a, "8:0", 10*gib, "mq/", "queue/zoned=none", "device/wwid=naa.5000c500a1b2c3d4")
	sda1 = f.add(a+"/sda1", "8:1", 1*gib, "partition=1", "start=2048")
	sda2 = f.add(a+"/sda2", "8:2", 8*gib, "partition=2", fmt.Sprintf("start=%d", 2*gib/sector))
	sdb = f.add(b, "8:16", 10*gib, "mq/", "queue/zoned=none")
	return
}

func TestResolve(t *testing.T) {
	f := newFake(t)
	sda, sda1, sda2, sdb := f.disks()
	const mib = 1 << 20
	crypt := f.dm("253:0", "CRYPT-LUKS2-0123-x", fmt.Sprintf("0 %d crypt aes-xts-plain64 :64:logon:cryptsetup:x 0 8:2 32768 1 allow_discards", (8*gib-16*mib)/sector))
	lv := f.dm("253:1", "LVM-abc", "0 2048 linear 253:0 4096", "2048 4096 linear 253:0 100000", "6144 2048 linear 8:16 0")
	striped := f.dm("253:2", "LVM-def", "0 512 striped 2 128 8:2 256 8:16 1024")
	one := f.dm("253:3", "", "0 1000000 striped 1 128 8:16 1024")
	mpath := f.dm("253:4", "mpath-x", "0 2048 multipath 0 0 1 1 service-time 0 2 2 8:0 1 1 8:16 1 1")
	os.Mkdir(filepath.Join(f.root, "devices/virtual/block/dm-4/mq"), 0o700)
	const md = "virtual/block/md0"
	mdDev := f.add(md, "9:0", 900*mib, "md/level=raid1", "md/raid_disks=3",
		"md/dev-sda1/offset=2048", "md/dev-sda1/state=in_sync", "md/dev-sdb/offset=4096", "md/dev-sdb/state=in_sync,write_mostly",
		"md/dev-sdc/offset=2048", "md/dev-sdc/state=faulty")
	f.link(md+"/md/dev-sda1", "block", "pci0000:00/0000:00:05.0/virtio2/host2/target2:0:0/2:0:0:0/block/sda/sda1")
	f.link(md+"/md/dev-sdb", "block", "pci0000:00/0000:00:06.0/host3/target3:0:0/3:0:0:1/block/sdb")
	f.link(md, "md/rd0", md+"/md/dev-sda1")
	f.link(md, "md/rd1", md+"/md/dev-sdb")
	f.link(md, "md/rd2", md+"/md/dev-sdc")

	for name, c := range map[string]struct {
		dev  uint64
		want extent.Map
	}{
		"disk":                 {sda, extent.Map{{Len: 10 * gib, Dev: sda}}},
		"partition":            {sda1, extent.Map{{Len: gib, Dev: sda, DevOff: mib}}},
		"crypt on a partition": {crypt, extent.Map{{Len: 8*gib - 16*mib, Dev: sda, DevOff: 2*gib + 16*mib}}},
		"lv on crypt on a partition, and on a disk": {lv, extent.Map{
			{Off: 0, Len: mib, Dev: sda, DevOff: 2*gib + 16*mib + 4096*sector},
			{Off: mib, Len: 2 * mib, Dev: sda, DevOff: 2*gib + 16*mib + 100000*sector},
			{Off: 3 * mib, Len: mib, Dev: sdb}}},
		"few stripes": {striped, extent.Map{
			{Off: 0, Len: 128 * sector, Dev: sda, DevOff: 2*gib + 256*sector},
			{Off: 128 * sector, Len: 128 * sector, Dev: sdb, DevOff: 1024 * sector},
			{Off: 256 * sector, Len: 128 * sector, Dev: sda, DevOff: 2*gib + 384*sector},
			{Off: 384 * sector, Len: 128 * sector, Dev: sdb, DevOff: 1152 * sector}}},
		"one stripe":              {one, extent.Map{{Len: 1000000 * sector, Dev: sdb, DevOff: 1024 * sector}}},
		"request-based multipath": {mpath, extent.Map{{Len: mib, Dev: mpath}}},
		"raid1": {mdDev, extent.Map{
			{Len: 900 * mib, Dev: sda, DevOff: 2 * mib},
			{Len: 900 * mib, Dev: sdb, DevOff: 4096 * sector}}},
	} {
		got, err := f.resolve(c.dev, 0)
		if err != nil || !sameMap(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
	if id, err := f.identity(sda2); err != nil || id != fmt.Sprintf("wwid:naa.5000c500a1b2c3d4@%d", int64(2*gib)) {
		t.Errorf("identity %q, %v", id, err)
	}
	if id, err := f.identity(sdb); err != nil || id != "path:pci0000:00/0000:00:06.0/0:0:1" {
		t.Errorf("identity by place %q, %v", id, err)
	}
	if id, err := f.identity(lv); err != nil || id != "dm:LVM-abc" || f.kind(lv) != LVM || f.kind(crypt) != Crypt || f.kind(one) != DM || f.kind(mdDev) != MD {
		t.Errorf("identity %q, %v, kinds %s %s %s %s", id, err, f.kind(lv), f.kind(crypt), f.kind(one), f.kind(mdDev))
	}
}

// TestResolveRefuses: what has no fixed map is told by its type, and no key of a crypt target gets into the text.
func TestResolveRefuses(t *testing.T) {
	f := newFake(t)
	f.disks()
	f.add("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0", gib, "mq/")
	f.add("virtual/block/zram0", "252:0", gib)
	f.add("virtual/block/bcache0", "251:0", gib, "bcache/")
	f.add("pci/zoned", "8:32", gib, "mq/", "queue/zoned=host-managed")
	f.add("pci/pmem0", "8:33", gib, "mq/", "queue/zoned=none", "queue/dax=1")
	f.add("virtual/block/md1", "9:1", gib, "md/level=raid5")
	f.dm("253:0", "LVM-x", "0 2048 thin 253:9 1")
	f.dm("253:1", "LVM-x", "0 2048 linear 8:0 0", "2048 2048 snapshot 253:9 253:8 P 8")
	f.dm("253:8", "LVM-x", "0 2048 snapshot-merge 253:9 253:8 P 8")
	f.dm("253:2", "LVM-x", "0 2048 cache x")
	f.dm("253:3", "mpath-x", "0 2048 multipath 0 0 1 1 service-time 0 1 2 8:0 1 1")
	f.dm("253:4", "CRYPT-x", "0 2048 crypt capi:authenc 5ec7e7 0 8:0 0 1 integrity:28:aead")
	f.dm("253:5", "", "0 20971520 striped 2 128 8:2 0 8:16 0")
	f.dm("253:6", "", "0 2048 linear 253:0 0")
	f.dm("253:7", "", "0 2048 raid raid1 3 0 region_size 4096 2 - 8:0 - 8:16")
	for no, part := range map[string]string{
		"259:0": "nvme native multipath", "252:0": "bio-based", "251:0": "bcache", "8:32": "zoned", "8:33": "DAX", "9:1": "raid5",
		"253:0": "thin", "253:1": "snapshot", "253:2": "cache", "253:3": "multipath", "253:4": "integrity", "253:5": "striped",
		"253:6": "thin", "253:7": "raid", "253:8": "snapshot-merge",
	} {
		dev, _ := parseDev(no)
		m, err := f.resolve(dev, 0)
		if !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "5ec7e7") || m != nil {
			t.Errorf("%s: %v, %v; want an error that names %q", no, m, err, part)
		}
	}
	f.dm("253:20", "", "0 2048 linear 253:21 0")
	loop := f.dm("253:21", "", "0 2048 linear 253:20 0")
	if _, err := f.resolve(loop, 0); err == nil {
		t.Error("a table that leads to itself was resolved")
	}
	for no, lines := range map[string][]string{
		"253:30": {"0 2048 linear 8:0 20971519"},                  // behind the end of the disk
		"253:31": {"0 1024 linear 8:0 0", "2048 10 linear 8:0 0"}, // a hole
		"253:32": {"0 2048 linear sda 0"},
		"253:33": {"0 2048 linear 8:0 -5"},
		"253:34": {"0 2048 crypt aes deadbeef 0 8:0"},
		"253:35": {"0 2048 striped 2 0 8:0 0 8:16 0"},
		"253:36": {"0 2048 linear 8:77 0"},
		"253:37": {"0 2048 snapshot-origin "},
	} {
		if m, err := f.resolve(f.dm(no, "", lines...), 0); err == nil || strings.Contains(err.Error(), "deadbeef") {
			t.Errorf("%s: %v, %v", no, m, err)
		}
	}
	if _, err := f.resolve(unix.Mkdev(77, 77), 0); !errors.Is(err, sentinel.ErrNotFound) {
		t.Errorf("a device that is gone: %v", err)
	}
}

// TestMountsOnUnmapped: a filesystem on a thin volume is found through the disks below it, but not through its neighbours.
func TestMountsOnUnmapped(t *testing.T) {
	f := newFake(t)
	_, sda1, sda2, _ := f.disks()
	pool := f.dm("253:0", "LVM-pool", "0 2048 thin-pool 8:2 8:2 128 0")
	thin := f.dm("253:1", "LVM-thin", "0 2048 thin 253:0 1")
	f.link("virtual/block/dm-1", "slaves/dm-0", "virtual/block/dm-0")
	f.link("virtual/block/dm-0", "slaves/sda2", "pci0000:00/0000:00:05.0/virtio2/host2/target2:0:0/2:0:0:0/block/sda/sda2")
	_ = pool
	lines := []mountLine{
		{id: 1, dev: thin, root: "/", dir: "/thin", kind: "ext4", source: "/dev/mapper/thin", super: "rw"},
		{id: 2, dev: sda1, root: "/", dir: "/boot", kind: "xfs", source: "/dev/sda1", super: "ro,x"},
		{id: 3, dev: 22, root: "/", dir: "/proc", kind: "proc", source: "proc", super: "rw"},
	}
	for _, c := range []struct {
		on   uint64
		want string
	}{{sda2, "ext4"}, {sda1, "xfs"}} {
		m, err := f.resolve(c.on, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.mounts(lines, m)
		if err != nil || len(got) != 1 || got[0].Type != c.want || (got[0].Map == nil) != (c.want == "ext4") {
			t.Errorf("on %s: %+v, %v", devNo(c.on), got, err)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const text = `36 35 98:0 /mnt1 /mnt\0402\011x rw,noatime master:1 - ext3 /dev/a\134b rw,errors=continue
40 1 0:26 / / rw - btrfs /dev/sda2 rw,subvol=/
41 1 0:27 / /x rw shared:2 -  rw
`
	got, err := parseMounts(strings.NewReader(strings.Join(strings.Split(text, "\n")[:2], "\n")))
	if err != nil || len(got) != 2 || got[0].dir != "/mnt 2\tx" || got[0].source != `/dev/a\b` || got[0].root != "/mnt1" || got[0].kind != "ext3" || got[1].id != 40 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseMounts(strings.NewReader(text)); err == nil {
		t.Error("a malformed line passed")
	}
	swaps, err := parseSwaps(strings.NewReader("Filename Type Size Used Priority\n/dev/dm-1 partition 1000 24 -2\n/a\\040b file 10 0 -3\n"))
	if err != nil || len(swaps) != 2 || swaps[0].Used != 24<<10 || !swaps[1].File || swaps[1].Path != "/a b" {
		t.Errorf("%+v, %v", swaps, err)
	}
}

func FuzzDMParse(f *testing.F) {
	f.Add(dmReply("0 2048 linear 8:2 384", "2048 10 crypt a b 0 8:2 1"))
	f.Add(dmReply())
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := dm.Parse(b)
		if err != nil && table != nil {
			t.Error("a table and an error")
		}
		for _, l := range table {
			dmSegments(l)
		}
	})
}
