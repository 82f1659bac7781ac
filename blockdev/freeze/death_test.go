package freeze

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDaemonKilled kills the daemon at random moments of a freeze. Nothing may stay frozen: the deadline of a minute never comes into play.
func TestDaemonKilled(t *testing.T) {
	a, b := newFS(t, "ext4"), newFS(t, "xfs")
	run := runDir(t)
	wa, wb := startWriter(t, a), startWriter(t, b)
	begin := time.Now()
	startDaemon(t, "keep", "1m", run, a, b).await(t, "kept")
	whole := min(2*time.Since(begin), time.Second)
	if !frozen(t, a) || !frozen(t, b) {
		t.Fatal("keep did not outlive its process")
	}
	if names, err := ThawRecorded(run); err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
	wa.most.Store(0)
	wb.most.Store(0)
	reached := 0
	for range 45 {
		d := startDaemon(t, "hold", "1m", run, a, b)
		<-time.After(rand.N(whole))
		kill(t, d.Process.Pid, unix.SIGKILL)
		for d.lines.Scan() {
			if strings.HasPrefix(d.lines.Text(), "frozen") {
				reached++
			}
		}
		d.Wait()
		wa.advance(t)
		wb.advance(t)
		waitFor(t, "the record to go", func() bool { return len(records(t, run)) == 0 })
	}
	most := time.Duration(max(wa.most.Load(), wb.most.Load()))
	t.Logf("of 45 daemons %d were killed after the freeze was complete; a whole freeze takes %s; longest stall %s", reached, whole, most)
	if most > 20*time.Second {
		t.Errorf("a writer waited %s after the daemon was killed", most)
	}
	if frozen(t, a) || frozen(t, b) {
		t.Error("something is frozen")
	}
}

// TestGuardianKilled kills the guardian at random moments; the daemon thaws.
func TestGuardianKilled(t *testing.T) {
	a, b := newFS(t, "ext4"), newFS(t, "btrfs")
	wa, wb := startWriter(t, a), startWriter(t, b)
	f := newFreezer(t, a, b)
	begin := time.Now()
	mustFreeze(t, f, time.Minute)
	whole := min(time.Since(begin), 500*time.Millisecond)
	f.Thaw()
	wa.most.Store(0)
	held := 0
	for range 40 {
		result := make(chan error, 1)
		old := f.session() // before the freeze begins: its session may be there at once
		go func() { result <- f.Freeze(noContext, time.Minute) }()
		waitFor(t, "the guardian to start", func() bool { return f.session() != old })
		<-time.After(rand.N(2 * whole))
		f.session().cmd.Process.Kill()
		err := <-result
		<-f.Thawed()
		if err == nil {
			held++
			if f.Held() {
				t.Error("held without a guardian")
			}
			if f.Keep() == nil {
				t.Error("kept without a guardian")
			}
			if err := f.Thaw(); err == nil || !strings.Contains(err.Error(), "guardian died") {
				t.Errorf("thaw after the guardian died: %v", err)
			}
		}
		wa.advance(t)
		wb.advance(t)
		<-f.session().ended
		gone(t, f)
	}
	t.Logf("%d of 40 guardians were killed after the freeze was complete; longest stall %s", held, time.Duration(wa.most.Load()))
	if most := time.Duration(wa.most.Load()); most > 20*time.Second {
		t.Errorf("a writer waited %s after the guardian was killed", most)
	}
}

// TestGuardianStopped: a guardian that does nothing at its deadline is replaced, and does no harm when it wakes up.
func TestGuardianStopped(t *testing.T) {
	dir := newFS(t, "ext4")
	w := startWriter(t, dir)
	f := newFreezer(t, dir)
	mustFreeze(t, f, 300*time.Millisecond)
	halt(t, f.cur.cmd.Process.Pid)
	<-f.Thawed()
	w.advance(t)
	if err := f.Thaw(); err == nil {
		t.Error("thaw after the deadline: no error")
	}
	gone(t, f)

	mustFreeze(t, f, time.Minute)
	halt(t, f.cur.cmd.Process.Pid)
	if f.Held() {
		t.Error("held, although nobody answered for it")
	}
	begin := time.Now()
	if err := f.Thaw(); err != nil {
		t.Errorf("thaw without the guardian: %v", err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("a thaw without the guardian took %s", took)
	}
	w.advance(t)
	gone(t, f)
}

// halt stops a process and waits until it is.
func halt(t *testing.T, pid int) {
	t.Helper()
	kill(t, pid, unix.SIGSTOP)
	waitFor(t, "the process to stop", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, task := range tasks {
			if b, err := os.ReadFile(task); err != nil || !strings.Contains(string(b), ") T ") {
				return false
			}
		}
		return len(tasks) > 0
	})
}

