package freeze

import (
	"encoding/json"
	"errors"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	guardianConn  = 3                      // descriptor of the socket to the daemon
	guardianFirst = 4                      // descriptor of the first filesystem
	stagger       = 250 * time.Millisecond // a thaw that takes longer does not keep the others waiting
	thawTries     = 50                     // of a thaw that the kernel refuses, one every thawPause
	thawPause     = 100 * time.Millisecond
)

// guardian is the process that freezes and thaws. Its main loop never blocks in the kernel: freezing has one thread, thawing another.
type guardian struct {
	record string
	dry    bool
	fs     []guarded
	work   chan func() // to the thread that freezes
	failed chan unix.Errno
	asking sync.WaitGroup // verifications under way: they may freeze for an instant
	busy   sync.WaitGroup // the freezing thread, which may be in the kernel; added to only while not void

	mu   sync.Mutex // guards all below
	void bool       // thawing has begun: a freeze that returns now is undone by its own thread
	late unix.Errno // of that undoing
}

type guarded struct {
	fd     int
	how    string
	frozen bool // under guardian.mu
}

// GuardianMain is the main function of the guardian process: cmd/moverd calls it when its first argument is "guardian". It does not return.
func GuardianMain() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTSTP,
		syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGUSR1, syscall.SIGUSR2)
	debug.SetGCPercent(-1) // it lives for seconds and must not need memory at a bad moment
	buf := make([]byte, 1<<16)
	n, err := receive(buf)
	if err != nil || n == 0 {
		unix.Exit(1)
	}
	var o order
	if err := json.Unmarshal(buf[:n], &o); err != nil {
		unix.Exit(1)
	}
	g := &guardian{record: o.Record, dry: o.Dry, work: make(chan func()), failed: make(chan unix.Errno, 1)}
	for i, how := range o.How {
		unix.CloseOnExec(guardianFirst + i)
		g.fs = append(g.fs, guarded{fd: guardianFirst + i, how: how})
	}
	unix.Exit(g.run(harden())) // not os.Exit, whose hooks could keep it
}

// receive reads one packet from the daemon; 0 bytes: it is gone.
func receive(buf []byte) (n int, err error) {
	err = retryEINTR(func() error {
		n, _, err = unix.Recvfrom(guardianConn, buf, 0)
		return err
	})
	return n, err
}

// send never waits: a daemon that does not read must not keep the guardian from thawing.
func send(m message) {
	unix.Sendto(guardianConn, m.append(nil), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}

// thread runs the functions of work on a system thread that exists from now on, so that none has to be made while frozen.
func thread(work <-chan func()) {
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(ready)
		for f := range work {
			f()
		}
	}()
	<-ready
}

func (g *guardian) run(notes string) (code int) {
	thaws := make(chan func())
	thread(g.work)
	thread(thaws)
	in := make(chan message, 8)
	go listen(in)
	g.work <- func() { g.prepare(notes) }
	deadline := time.NewTimer(time.Hour)
	deadline.Stop()
	done := make(chan unix.Errno, 1)
	thaw := func(why byte, index int, errno unix.Errno) {
		deadline.Stop()
		if g.begin() {
			send(message{op: opVoid, why: why, index: index, errno: errno})
			go func() { thaws <- func() { done <- g.thaw() } }()
		}
	}
	for {
		select {
		case m, ok := <-in:
			switch {
			case !ok:
				thaw(whyGone, 0, 0)
				in = nil
			case m.op == opFreeze:
				deadline.Reset(time.Duration(m.value - monotonic()))
				go func() { g.work <- g.freeze }()
			case m.op == opThaw:
				thaw(whyTold, 0, 0)
			case m.op == opVerify:
				g.asking.Add(1)
				go g.verify()
			case m.op == opKeep && g.keep():
				send(message{op: opKept})
				return 0
			}
		case <-deadline.C:
			thaw(whyDeadline, 0, 0)
		case errno := <-g.failed:
			thaw(whyFailed, 0, errno)
		case errno := <-done:
			if errno == 0 {
				remove(g.record)
			}
			send(message{op: opDone, errno: errno})
			return 0
		}
	}
}

// listen ends when the daemon's end of the socket is closed, by the daemon or by its death.
func listen(in chan<- message) {
	defer close(in)
	for {
		buf := make([]byte, 64)
		n, err := receive(buf)
		if err != nil || n == 0 {
			return
		}
		if m, err := decode(buf[:n]); err == nil {
			in <- m
		}
	}
}

