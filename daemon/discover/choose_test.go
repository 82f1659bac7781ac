package discover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/disk"
)

// tree is a sysfs made of files: path below /sys and content; a value that begins with "->" is a link.
func tree(t *testing.T, files map[string]string) system {
	t.Helper()
	top := t.TempDir()
	for name, text := range files {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "->"); ok {
			err = os.Symlink(filepath.Join(top, to), path)
		} else {
			err = os.WriteFile(path, []byte(text+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return system{filepath.Join(top, "sys"), filepath.Join(top, "dev")}
}

func add(files map[string]string, name string, minor int, more ...string) {
	dir := "sys/block/" + name + "/"
	files[dir+"dev"], files[dir+"size"], files[dir+"ro"] = fmt.Sprintf("8:%d", minor), "204800", "0"
	for i := 0; i < len(more); i += 2 {
		files[dir+more[i]] = more[i+1]
	}
}

// A host as there are many: LVM over two disks, a thin pool, a multipath disk, and what nobody moves.
func host(t *testing.T) system {
	f := map[string]string{}
	lv := "LVM-" + strings.Repeat("x", 64)
	add(f, "sda", 0, "sda1/partition", "1", "sda1/dev", "8:1", "sda1/size", "2048", "sda1/ro", "0",
		"sda2/partition", "2", "sda2/dev", "8:2", "sda2/size", "100000", "sda2/ro", "0", "sda2/holders/dm-0", "->sys/block/dm-0",
		"sda3/partition", "3", "sda3/dev", "8:3", "sda3/size", "2", "sda3/ro", "0")
	add(f, "sdb", 16, "holders/dm-0", "->sys/block/dm-0", "holders/dm-1", "->sys/block/dm-1")
	add(f, "dm-0", 100, "dm/uuid", lv, "dm/name", "vg-root")
	add(f, "dm-1", 101, "dm/uuid", lv+"-tpool", "dm/name", "vg-pool-tpool", "holders/dm-2", "->sys/block/dm-2")
	add(f, "dm-2", 102, "dm/uuid", lv, "dm/name", "vg-thin")
	add(f, "sdc", 32, "holders/dm-3", "->sys/block/dm-3")
	add(f, "sdd", 48, "holders/dm-3", "->sys/block/dm-3")
	add(f, "dm-3", 103, "dm/uuid", "mpath-1", "dm/name", "mpatha")
	add(f, "sde", 64, "queue/zoned", "host-managed")
	add(f, "sdf", 80, "ro", "1")
	add(f, "sdg", 96, "removable", "1", "queue/removable", "1")
	add(f, "pmem0", 112, "queue/dax", "1")
	add(f, "loop0", 120)
	add(f, "zram0", 121)
	add(f, "sr0", 122)
	add(f, "nvme0c0n1", 123, "hidden", "1")
	f["dev/sda"], f["dev/disk/by-id/wwn-0x5"], f["dev/disk/by-id/ata-SSD_1234"] = "", "->dev/sda", "->dev/sda"
	f["dev/sdb"], f["dev/disk/by-path/pci-1"] = "", "->dev/sdb"
	return tree(t, f)
}

func paths(s system, all []device) (out []string) {
	for _, d := range all {
		rel, _ := filepath.Rel(s.dev, d.path)
		out = append(out, rel)
	}
	slices.Sort(out)
	return out
}

func TestChoose(t *testing.T) {
	s := host(t)
	for _, c := range []struct {
		name   string
		o      Options
		chosen []string
	}{
		{"whole disks", Options{}, []string{"mapper/mpatha", "sda", "sdb"}},
		{"volumes", Options{Volumes: true}, []string{"mapper/mpatha", "mapper/vg-root", "mapper/vg-thin", "sda1"}},
		{"all", Options{All: true}, []string{"loop0", "mapper/mpatha", "sda", "sdb", "sdg", "sr0", "zram0"}},
	} {
		chosen, refused, err := s.choose(c.o)
		if err != nil {
			t.Fatal(err)
		}
		if got := paths(s, chosen); !slices.Equal(got, c.chosen) {
			t.Errorf("%s: %q, want %q", c.name, got, c.chosen)
		}
		why := map[string]string{}
		for _, r := range refused {
			why[filepath.Base(r.Device)] = r.Why
		}
		for name, word := range map[string]string{"sde": "zoned", "sdf": "read-only", "pmem0": "DAX"} {
			if !strings.Contains(why[name], word) {
				t.Errorf("%s: %s is refused as %q", c.name, name, why[name])
			}
		}
		if !c.o.All && !strings.Contains(why["sdg"], "removable") {
			t.Errorf("%s: the removable disk is refused as %q", c.name, why["sdg"])
		}
		for _, quiet := range []string{"loop0", "zram0", "sr0", "nvme0c0n1", "sdc"} {
			if why[quiet] != "" {
				t.Errorf("%s: %s is told: %s", c.name, quiet, why[quiet])
			}
		}
	}
}

func TestStable(t *testing.T) {
	s := host(t)
	for name, want := range map[string]string{"sda": "disk/by-id/ata-SSD_1234", "sdb": "disk/by-path/pci-1", "sdc": "sdc", "dm-0": "mapper/vg-root"} {
		d, err := s.at(filepath.Join(s.sys, "block", name))
		if err != nil {
			t.Fatal(err)
		}
		got, ok := s.stable(d)
		if rel, _ := filepath.Rel(s.dev, got); rel != want || ok != (name != "sdc") {
			t.Errorf("%s: %s, %v", name, rel, ok)
		}
	}
}

func TestNames(t *testing.T) {
	all := []*Volume{{Device: "/dev/sda", Freezes: []string{"/var", "/"}}, {Device: "/dev/sdb", Freezes: []string{"/srv/Data Base"}},
		{Device: "/dev/sdc"}, {Device: "/dev/x/sdc"}, {Device: "/dev/mapper/---"}}
	nameFlows(all)
	for i, want := range []string{"root", "data-base", "sdc", "sdc-2", "disk"} {
		if all[i].Name != want {
			t.Errorf("%q, want %q", all[i].Name, want)
		}
	}
}

// Hostile text from labels and mounts stays inside its comment, and paths stay values.
func TestHostileText(t *testing.T) {
	v := &Volume{Name: "123", Path: "/dev/disk/by-id/a: b #\"c", Kind: disk.Disk, Tracking: Tracking{Method: "scan", Why: "x\ny: z"},
		Layers: []Layer{{Device: "/dev/sda", Holds: []string{"ext4 \"a\nflows: []\x1b[2J\u2028\""}}}, NotFrozen: []string{"a\rb"}}
	h := &Host{Name: "h\nsource: 3", Volumes: []*Volume{v}, Refused: []Refused{{Device: "/dev/\nx", Why: "y\nz"}}}
	c, err := loadConfig(t, h.YAML(certs(t)))
	if err != nil {
		t.Fatal(err)
	}
	if f := c.Source.Flows; len(f) != 1 || f[0].Name != "123" || string(f[0].Volume) != v.Path {
		t.Errorf("%+v", f)
	}
}

// All disks of a server are one group, whose name is no flow's.
func TestProposedGroup(t *testing.T) {
	h := &Host{Name: "h"}
	for _, name := range []string{"root", "server"} {
		h.Volumes = append(h.Volumes, &Volume{Name: name, Path: "/dev/disk/by-id/" + name, Kind: disk.Disk, Tracking: Tracking{Method: "ebpf"}})
	}
	c, err := loadConfig(t, h.YAML(certs(t)))
	if err != nil {
		t.Fatal(err)
	}
	if g := c.Source.Groups; len(g) != 1 || g[0].Name != "server-2" || len(g[0].Flows) != 2 || time.Duration(g[0].Cutover.FreezeDeadline) != 10*time.Second {
		t.Errorf("%+v", g)
	}
}

func TestCurve(t *testing.T) {
	hot := curve{}
	for i := 1; i < 100; i++ { // 10 MB/s into 20 MB, then nothing new
		hot = append(hot, point{float64(i) / 10, min(float64(i)*1e6, 20e6)})
	}
	hot = hot.end(10, 20e6)
	if got := hot.at(0.5); got < 4.9e6 || got > 5.1e6 {
		t.Errorf("half a second changes %.0f", got)
	}
	if got := hot.at(1000); got != 20e6 {
		t.Errorf("a long time changes %.0f", got)
	}
	even := curve{}.end(10, 100e6)
	if got := even.at(100); got != 1000e6 {
		t.Errorf("an even writer changes %.0f", got)
	}
	if got := (curve)(nil).at(5); got != 0 {
		t.Errorf("nothing measured changes %.0f", got)
	}
}
