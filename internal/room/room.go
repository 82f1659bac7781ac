// Package room tells what a filesystem has left.
package room

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Of is the bytes that are free, and in all, on the filesystem of path.
func Of(path string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for free space at %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