// prepare flushes the filesystems, in the order of freezing, and tells that freezing may begin.
func (g *guardian) prepare(notes string) {
	for i := range g.fs {
		if g.dry || g.voided() {
			break
		}
		if err := flush(g.fs[i].fd); err != nil {
			send(message{op: opFailed, index: i, errno: errnoOf(err), text: "flush"})
			g.failed <- errnoOf(err)
			return
		}
	}
	send(message{op: opReady, text: notes})
}

func (g *guardian) voided() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.void
}

// begin makes thawing begin, once.
func (g *guardian) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.void {
		return false
	}
	g.void = true
	return true
}

// keep tells whether everything is frozen and nothing is being thawed.
func (g *guardian) keep() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.fs {
		if !g.fs[i].frozen {
			return false
		}
	}
	return !g.void
}

// freeze freezes all in order. It may be in the kernel when the deadline passes; what comes out frozen then is thawed here.
func (g *guardian) freeze() {
	g.mu.Lock()
	if g.void {
		g.mu.Unlock()
		return
	}
	g.busy.Add(1)
	g.mu.Unlock()
	defer g.busy.Done()
	for i := range g.fs {
		if g.voided() {
			return
		}
		send(message{op: opFreezing, index: i})
		err := stop(g.fs[i].fd, g.fs[i].how)
		g.mu.Lock()
		g.fs[i].frozen = err == nil
		void := g.void
		g.mu.Unlock()
		switch {
		case err != nil:
			send(message{op: opFailed, index: i, errno: errnoOf(err)})
			g.failed <- errnoOf(err)
			return
		case void:
			errno := g.thawOne(i)
			g.mu.Lock()
			g.late = errno
			g.mu.Unlock()
			return
		}
		send(message{op: opFrozen, index: i})
	}
	send(message{op: opAll})
}

// thaw thaws all that is frozen, in reverse, and waits for the freezing thread. It returns the first errno that is no foreign thaw.
func (g *guardian) thaw() unix.Errno {
	g.mu.Lock()
	var list []int
	for i := len(g.fs) - 1; i >= 0; i-- {
		if g.fs[i].frozen {
			list = append(list, i)
		}
	}
	g.mu.Unlock()
	errno := inTurn(list, g.thawOne)
	g.asking.Wait()
	g.busy.Wait() // the kernel cannot be asked to give a freeze up
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(errno, g.late)
}

// inTurn thaws in the order of list, but does not let one thaw that hangs keep the next ones waiting: the upper one of two stacked
// filesystems can only write its superblock when the lower one is thawed.
func inTurn(list []int, thaw func(int) unix.Errno) (first unix.Errno) {
	results := make(chan unix.Errno, len(list))
	for k, i := range list {
		if k == len(list)-1 {
			results <- thaw(i) // the usual case, one filesystem, needs no further thread
			break
		}
		one := make(chan struct{})
		go func() {
			results <- thaw(i)
			close(one)
		}()
		select {
		case <-one:
		case <-time.After(stagger):
		}
	}
	for range list {
		if errno := <-results; first == 0 {
			first = errno
		}
	}
	return first
}

// thawOne thaws filesystem i; a foreign thaw is told, but is no error to go on with.
func (g *guardian) thawOne(i int) unix.Errno {
	errno := thawHard(g.fs[i].fd, g.fs[i].how)
	g.mu.Lock()
	g.fs[i].frozen = false
	g.mu.Unlock()
	send(message{op: opThawed, index: i, errno: errno})
	if errno == unix.EINVAL {
		return 0
	}
	return errno
}

// thawHard tries for some seconds what the kernel refuses to thaw. EINVAL means that it is not frozen.
func thawHard(fd int, how string) unix.Errno {
	for try := 1; ; try++ {
		err := start(fd, how)
		if err == nil || errors.Is(err, unix.EINVAL) || try == thawTries {
			return errnoOf(err)
		}
		time.Sleep(thawPause)
	}
}

// verify asks whether everything is still frozen, apart from the main loop since the question may have to wait in the kernel.
func (g *guardian) verify() {
	defer g.asking.Done()
	answer := message{op: opVerified}
	for i := range g.fs {
		held, err := stopped(g.fs[i].fd, g.fs[i].how)
		if err != nil || !held {
			answer.index, answer.errno = i, max(errnoOf(err), unix.EINVAL)
			break
		}
	}
	if g.voided() {
		answer.errno = unix.EINVAL
	}
	send(answer)
}
