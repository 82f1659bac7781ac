package discover

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rawUsers tells, for each of devs, who may write to it past any filesystem. udevd and the like come and go: only what is open for
// writing counts.
func rawUsers(devs []uint64) map[uint64][]string {
	out := map[uint64][]string{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self := strconv.Itoa(os.Getpid())
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || !slices.Contains(devs, st.Rdev) {
			continue
		}
		proc := filepath.Dir(filepath.Dir(fd))
		pid := filepath.Base(proc)
		if pid == self || !writes(filepath.Join(proc, "fdinfo", filepath.Base(fd))) {
			continue
		}
		text := fmt.Sprintf("%s (pid %s) has it open for writing", clean(attr(proc, "comm")), pid)
		if !slices.Contains(out[st.Rdev], text) {
			out[st.Rdev] = append(out[st.Rdev], text)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		var st unix.Stat_t
		if unix.Stat(attr(l), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && slices.Contains(devs, st.Rdev) {
			out[st.Rdev] = append(out[st.Rdev], "it is attached as loop device /dev/"+filepath.Base(filepath.Dir(filepath.Dir(l))))
		}
	}
	return out
}

// writes tells from fdinfo whether a file is open for writing.
func writes(fdinfo string) bool {
	f, err := os.Open(fdinfo)
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}
