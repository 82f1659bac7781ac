package flowtest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/sender"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

var (
	verbose   = flag.Bool("flowlog", false, "print the logs of both ends")
	histories = flag.Int("histories", 20, "number of random histories; make histories runs many more")
	seedFlag  = flag.Uint64("seed", 1, "of the first random history")
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var certDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "flowtest")
	if err == nil {
		err = errors.Join(pki.Init(dir, "test CA"), pki.IssueGateway(dir, dir, "gw", []string{"localhost", "127.0.0.1"}, time.Hour),
			pki.IssueHost(dir, dir, "acme", "db1", time.Hour))
	}
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guardian" { // of a real freeze
		freeze.GuardianMain()
		return
	}
	flag.Parse()
	code := m.Run()
	os.RemoveAll(certDir())
	os.Exit(code)
}

func files(name string) wire.Files {
	return wire.Files{CA: filepath.Join(certDir(), "ca.pem"), Cert: filepath.Join(certDir(), name+".pem"), Key: filepath.Join(certDir(), name+".key")}
}

func logger() *slog.Logger {
	if *verbose {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// rig is a volume, a target, a gateway and a source. Gateway and source can be ended and made again on the same state.
type rig struct {
	t        testing.TB
	vol      *volume
	proxy    *proxy
	dir      string
	config   sender.Config
	direct   bool   // no proxy in between
	identity string // of the target
	deps     func(*sender.Deps)
	gwConf   func(*receiver.Config)
	copies   *copies // of points; nil: none are kept

	mu     sync.Mutex // guards all below
	target *fault.Mem // nil until made
	plan   *fault.Plan
	addr   string
	report *mover.Report // what Record kept

	gw    *receiver.Server
	gwEnd func()
	flow  *sender.Flow
	pool  *buffers.Pool
	end   func()
}

func newRig(t testing.TB, size int64, delay time.Duration) *rig {
	r := &rig{t: t, vol: newVolume(size), dir: t.TempDir(), plan: &fault.Plan{}, identity: "target",
		config: sender.Config{Flow: "disk", Gateway: "test", Conns: 3, Interval: time.Hour, BackOff: time.Millisecond}}
	r.proxy = newProxy(t, func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.addr
	}, delay)
	t.Cleanup(r.stop)
	return r
}

func (r *rig) start() *rig {
	r.startGateway()
	r.startSource()
	return r
}

func (r *rig) stop() {
	r.stopSource()
	r.stopGateway()
}

func (r *rig) startGateway() {
	r.t.Helper()
	tls, err := wire.ServerTLS(files("gw"))
	must(r.t, err)
	cfg := receiver.Config{StateDir: filepath.Join(r.dir, "gw"), Memory: 96 << 20, TLS: tls, Log: logger(),
		Flows:      []receiver.FlowConfig{{Tenant: "acme", Host: "db1", Name: "disk", Target: "/mem"}},
		OpenTarget: r.openTarget, Inspect: r.inspect}
	if r.gwConf != nil {
		r.gwConf(&cfg)
	}
	must(r.t, os.MkdirAll(cfg.StateDir, 0o700))
	r.gw, err = receiver.New(cfg)
	must(r.t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	r.mu.Lock()
	r.addr = l.Addr().String()
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	gw := r.gw
	wg.Go(func() {
		if err := gw.Serve(ctx, l); err != nil {
			r.t.Errorf("serve: %v", err)
		}
	})
	r.gwEnd = func() {
		cancel()
		if err := gw.Close(); err != nil {
			r.t.Logf("gateway closed: %v", err)
		}
		wg.Wait()
	}
}

func (r *rig) stopGateway() {
	if r.gwEnd != nil {
		r.proxy.cutAll()
		r.gwEnd()
		r.gwEnd = nil
	}
}

func (r *rig) openTarget(path string, size int64, create bool) (blockdev.Target, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.target == nil && !create:
		return nil, sentinel.ErrNotFound
	case r.target == nil:
		r.target = fault.NewMem(size)
		r.target.SetIdentity(r.identity)
	case r.target.Size() < size && create:
		grown := fault.NewMem(size)
		grown.SetIdentity(r.identity)
		old := read(r.t, r.target.Reopen(), r.target.Size())
		_, err := grown.WriteAt(old, 0)
		must(r.t, err)
		r.target = grown
	default:
		r.target = r.target.Reopen()
	}
	return fault.NewTarget(r.target, r.plan), nil
}

func (r *rig) inspect(string) (receiver.Found, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target == nil {
		return receiver.Found{}, sentinel.ErrNotFound
	}
	return receiver.Found{Size: r.target.Size(), Identity: r.identity}, nil
}

func (r *rig) startSource() {
	r.t.Helper()
	client, err := wire.ClientTLS(files("db1"), "localhost")
	must(r.t, err)
	r.pool = buffers.New(chunker.BatchSize, 64<<20)
	deps := sender.Deps{Volume: fault.NewVolume(r.vol, r.vol.plan), Tracker: tracker{r.vol}, Freezer: freezer{r.vol}, Used: r.vol.used,
		Paths: []uplink.Path{{Name: "only", Dial: func(ctx context.Context) (net.Conn, error) {
			if r.direct {
				return wire.Dial(ctx, r.addr, client)
			}
			return wire.Dial(ctx, r.proxy.addr(), client)
		}}},
		Table: filepath.Join(r.dir, "table"), Buffers: r.pool, Log: logger(), Recorded: r.recorded(),
		Record: func(m *mover.Report) error { r.mu.Lock(); defer r.mu.Unlock(); r.report = m; return nil }}
	if r.deps != nil {
		r.deps(&deps)
	}
	r.flow, err = sender.New(r.config, deps)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	flow, pool := r.flow, r.pool
	wg.Go(func() {
		if err := flow.Run(ctx); err != nil {
			r.t.Logf("run: %v", err)
		}
	})
	r.end = func() {
		cancel()
		wg.Wait()
		if err := pool.Close(); err != nil {
			r.t.Errorf("leases: %v", err)
		}
	}
}

func (r *rig) recorded() *mover.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report
}

