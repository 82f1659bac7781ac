package freeze

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/sentinel"
)

// place is one mount of a filesystem, in one mount namespace.
type place struct {
	Pid int    `json:"pid"` // a process in that namespace; 0: the own one
	Ns  string `json:"ns"`
	Dir string `json:"dir"`
}

// ReadOnly makes every mount of the filesystems mounted on dirs read-only, in every mount namespace, and records in the file record which
// ones it has changed. It works on frozen filesystems, so that a thaw afterwards lets nobody write: remounting is not possible then, and
// after the thaw it would be too late. A mount on which a file is open for writing is busy: everything is as it was then.
func ReadOnly(dirs []string, record string) error {
	var devs []string
	for _, dir := range dirs {
		m, err := openMount(dir)
		if err != nil {
			return err
		}
		m.f.Close()
		devs = append(devs, m.Dev)
	}
	places, err := mountsOf(devs, false)
	if err != nil {
		return err
	}
	for i, p := range places {
		if err := p.set(true); err != nil {
			if errors.Is(err, unix.EBUSY) {
				err = fmt.Errorf("%w: files are open for writing; stop what writes (a stop hook does that) or leave it frozen: %w", err, sentinel.ErrRefused)
			}
			return errors.Join(fmt.Errorf("make %s read-only: %w", p.Dir, err), setAll(places[:i], false))
		}
	}
	b, err := json.Marshal(places)
	if err == nil {
		err = os.WriteFile(record, b, 0o600)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("record what was made read-only: %w", err), setAll(places, false))
	}
	return nil
}

// Writable takes back what the record tells. Without a record there is nothing to take back.
func Writable(record string) error {
	b, err := os.ReadFile(record)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var places []place
	if err := json.Unmarshal(b, &places); err != nil {
		return fmt.Errorf("read %s: %w", record, err)
	}
	if err := setAll(places, false); err != nil {
		return err
	}
	return remove(record)
}

// setAll goes on after an error. A namespace or a mount that has gone is none.
func setAll(places []place, ro bool) error {
	var errs []error
	for _, p := range places {
		if err := p.set(ro); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("make %s writable again: %w", p.Dir, err))
		}
	}
	return errors.Join(errs...)
}

// set changes one mount, not the filesystem.
func (p place) set(ro bool) error {
	attr := &unix.MountAttr{}
	if ro {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	} else {
		attr.Attr_clr = unix.MOUNT_ATTR_RDONLY
	}
	change := func() error { return unix.MountSetattr(unix.AT_FDCWD, p.Dir, unix.AT_SYMLINK_NOFOLLOW, attr) }
	if p.Pid == 0 {
		return change()
	}
	return inNamespace(p, change)
}

// inNamespace runs f on a thread that has entered p's mount namespace. The thread ends with it.
func inNamespace(p place, f func() error) error {
	path := fmt.Sprintf("/proc/%d/ns/mnt", p.Pid)
	if now, err := os.Readlink(path); err != nil {
		return err
	} else if now != p.Ns {
		return fmt.Errorf("%s: its process has gone: %w", p.Ns, os.ErrNotExist)
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is of no use to others afterwards
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// mountsOf finds the mounts of filesystems by their numbers, those of the own namespace first; without ro, only those that are not read-only.
func mountsOf(devs []string, ro bool) ([]place, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	all, err := places("/proc/self/mountinfo", place{Ns: own}, devs, ro)
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	seen := []string{own}
	for _, dir := range processes {
		ns, err := os.Readlink(dir + "/ns/mnt")
		if err != nil || slices.Contains(seen, ns) {
			continue // gone, a kernel thread, or seen
		}
		p := place{Ns: ns}
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &p.Pid); err != nil {
			continue
		}
		more, err := places(dir+"/mountinfo", p, devs, ro)
		if err != nil {
			continue // the process ended meanwhile; another of its namespace will be met
		}
		seen = append(seen, ns)
		all = append(all, more...)
	}
	return all, nil
}

func places(mountinfo string, in place, devs []string, ro bool) ([]place, error) {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var out []place
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line)
		if len(w) < 7 || !slices.Contains(devs, w[2]) || !ro && slices.Contains(strings.Split(w[5], ","), "ro") {
			continue
		}
		p := in
		p.Dir = unescape(w[4])
		out = append(out, p)
	}
	return out, nil
}