// TestBothKilled: the one case that leaves something frozen. The record tells what, and the next daemon thaws it at its start.
func TestBothKilled(t *testing.T) {
	a, b := newFS(t, "ext4"), newFS(t, "xfs")
	run := runDir(t)
	d := startDaemon(t, "hold", "1m", run, a, b)
	guardian, err := strconv.Atoi(d.await(t, "frozen"))
	if err != nil {
		t.Fatal(err)
	}
	halt(t, d.Process.Pid)
	kill(t, guardian, unix.SIGKILL)
	kill(t, d.Process.Pid, unix.SIGKILL)
	d.Wait()
	if !frozen(t, a) || !frozen(t, b) {
		t.Fatal("not frozen: this test tests nothing")
	}
	again := New([]string{a, b}, Options{RunDir: run, Name: "daemon"})
	if err := again.Freeze(t.Context(), time.Minute); err == nil {
		t.Error("an earlier record was overwritten")
	}
	names, err := ThawStale(run)
	if err != nil || len(names) != 2 {
		t.Errorf("thawed %v, %v", names, err)
	}
	gone(t, again)
}

// TestSignals: what systemd or a terminal sends to the whole group must not end the guardian, its own session keeps the rest away.
func TestSignals(t *testing.T) {
	// As polite as the daemon: a new process inherits it.
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioPgrp, 0, 3<<13); e != 0 {
		t.Fatal(e)
	}
	defer unix.Syscall(unix.SYS_IOPRIO_SET, ioprioPgrp, 0, 0)
	dir := newFS(t, "ext4")
	f := newFreezer(t, dir)
	mustFreeze(t, f, time.Minute)
	pid := f.cur.cmd.Process.Pid
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP, unix.SIGUSR1} {
		kill(t, pid, sig)
	}
	if !f.Held() {
		t.Error("a signal ended the freeze")
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the guardian's session is %d, %v", sid, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	locked := 0
	for s := bufio.NewScanner(strings.NewReader(string(status))); s.Scan(); {
		if strings.HasPrefix(s.Text(), "VmLck") || strings.HasPrefix(s.Text(), "VmRSS") || strings.HasPrefix(s.Text(), "VmSize") {
			t.Log(s.Text())
		}
		fmt.Sscanf(s.Text(), "VmLck: %d", &locked)
	}
	if locked == 0 {
		t.Error("the guardian's memory is not locked")
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) < 3 {
		t.Errorf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(filepath.Base(task))
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid) // the system call returns 20 - nice
		io, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(tid), 0)
		if err != nil || e != 0 || 20-nice != niceness || io != ioprioBest {
			t.Errorf("thread %d: nice %d, I/O priority %#x, %v, %v", tid, 20-nice, io, err, e)
		}
	}
	if err := f.Thaw(); err != nil {
		t.Error(err)
	}
}

// TestKeep: a kept freeze has no deadline and outlives everybody, until it is thawed by the freezer, by a later one, or by record.
func TestKeep(t *testing.T) {
	dir := newFS(t, "ext4")
	w := startWriter(t, dir)
	f := newFreezer(t, dir)
	mustFreeze(t, f, 500*time.Millisecond)
	guardian := f.cur.cmd.Process.Pid
	for range 2 {
		if err := f.Keep(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the guardian to go", func() bool { return unix.Kill(guardian, 0) != nil })
	<-time.After(500*time.Millisecond + 2*grace)
	if !frozen(t, dir) || !f.Held() {
		t.Error("keep did not outlive the deadline")
	}
	if names, err := ThawStale(f.o.RunDir); err != nil || len(names) > 0 || !frozen(t, dir) {
		t.Errorf("what was kept on purpose was thawed: %v, %v", names, err)
	}
	for range 2 {
		if err := f.Thaw(); err != nil {
			t.Error(err)
		}
	}
	w.advance(t)
	gone(t, f)

	startDaemon(t, "keep", "1m", f.o.RunDir, dir).await(t, "kept")
	next := New([]string{dir}, Options{RunDir: f.o.RunDir, Name: "daemon"})
	if !frozen(t, dir) {
		t.Error("keep did not outlive its process")
	}
	if err := next.Thaw(); err != nil {
		t.Error(err)
	}
	w.advance(t)
	gone(t, next)
}
