//go:build vm

package disk

import (
	"bytes"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// These tests want a kernel with device mapper and md, LVM, cryptsetup and mdadm, and two disks that they may overwrite: build them with
// `go test -tags vm -c` and run the binary in a guest, as `disk.test -test.run Stacked -disks /dev/vdb,/dev/vdc`.
var vmDisks = flag.String("disks", "", "two disks to overwrite, divided by a comma")

func sh(t *testing.T, script string) string {
	t.Helper()
	return looptest.Run(t, "sh", "-ec", script)
}

// TestStacked makes every stack that the kernel has and compares the maps with where writes arrive.
func TestStacked(t *testing.T) {
	a, b, ok := strings.Cut(*vmDisks, ",")
	if !ok {
		t.Fatal("-disks is missing")
	}
	t.Setenv("A", a)
	t.Setenv("B", b)
	t.Setenv("DM_DISABLE_UDEV", "1")
	for _, c := range []struct {
		name, up, down, dev string
		kind                string
		cipher              bool
		unmapped            string
	}{
		{"linear over two disks", `pvcreate -qq -y $A $B; vgcreate -qq vg $A $B; lvcreate -qq -y -Wn -Zn -L 500M -n v vg`, `vgremove -qq -y -f vg; pvremove -qq -y $A $B`, "/dev/vg/v", LVM, false, ""},
		{"striped", `pvcreate -qq -y $A $B; vgcreate -qq vg $A $B; lvcreate -qq -y -Wn -Zn -i2 -I64k -L 64M -n v vg`, `vgremove -qq -y -f vg; pvremove -qq -y $A $B`, "/dev/vg/v", LVM, false, ""},
		{"thin", `pvcreate -qq -y $A; vgcreate -qq vg $A; lvcreate -qq -y -Zn -T -L 200M vg/pool -V 100M -n v`, `vgremove -qq -y -f vg; pvremove -qq -y $A`, "/dev/vg/v", LVM, false, "thin"},
		{"snapshot origin", `pvcreate -qq -y $A; vgcreate -qq vg $A; lvcreate -qq -y -Wn -Zn -L 100M -n v vg; lvcreate -qq -y -s -L 50M -n s vg/v`, `vgremove -qq -y -f vg; pvremove -qq -y $A`, "/dev/vg/v", LVM, false, ""},
		{"crypt", `echo -n x | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $A -; echo -n x | cryptsetup open $A c -d -`, `cryptsetup close c; wipefs -aq $A`, "/dev/mapper/c", Crypt, true, ""},
		{"lv on crypt on a partition", `printf 'label: gpt\n,40M\n,\n' | sfdisk -q $A; partprobe $A 2>/dev/null || partx -u $A; udevadm settle; P=${A}2
			echo -n x | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $P -; echo -n x | cryptsetup open $P c -d -
			pvcreate -qq -y /dev/mapper/c; vgcreate -qq vg /dev/mapper/c; lvcreate -qq -y -Wn -Zn -L 100M -n v vg`,
			`vgremove -qq -y -f vg; pvremove -qq -y /dev/mapper/c; cryptsetup close c; wipefs -aq ${A}2; wipefs -aq $A; partx -d $A || true; udevadm settle`, "/dev/vg/v", LVM, true, ""},
		{"raid1", `mdadm --create /dev/md0 --run -q --metadata=1.2 --level=1 --raid-devices=2 --assume-clean $A $B`, `mdadm --stop -q /dev/md0; mdadm --zero-superblock $A $B`, "/dev/md0", MD, false, ""},
		{"raid0", `mdadm --create /dev/md0 --run -q --metadata=1.2 --level=0 --raid-devices=2 $A $B`, `mdadm --stop -q /dev/md0; mdadm --zero-superblock $A $B`, "/dev/md0", MD, false, "raid0"},
		{"dm without a uuid", `dmsetup create plain --table "0 100000 linear $A 2048"`, `dmsetup remove plain`, "/dev/mapper/plain", DM, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sh(t, c.up)
			defer sh(t, c.down)
			v, err := OpenVolume(c.dev)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s %v segments %d", v.Kind(), v.Identity(), v.Unmapped(), len(v.Map()))
			if v.Kind() != c.kind || v.Check() != nil || strings.Contains(v.Identity(), "-name:") && c.kind != DM {
				t.Errorf("kind %s, identity %s, check %v", v.Kind(), v.Identity(), v.Check())
			}
			m, why, size := v.Map(), v.Unmapped(), v.Size()
			v.Close()
			_, err = OpenTarget(a, TargetOptions{})
			want(t, err, sentinel.ErrRefused, "stop that first")
			if c.unmapped != "" {
				want(t, why, sentinel.ErrNotSupported, c.unmapped)
			} else {
				compare(t, c.dev, size, m, c.cipher)
			}
			_, disk := mustResolve(t, a)
			looptest.Mkfs(t, c.dev, "ext4")
			dir := looptest.Mount(t, c.dev)
			defer looptest.Unmount(t, dir)
			if got := mounts(t, disk); len(got) != 1 || got[0].Dir != dir || (got[0].Map == nil) != (c.unmapped != "") {
				t.Errorf("mounts: %+v", got)
			}
			_, err = OpenTarget(c.dev, TargetOptions{})
			want(t, err, sentinel.ErrRefused, "mounted on "+dir)
		})
	}
}

