package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moverd/mover/mover"
)

// Rig is one source host and one gateway on this machine: real processes, real certificates, a proxy in between that can cut.
type Rig struct {
	Dir   string // everything of the rig: state, sockets, logs, certificates
	Bin   string // folder of moverd and moverctl
	Proxy *Proxy
	o     RigOptions

	gateway, source *Proc
	address         string // where the gateway listens; "": not started yet
	cleanup         []func() error
}

// RigOptions describe the flow of a rig.
type RigOptions struct {
	Volume      string // block device or image to read
	Target      string // block device or image to write
	Create      bool   // the gateway makes the image
	Interval    string // "0s": back to back
	Compression string
	Conns       int
	LogLimit    string
	Memory      string // of the source
	GatewayMem  string
	Limit       string // of a cutover
	Deadline    string // of the freeze
	Leave       string
	SkipFree    bool
	NoProxy     bool // throughput workloads measure without it
	Freeze      bool // false: the volume has no filesystem; the stop hook stops the writer
	StopHook    []string
	StartHook   []string
	Group       string // "": none; else the flow is the group "server" with this for its snapshot
	RedoDir     string // where the gateway keeps its state; default below Dir
	Disks       []RigDisk
	Points      string // of every flow at the gateway, as in its config
	Hooks       string // of the group, as in the source's config

	SourceMetrics, GatewayMetrics string // addresses of the metrics; default off

	Line    *Line  // the daemons run at its two ends; nil: both on loopback
	Through string // what the source dials instead of the gateway
	Cores   int    // both daemons share the first so many; 0: all
	Scope   string // of dedup: host, the default, or tenant
	Twin    string // target of the flow of a second host, for Second
	Host    string // the source's name; default web1
}

// RigDisk is one flow of a rig. Several are one group, groupName.
type RigDisk struct{ Name, Volume, Target string }

// disks are the rig's flows.
func (o RigOptions) disks() []RigDisk {
	if len(o.Disks) == 0 {
		return []RigDisk{{flowName, o.Volume, o.Target}}
	}
	return o.Disks
}

// grouped tells whether the flows are a group.
func (o RigOptions) grouped() bool { return len(o.Disks) > 1 || o.Group != "" }

// unit is what is cut over at once: the flow or the group.
func (o RigOptions) unit() string {
	if o.grouped() {
		return groupName
	}
	return o.disks()[0].Name
}

// NewRig makes folders and certificates. Close ends what was started.
func NewRig(ctx context.Context, bin string, o RigOptions) (*Rig, error) {
	dir, err := os.MkdirTemp("", "mover-rig-")
	if err != nil {
		return nil, err
	}
	r := &Rig{Dir: dir, Bin: bin, o: o}
	r.Defer(func() error { return os.RemoveAll(dir) })
	for _, args := range [][]string{
		{"pki", "init", "--dir", r.path("pki")},
		{"pki", "gateway", "--dir", r.path("pki"), "--out", r.path("pki"), "--name", "gw", "--address", "127.0.0.1,localhost," + nearAddr + "," + farAddr},
		{"pki", "host", "--dir", r.path("pki"), "--out", r.path("pki"), "--tenant", "demo", "--host", "web1"},
	} {
		if out, err := exec.CommandContext(ctx, filepath.Join(bin, "moverctl"), args...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("moverctl %s: %w\n%s", strings.Join(args, " "), err, out), r.Close())
		}
	}
	return r, nil
}

func (r *Rig) path(name string) string { return filepath.Join(r.Dir, name) }

// Defer has f run by Close, last first.
func (r *Rig) Defer(f func() error) { r.cleanup = append(r.cleanup, f) }

// Close stops both daemons, ends tracking and removes everything.
func (r *Rig) Close() error {
	var errs []error
	if r.source != nil {
		r.source.Kill()
	}
	if r.gateway != nil {
		r.gateway.Kill()
	}
	if r.Proxy != nil {
		errs = append(errs, r.Proxy.Close())
	}
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, r.cleanup[i]())
	}
	r.cleanup = nil
	return errors.Join(errs...)
}

// Proc is a started daemon.
type Proc struct {
	cmd   *exec.Cmd
	done  chan struct{}
	err   error
	group bool // it leads a process group, which is killed with it
}

// Kill sends SIGKILL and waits.
func (p *Proc) Kill() {
	select {
	case <-p.done:
		return
	default:
	}
	if p.group {
		syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	p.cmd.Process.Kill()
	<-p.done
}

// Stop sends SIGTERM and waits, at most 20 s.
func (p *Proc) Stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(20 * time.Second):
		p.Kill()
		return errors.New("did not stop within 20 s of SIGTERM")
	}
}

// Pid of the process.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

