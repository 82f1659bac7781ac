package bucket

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/objstore"
)

// ice stops a worker whole: what it says and hears, and what it was about to write.
type ice struct {
	mu     sync.Mutex
	thawed chan struct{} // nil: it is not frozen
	since  time.Time
}

func (i *ice) freeze() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.thawed == nil {
		i.thawed, i.since = make(chan struct{}), time.Now()
	}
}

func (i *ice) thaw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.thawed != nil {
		close(i.thawed)
		i.thawed = nil
	}
}

// wait returns after the thaw, with how long it stood still.
func (i *ice) wait() (stood time.Duration) {
	for {
		i.mu.Lock()
		thawed, since := i.thawed, i.since
		i.mu.Unlock()
		if thawed == nil {
			return stood
		}
		<-thawed
		stood = time.Since(since)
	}
}

// icyConn is a worker's connection to the queue.
type icyConn struct {
	net.Conn
	ice *ice
}

func (c icyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.ice.wait()
	return n, err
}

func (c icyConn) Write(p []byte) (int, error) {
	c.ice.wait()
	return c.Conn.Write(p)
}

type icyServer struct {
	*server.Server
	ice *ice
}

func (s icyServer) InProcessConn() (net.Conn, error) {
	c, err := s.Server.InProcessConn()
	return icyConn{c, s.ice}, err
}

// icyStore is a target on the way to which a worker can stand still: its lease was looked at before. What comes later than refuses was signed too long ago.
type icyStore struct {
	objstore.Store
	ice     *ice
	refuses time.Duration
	put     func(key string) // called before the wait; may be nil
	stood   func(time.Duration)
}

func (s *icyStore) late(key string) error {
	if s.put != nil {
		s.put(key)
	}
	d := s.ice.wait()
	if d > s.refuses {
		return &objstore.Error{Op: "put", Store: "to", Key: key, Kind: objstore.ErrTransient}
	}
	if d > 0 && s.stood != nil {
		s.stood(d)
	}
	return nil
}

func (s *icyStore) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (w objstore.Written, err error) {
	if err := s.late(key); err != nil {
		return w, err
	}
	return s.Store.Put(context.WithoutCancel(ctx), key, b, o) // whoever has lost patience meanwhile: it is on the way
}

func (s *icyStore) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	if err := s.late(keys[0]); err != nil {
		return nil, err
	}
	return s.Store.Delete(context.WithoutCancel(ctx), keys...)
}

func (s *icyStore) Begin(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	if err := s.late(key); err != nil {
		return "", err
	}
	return s.Store.Begin(context.WithoutCancel(ctx), key, o)
}

func (s *icyStore) PutPart(ctx context.Context, key, upload string, no int, b objstore.Body) (w objstore.Written, err error) {
	if err := s.late(key); err != nil {
		return w, err
	}
	return s.Store.PutPart(context.WithoutCancel(ctx), key, upload, no, b)
}

func (s *icyStore) Complete(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (w objstore.Written, err error) {
	if err := s.late(key); err != nil {
		return w, err
	}
	return s.Store.Complete(context.WithoutCancel(ctx), key, upload, parts, o)
}

// icyRig is a flow whose workers can be frozen.
type icyRig struct {
	*rig
	server *Server
	ledger *Ledger
	nc     *nats.Conn
	cfg    Config
	ctx    context.Context
	wg     sync.WaitGroup
}

var quick = pulse{every: 20 * time.Millisecond, use: 100 * time.Millisecond, lease: 200 * time.Millisecond}

func newIcyRig(t *testing.T) *icyRig {
	r := &icyRig{rig: newRig(t)}
	var err error
	if r.ledger, err = OpenLedger(r.dir, "from to", silent); err != nil {
		t.Fatal(err)
	}
	if r.server, err = NewServer(t.TempDir(), ServerConfig{}); err != nil {
		t.Fatal(err)
	}
	if r.nc, err = r.server.Dial(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.ctx = ctx
	r.cfg = Config{Name: "test", From: r.from, To: r.to, Deletes: true, Listers: 2, Log: silent, Linger: 50 * time.Millisecond, pulse: quick, fenceFor: time.Minute}
	t.Cleanup(func() {
		cancel()
		r.wg.Wait()
		r.nc.Close()
		r.server.Close()
		_ = r.ledger.Close()
	})
	return r
}

// worker starts one, which works until stop.
func (r *icyRig) worker(name string, s *icyStore) (stop func()) {
	r.t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(icyServer{r.server.s, s.ice}))
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := WorkerConfig{Flow: "test", Name: name, From: r.from, To: s, Copy: r.copy, Most: 16, Log: silent, pulse: quick}
	w, err := NewWorker(cfg, nc)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.ctx)
	r.wg.Go(func() {
		defer nc.Close()
		if err := w.Run(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			r.t.Errorf("worker %s: %v", name, err)
		}
	})
	r.t.Cleanup(s.ice.thaw) // before the wait for it
	return stop
}