// compare writes to places of the device and looks at the leaf disks: the places that the map names have changed, their neighbours have not.
func compare(t *testing.T, dev string, size int64, m extent.Map, cipher bool) {
	t.Helper()
	d := target(t, dev, TargetOptions{Size: size})
	defer d.Close()
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		e := extent.Extent{Off: r.Int64N(size/4096-40) * 4096, Len: (1 + r.Int64N(32)) * 4096}
		if i == 0 {
			e.Off = 0
		} else if i == 1 {
			e.Off = size/4096*4096 - e.Len
		}
		p := devtest.Content(uint64(i), e.Len)
		segs := m.Down(e)
		before := leaves(t, segs)
		if _, err := d.WriteAt(p, e.Off); err != nil {
			t.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		covered := int64(0)
		for k, b := range leaves(t, segs) {
			s := segs[k]
			covered += s.Len
			was := before[k]
			in, old := b[4096:len(b)-4096], was[4096:len(was)-4096]
			if cipher && bytes.Equal(in, old) || !cipher && !bytes.Equal(in, p[s.Off-e.Off:s.Off-e.Off+s.Len]) {
				t.Fatalf("%v of %s did not arrive at %+v", e, dev, s)
			}
			if len(segs) == 1 && (!bytes.Equal(b[:4096], was[:4096]) || !bytes.Equal(b[len(b)-4096:], was[len(was)-4096:])) {
				t.Fatalf("%v of %s changed more than %+v", e, dev, s)
			}
		}
		if covered < e.Len {
			t.Fatalf("%v of %s: the map covers %d bytes", e, dev, covered)
		}
	}
}

// leaves reads the segments with 4 KiB on both sides.
func leaves(t *testing.T, segs []extent.Segment) [][]byte {
	t.Helper()
	var out [][]byte
	for _, s := range segs {
		f, err := os.Open(filepath.Clean(live.node(s.Dev)))
		if err != nil {
			t.Fatal(err)
		}
		h := &handle{path: f.Name(), f: f, align: 4096, size: 1 << 62}
		b := devtest.Buffer(int(s.Len) + 8192)
		if _, err := h.readCached(b, s.DevOff-4096); err != nil && err != io.EOF { // the end of a disk has no neighbour
			t.Fatal(err)
		}
		f.Close()
		out = append(out, b)
	}
	return out
}

// TestVanish unplugs the second disk under an open volume and target. It runs last: the disk does not come back.
func TestVanish(t *testing.T) {
	_, b, ok := strings.Cut(*vmDisks, ",")
	if !ok {
		t.Fatal("-disks is missing")
	}
	v, d := volume(t, b), target(t, b, TargetOptions{})
	if _, err := d.WriteAt(devtest.Content(1, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	sh(t, "echo 1 > $(readlink -f /sys/block/"+filepath.Base(b)+"/device)/../remove")
	p := devtest.Buffer(1 << 20)
	_, rerr := v.ReadAt(p, 0)
	_, werr := d.WriteAt(p, 0)
	for name, err := range map[string]error{"read": rerr, "write": werr, "zero": d.Zero(extent.Extent{Len: 1 << 20}), "sync": d.Sync(), "check": v.Check()} {
		t.Logf("%s: %v", name, err)
		if err == nil || !strings.Contains(err.Error(), "gone") || !strings.Contains(err.Error(), b) {
			t.Errorf("%s of a disk that is gone: %v", name, err)
		}
	}
	want(t, v.Check(), sentinel.ErrNotFound)
	_, err := OpenTarget(b, TargetOptions{Size: 4096, Create: true})
	want(t, err, sentinel.ErrNotFound, "no device")
}
