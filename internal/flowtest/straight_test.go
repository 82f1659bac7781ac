package flowtest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

var (
	straightRate = flag.Int64("straight-rate", 8<<20, "bytes/s of the line that volume and bucket flows share")
	straightTime = flag.Duration("straight-time", 2*time.Second, "for how long they are watched")
)

// photos is a bucket flow that goes past the rig's gateway: from memory to BOS.
type photos struct {
	*bucket.Flow
	t     *testing.T
	from  *mem.Store
	past  *uplink.Past
	got   atomic.Int64 // bytes of the TCP streams to the store
	store *httptest.Server
}

// counting counts what comes over connections.
type counting struct {
	net.Listener
	got *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return counted{c, l.got}, nil
}

type counted struct {
	net.Conn
	got *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.got.Add(int64(n))
	return n, err
}

// put makes objects at the source.
func (p *photos) put(name string, n, size int) {
	p.t.Helper()
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size)})
	for i := range n {
		_, _ = rng.Read(b)
		_, err := p.from.Put(p.t.Context(), fmt.Sprintf("%s/%06d", name, i), objstore.Bytes(append([]byte(nil), b...)), objstore.PutOptions{})
		must(p.t, err)
	}
}

// bucket makes a bucket flow; start runs it.
func (r *rig) bucket(t *testing.T, queue *bucket.Server, name string) *photos {
	p := &photos{t: t, from: mem.New(mem.Config{Name: name})}
	emu, err := bosemu.New(bosemu.Config{Accounts: []bosemu.Account{{ID: "acme", AccessKey: "AK", SecretKey: "SK"}}, Buckets: []bosemu.Bucket{{Name: name, Owner: "acme"}}, Dir: t.TempDir()})
	must(t, err)
	p.store = httptest.NewUnstartedServer(emu)
	p.store.Listener = counting{p.store.Listener, &p.got}
	p.store.Start()
	t.Cleanup(func() { p.store.Close(); _ = emu.Close() })
	client, err := wire.ClientTLS(files("db1"), "localhost")
	must(t, err)
	p.past = uplink.NewPast(uplink.Config{Flow: name, Log: logger(), BackOff: 10 * time.Millisecond, Paths: []uplink.Path{{Name: "only",
		Dial: func(ctx context.Context) (net.Conn, error) {
			r.mu.Lock()
			addr := r.addr
			r.mu.Unlock()
			return wire.Dial(ctx, addr, client)
		}}}}, func() (shape.Class, int64) { return p.Flow.Wants() })
	dialer, err := uplink.Dialer(wire.Way{})
	must(t, err)
	p.Flow, err = bucket.NewFlow(bucket.FlowConfig{Name: name, Dir: filepath.Join(t.TempDir(), name), Identity: name, From: "memory", To: "bos", Dial: queue.Dial, Interval: time.Hour, Log: logger(),
		Line: p.past.Status, Copy: bucket.CopyConfig{Pace: p.past.Pace, Part: 8 << 20},
		Open: func(context.Context) (from, to bucket.End, err error) {
			s, err := bos.New(bos.Config{Endpoint: p.store.URL, Bucket: name, Credentials: objstore.Fixed{ID: "AK", Secret: "SK"}, Dialer: dialer, Conn: p.past.Conn})
			return bucket.End{Store: open{p.from}}, bucket.End{Store: s}, err
		}})
	must(t, err)
	return p
}

// open is a store that outlives who closes it.
type open struct{ objstore.Store }

func (open) Close() error { return nil }

func (p *photos) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- p.past.Run(ctx) }()
	go func() { ended <- p.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				p.t.Error(err)
			}
		}
	})
}

func (p *photos) wait(what string, cond func(mover.Status) bool) mover.Status {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) { // polling what a person would watch
		s := p.Status()
		if cond(s) {
			return s
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: not within 20 s; status %+v", what, s)
		}
	}
}

// onLine is the bytes of IP packets, as a line of Ethernet has them.
func (p *photos) onLine() int64 { return shape.OnLine(p.got.Load(), 0, shape.Headers(false)) }

