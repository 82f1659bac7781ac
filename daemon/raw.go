package daemon

import (
	"fmt"
	"slices"
	"sync"

	"github.com/moverd/mover/blockdev/disk"
)

// strangers finds who writes the volumes past the filesystems of one freeze. It looks before the freeze, when applications have been made
// ready, and again after the thaw, before they go on: neither look prolongs the pause. Who opens a device after the one look and closes
// it before the other is not seen.
//
// Active swap is a stranger only if something was written to its device in between. That it is there does not make a point fuzzy: what lies in
// swap means nothing after a power cut, but a page written while the disk was read is neither what was there before nor after.
type strangers struct {
	mu    sync.Mutex // guards all below
	stack disk.Stack
	users []string // each once
	swaps []swapping
	due   bool // a second look
	still bool // the swaps are counted from a freeze that has not been thawed
}

// swapping is an active swap area while all else is frozen.
type swapping struct {
	disk.Swap
	from    int64 // bytes written to its device when the freeze began
	counted bool
}

// before is the first look at a freeze.
func (s *strangers) before(stack disk.Stack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stack, s.users, s.swaps, s.due, s.still = stack, nil, nil, true, false
	s.look(true)
}

// frozen counts from here what is written to swap.
func (s *strangers) frozen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.swaps {
		a := &s.swaps[i]
		a.from, a.counted = disk.Written(a.Dev)
	}
	s.still = true
}

// thawing counts until here.
func (s *strangers) thawing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count()
	s.still = false
}

// after is the second look. Later calls do nothing.
func (s *strangers) after() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.due {
		s.look(false)
		s.due = false
	}
}

// names looks once more if that is due, and tells who was found.
func (s *strangers) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.still {
		s.count()
	}
	if s.due {
		s.look(false)
		s.due = s.still
	}
	return slices.Clone(s.users)
}

func (s *strangers) add(who string) {
	if !slices.Contains(s.users, who) {
		s.users = append(s.users, who)
	}
}

// look: mu is held. What cannot be looked up counts.
func (s *strangers) look(first bool) {
	users, err := s.stack.RawUsers()
	for _, u := range users {
		s.add(u.String())
	}
	if err != nil {
		s.add(fmt.Sprintf("who writes the disks past their filesystems could not be looked up: %v", err))
	}
	swaps, err := disk.Swaps(s.stack.On)
	if err != nil {
		s.add(fmt.Sprintf("active swap could not be looked up: %v", err))
	}
	for _, a := range swaps {
		switch {
		case slices.ContainsFunc(s.swaps, func(b swapping) bool { return a.Path == b.Path }):
		case first:
			s.swaps = append(s.swaps, swapping{Swap: a})
		default:
			s.add(fmt.Sprintf("%s: it became active swap meanwhile", a.Path))
		}
	}
}

// count: mu is held.
func (s *strangers) count() {
	for _, a := range s.swaps {
		if now, ok := disk.Written(a.Dev); !a.counted || !ok || now != a.from {
			s.add(fmt.Sprintf("%s: active swap on it was written within the freeze", a.Path))
		}
	}
}
