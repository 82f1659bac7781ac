package receiver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// A child process runs the gateway on real files, and is killed at random moments: what it leaves is what the page cache holds.
const childEnv = "RECEIVER_TEST_CHILD"

type childConfig struct {
	State, Certs, Target string
	LogLimit             int64
	Fuzzy                bool
	KillAtPoint          string // while this file exists, the gateway dies between a point's copy and its record
}

// mortal dies right after a point was taken, or right before if the file says so.
type mortal struct {
	blockdev.Points
	while string
}

func (m mortal) Take(ctx context.Context, name string) error {
	say, serr := os.ReadFile(m.while)
	die := func() {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	if string(say) == "before" {
		die()
	}
	err := m.Points.Take(ctx, name)
	if serr == nil && err == nil {
		die()
	}
	return err
}

func childMain() int {
	var cc childConfig
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &cc); err != nil {
		fmt.Println("error", err)
		return 1
	}
	server, err := wire.ServerTLS(wire.Files{CA: filepath.Join(cc.Certs, "ca.pem"), Cert: filepath.Join(cc.Certs, "gw.pem"), Key: filepath.Join(cc.Certs, "gw.key")})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	flow := FlowConfig{Tenant: "acme", Host: "db1", Name: "root", Target: cc.Target}
	var open func(method, target, owner, flow string) (blockdev.Points, error)
	if cc.KillAtPoint != "" {
		flow.Points = PointsConfig{Method: "reflink", Keep: mover.Keep{Last: 9}, Fuzzy: cc.Fuzzy}
		open = func(method, target, owner, flow string) (blockdev.Points, error) {
			p, err := openPoints(method, target, owner, flow)
			return mortal{p, cc.KillAtPoint}, err
		}
	}
	s, err := New(Config{StateDir: cc.State, TLS: server, LogLimit: cc.LogLimit, IndexMemory: 8 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Flows: []FlowConfig{flow}, OpenPoints: open, OpenTarget: openDisk, Inspect: inspectDisk})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println(l.Addr())
	go func() { // the parent's death ends us
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	fmt.Println("error", s.Serve(context.Background(), l))
	return 1
}

func openDisk(path string, size int64, create bool) (blockdev.Target, error) {
	t, err := disk.OpenTarget(path, disk.TargetOptions{Size: size, Create: create})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func inspectDisk(path string) (Found, error) {
	f, err := disk.Inspect(path)
	return Found{Size: f.Size, Identity: f.Identity, Blank: f.Blank}, err
}

// child is the running gateway.
type child struct {
	r     *rig // for dialling
	cc    childConfig
	cmd   *exec.Cmd
	stdin io.Closer
	logs  *bytes.Buffer
}

func newChild(t *testing.T, logLimit int64) *child {
	dir, err := certDir()
	must(t, err)
	tmp, err := os.MkdirTemp("/dev/shm", "receiver-kill")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(tmp) })
	c := &child{r: &rig{t: t, dir: dir}, cc: childConfig{filepath.Join(tmp, "state"), dir, filepath.Join(tmp, "target.img"), logLimit, false, ""}, logs: new(bytes.Buffer)}
	c.start()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Log(c.logs.String())
		}
	})
	return c
}

func (c *child) start() {
	c.r.t.Helper()
	env, err := json.Marshal(c.cc)
	must(c.r.t, err)
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(env), "GOMAXPROCS=2")
	c.cmd.Stderr = c.logs
	c.stdin, err = c.cmd.StdinPipe()
	must(c.r.t, err)
	out, err := c.cmd.StdoutPipe()
	must(c.r.t, err)
	must(c.r.t, c.cmd.Start())
	if _, err := fmt.Fscanln(out, &c.r.addr); err != nil || c.r.addr == "error" {
		b, _ := io.ReadAll(out)
		c.r.t.Fatalf("child: %v %s", err, b)
	}
}

func (c *child) kill() {
	_ = c.cmd.Process.Signal(unix.SIGKILL)
	_ = c.cmd.Wait()
	c.stdin.Close()
	for _, cl := range c.r.clients {
		cl.close()
	}
	c.r.clients = nil
}

