package freeze

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// takeOver thaws without the guardian, and makes sure that it does nothing any more. A guardian that is in the kernel with a freeze
// cannot die before that returns; watch comes here again then.
func (s *session) takeOver(why string) {
	s.taking.Lock()
	defer s.taking.Unlock()
	s.mu.Lock()
	if s.done || closed(s.kept) {
		s.mu.Unlock()
		return
	}
	if !s.told {
		s.void(fmt.Errorf("frozen filesystems were thawed: %s", why))
	}
	finish(s.voided)
	var list []int
	for i := len(s.mounts) - 1; i >= 0; i-- {
		if s.touched[i] {
			list = append(list, i)
		}
	}
	dead := s.dead
	s.mu.Unlock()
	if !dead {
		s.cmd.Process.Kill()
	}
	inTurn(list, func(i int) unix.Errno {
		errno := thawHard(s.mounts[i].fd(), s.mounts[i].How)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.touched[i] = errno == unix.EINVAL && !dead
		if errno != unix.EINVAL { // else it died before it froze, or after it thawed
			s.thawed(s.mounts[i].Dir, errno)
		}
		return errno
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done = dead; s.done && s.stuck == nil {
		s.stuck = remove(s.path)
	}
}

// overdue is called when the guardian should have begun to thaw, and again when it should have ended.
func (s *session) overdue() {
	if closed(s.acting) && !s.wait(thawWait) || !closed(s.acting) {
		s.takeOver("the deadline passed and the guardian did not act")
	}
}

// dying tells whether a process has been killed but cannot end: one of its threads is in the kernel, with a freeze. Until that returns,
// neither its socket nor its pid tells of the death, and what it had frozen before would stay so.
func dying(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, path := range threads {
		b, _ := os.ReadFile(path)
		for line := range strings.Lines(string(b)) {
			if pending, ok := strings.CutPrefix(line, "SigPnd:"); ok {
				set, err := strconv.ParseUint(strings.TrimSpace(pending), 16, 64)
				if err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
					return true
				}
			}
		}
	}
	return false
}
