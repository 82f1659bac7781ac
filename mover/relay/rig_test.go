package relay_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/wire"
)

// The SDK of BOS starts a goroutine for its log when it is linked.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// certDir has a CA, a gateway and hosts.
var certDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "relay-pki")
	if err != nil {
		return "", err
	}
	err = errors.Join(pki.Init(dir, "test CA"), pki.IssueGateway(dir, dir, "gw", []string{"localhost"}, time.Hour))
	for _, n := range [][2]string{{"acme", "db1"}, {"acme", "db2"}, {"evil", "db1"}} {
		err = errors.Join(err, pki.IssueHost(dir, filepath.Join(dir, n[0]), n[0], n[1], time.Hour))
	}
	return dir, err
})

// rig is a gateway whose door is the real one.
type rig struct {
	t      testing.TB
	dir    string
	server *relay.Server
	door   *receiver.Server
	addr   string

	mu    sync.Mutex
	conns []net.Conn // of sources, below TLS
}

type change func(*relay.ServerConfig, *receiver.Config)

func newRig(t testing.TB, flows []relay.FlowConfig, changes ...change) *rig {
	t.Helper()
	certs, err := certDir()
	must(t, err)
	r := &rig{t: t, dir: t.TempDir()}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	tls, err := wire.ServerTLS(wire.Files{CA: filepath.Join(certs, "ca.pem"), Cert: filepath.Join(certs, "gw.pem"), Key: filepath.Join(certs, "gw.key")})
	must(t, err)
	sc := relay.ServerConfig{Dir: filepath.Join(r.dir, "chunks"), Flows: flows, Log: log}
	rc := receiver.Config{StateDir: filepath.Join(r.dir, "state"), TLS: tls, IndexMemory: 8 << 20, Log: log,
		OpenTarget: func(string, int64, bool) (blockdev.Target, error) { return nil, errors.New("there are no volumes") },
		Inspect:    func(string) (receiver.Found, error) { return receiver.Found{}, errors.New("there are no volumes") }}
	for _, c := range changes {
		c(&sc, &rc)
	}
	r.server, err = relay.NewServer(sc)
	must(t, err)
	rc.Objects = r.server
	r.door, err = receiver.New(rc)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.addr = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- r.door.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		must(t, r.door.Close())
		must(t, <-ended)
		must(t, r.server.Close())
	})
	return r
}

// flowTo is a flow of acme/db1 to a store.
func flowTo(name string, open func() (objstore.Store, error)) relay.FlowConfig {
	return relay.FlowConfig{Tenant: "acme", Host: "db1", Name: name, Scope: "acme/db1", Store: name, Target: "mem:" + name,
		Open: func(context.Context) (objstore.Store, []string, error) { s, err := open(); return s, nil, err }}
}

func inMemory(s objstore.Store) func() (objstore.Store, error) {
	return func() (objstore.Store, error) { return s, nil }
}

// rules are those of all drivers that the tests use.
var rules = map[string]objstore.Rule{"dir": dir.Rule(), "bos": bos.Rule(), "": {Key: func(key string) error {
	if key == "" || len(key) > 1024 {
		return errors.New("a key has 1 to 1,024 bytes")
	}
	return nil
}}}

// dialAs connects as a host.
func (r *rig) dialAs(tenant, host string) func(context.Context) (net.Conn, error) {
	certs, err := certDir()
	must(r.t, err)
	at := filepath.Join(certs, tenant)
	tls, err := wire.ClientTLS(wire.Files{CA: filepath.Join(certs, "ca.pem"), Cert: filepath.Join(at, host+".pem"), Key: filepath.Join(at, host+".key")}, "localhost")
	must(r.t, err)
	return func(ctx context.Context) (net.Conn, error) {
		nc, err := wire.Dial(ctx, r.addr, tls)
		if err == nil {
			r.mu.Lock()
			r.conns = append(r.conns, nc)
			r.mu.Unlock()
		}
		return nc, err
	}
}

// cut cuts a connection, by number modulo those that there are; false: there is none.
func (r *rig) cut(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.conns) == 0 {
		return false
	}
	n %= len(r.conns)
	nc := r.conns[n]
	r.conns = append(r.conns[:n], r.conns[n+1:]...)
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	nc.Close()
	return true
}

func (r *rig) config(flow string) relay.Config {
	return relay.Config{Flow: flow, Agent: "test", Dial: r.dialAs("acme", "db1"), Rules: rules, Log: slog.New(slog.DiscardHandler)}
}

// open opens a flow's store at the source.
func (r *rig) open(flow string, changes ...func(*relay.Config)) *relay.Store {
	r.t.Helper()
	c := r.config(flow)
	for _, f := range changes {
		f(&c)
	}
	s, err := relay.Open(r.t.Context(), c)
	must(r.t, err)
	r.t.Cleanup(func() { s.Close() })
	return s
}

func openDir(path string) func() (objstore.Store, error) {
	return func() (objstore.Store, error) {
		s, err := dir.Open(dir.Config{Path: path})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

// openBOS is a bucket of the emulator, through the real SDK.
func openBOS(t testing.TB, edit func(*bosemu.Config)) func() (objstore.Store, error) {
	t.Helper()
	cfg := bosemu.Config{Dir: t.TempDir(), Accounts: []bosemu.Account{{ID: "alice", AccessKey: "ak-alice", SecretKey: "sk-alice"}},
		Buckets: []bosemu.Bucket{{Name: "photos", Owner: "alice", Region: "gz"}}}
	if edit != nil {
		edit(&cfg)
	}
	emu, err := bosemu.New(cfg)
	must(t, err)
	web := httptest.NewServer(emu)
	t.Cleanup(func() { web.Close(); emu.Close() })
	return func() (objstore.Store, error) {
		s, err := bos.New(bos.Config{Endpoint: web.URL, Bucket: "photos", Credentials: objstore.Fixed{ID: "ak-alice", Secret: "sk-alice"}})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

func memory() *mem.Store {
	return mem.New(mem.Config{Name: "b", Limits: objstore.Limits{List: 100, Batch: 50, Meta: 2048}})
}

func read(t testing.TB, s objstore.Store, key string) []byte {
	t.Helper()
	_, body, err := s.Get(t.Context(), key, objstore.GetOptions{})
	must(t, err)
	b, err := io.ReadAll(body)
	must(t, errors.Join(err, body.Close()))
	return b
}

func put(t testing.TB, s objstore.Store, key string, b []byte) objstore.Written {
	t.Helper()
	w, err := s.Put(t.Context(), key, objstore.Bytes(b), objstore.PutOptions{})
	must(t, err)
	return w
}

// each calls f with 0 to n-1, width at a time.
func each(n, width int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}
