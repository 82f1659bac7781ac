package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/extent"
)

// RawUser is who may write disks past every filesystem that a freeze stops.
type RawUser struct {
	Device string // as people call it now
	Dev    uint64 // 0: not known
	Who    string // "postgres (pid 12) has it open for writing", "it is exported over iSCSI as disk1 (LIO)"
}

func (u RawUser) String() string { return u.Device + ": " + u.Who }

// RawUsers looks for processes that have a device of the stack open for writing, what exports one to other hosts, and cluster filesystems.
// The own process does not count. It walks /proc, some 10 us for each open file; what a process has mapped or registered (io_uring)
// and closed again is not seen. Active swap is told by Swaps.
func (st Stack) RawUsers() ([]RawUser, error) {
	look := rawLook{s: live, on: st.On, hits: map[uint64]bool{}}
	for _, find := range []func(){look.processes, look.targets, look.drbd} {
		find()
	}
	for _, m := range st.Mounts {
		if slices.Contains(clusters, m.Type) && !m.ReadOnly {
			look.add(m.Dev, fmt.Sprintf("%s on it is a cluster filesystem, which other hosts may write", m.Type))
		}
	}
	return look.out, look.err
}

var clusters = []string{"gfs2", "ocfs2", "gpfs", "lustre"}

type rawLook struct {
	s    *system
	on   extent.Map
	hits map[uint64]bool // whether a device touches on
	out  []RawUser
	err  error // the first
}

func (l *rawLook) add(dev uint64, who string) {
	u := RawUser{Device: l.s.name(dev), Dev: dev, Who: who}
	if !slices.Contains(l.out, u) {
		l.out = append(l.out, u)
	}
}

func (l *rawLook) touches(dev uint64) bool {
	hit, known := l.hits[dev]
	if !known {
		var err error
		if hit, err = l.s.touches(dev, l.on, 0); err != nil && l.err == nil {
			l.err = err
		}
		l.hits[dev] = hit
	}
	return hit
}

// processes finds who has a block device open for writing. No file is asked for fresh attributes: a network filesystem that is away would
// keep the answer waiting.
func (l *rawLook) processes() {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		l.err = err
		return
	}
	self := strconv.Itoa(os.Getpid())
	for _, proc := range procs {
		if pid := filepath.Base(proc); pid != self {
			l.process(proc, pid)
		}
	}
}

func (l *rawLook) process(proc, pid string) {
	d, err := os.Open(proc + "/fd")
	if err != nil {
		return // it has ended
	}
	fds, _ := d.Readdirnames(-1)
	d.Close()
	for _, fd := range fds {
		var x unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, proc+"/fd/"+fd, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &x)
		if err != nil || x.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		if dev := unix.Mkdev(x.Rdev_major, x.Rdev_minor); writes(proc+"/fdinfo/"+fd) && l.touches(dev) {
			l.add(dev, fmt.Sprintf("%s (pid %s) has it open for writing", printable(attr(proc, "comm")), pid))
		}
	}
}

// printable keeps what a process calls itself from meddling with terminals and logs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// writes tells from fdinfo whether a file is open for writing.
func writes(fdinfo string) bool {
	for line := range strings.Lines(attr(fdinfo)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// targets finds what the kernel exports to other hosts by itself: SCSI targets (LIO) and NVMe over fabrics.
func (l *rawLook) targets() {
	for _, kind := range []struct{ pattern, what string }{
		{"kernel/config/target/core/*/*/udev_path", "it is exported to other hosts as %s (LIO)"},
		{"kernel/config/nvmet/subsystems/*/namespaces/*/device_path", "it is exported to other hosts as %s (NVMe target)"},
	} {
		files, _ := filepath.Glob(filepath.Join(l.s.root, kind.pattern)) // the pattern is well-formed
		for _, f := range files {
			if dev, ok := blockDev(attr(f)); ok && l.touches(dev) {
				name := filepath.Base(filepath.Dir(f))
				if strings.Contains(f, "nvmet") {
					name = filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(f)))) + "/" + name
				}
				l.add(dev, fmt.Sprintf(kind.what, name))
			}
		}
	}
}

// drbd: the kernel does not tell in /sys what a DRBD device lies on, so each counts.
func (l *rawLook) drbd() {
	dirs, _ := filepath.Glob(filepath.Join(l.s.root, "block/drbd*"))
	for _, dir := range dirs {
		if n, err := sectors(dir, "size"); err != nil || n == 0 {
			continue
		}
		if dev, err := devOf(dir); err == nil {
			l.add(dev, "it is a replicated device (DRBD); which disk it lies on, and who writes it at the other host, cannot be seen")
		}
	}
}

// Written is how much has been written to a block device since it came to be, as the kernel accounts it, in bytes. false: it does not
// account it.
func Written(dev uint64) (int64, bool) {
	dir, err := live.dir(dev)
	if err != nil {
		return 0, false
	}
	whole := dir
	if exists(dir, "partition") {
		whole = filepath.Dir(dir)
	}
	w := strings.Fields(attr(dir, "stat"))
	if len(w) < 7 || attr(whole, "queue/iostats") == "0" {
		return 0, false
	}
	n, err := strconv.ParseInt(w[6], 10, 64)
	return n * sector, err == nil
}
