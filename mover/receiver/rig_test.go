package receiver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(childMain())
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// medium is a would-be target: a disk that survives the gateway.
type medium struct {
	mem   *fault.Mem
	crash *fault.Crash // while open
	plan  fault.Plan
	blank bool
	sign  []string
}

// rig is a gateway with targets in memory, and a CA.
type rig struct {
	t     testing.TB
	dir   string
	state string
	cfg   Config
	s     *Server
	addr  string
	ended chan error

	clients []*client

	mu    sync.Mutex // guards media
	media map[string]*medium
}

var certDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "receiver-pki")
	if err != nil {
		return "", err
	}
	err = errors.Join(pki.Init(dir, "test CA"), pki.IssueGateway(dir, dir, "gw", []string{"localhost"}, time.Hour))
	for _, n := range [][2]string{{"acme", "db1"}, {"acme", "db2"}, {"evil", "db1"}} {
		err = errors.Join(err, pki.IssueHost(dir, filepath.Join(dir, n[0]), n[0], n[1], time.Hour))
	}
	return dir, err
})

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	dir, err := certDir()
	must(t, err)
	// In memory: what a kill leaves of the state disk is another test's business, and fdatasync takes most of the time.
	state, err := os.MkdirTemp("/dev/shm", "receiver-test")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	r := &rig{t: t, dir: dir, state: state, media: map[string]*medium{}}
	server, err := wire.ServerTLS(wire.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "gw.pem"), Key: filepath.Join(dir, "gw.key")})
	must(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	r.cfg = Config{StateDir: r.state, TLS: server, IndexMemory: 8 << 20, LogLimit: 64 << 20, OpenTarget: r.open, Inspect: r.inspect, Log: log,
		Flows: []FlowConfig{{Tenant: "acme", Host: "db1", Name: "root", Target: "/t/a"}}}
	for _, c := range change {
		c(&r.cfg)
	}
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := New(r.cfg)
	must(r.t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	r.s, r.addr, r.ended = s, l.Addr().String(), make(chan error, 1)
	go func(s *Server, ended chan error) { ended <- s.Serve(context.Background(), l) }(s, r.ended)
}

func (r *rig) stop() {
	if r.s == nil {
		return
	}
	for _, c := range r.clients {
		c.close() // the gateway would wait until its last words are read
	}
	r.clients = nil
	if err := r.s.Close(); err != nil {
		r.t.Error(err)
	}
	if err := <-r.ended; err != nil {
		r.t.Error(err)
	}
	r.s = nil
}

// powerCut loses any part of what targets have not synced, and starts the gateway again.
func (r *rig) powerCut(seed uint64) {
	r.t.Helper()
	r.mu.Lock()
	for _, m := range r.media {
		if m.crash != nil {
			if _, err := m.crash.Crash(seed); err != nil {
				r.t.Fatal(err)
			}
			m.crash = nil
		}
	}
	r.mu.Unlock()
	r.stop()
	r.start()
}

func (r *rig) medium(path string) *medium {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.media[path]
}

// add puts a disk with content into place.
func (r *rig) add(path string, size int64) *medium {
	m := &medium{mem: fault.NewMem(size), blank: true}
	m.mem.SetIdentity("mem-" + path)
	r.mu.Lock()
	r.media[path] = m
	r.mu.Unlock()
	return m
}

// opened closes the medium with the target, so that a second open is seen.
type opened struct {
	blockdev.Target
	close func() error
}

func (o opened) Close() error { return o.close() }

func (r *rig) open(path string, size int64, create bool) (blockdev.Target, error) {
	m := r.medium(path)
	if m == nil {
		if !create {
			return nil, fmt.Errorf("target %s: %w", path, sentinel.ErrNotFound)
		}
		m = r.add(path, size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.crash != nil {
		return nil, fmt.Errorf("target %s is open twice: %w", path, sentinel.ErrRefused)
	}
	if m.mem.Size() < size {
		return nil, fmt.Errorf("target %s is too small: %w", path, sentinel.ErrRefused)
	}
	c := fault.NewCrash(fault.NewTarget(m.mem.Reopen(), &m.plan))
	m.crash = c
	return opened{c, func() error {
		r.mu.Lock()
		if m.crash == c {
			m.crash = nil
		}
		r.mu.Unlock()
		return c.Close()
	}}, nil
}

func (r *rig) inspect(path string) (Found, error) {
	m := r.medium(path)
	if m == nil {
		return Found{}, fmt.Errorf("target %s: %w", path, sentinel.ErrNotFound)
	}
	return Found{Size: m.mem.Size(), Identity: m.mem.Identity(), Blank: m.blank, Signatures: m.sign}, nil
}

// content is what the medium of a target holds now, its cache not counted.
func (r *rig) content(path string, n int64) []byte {
	r.t.Helper()
	b := make([]byte, n)
	m := r.medium(path)
	if m == nil {
		return b
	}
	r.mu.Lock()
	open := m.crash != nil
	r.mu.Unlock()
	if !open {
		m.mem.Reopen()
	}
	if _, err := m.mem.ReadAt(b, 0); err != nil && err != io.EOF {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) clientTLS(tenant, host string) *tls.Config {
	dir := filepath.Join(r.dir, tenant)
	cfg, err := wire.ClientTLS(wire.Files{CA: filepath.Join(r.dir, "ca.pem"), Cert: filepath.Join(dir, host+".pem"), Key: filepath.Join(dir, host+".key")}, "localhost")
	must(r.t, err)
	return cfg
}
