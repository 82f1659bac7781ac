package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
)

// maxIdentity keeps identities well below the protocol's limit of 512 bytes.
const maxIdentity = 400

// identity says who a block device is, without its size, in the first of these forms that it has:
//
//	dm:LVM-...                        device mapper uuid
//	md:UUID                           of the array
//	loop:<identity of the file>       the file behind it, "+offset" when it begins inside
//	wwid:naa.5000c500a1b2c3d4         what the disk says of itself; also uuid, nguid, serial, cid
//	rbd:fsid/pool/image
//	path:pci0000:00/0000:00:05.0      where it is plugged in, for a disk that says nothing of itself
//
// and a partition is its disk with "@" and the byte where it begins. A kernel name like sda never is an identity.
func (s *system) identity(dev uint64) (string, error) {
	dir, err := s.dir(dev)
	if err != nil {
		return "", err
	}
	id := ""
	switch {
	case exists(dir, "partition"):
		start, err := sectors(dir, "start")
		if err != nil {
			return "", err
		}
		disk, err := devOf(filepath.Dir(dir))
		if err != nil {
			return "", err
		}
		if id, err = s.identity(disk); err != nil {
			return "", err
		}
		id = fmt.Sprintf("%s@%d", id, start)
	case exists(dir, "dm"):
		if id = "dm:" + attr(dir, "dm/uuid"); id == "dm:" {
			id = "dm-name:" + attr(dir, "dm/name")
		}
	case exists(dir, "md"):
		id = s.mdIdentity(dir)
	case strings.HasPrefix(filepath.Base(dir), "loop"):
		if !exists(dir, "loop") {
			return "", fmt.Errorf("no file is attached to loop device %s: %w", filepath.Base(dir), sentinel.ErrNotFound)
		}
		return s.loopIdentity(dir)
	default:
		id = hardware(dir)
	}
	id = strings.Join(strings.Fields(id), "_")
	if len(id) > maxIdentity {
		id = id[:maxIdentity-65] + "~" + digest.Sum([]byte(id)).String()
	}
	return id, nil
}

// hardware identifies a disk by what it says of itself, else by its place.
func hardware(dir string) string {
	for _, a := range []struct{ name, file string }{
		{"wwid", "wwid"}, // nvme
		{"wwid", "device/wwid"},
		{"uuid", "uuid"},
		{"nguid", "nguid"},
		{"serial", "serial"}, // virtio
		{"cid", "device/cid"},
		{"serial", "device/serial"},
	} {
		if v := attr(dir, a.file); v != "" && strings.Trim(v, "0-") != "" {
			if a.file == "device/serial" { // of the nvme controller
				v += "/" + attr(dir, "nsid")
			}
			return a.name + ":" + v
		}
	}
	if image := attr(dir, "device/image_id"); image != "" {
		return fmt.Sprintf("rbd:%s/%s/%s", attr(dir, "device/cluster_fsid"), attr(dir, "device/pool_id"), image)
	}
	return "path:" + place(dir)
}

// counted are folders of sysfs whose number depends on the order of discovery: virtio1, host3, target3:0:1, block/vda.
var counted = regexp.MustCompile(`^(virtio|host|target|rport|session|nvme|usb|ata)[-0-9:]*n?[0-9]*$`)

// place is the path of a disk in the tree of devices, without its name and without numbers of discovery.
func place(dir string) string {
	_, path, ok := strings.Cut(dir, "/devices/")
	if !ok {
		path = dir
	}
	path, _, _ = strings.Cut(path, "/block/")
	var keep []string
	for _, p := range strings.Split(path, "/") {
		switch {
		case p == "nvme" || p == "scsi" || counted.MatchString(p):
		case isAddress.MatchString(p): // 3:0:1:0: the first number is the host's
			_, p, _ = strings.Cut(p, ":")
			keep = append(keep, p)
		default:
			keep = append(keep, p)
		}
	}
	return strings.Join(keep, "/")
}

var isAddress = regexp.MustCompile(`^[0-9]+:[0-9]+:[0-9]+:[0-9]+$`)

// mdIdentity is the array's uuid: from sysfs, or from the superblock of a member on older kernels.
func (s *system) mdIdentity(dir string) string {
	if u := attr(dir, "md/uuid"); u != "" {
		return "md:" + u
	}
	members, _ := linked(filepath.Join(dir, "slaves"))
	for _, m := range members {
		f, err := os.Open(s.node(m))
		if err != nil {
			continue
		}
		size, err := deviceSize(f)
		if err == nil {
			for _, sig := range scan(f, size) {
				if sig.Type == "md" {
					f.Close()
					return "md:" + sig.UUID
				}
			}
		}
		f.Close()
	}
	return "md-name:" + attr(dir, "md/array_state") + filepath.Base(dir)
}

// node is a path that opens the block device, whatever it is called in /dev.
func (s *system) node(dev uint64) string {
	dir, err := s.dir(dev)
	if err != nil {
		return ""
	}
	return filepath.Join("/dev", strings.ReplaceAll(filepath.Base(dir), "!", "/"))
}

func (s *system) loopIdentity(dir string) (string, error) {
	dev, err := devOf(dir)
	if err != nil {
		return "", err
	}
	b, err := s.loopBacking(dev)
	if err != nil {
		return "", fmt.Errorf("ask %s for its file: %w", filepath.Base(dir), err)
	}
	id := fmt.Sprintf("loop:%s#%d", s.filesystem(b.Device, ""), b.Inode)
	if b.Offset != 0 {
		id += fmt.Sprintf("+%d", b.Offset)
	}
	return id, nil
}

// loopBacking asks a loop device for the file behind it.
func (s *system) loopBacking(dev uint64) (*unix.LoopInfo64, error) {
	f, err := os.Open(s.node(dev))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// filesystem names the filesystem with device number dev: by the identity of the disk that it is on, else (btrfs, overlay) by its
// fsid, else by the number.
func (s *system) filesystem(dev uint64, path string) string {
	if unix.Major(dev) != 0 {
		if id, err := s.identity(dev); err == nil {
			return id
		}
	}
	var fs unix.Statfs_t
	if path != "" && unix.Statfs(path, &fs) == nil && fs.Fsid.Val != [2]int32{} {
		return fmt.Sprintf("fsid-%08x%08x", uint32(fs.Fsid.Val[0]), uint32(fs.Fsid.Val[1]))
	}
	return "dev-" + devNo(dev)
}

// fileIdentity says who an image file is: its filesystem, inode and, where the filesystem keeps it, time of birth, because inode numbers
// are used again.
func (s *system) fileIdentity(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	id := fmt.Sprintf("file:%s#%d", s.filesystem(st.Dev, f.Name()), st.Ino)
	var x unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x)
	if err == nil && x.Mask&unix.STATX_BTIME != 0 {
		id += fmt.Sprintf("~%d.%09d", x.Btime.Sec, x.Btime.Nsec)
	}
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return "", err
	}
	return strings.Join(strings.Fields(id), "_"), nil
}

// withSize is the whole identity as the contracts give it.
func withSize(id string, size int64) string { return fmt.Sprintf("%s/%d", id, size) }
