package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// offer is where a point is offered over NBD.
type offer struct {
	listen, socket string
	remote         bool
}

func (a *app) serveCmd() *cobra.Command {
	var o offer
	c := &cobra.Command{
		Use: "serve FLOW POINT", Short: "At the gateway: offer a recovery point read-only over NBD, to look into it", Args: exactly("FLOW", "POINT"),
		Long: `Offer a recovery point read-only over NBD (nbdkit) until interrupted. The point is not removed meanwhile, whatever its age.
NBD has no encryption and, like this, asks nobody who they are: listen on loopback or a unix socket.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if _, err := exec.LookPath("nbdkit"); err != nil {
				return fmt.Errorf("serve needs nbdkit: install the package nbdkit: %w", sentinel.ErrNotSupported)
			}
			return a.serve(c.Context(), control.Request{Flow: args[0], Point: args[1]}, o)
		},
	}
	c.Flags().StringVar(&o.listen, "listen", "", "IP:PORT to listen on; default 127.0.0.1:10809")
	c.Flags().StringVar(&o.socket, "unix", "", "unix socket to make instead")
	c.Flags().BoolVar(&o.remote, "remote", false, "allow an address that is not loopback: whoever reaches it reads everything")
	return c
}

func (o *offer) check() error {
	switch {
	case o.socket != "" && (o.listen != "" || o.remote):
		return usagef("--unix excludes --listen and --remote")
	case o.socket != "":
		if _, err := os.Lstat(o.socket); !errors.Is(err, fs.ErrNotExist) {
			return usagef("--unix %s: exists", o.socket)
		}
		path, err := filepath.Abs(o.socket)
		o.socket = path
		return err
	case o.listen == "":
		o.listen = "127.0.0.1:10809"
	}
	at, err := netip.ParseAddrPort(o.listen)
	if err != nil || at.Port() == 0 {
		return usagef("--listen %s: is not IP:PORT", o.listen)
	}
	if !at.Addr().IsLoopback() && !o.remote {
		return usagef("--listen %s: is not loopback, and NBD like this has neither encryption nor passwords; give --remote if the network is yours alone", o.listen)
	}
	ln, err := net.Listen("tcp", o.listen) // nbdkit's own words are less clear
	if err != nil {
		return usagef("--listen %s: %v", o.listen, err)
	}
	return ln.Close()
}

// args are nbdkit's. It ends with the thread that starts it.
func (o *offer) args(path string, size int64, pidfile string) []string {
	args := []string{"--foreground", "--exit-with-parent", "--readonly", "--pidfile", pidfile, "--filter=truncate"}
	if o.socket != "" {
		args = append(args, "--unix", o.socket)
	} else {
		at := netip.MustParseAddrPort(o.listen)
		args = append(args, "--ipaddr", at.Addr().String(), "--port", fmt.Sprint(at.Port()))
	}
	return append(args, "file", "file="+path, fmt.Sprintf("truncate=%d", size))
}

func (o *offer) uri() string {
	if o.socket != "" {
		return "nbd+unix:///?socket=" + o.socket
	}
	return "nbd://" + o.listen
}

// serve has the daemon hold the point for as long as nbdkit runs here; the end of either ends the other.
func (a *app) serve(ctx context.Context, req control.Request, o offer) error {
	hold, release := context.WithCancel(ctx)
	defer release()
	held := make(chan mover.Progress, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := a.client(gatewaySocket).Do(hold, control.Serve, req, func(p mover.Progress) {
			if p.Step == control.Serve {
				held <- p
			}
		})
		release()
		ended <- err
	}()
	var p mover.Progress
	select {
	case p = <-held:
	case err := <-ended:
		return err
	}
	err := a.nbdkit(hold, p.Text, p.Total, o)
	release()
	gone := <-ended
	switch {
	case ctx.Err() != nil: // as the operator wished
		return nil
	case err != nil:
		return err
	}
	return gone
}

func (a *app) nbdkit(ctx context.Context, path string, size int64, o offer) error {
	dir, err := os.MkdirTemp("", "mover-serve-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	pidfile := filepath.Join(dir, "pid")
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "nbdkit", o.args(path, size, pidfile)...)
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
	runtime.LockOSThread() // the child dies with the thread that made it
	defer runtime.UnlockOSThread()
	if err = cmd.Start(); err != nil {
		return fmt.Errorf("start nbdkit: %w", err)
	}
	if o.socket != "" {
		defer os.Remove(o.socket)
	}
	listens, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { a.announce(listens, pidfile, o, path, size) })
	err = cmd.Wait()
	stop()
	beside.Wait()
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("nbdkit ended: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return errors.New("nbdkit ended by itself")
}

// announce says where the point is once nbdkit listens.
func (a *app) announce(ctx context.Context, pidfile string, o offer, path string, size int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(pidfile); err == nil {
			if a.output == "json" {
				_ = a.json(map[string]any{"uri": o.uri(), "path": path, "size_bytes": size})
				return
			}
			fmt.Fprintf(a.out, "%s: read-only, %d bytes; ctrl-c ends\n", o.uri(), size)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