// pass runs a pass, or passes until a final one has ended.
func (r *icyRig) pass(final bool) (s State) {
	r.clock.pass(time.Minute)
	c, err := NewCoordinator(r.cfg, r.ledger, r.nc)
	if err == nil {
		s, err = c.Pass(r.ctx, final)
	}
	if err != nil {
		r.t.Errorf("pass: %v", err)
	}
	return s
}

// target is the rig's, on the way to which nobody stands still yet.
func (r *icyRig) target(refuses time.Duration) *icyStore {
	return &icyStore{Store: r.to, ice: &ice{}, refuses: refuses}
}

// frozen starts a worker that stands still when it is about to write k, runs a pass until then, changes the source, and ends the pass with another worker.
func (r *icyRig) frozen(refuses time.Duration, change func()) *icyStore {
	slow := r.target(refuses)
	inside := make(chan struct{})
	var once sync.Once
	slow.put = func(key string) {
		if key == "k" {
			once.Do(func() { slow.ice.freeze(); close(inside) })
		}
	}
	r.worker("slow", slow)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.pass(false)
	}()
	<-inside
	change()
	r.worker("fast", r.target(refuses))
	<-ended
	return slow
}

// C20: a worker that stands still between the look at its lease and the write, and goes on when another one has copied a later state, puts the old state over the new one. A
// final pass does not end before it has found that out and put it right.
func TestLateWrite(t *testing.T) {
	for _, kind := range []string{"put", "delete", "put of what is gone"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newIcyRig(t)
			r.put("k", 10, 1)
			r.put("other", 10, 2)
			remove := func() {
				if _, err := r.from.Delete(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
			}
			if kind == "delete" {
				stop := r.worker("first", r.target(time.Minute))
				r.pass(false)
				stop()
				remove()
			}
			slow := r.frozen(time.Minute, func() {
				if kind == "put of what is gone" {
					remove()
				} else {
					r.put("k", 20, 3)
				}
			})
			late := make(chan struct{})
			var once sync.Once
			slow.stood = func(time.Duration) { once.Do(func() { close(late) }) }
			done := make(chan State, 1)
			go func() { done <- r.pass(true) }()
			select {
			case s := <-done:
				t.Fatalf("the final pass has ended, and a write may still come: %+v", s)
			case <-time.After(3 * quick.lease):
			}
			slow.ice.thaw()
			<-late
			s := <-done
			r.equal()
			if n := int64(len(all(t, r.from))); s.Objects != n {
				t.Errorf("%d objects are counted, there are %d", s.Objects, n)
			}
		})
	}
}

// C20: a worker of which nobody hears again keeps a final pass waiting for as long as stores may take its writes, and no longer.
func TestLostForever(t *testing.T) {
	t.Parallel()
	r := newIcyRig(t)
	r.cfg.fenceFor = 700 * time.Millisecond
	r.put("k", 10, 1)
	var began time.Time
	r.frozen(r.cfg.fenceFor, func() { began = time.Now(); r.put("k", 20, 3) })
	r.pass(true)
	if d := time.Since(began); d < r.cfg.fenceFor {
		t.Errorf("it took %v", d)
	}
	r.equal()
}