func (r *rig) stopSource() {
	if r.end != nil {
		r.end()
		r.end = nil
	}
}

// wait waits until cond holds for the status.
func (r *rig) wait(what string, cond func(mover.Status) bool) mover.Status {
	r.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		s := r.flow.Status()
		if cond(s) {
			return s
		}
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within 30 s; status %+v", what, s)
		}
		time.Sleep(time.Millisecond) // polling what a person would watch
	}
}

func (r *rig) sync() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.flow.Sync(ctx); err != nil {
		r.t.Fatalf("sync: %v; status %+v", err, r.flow.Status())
	}
}

func (r *rig) cutover(o sender.CutoverOptions) (*mover.Report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	return r.flow.Cutover(ctx, o, func(p mover.Progress) {
		if *verbose {
			r.t.Logf("%s: %s %d/%d", p.Step, p.Text, p.Done, p.Total)
		}
	})
}

func read(t testing.TB, from interface {
	ReadAt([]byte, int64) (int, error)
}, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	for at := int64(0); at < n; at += 1 << 20 {
		_, err := from.ReadAt(b[at:min(at+1<<20, n)], at)
		must(t, err)
	}
	return b
}

// applied waits until the gateway has applied what is committed: COMMITTED comes before that.
func (r *rig) applied() {
	r.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for r.gw.Status()[0].State == mover.Applying {
		if time.Now().After(end) {
			r.t.Fatalf("still applying after 30 s: %+v", r.gw.Status())
		}
		time.Sleep(time.Millisecond) // polling what a person would watch
	}
}

// same fails when target and volume differ anywhere but in free leaves.
func (r *rig) same() {
	r.t.Helper()
	r.applied()
	r.mu.Lock()
	target := r.target.Reopen()
	r.mu.Unlock()
	size := r.vol.Size()
	want, got := read(r.t, r.vol.Mem, size), read(r.t, target, size)
	bad := 0
	for at := int64(0); at < size; at += 512 {
		end := min(at+512, size)
		if bytes.Equal(want[at:end], got[at:end]) {
			continue
		}
		leaf := at / chunker.LeafSize * chunker.LeafSize
		if r.isFree(leaf) && chunker.IsZero(got[at:end]) {
			continue
		}
		if bad++; bad < 5 {
			r.t.Errorf("sector at %d (leaf %d) differs: source %x target %x", at, leaf/chunker.LeafSize, want[at:at+16], got[at:at+16])
		}
	}
	if bad > 0 {
		r.t.Fatalf("%d sectors differ", bad)
	}
}

// isFree tells whether a leaf was said to be free at some time.
func (r *rig) isFree(off int64) bool {
	r.vol.mu.Lock()
	defer r.vol.mu.Unlock()
	return r.vol.everFree != nil && r.vol.everFree.Contains(leafAt(off, r.vol.Size()))
}

func randN(n int) int { return rand.IntN(n) }
