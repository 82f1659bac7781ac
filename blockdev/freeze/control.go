package freeze

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

// freeze waits until everything is frozen.
func (s *session) freeze(ctx context.Context, limit time.Duration) error {
	select {
	case <-s.ready:
	case <-s.ended:
		return s.verdict()
	case <-ctx.Done():
		return s.giveUp(fmt.Errorf("flush %s before the freeze: %w", s.mounts[0].Dir, ctx.Err()))
	}
	s.mu.Lock()
	notes := s.notes
	s.mu.Unlock()
	if notes != "" {
		s.log.Warn("the freeze guardian runs with less protection", "lacking", notes)
	}
	if err := s.begin(limit); err != nil {
		return s.giveUp(err)
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-s.all:
			if s.held() {
				return nil
			}
			return s.giveUp(nil)
		case <-s.voided:
			return s.giveUp(nil)
		case <-ctx.Done():
			return s.giveUp(fmt.Errorf("freeze: %w", ctx.Err()))
		case <-look.C:
			if dying(s.cmd.Process.Pid) {
				go s.takeOver("its guardian was killed")
			}
		}
	}
}

// begin records what is to be frozen and lets the guardian freeze it, unless it was told to thaw before.
func (s *session) begin(limit time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told || closed(s.voided) {
		return fmt.Errorf("freeze: it was called off before it began: %w", sentinel.ErrRefused)
	}
	// The guardian lives, and removes the record also when this process dies now.
	if err := (record{Name: s.name, Mounts: s.mounts}).write(s.path); err != nil {
		return err
	}
	s.deadline = monotonic() + int64(limit)
	s.backstop = time.AfterFunc(limit+grace, s.overdue)
	s.tell(message{op: opFreeze, value: s.deadline})
	return nil
}

// giveUp thaws what was frozen so far and tells why.
func (s *session) giveUp(err error) error {
	s.mu.Lock()
	begun := s.deadline != 0
	s.mu.Unlock()
	s.ask()
	limit := grace
	if begun {
		limit = askWait
	}
	if !s.wait(limit) && begun {
		err = errors.Join(err, fmt.Errorf("freeze %s: the kernel is still writing back what is dirty; it is thawed as soon as that ends",
			s.pending()))
	}
	return errors.Join(err, s.verdict())
}

// pending names what is neither frozen nor thawed.
func (s *session) pending() (dirs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.mounts {
		if s.touched[i] {
			dirs = append(dirs, m.Dir)
		}
	}
	return dirs
}

// ask tells the guardian to thaw.
func (s *session) ask() {
	s.mu.Lock()
	s.told = true
	s.mu.Unlock()
	s.tell(message{op: opThaw})
}

func (s *session) wait(limit time.Duration) bool { return s.expect(s.ended, limit) }

// verdict is what became of the freeze.
func (s *session) verdict() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.failure, s.why, s.stuck)
}

func (s *session) thaw() error {
	if s.conn == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.end()
		return nil
	}
	if closed(s.kept) {
		return s.thawKept()
	}
	if s.late() {
		s.expect(s.voided, grace) // let the guardian say that it was first
	}
	s.ask()
	if !s.expect(s.acting, askWait) || !s.wait(thawWait) {
		go s.takeOver("the guardian did not thaw when told to") // it may wait for the kernel
		if !s.wait(askWait) {
			return errors.Join(fmt.Errorf("thaw %s: the kernel does not return; it goes on being tried", s.pending()), s.verdict())
		}
	}
	return s.verdict()
}

// expect waits for c, or the session's end, at most limit.
func (s *session) expect(c <-chan struct{}, limit time.Duration) bool {
	select {
	case <-c:
	case <-s.ended:
	case <-time.After(limit):
		return false
	}
	return true
}

// thawKept thaws after Keep, when no guardian is left.
func (s *session) thawKept() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if closed(s.ended) {
		return s.stuck
	}
	for i := len(s.mounts) - 1; i >= 0; i-- {
		if errno := thawHard(s.mounts[i].fd(), s.mounts[i].How); errno != unix.EINVAL { // an operator may have thawed
			s.thawed(s.mounts[i].Dir, errno)
		}
	}
	closeMounts(s.mounts)
	if s.stuck == nil {
		s.stuck = remove(s.path)
	}
	s.end()
	return s.stuck
}

func (s *session) keep() error {
	if s.conn == nil {
		return nil
	}
	if closed(s.kept) && !closed(s.ended) {
		return nil
	}
	if !s.verify() {
		return errors.Join(fmt.Errorf("keep frozen: the freeze has not held: %w", sentinel.ErrRefused), s.verdict())
	}
	r := record{Name: s.name, Kept: true, Mounts: s.mounts}
	if err := r.write(s.path); err != nil {
		return fmt.Errorf("keep frozen: %w", err)
	}
	s.tell(message{op: opKeep})
	select {
	case <-s.kept:
		s.mu.Lock()
		s.backstop.Stop()
		s.mu.Unlock()
		return nil
	case <-s.voided:
	case <-time.After(askWait):
	}
	return errors.Join(fmt.Errorf("keep frozen: the guardian has not agreed: %w", sentinel.ErrRefused), s.thaw())
}

// late tells whether the deadline has passed.
func (s *session) late() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deadline != 0 && monotonic() >= s.deadline
}

// held tells whether nobody is known to have thawed. The guardian and the daemon thaw by themselves only at or after the deadline or after a
// note in voided.
func (s *session) held() bool {
	if !closed(s.all) || closed(s.voided) {
		return false
	}
	return closed(s.kept) || !s.late()
}

// verify is held, and asks the kernel through the guardian.
func (s *session) verify() bool {
	s.asking.Lock()
	defer s.asking.Unlock()
	if !s.held() || s.conn == nil || closed(s.kept) {
		return s.held()
	}
	select {
	case <-s.answers: // a late one to somebody who has gone
	default:
	}
	s.tell(message{op: opVerify})
	select {
	case errno := <-s.answers:
		return errno == 0 && s.held()
	case <-s.voided:
	case <-time.After(2 * askWait):
	}
	return false
}
