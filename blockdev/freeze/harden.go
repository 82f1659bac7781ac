package freeze

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// harden makes the guardian hard to kill and keeps it from needing the disks that it freezes. It returns what could not be had.
func harden() string {
	var notes []string
	note := func(what string, err error) {
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", what, err))
		}
	}
	note("no core dumps", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
	note("no core dumps", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	note("work in /", unix.Chdir("/"))
	note("protect from the OOM killer", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0))
	note("raise priorities", hurry())
	note("lock memory", lockMemory())
	return strings.Join(notes, "; ")
}

const (
	niceness   = -10
	ioprioPgrp = 2       // IOPRIO_WHO_PGRP
	ioprioBest = 2 << 13 // class best effort, level 0: the highest without starving others
)

// hurry undoes the politeness that is inherited from the daemon: while the guardian flushes and freezes, everybody waits for it. It is set for
// the process group, which is this process alone, and so for all its threads; threads that come later inherit it.
func hurry() error {
	_, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioPgrp, 0, ioprioBest)
	var err error
	if e != 0 {
		err = e
	}
	return errors.Join(err, unix.Setpriority(unix.PRIO_PGRP, 0, niceness))
}

// lockMemory locks what the process has and will have. Locking on fault plus touching what is there keeps the Go runtime's large
// reservations out of it: some 10 MiB are locked instead of all that is mapped. Pages of the program that are missing nevertheless
// can be read from a frozen filesystem; only writes block.
func lockMemory() error {
	debug.FreeOSMemory()
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	const most = 8 << 20 // an anonymous mapping beyond this is a reservation of the runtime
	for line := range strings.Lines(string(maps)) {
		w := strings.Fields(line)
		from, to, ok := strings.Cut(w[0], "-")
		if !ok || len(w) < 2 || w[1][0] != 'r' {
			continue
		}
		a, _ := strconv.ParseUint(from, 16, 64)
		b, _ := strconv.ParseUint(to, 16, 64)
		file := len(w) > 5 && w[5][0] == '/'
		if b <= a || !file && b-a > most {
			continue
		}
		// Mappings that cannot be populated ([vvar]) are not needed either.
		unix.Syscall(unix.SYS_MLOCK, uintptr(a), uintptr(b-a), 0)
	}
	return nil
}
