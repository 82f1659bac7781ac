package s3test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// child is a program of a server.
type child struct {
	name string
	cmd  *exec.Cmd
	over chan struct{} // closed when it has ended
	err  error         // how
}

// startChild starts a program that dies when this process does. What it says goes to the file out.
func startChild(name, dir, out string, cmd *exec.Cmd) (*child, error) {
	f, err := os.Create(out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &child{name: name, cmd: cmd, over: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		close(d.over)
	}()
	return d, nil
}

// kill ends it; that it has ended before is an error.
func (d *child) kill() error {
	select {
	case <-d.over:
		return fmt.Errorf("%s had ended before: %w", d.name, d.err)
	default:
	}
	_ = d.cmd.Process.Kill()
	<-d.over
	return nil
}

// cpu is the time of processors that it has taken so far.
func (d *child) cpu() (time.Duration, error) {
	const tick = 10 * time.Millisecond // as /proc counts
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", d.name, err)
	}
	_, after, _ := strings.Cut(string(text), ") ") // behind the name, which may have spaces
	var state string
	var user, system int64
	var skip [10]int64
	n, err := fmt.Sscan(after, &state, &skip[0], &skip[1], &skip[2], &skip[3], &skip[4], &skip[5], &skip[6], &skip[7], &skip[8], &skip[9], &user, &system)
	if err != nil {
		return 0, fmt.Errorf("%s: field %d of its stat: %w", d.name, n+3, err)
	}
	return time.Duration(user+system) * tick, nil
}