func (r *Rig) start(name string, args ...string) (*Proc, error) {
	log, err := os.OpenFile(r.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	argv := append([]string{filepath.Join(r.Bin, "moverd")}, args...)
	switch {
	case r.o.Line != nil && name == "gateway":
		argv = r.o.Line.Far(argv...)
	case r.o.Line != nil:
		argv = r.o.Line.Near(argv...)
	}
	if r.o.Cores > 0 {
		argv = append([]string{"taskset", "-c", fmt.Sprintf("0-%d", r.o.Cores-1)}, argv...)
	}
	p := &Proc{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Second is another host of the same tenant at r's gateway, whose volume goes to o.Twin. It is closed before r.
func (r *Rig) Second(ctx context.Context, volume string) (*Rig, error) {
	dir, err := os.MkdirTemp("", "mover-rig-")
	if err != nil {
		return nil, err
	}
	o := r.o
	o.Host, o.Volume, o.Target = twinHost, volume, r.o.Twin
	s := &Rig{Dir: dir, Bin: r.Bin, o: o, address: r.address}
	s.Defer(func() error { return os.RemoveAll(dir) })
	_, err = Run(ctx, filepath.Join(r.Bin, "moverctl"), "pki", "host", "--dir", r.path("pki"), "--out", s.path("pki"), "--tenant", "demo", "--host", twinHost)
	if err == nil {
		err = errors.Join(copyFile(r.path("pki/ca.pem"), s.path("pki/ca.pem")), os.Symlink(r.path("gateway.sock"), s.path("gateway.sock")))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Log is the end of a daemon's log, for error messages.
func (r *Rig) Log(name string) string {
	b, _ := os.ReadFile(r.path(name + ".log"))
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return string(b)
}

// Ctl runs moverctl against one role and returns its standard output. The error holds what it said and its exit code.
func (r *Rig) Ctl(ctx context.Context, role string, args ...string) ([]byte, error) {
	args = append([]string{"--socket", r.path(role + ".sock")}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(r.Bin, "moverctl"), args...)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("moverctl %s: %w: %s", strings.Join(args[2:], " "), err, strings.TrimSpace(msg.String()+out.String()))
	}
	return out.Bytes(), nil
}

// Statuses of the rig's flows at one end, asked for without a process for it.
func (r *Rig) Statuses(ctx context.Context, role string) (all []mover.Status, err error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.path(role+".sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://moverd/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return nil, fmt.Errorf("status of %s: %w", role, err)
	}
	return all, nil
}

// Status of the rig's only flow at one end.
func (r *Rig) Status(ctx context.Context, role string) (mover.Status, error) {
	all, err := r.Statuses(ctx, role)
	if err != nil {
		return mover.Status{}, err
	}
	if len(all) != 1 {
		return mover.Status{}, fmt.Errorf("status of %s: %d flows, want 1", role, len(all))
	}
	return all[0], nil
}

// AwaitAll polls until ok says so of every flow.
func (r *Rig) AwaitAll(ctx context.Context, role, what string, limit time.Duration, ok func(mover.Status) bool) error {
	end := time.Now().Add(limit)
	for {
		all, err := r.Statuses(ctx, role)
		good := err == nil && len(all) == len(r.o.disks())
		for _, st := range all {
			good = good && ok(st)
		}
		if good {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s did not become %s within %v: %v %+v\n%s", role, what, limit, err, all, r.Log(role))
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// Await polls the status until ok says so.
func (r *Rig) Await(ctx context.Context, role, what string, limit time.Duration, ok func(mover.Status) bool) (mover.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last mover.Status
	var lastErr error
	for {
		st, err := r.Status(ctx, role)
		if err == nil {
			if last = st; ok(st) {
				return st, nil
			}
		} else if ctx.Err() == nil {
			lastErr = err
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("%s did not become %s within %v: state %s, reason %q, last error %v\n%s",
				role, what, limit, last.State, last.Reason, lastErr, r.Log(role))
		case <-tick.C:
		}
	}
}

// Proxy passes TCP through and can cut every connection.
type Proxy struct {
	ln     net.Listener
	target string
	cut    chan chan struct{}
	quit   chan struct{}
	done   chan struct{}
}

// NewProxy listens on loopback in front of target.
func NewProxy(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{ln: ln, target: target, cut: make(chan chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	go p.serve()
	return p, nil
}

// Addr to dial.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Cut closes every connection that is open now.
func (p *Proxy) Cut() {
	done := make(chan struct{})
	select {
	case p.cut <- done:
		<-done
	case <-p.done:
	}
}

// Close ends the proxy.
func (p *Proxy) Close() error {
	close(p.quit)
	err := p.ln.Close()
	<-p.done
	return err
}

func (p *Proxy) serve() {
	defer close(p.done)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var open []net.Conn
	closeAll := func() {
		for _, c := range open {
			c.Close()
		}
		open = nil
	}
	defer closeAll()
	for {
		select {
		case <-p.quit:
			for c := range accepted {
				c.Close()
			}
			return
		case done := <-p.cut:
			closeAll()
			close(done)
		case c, ok := <-accepted:
			if !ok {
				<-p.quit
				return
			}
			up, err := net.Dial("tcp", p.target)
			if err != nil {
				c.Close()
				continue
			}
			open = append(open, c, up)
			go pipe(c, up)
			go pipe(up, c)
		}
	}
}

func pipe(dst, src net.Conn) {
	buf := make([]byte, 256<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			dst.Close()
			src.Close()
			return
		}
	}
}

// freePort asks the kernel for a TCP port on loopback.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
