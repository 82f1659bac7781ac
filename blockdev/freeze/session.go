package freeze

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

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

func (s *session) tell(m message) { s.conn.Write(m.append(nil)) }

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
