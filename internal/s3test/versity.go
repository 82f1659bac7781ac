package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Versity is versitygw, an S3 server over a folder, built from its sources by the module in gw.
type Versity struct {
	Server
	cmd  *exec.Cmd
	out  *bytes.Buffer
	over chan struct{}
	err  error
}

// StartVersity builds the server where that was not done before, and runs it over the empty folder dir. backend are more arguments of its backend "posix".
func StartVersity(ctx context.Context, dir string, backend ...string) (*Versity, error) {
	program, err := build(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	s := &Versity{Server: Server{Endpoint: "http://" + address, ID: "MOVERTESTKEY", Secret: "mover/test+secret"}, out: new(bytes.Buffer), over: make(chan struct{})}
	args := append([]string{"--access", s.ID, "--secret", s.Secret, "--port", address, "--quiet", "--keep-alive", "posix", "--sidecar", filepath.Join(dir, "meta")}, backend...)
	s.cmd = exec.Command(program, append(args, filepath.Join(dir, "data"))...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.over)
	}()
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return s, nil
		}
		select {
		case <-s.over:
			return nil, fmt.Errorf("versitygw has ended: %w: %s", s.err, s.out)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("versitygw does not listen: %w", ctx.Err()), s.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Close kills the server.
func (s *Versity) Close() error {
	select {
	case <-s.over:
		return fmt.Errorf("versitygw had ended before: %w: %s", s.err, s.out)
	default:
	}
	_ = s.cmd.Process.Kill()
	<-s.over
	return nil
}

// build gives the path of the server's program, in Go's own cache.
func build(ctx context.Context) (string, error) {
	root, err := checkout()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "versitygw")
	cmd.Dir = filepath.Join(root, "internal/s3test/gw")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build versitygw: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// checkout is the top of the sources that the working folder lies in.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(text), "module github.com/moverd/mover\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no checkout of mover around the working folder")
		}
	}
}