func TestKill(t *testing.T) {
	for _, logLimit := range []int64{64 << 20, minLogLimit} {
		t.Run(fmt.Sprint(logLimit), func(t *testing.T) {
			t.Parallel()
			c := newChild(t, logLimit)
			rnd := rand.New(rand.NewPCG(uint64(logLimit), 1))
			s := randomSrc(8<<20+512, 1)
			point := make([]byte, len(s.b))
			for pass := range 6 {
				kind, batches := mover.Delta, s.whole(1+rnd.IntN(100))
				if pass == 0 {
					kind = mover.Full
				} else {
					for range 30 {
						off := rnd.IntN(len(s.b)/512) * 512
						fill(s.b[off:min(len(s.b), off+20000)], rnd.Uint64())
					}
				}
				p := s.newPass(kind, batches...)
				if rnd.IntN(2) == 0 {
					p.est = 1 << 50
				}
				c.pass(rnd, s, p, point)
				copy(point, s.b)
			}
		})
	}
}

// pass runs p to its commit over killed gateways. A kill is timed, so that it hits anything.
func (c *child) pass(rnd *rand.Rand, s *src, p *spass, point []byte) {
	t := c.r.t
	for try := 0; ; try++ {
		if try > 100 {
			t.Fatal("pass does not come to its end")
		}
		cl, err := c.r.dial(newID(), "root")
		must(t, err)
		if cl.welcome.State.Epoch >= p.epoch {
			break // the answer to COMMIT was lost
		}
		staged := cl.welcome.State.Phase == uint8(mover.Point)
		killed := make(chan struct{})
		timer := time.AfterFunc(time.Duration(rnd.IntN(40+try*20))*time.Millisecond, func() {
			_ = c.cmd.Process.Signal(unix.SIGKILL)
			close(killed)
		})
		o, err := cl.open(s, p)
		if err == nil {
			err = cl.rest(s, p, o)
		}
		if err == nil && rnd.IntN(2) == 0 {
			_, err = cl.readBack(wire.ScopeTouched)
		}
		if err == nil && timer.Stop() {
			break
		}
		<-killed
		c.kill()
		c.start()
		if staged && s.ep != p.epoch {
			c.checkPoint(s, p, point)
		}
	}
	s.ep = p.epoch
	cl, err := c.r.dial(newID(), "root")
	must(t, err)
	root, err := cl.readBack(wire.ScopeAll)
	must(t, err)
	got, err := os.ReadFile(c.cc.Target)
	must(t, err)
	if !bytes.Equal(got, s.b) || root.Digest != s.root(c.r, nil) {
		t.Fatalf("epoch %d: target is not the source, first at byte %d", p.epoch, firstDiff(got, s.b))
	}
}

// checkPoint: a target whose record says that it is at its old point holds that, byte for byte (C6).
func (c *child) checkPoint(s *src, p *spass, point []byte) {
	t := c.r.t
	cl, err := c.r.dial(newID(), "root")
	must(t, err)
	if st := cl.welcome.State; st.Phase != uint8(mover.Point) || st.Epoch >= p.epoch || st.Pass != [16]byte{} && st.Mode != uint8(mover.Staged) {
		return
	}
	got, err := os.ReadFile(c.cc.Target)
	must(t, err)
	if !bytes.Equal(got, point) {
		t.Fatalf("target left its point before the commit of epoch %d, first at byte %d", p.epoch, firstDiff(got, point))
	}
}

// TestStateDiskFull: a full state disk gives clear errors, and what is there stays whole.
func TestStateDiskFull(t *testing.T) {
	looptest.NeedRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, func(c *Config) { c.StateDir = dir })
	s := randomSrc(48<<20, 1)
	r.first(r.mustDial("root"), s)
	r.settled("acme/db1/root")
	// The delta seems to fit, but does not: it goes direct on its way.
	fill(s.b, 2)
	p := s.newPass(mover.Delta, s.whole(100)...)
	p.est = 1 << 20
	mode, err := r.mustDial("root").run(s, p)
	must(t, err)
	r.settled("acme/db1/root")
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("target differs")
	}
	t.Log("opened", mode)

	// Nothing at all is left: the pass is refused in words, the point stays.
	old := bytes.Clone(s.b)
	f, err := os.Create(filepath.Join(dir, "ballast"))
	must(t, err)
	junk := make([]byte, 4096)
	for {
		if _, err := f.Write(junk); err != nil {
			break
		}
	}
	fill(s.b[:1<<20], 3)
	p = s.newPass(mover.Delta, s.whole(100)[:3]...)
	p.est = 1 << 40
	_, err = r.mustDial("root").run(s, p)
	t.Log(err)
	if err == nil {
		t.Fatal("a pass went through on a full state disk")
	}
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), old) {
		t.Fatal("the point has changed")
	}
	must(t, f.Close())
	must(t, os.Remove(f.Name()))
	_, err = r.mustDial("root").run(s, p)
	must(t, err)
	r.settled("acme/db1/root")
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("target differs after room was made")
	}
}
