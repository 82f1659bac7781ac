package freeze

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// record says on disk (RunDir, a tmpfs) what may be frozen: written before the first freeze, removed after the last thaw. It is what an
// operator is left with when daemon and guardian died together.
type record struct {
	Name   string   `json:"name"`
	Kept   bool     `json:"kept"` // frozen on purpose, without a deadline
	Mounts []mount  `json:"mounts,omitempty"`
	Start  []string `json:"start,omitempty"` // command that starts what a stop hook stopped

	Moment string        `json:"moment,omitempty"` // whose pre command has begun
	Post   []string      `json:"post,omitempty"`   // command that is owed after that
	Limit  time.Duration `json:"limit,omitempty"`  // of Post, ns
}

const recordPrefix = "frozen-"

func recordPath(dir, prefix, name string) string {
	safe := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '_'
	}, name)
	return filepath.Join(dir, prefix+safe+".json")
}

func (r record) write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("record what is to be frozen: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("record what is to be frozen: %w", err)
	}
	return nil
}

func readRecord(path string) (record, error) {
	var r record
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// ThawRecorded thaws everything recorded in runDir, kept or not, and returns the folders that were frozen indeed. Records of what could
// be thawed are removed. What a stop hook stopped is started.
func ThawRecorded(runDir string) ([]string, error) { return thawRecorded(runDir, true) }

// ThawStale is ThawRecorded but for what was kept frozen on purpose: for the start of the daemon, after both the daemon before it and
// its guardian were killed.
func ThawStale(runDir string) ([]string, error) { return thawRecorded(runDir, false) }

func thawRecorded(runDir string, kept bool) ([]string, error) {
	var all []string
	var errs []error
	for _, prefix := range []string{recordPrefix, hookPrefix} { // thaw before starting: the start may have to write
		paths, err := filepath.Glob(filepath.Join(runDir, prefix+"*.json"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			names, err := thawRecord(path, kept)
			all = append(all, names...)
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return all, errors.Join(errs...)
}

func thawRecord(path string, kept bool) ([]string, error) {
	r, err := readRecord(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && r.Kept && !kept {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := r.thaw()
	if len(r.Start) > 0 {
		if err := runHook(r.Start, r.Name, startLimit); err != nil {
			return names, err
		}
		names = append(names, strings.Join(r.Start, " "))
	}
	if err != nil {
		return names, err
	}
	return names, remove(path)
}

// thaw thaws by path what a process that is gone had frozen; the lowest filesystem first.
func (r record) thaw() ([]string, error) {
	var names []string
	var errs []error
	for i := len(r.Mounts) - 1; i >= 0; i-- {
		m := r.Mounts[i]
		now, err := reopen(m)
		if err != nil {
			errs = append(errs, fmt.Errorf("thaw %s: %w", m.Dir, err))
			continue
		}
		if err := start(now.fd(), m.How); err == nil {
			names = append(names, m.Dir)
		} else if !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("thaw %s: %w", m.Dir, err))
		}
		now.f.Close()
	}
	return names, errors.Join(errs...)
}

// reopen opens a recorded filesystem where it was, or wherever it is mounted now, in any namespace: the process through which it was reached
// may be gone.
func reopen(m mount) (mount, error) {
	now, err := openMount(m.Dir)
	if err == nil && now.Dev != m.Dev {
		now.f.Close()
		err = fmt.Errorf("another filesystem is mounted there now; mount device %s again and thaw it", m.Dev)
	}
	if err == nil {
		return now, nil
	}
	places, _ := mountsOf([]string{m.Dev}, true)
	for _, p := range places {
		path := p.Dir
		if p.Pid != 0 {
			path = filepath.Join("/proc", fmt.Sprint(p.Pid), "root", p.Dir)
		}
		if now, err := openMount(path); err == nil {
			if now.Dev == m.Dev {
				return now, nil
			}
			now.f.Close()
		}
	}
	return mount{}, err
}
