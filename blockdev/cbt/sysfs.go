package cbt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

const maxNotes = 1 << 18 // 6 MiB

// disk is a whole disk as sysfs shows it.
type disk struct {
	dev  uint64
	name string // "loop0"
	dir  string // its folder in sysfs, real path
}

func (d disk) String() string {
	return fmt.Sprintf("%s (%d:%d)", d.name, unix.Major(d.dev), unix.Minor(d.dev))
}

func lookDisk(dev uint64) (disk, error) {
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return disk{}, fmt.Errorf("%w: no disk %d:%d: %v", sentinel.ErrNotFound, unix.Major(dev), unix.Minor(dev), err)
	}
	return disk{dev: dev, name: filepath.Base(dir), dir: dir}, nil
}

func (d disk) text(file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, file))
	return strings.TrimSpace(string(b)), err
}

func (d disk) number(file string) (int64, error) {
	s, err := d.text(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(s, 10, 64)
}

func (d disk) has(file string) bool {
	_, err := os.Stat(filepath.Join(d.dir, file))
	return err == nil
}

// requests tells how many requests one hardware queue of a disk can have, and how many such queues there are. Too many to note: 0.
func (d disk) requests() (depth, queues int) {
	tags, _ := filepath.Glob(filepath.Join(d.dir, "mq/*/nr_tags"))
	n, _ := d.number("queue/nr_requests") // those of an I/O scheduler
	for _, f := range tags {
		if b, err := os.ReadFile(f); err == nil {
			v, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			n = max(n, v)
		}
	}
	if n*int64(len(tags)) > maxNotes {
		return 0, 0
	}
	return int(n), len(tags)
}

// refuse names what keeps a disk from being tracked without missing a write; nil means nothing does.
func (d disk) refuse() error {
	no := func(why string) error { return fmt.Errorf("%s: %w: %s", d, sentinel.ErrNotSupported, why) }
	if d.has("partition") {
		return no("is a partition; track its whole disk")
	}
	if !d.has("mq") {
		return no(bioBased(d.name, d.dir))
	}
	if v, err := d.text("queue/dax"); err == nil && v != "0" {
		return no("DAX: stores to mapped files never become requests")
	}
	if v, err := d.text("queue/zoned"); err == nil && v != "none" {
		return no("zoned (" + v + "): zone operations change data without a write")
	}
	v, err := d.text("queue/iostats")
	if err != nil {
		return no("has no queue/iostats, which the witness needs")
	}
	if v != "1" {
		return no(iostatsOff(d))
	}
	return nil
}

func iostatsOff(d disk) string {
	return fmt.Sprintf("its I/O accounting is off, which the witness needs; `echo 1 > /sys/block/%s/queue/iostats`", d.name)
}

// bioBased says why a disk whose driver takes no requests cannot be tracked as itself.
func bioBased(name, dir string) string {
	if strings.Contains(dir, "/nvme-subsystem/") {
		return "is the head of native NVMe multipath, which takes no requests; boot with nvme_core.multipath=N or use scan mode"
	}
	for prefix, kind := range map[string]string{"dm-": "device-mapper", "md": "md", "zram": "zram", "ram": "brd", "pmem": "pmem",
		"bcache": "bcache", "drbd": "drbd"} {
		if strings.HasPrefix(name, prefix) {
			return "is bio-based (" + kind + "): nothing on it completes as a request; track the disks below it, or use scan mode"
		}
	}
	return "takes no requests (no mq folder in sysfs), so nothing on it completes as one; use scan mode"
}

// changed says in what a disk differs from what was recorded about it; "" means in nothing.
func (d disk) changed(s *leafState) string {
	sectors, err := d.number("size")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Sprintf("disk %s is gone", d)
	}
	if err != nil {
		return fmt.Sprintf("size of %s cannot be read: %v", d, err)
	}
	if seq, _ := d.number("diskseq"); uint64(seq) != s.Seq {
		return fmt.Sprintf("%s is another disk than before", d)
	}
	if sectors != s.Sectors {
		return fmt.Sprintf("%s was resized from %d to %d bytes", d, s.Sectors*512, sectors*512)
	}
	if v, err := d.text("queue/iostats"); err != nil || v != "1" {
		return fmt.Sprintf("%s: %s", d, iostatsOff(d))
	}
	return ""
}
