package freeze

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

// mount is a filesystem to be frozen, held by an open folder: what is frozen through a descriptor is thawed through the same one, also
// when it has been unmounted lazily meanwhile.
type mount struct {
	Dir string `json:"dir"`
	Dev string `json:"dev"` // major:minor of the filesystem
	How string `json:"how"`
	f   *os.File
}

func (m *mount) fd() int { return int(m.f.Fd()) }

// openMounts opens the filesystems mounted on dirs, each once. A folder that is no mount point is refused: something was unmounted, and
// freezing what lies below it would stop another filesystem.
func openMounts(dirs []string) (_ []mount, err error) {
	var out []mount
	defer func() {
		if err != nil {
			closeMounts(out)
		}
	}()
	seen := map[string]bool{}
	for _, dir := range dirs {
		m, err := openMount(dir)
		if err != nil {
			return out, err
		}
		ro, err := readOnly(m.fd())
		if err != nil {
			m.f.Close()
			return out, fmt.Errorf("freeze %s: %w", dir, err)
		}
		if seen[m.Dev] || ro && m.How == byRemount {
			m.f.Close()
			continue
		}
		seen[m.Dev] = true
		out = append(out, m)
	}
	return out, nil
}

func closeMounts(ms []mount) {
	for _, m := range ms {
		m.f.Close()
	}
}

func openMount(dir string) (mount, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return mount{}, fmt.Errorf("open a filesystem to be frozen: %w", err)
	}
	e, err := entryOf(int(f.Fd()), dir)
	if err == nil && e.dir != e.point {
		err = fmt.Errorf("freeze %s: nothing is mounted there any more: %w", dir, sentinel.ErrRefused)
	}
	if err != nil {
		f.Close()
		return mount{}, err
	}
	m := mount{Dir: dir, Dev: e.dev, How: byFreeze, f: f}
	switch e.kind {
	case "vfat", "msdos", "exfat":
		m.How = byRemount
	}
	return m, nil
}

// entry is what /proc/self/mountinfo tells about an open folder.
type entry struct {
	dev   string // major:minor of the filesystem; one for all its mounts and btrfs subvolumes, unlike st_dev
	point string // where it is mounted
	dir   string // the folder itself
	kind  string
	ro    bool // the filesystem itself, not only this mount of it
}

// entryOf tells of an open folder. path is by which name it was opened: one below /proc/PID/root is mounted in that process's namespace.
func entryOf(no int, path string) (entry, error) {
	fd := strconv.Itoa(no)
	info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
	if err != nil {
		return entry{}, err
	}
	dir, err := os.Readlink("/proc/self/fd/" + fd)
	if err != nil {
		return entry{}, err
	}
	id := ""
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id = strings.TrimSpace(rest)
		}
	}
	table, err := os.ReadFile(filepath.Join(namespaceOf(path), "mountinfo"))
	if err != nil {
		return entry{}, err
	}
	for line := range strings.Lines(string(table)) {
		w := strings.Fields(line)
		if len(w) < 7 || w[0] != id {
			continue
		}
		e := entry{dev: w[2], point: unescape(w[4]), dir: dir}
		if _, rest, ok := strings.Cut(line, " - "); ok {
			if sup := strings.Fields(rest); len(sup) > 2 {
				e.kind, e.ro = sup[0], sup[2] == "ro" || strings.HasPrefix(sup[2], "ro,")
			}
		}
		return e, nil
	}
	return entry{}, fmt.Errorf("find the mount of %s: %w", dir, sentinel.ErrNotFound)
}

// namespaceOf is the folder of the process in whose mount namespace path lies.
func namespaceOf(path string) string {
	if w := strings.Split(filepath.Clean(path), "/"); len(w) > 3 && w[1] == "proc" && w[3] == "root" {
		return filepath.Join("/proc", w[2])
	}
	return "/proc/self"
}

// unescape undoes the octal escapes of mountinfo (space, tab, newline, backslash).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// checkRunDir makes dir and refuses one that lies on a filesystem to be frozen: the record could not be removed there.
func checkRunDir(dir string, ms []mount) error {
	if dir == "" {
		return fmt.Errorf("freeze: no folder for the record of frozen filesystems is set: %w", sentinel.ErrUsage)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder for the record of frozen filesystems: %w", err)
	}
	f, err := os.OpenFile(filepath.Clean(dir), unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := entryOf(int(f.Fd()), dir)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.Dev == e.dev {
			return fmt.Errorf("freeze %s: the folder %s lies on it; keep that folder on a tmpfs such as /run: %w",
				m.Dir, dir, sentinel.ErrRefused)
		}
	}
	return nil
}
