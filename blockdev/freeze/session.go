package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

const (
	grace     = 300 * time.Millisecond // that a guardian may be late before the daemon kills it and thaws
	thawWait  = 10 * time.Second       // that a guardian may take to thaw; also how long callers wait for the kernel
	askWait   = time.Second            // for a step of the guardian
	lookEvery = 100 * time.Millisecond // whether the guardian lives, while a freeze takes long
)

// session is one freeze, seen from the daemon.
type session struct {
	log    *slog.Logger
	path   string // of the record
	name   string
	mounts []mount
	conn   *os.File
	cmd    *exec.Cmd

	// Each is closed once, under mu: set up; all frozen; the freeze is void or over; the guardian is thawing; kept; over, and nothing is open.
	ready, all, voided, acting, kept, ended chan struct{}
	answers                                 chan unix.Errno

	asking sync.Mutex // one verification at a time
	taking sync.Mutex // one takeOver at a time

	mu       sync.Mutex // guards all below
	notes    string
	touched  []bool // the guardian may have frozen it
	deadline int64  // CLOCK_MONOTONIC ns, 0 before the freeze
	why      error  // why the freeze is void, nil while it holds and after an orderly thaw
	failure  error  // what could not be frozen
	stuck    error  // what could not be thawed
	told     bool   // Thaw or Freeze itself asked for the thaw
	dead     bool   // the guardian's end of the socket is closed
	done     bool   // everything that can be is thawed
	backstop *time.Timer
}

func newSession() *session {
	c := func() chan struct{} { return make(chan struct{}) }
	return &session{ready: c(), all: c(), voided: c(), acting: c(), kept: c(), ended: c(), answers: make(chan unix.Errno, 1)}
}

// emptySession freezes nothing and always holds until it is thawed.
func emptySession() *session {
	s := newSession()
	close(s.ready)
	close(s.all)
	return s
}

// startSession starts the guardian; nothing is frozen yet.
func startSession(o Options, path string, ms []mount) (*session, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the freeze guardian: %w", err)
	}
	unix.SetNonblock(pair[0], true)
	ours, theirs := os.NewFile(uintptr(pair[0]), "guardian"), os.NewFile(uintptr(pair[1]), "daemon")
	defer theirs.Close()
	s := newSession()
	s.log, s.path, s.name, s.mounts, s.conn, s.touched = o.Log, path, o.Name, ms, ours, make([]bool, len(ms))
	s.cmd = exec.Command(o.Exec[0], o.Exec[1:]...)
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.Env = []string{"GOMAXPROCS=2", "GOTRACEBACK=none"}
	s.cmd.Dir = "/"
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	order := order{Record: path, Dry: o.dry}
	for _, m := range ms {
		s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, m.f)
		order.How = append(order.How, m.How)
	}
	b, err := json.Marshal(order)
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the freeze guardian: %w", err)
	}
	ours.Write(b) // a guardian that is gone already is noticed by watch
	go s.watch()
	return s, nil
}

// watch follows the guardian until its end of the socket closes: it told so, or it died. The socket closes only when none of its threads
// is in the kernel any more, so a freeze that was under way is complete then.
func (s *session) watch() {
	buf := make([]byte, 1<<12)
	for {
		n, err := s.conn.Read(buf)
		if err != nil || n == 0 {
			break
		}
		if m, err := decode(buf[:n]); err == nil {
			s.hear(m)
		}
	}
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	s.takeOver("its guardian died")
	s.conn.Close()
	if closed(s.kept) {
		s.cmd.Wait()
		return
	}
	closeMounts(s.mounts)
	s.cmd.Wait() // from here on nobody holds the filesystems open, so they can be unmounted
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

func (s *session) hear(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.index >= len(s.mounts) {
		return
	}
	dir := s.mounts[m.index].Dir
	switch m.op {
	case opReady:
		s.notes = m.text
		finish(s.ready)
	case opFreezing:
		s.touched[m.index] = true
	case opFailed:
		s.touched[m.index] = false
		s.failure = explain(dir, m.errno)
		if m.text != "" {
			s.failure = fmt.Errorf("%s %s before the freeze: %w", m.text, dir, m.errno)
		}
	case opAll:
		finish(s.all)
	case opVoid:
		if m.why == whyDeadline {
			s.void(fmt.Errorf("frozen filesystems were thawed at their deadline: %w", os.ErrDeadlineExceeded))
		}
		finish(s.acting)
		finish(s.voided)
	case opThawed:
		s.touched[m.index] = false
		s.thawed(dir, m.errno)
	case opVerified:
		if m.errno != 0 {
			s.void(fmt.Errorf("%s was thawed by somebody else while it had to stay frozen", dir))
		}
		select {
		case s.answers <- m.errno:
		default: // the one who asked has gone
		}
	case opKept:
		finish(s.kept)
	case opDone:
		s.done = true
	}
}

// thawed notes the outcome of one thaw. mu is held.
func (s *session) thawed(dir string, errno unix.Errno) {
	switch errno {
	case 0:
	case unix.EINVAL:
		s.void(fmt.Errorf("%s was thawed by somebody else while it had to stay frozen", dir))
	default:
		s.stuck = errors.Join(s.stuck, fmt.Errorf("thaw %s: %w; it may still be frozen, thaw it by hand (fsfreeze -u)", dir, errno))
	}
}

// void notes why the freeze is worth nothing; the first reason stays. mu is held.
func (s *session) void(err error) {
	if s.why == nil {
		s.why = err
	}
	finish(s.voided)
}

// end closes the session. mu is held.
func (s *session) end() {
	if s.backstop != nil {
		s.backstop.Stop()
	}
	finish(s.voided)
	finish(s.ended)
}

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

func (s *session) tell(m message) { s.conn.Write(m.append(nil)) }

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
	s.mu.Lock()
	s.deadline = monotonic() + int64(limit)
	s.backstop = time.AfterFunc(limit+grace, s.overdue)
	s.tell(message{op: opFreeze, value: s.deadline})
	s.mu.Unlock()
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

// finish closes c once; the session's mu is held.
func finish(c chan struct{}) {
	if !closed(c) {
		close(c)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