// Bucket flows past the gateway and a volume through it share a line: together they take what it has and not more, the gateway's count is right, and a cutover of a
// bucket flow has its bytes within a second.
func TestStraightFlowsShareTheLine(t *testing.T) {
	limit := *straightRate
	r := newRig(t, (2*limit+limit*int64(straightTime.Seconds()+3)/2)>>20<<20, 0)
	r.direct = true
	r.lined(shape.LineConfig{Timetable: shape.Timetable{Rate: limit}})
	lines := r.gwConf
	r.gwConf = func(g *receiver.Config) {
		lines(g)
		g.Straight = []receiver.StraightConfig{{Tenant: "acme", Host: "db1", Name: "photos"}, {Tenant: "acme", Host: "db1", Name: "films"}, {Tenant: "acme", Host: "db1", Name: "notes"}}
	}
	r.vol.write(0, r.vol.Size())
	queue, err := bucket.NewServer(t.TempDir(), bucket.ServerConfig{})
	must(t, err)
	t.Cleanup(queue.Close)
	small, large, soon := r.bucket(t, queue, "photos"), r.bucket(t, queue, "films"), r.bucket(t, queue, "notes")
	seconds := int(straightTime.Seconds()) + 4
	large.put("f", seconds*int(limit)/2/(8<<20)+2, 8<<20)
	small.put("p", seconds*int(limit)/2/(64<<10), 64<<10)
	soon.put("p", 50, 10<<10)
	r.startGateway()
	soon.start()
	must(t, soon.Sync(t.Context()))
	soon.put("q", int(limit)/(32<<10), 32<<10)
	small.start()
	large.start()
	r.startSource()
	leased := func(s mover.Status) bool { return len(s.Links) == 1 && s.Links[0].Leased && s.Links[0].Rate > limit/5 }
	small.wait("a lease", leased)
	large.wait("a lease", leased)
	r.wait("a lease", leased)

	type sample struct {
		at  time.Time
		out [3]int64
	}
	look := func() sample {
		return sample{time.Now(), [3]int64{r.flow.Status().WireOut, small.onLine(), large.onLine()}}
	}
	all := []sample{look()}
	for time.Since(all[0].at) < *straightTime {
		time.Sleep(10 * time.Millisecond)
		all = append(all, look())
	}
	between := func(a, b sample) (n float64) {
		for i := range a.out {
			n += float64(b.out[i] - a.out[i])
		}
		return n / b.at.Sub(a.at).Seconds()
	}
	total := between(all[0], all[len(all)-1])
	best, worst, a := 0.0, 1e18, 0
	for b := range all {
		for all[b].at.Sub(all[a+1].at) >= time.Second {
			a++
		}
		if all[b].at.Sub(all[a].at) >= time.Second {
			best, worst = max(best, between(all[a], all[b])), min(worst, between(all[a], all[b]))
		}
	}
	last := all[len(all)-1]
	t.Logf("%.3f of the line; its seconds %.3f to %.3f; volume %.3f, small objects %.3f, large %.3f", total/float64(limit), worst/float64(limit), best/float64(limit),
		share(all[0].out[0], last.out[0], last.at.Sub(all[0].at), limit), share(all[0].out[1], last.out[1], last.at.Sub(all[0].at), limit),
		share(all[0].out[2], last.out[2], last.at.Sub(all[0].at), limit))
	if total > 1.05*float64(limit) || best < 0.9*float64(limit) { // a busy machine may leave the line idle for a while
		t.Errorf("%.0f bytes/s, in the best second %.0f, on a line of %d", total, best, limit)
	}
	names := map[string]bool{}
	for _, l := range r.gw.Lines()[0].Leases {
		names[fmt.Sprint(l.Flow, l.Past)] = true
	}
	if !names["acme/db1/photostrue"] || !names["acme/db1/filmstrue"] || !names["acme/db1/diskfalse"] {
		t.Errorf("leases %v", names)
	}

	ctx, cancel := context.WithCancel(t.Context())
	began, before := time.Now(), soon.got.Load()
	cut := make(chan struct{})
	go func() { defer close(cut); _, _ = soon.Cutover(ctx, bucket.VerifyOptions{}, func(mover.Progress) {}) }()
	soon.wait("most of the line", func(s mover.Status) bool { return s.Links[0].Rate > limit*7/10 })
	lease := time.Since(began)
	soon.wait("bytes", func(mover.Status) bool { return soon.got.Load() > before+limit/10 })
	first := time.Since(began)
	t.Logf("the cutover had most of the line after %v, and a tenth of a second's bytes after %v", lease, first)
	if lease > time.Second || first > time.Second {
		t.Errorf("the cutover had most of the line after %v, and bytes after %v", lease, first)
	}
	cancel()
	<-cut

	r.stopSource()
	sent := func() int64 { return r.flow.Status().WireOut + small.onLine() + large.onLine() + soon.onLine() }
	month := r.gw.Lines()[0].MonthBytes
	if n := sent(); month < n-n/50 || month > n+n/10 {
		t.Errorf("the gateway counted %d bytes, %d were sent", month, n)
	}
}

func share(from, to int64, d time.Duration, limit int64) float64 {
	return float64(to-from) / d.Seconds() / float64(limit)
}

// A bucket flow whose gateway is away goes on at its safe rate, and says why; one that the gateway does not name hears so.
func TestStraightFlowWithoutGateway(t *testing.T) {
	r := newRig(t, 1<<20, 0)
	r.lined(shape.LineConfig{Timetable: shape.Timetable{Rate: 64 << 20}})
	lines := r.gwConf
	r.gwConf = func(g *receiver.Config) {
		lines(g)
		g.Straight = []receiver.StraightConfig{{Tenant: "acme", Host: "db1", Name: "photos"}}
	}
	queue, err := bucket.NewServer(t.TempDir(), bucket.ServerConfig{})
	must(t, err)
	t.Cleanup(queue.Close)
	p, other := r.bucket(t, queue, "photos"), r.bucket(t, queue, "films")
	r.startGateway()
	r.stopGateway()
	p.put("p", 8, 256<<10)
	p.start()
	p.wait("the safe rate", func(s mover.Status) bool {
		return strings.Contains(s.Reason, "held to its safe rate of 256 KiB/s: the gateway does not say what it may use of the line: ") && strings.Contains(s.Reason, "connection refused")
	})
	r.startGateway()
	began := time.Now()
	must(t, p.Sync(t.Context()))
	if d := time.Since(began); d > 4*time.Second { // at the safe rate it would take 8
		t.Errorf("took %v with a lease", d)
	}
	other.put("p", 4, 256<<10)
	other.start()
	other.wait("the refusal", func(s mover.Status) bool {
		return strings.Contains(s.Reason, `flow "films" of acme/db1 may have no lease of this gateway's lines`)
	})
}
