package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Flush has the kernel write back what programs have written through the page caches of the volume, of its partitions and of what is
// stacked on it. Writers without a filesystem, whom no freeze reaches, leave such bytes behind when they stop; the volume's own reads
// pass the caches by and would miss them.
func (v *Volume) Flush() error {
	if v.h.dev == 0 {
		return v.h.f.Sync()
	}
	devs, err := live.above(v.h.dev)
	if err != nil {
		return fmt.Errorf("flush what is above %s: %w", v.h.path, err)
	}
	var errs []error
	for _, d := range devs {
		if err := flush(live.name(d)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// above lists dev, its partitions and everything stacked on them, the top first.
func (s *system) above(dev uint64) ([]uint64, error) {
	all := []uint64{dev}
	for i := 0; i < len(all); i++ {
		parts, err := s.partitions(all[i])
		if err != nil {
			return nil, err
		}
		dir, err := s.dir(all[i])
		if err != nil {
			return nil, err
		}
		holders, err := linked(filepath.Join(dir, "holders"))
		if err != nil {
			return nil, err
		}
		for _, d := range append(parts, holders...) {
			if !slices.Contains(all, d) {
				all = append(all, d)
			}
		}
	}
	slices.Reverse(all)
	return all, nil
}

func flush(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	return nil
}