// C20: random histories. Workers stand still at any moment and go on at any other, while the source is written to; a final pass makes both ends equal, and they stay so.
func TestFenceHistories(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			fenceHistory(t, seed, 2)
		})
	}
}

func fenceHistory(t *testing.T, seed uint64, passes int) {
	rnd := rand.New(rand.NewPCG(seed, 20))
	r := newIcyRig(t)
	for i := range 100 {
		r.put(fmt.Sprint("k", i), rnd.IntN(500), rnd.Uint64())
	}
	r.put("large", objstore.BlockSize+rnd.IntN(objstore.BlockSize), 7)
	var stood sync.Map
	var stores []*icyStore
	for i := range 3 {
		s := r.target(time.Minute)
		s.stood = func(d time.Duration) {
			if d > quick.lease {
				stood.Store(time.Now(), d)
			}
		}
		stores = append(stores, s)
		r.worker(fmt.Sprint("w", i), s)
	}
	icing, stop := context.WithCancel(r.ctx)
	var freezer sync.WaitGroup
	for i, s := range stores {
		rnd := rand.New(rand.NewPCG(seed, 30+uint64(i)))
		freezer.Go(func() {
			for icing.Err() == nil {
				pause := func(most int) {
					select {
					case <-time.After(time.Duration(rnd.IntN(most)) * time.Millisecond):
					case <-icing.Done():
					}
				}
				pause(60)
				s.ice.freeze()
				pause(350)
				s.ice.thaw()
			}
		})
	}
	for range passes {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.pass(false)
		}()
		for running := true; running; {
			select {
			case <-ended:
				running = false
			case <-time.After(time.Duration(1+rnd.IntN(10)) * time.Millisecond):
				k := fmt.Sprint("k", rnd.IntN(110))
				if rnd.IntN(4) == 0 {
					if _, err := r.from.Delete(t.Context(), k); err != nil {
						t.Fatal(err)
					}
				} else {
					r.put(k, rnd.IntN(500), rnd.Uint64())
				}
			}
		}
	}
	s := r.pass(true)
	if _, _, err := r.ledger.Sweep(r.ctx, r.to, r.copy); err != nil {
		t.Fatal(err)
	}
	r.equal()
	if n := int64(len(all(t, r.from))); s.Objects != n || s.Failed > 0 {
		t.Errorf("%+v, %d objects", s, n)
	}
	stop()
	freezer.Wait()
	time.Sleep(3 * quick.lease)
	r.equal() // nothing came late
	n := 0
	stood.Range(func(any, any) bool { n++; return true })
	t.Logf("%d late writes", n)
}

// putThenDie stores, and never comes to telling it; counts what is stored.
type putThenDie struct {
	objstore.Store
	die  func()
	puts *atomic.Int64
}

func (d putThenDie) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	w, err := d.Store.Put(ctx, key, b, o)
	d.puts.Add(1)
	if d.die != nil {
		d.die()
		<-ctx.Done()
		err = ctx.Err()
	}
	return w, err
}

// What a worker has stored and could not tell is found there, and not stored again; but for what has changed.
func TestStoredUntold(t *testing.T) {
	r := newRig(t)
	r.put("same", 1000, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var puts atomic.Int64
	r.clock.pass(time.Minute)
	r.dst = putThenDie{r.to, cancel, &puts}
	if _, err := r.pass(ctx, false, 1); !errors.Is(err, context.Canceled) || puts.Load() != 1 {
		t.Fatal(err, puts.Load())
	}
	r.dst = putThenDie{r.to, nil, &puts}
	if s := r.mustPass(1); s.Copied != 1 || s.Sent != 0 || puts.Load() != 1 {
		t.Errorf("%+v, %d puts", s, puts.Load())
	}
	r.equal()
}
