package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// command starts a peer's server in the foreground, as a process of the rig with a group of its own.
func (r *Rig) command(name string, args ...string) (*Proc, error) {
	log, err := os.OpenFile(r.path(filepath.Base(name)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &Proc{cmd: exec.Command(name, args...), done: make(chan struct{}), group: true}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func awaitPort(ctx context.Context, port int) error {
	var err error
	for range 100 {
		var c net.Conn
		if c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return c.Close()
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return err
}

// fio runs one job for a time (0: once over the device).
func fio(ctx context.Context, dev, rw, bs string, length time.Duration) error {
	args := []string{"--name=x", "--filename=" + dev, "--rw=" + rw, "--bs=" + bs, "--direct=1", "--ioengine=libaio", "--iodepth=16", "--numjobs=1",
		"--norandommap", "--randrepeat=0", "--thread"}
	if length > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%d", int(length.Seconds())))
	}
	_, err := Run(ctx, "fio", args...)
	return err
}

// randomFiles writes size bytes of random content into files of 256 MiB.
func randomFiles(ctx context.Context, dir string, size int64) error {
	rng := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 4<<20)
	var f *os.File
	for n := int64(0); n < size; n += int64(len(buf)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n%(256<<20) == 0 {
			if f != nil {
				if err := f.Close(); err != nil {
					return err
				}
			}
			var err error
			if f, err = os.Create(filepath.Join(dir, fmt.Sprintf("random-%d", n>>28))); err != nil {
				return err
			}
		}
		rng.Read(buf)
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, err := Run(ctx, "sync", "-f", dir)
	return err
}
