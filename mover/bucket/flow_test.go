package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
)

var silent = slog.New(slog.DiscardHandler)

// rig is a flow between two buckets in memory.
type rig struct {
	t        testing.TB
	from, to *mem.Store
	src, dst objstore.Store // as the flow sees them
	cfg      Config
	copy     CopyConfig
	dir      string
	clock    *clock
}

// clock makes each write of a test visible: stores stamp objects with it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newRig(t testing.TB) *rig {
	c := &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	lim := objstore.Limits{PartLeast: 1 << 20, Parts: 100, Meta: 2048}
	r := &rig{t: t, from: mem.New(mem.Config{Name: "from", Now: c.Now}), to: mem.New(mem.Config{Name: "to", Now: c.Now, Limits: lim}), dir: t.TempDir(), clock: c}
	r.src, r.dst = r.from, r.to
	r.cfg = Config{Name: "test", Listers: 4}
	r.copy = CopyConfig{Part: objstore.BlockSize, Memory: 8 * objstore.BlockSize}
	return r
}

// start opens the ledger and runs a coordinator and workers until stop, or for one pass.
func (r *rig) pass(ctx context.Context, final bool, workers int) (State, error) {
	r.t.Helper()
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		return State{}, err
	}
	defer l.Close()
	s, err := NewServer(r.t.TempDir(), ServerConfig{})
	if err != nil {
		return State{}, err
	}
	defer s.Close()
	dial := func() *nats.Conn {
		nc, err := s.Dial()
		if err != nil {
			r.t.Fatal(err)
		}
		return nc
	}
	nc := dial()
	defer nc.Close()
	cfg := r.cfg
	cfg.From, cfg.To, cfg.Log = r.src, r.dst, silent
	c, err := NewCoordinator(cfg, l, nc)
	if err != nil {
		return State{}, err
	}
	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	failed := make(chan error, workers)
	for i := range workers {
		nc := dial()
		w, err := NewWorker(WorkerConfig{Flow: cfg.Name, Name: fmt.Sprint("worker ", i), Sole: true, From: r.src, To: r.dst, Copy: r.copy, Most: 256, Log: silent}, nc)
		if err != nil {
			r.t.Fatal(err)
		}
		wg.Go(func() {
			defer nc.Close()
			if err := w.Run(working); !errors.Is(err, context.Canceled) {
				failed <- err
				stop()
			}
		})
	}
	both, end := context.WithCancel(ctx)
	defer end()
	context.AfterFunc(working, end)
	st, err := c.Pass(both, final)
	stop()
	wg.Wait()
	select {
	case e := <-failed:
		err = e
	default:
	}
	return st, err
}

func (r *rig) mustPass(workers int) State {
	r.t.Helper()
	r.clock.pass(time.Minute) // what was written before does not change any more without showing
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	s, err := r.pass(ctx, false, workers)
	if err != nil {
		r.t.Fatalf("pass: %v", err)
	}
	return s
}

func (r *rig) put(key string, n int, seed uint64) {
	r.t.Helper()
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rnd.Read(b)
	a := objstore.Attrs{ContentType: "text/plain", CacheControl: "no-cache", Meta: map[string]string{"seed": fmt.Sprint(seed)}}
	if _, err := r.from.Put(r.t.Context(), key, objstore.Bytes(b), objstore.PutOptions{Attrs: a}); err != nil {
		r.t.Fatal(err)
	}
}

// all reads a bucket whole.
func all(t testing.TB, s objstore.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for after := ""; ; {
		p, err := s.List(t.Context(), objstore.Query{After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			obj, body, err := s.Get(t.Context(), e.Key, objstore.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			body.Close()
			if err != nil {
				t.Fatal(err)
			}
			out[e.Key] = fmt.Sprint(obj.Attrs, len(b), digest.Sum(b).Short())
			after = e.Key
		}
		if !p.More {
			return out
		}
	}
}

func (r *rig) equal() {
	r.t.Helper()
	a, b := all(r.t, r.from), all(r.t, r.to)
	for k := range a {
		if b[k] != a[k] {
			r.t.Errorf("%q: %.80q at the source, %.80q at the target", k, a[k], b[k])
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			r.t.Errorf("%q is only at the target", k)
		}
	}
	if ups, _, err := r.to.Uploads(r.t.Context(), "", objstore.UploadPlace{}); err != nil || len(ups) > 0 {
		r.t.Errorf("uploads are left: %v %v", ups, err)
	}
}

// A first pass copies everything; the next one nothing; then what has changed; and deletes are followed when that is asked.
func TestPasses(t *testing.T) {
	r := newRig(t)
	for i := range 3000 {
		r.put(fmt.Sprintf("data/%d/%05d", i%7, i), i%97*11, uint64(i))
	}
	r.put("empty", 0, 1)
	r.put("large", 3*objstore.BlockSize+12345, 2)
	r.put("exact", objstore.BlockSize, 3)
	r.put("照片 / ?&+%", 10, 4)
	s := r.mustPass(2)
	if s.Listed != 3004 || s.Copied != 3004 || s.Objects != 3004 || s.Same+s.Failed+s.Refused+s.Again != 0 || s.Bytes != s.CopiedBytes || s.CopiedBytes != s.ListedBytes {
		t.Errorf("first pass: %+v", s)
	}
	r.equal()
	s = r.mustPass(2)
	if s.Pass != 2 || s.Listed != 3004 || s.Same != 3004 || s.Planned+s.Copied != 0 || s.Objects != 3004 {
		t.Errorf("second pass: %+v", s)
	}
	r.put("data/0/00000", 5, 77)
	r.put("large", 2*objstore.BlockSize+1, 78)
	if _, err := r.from.Delete(t.Context(), "data/3/00003", "empty"); err != nil {
		t.Fatal(err)
	}
	s = r.mustPass(1)
	if s.Copied != 2 || s.Vanished != 2 || s.Deleted != 0 || s.Objects != 3004 {
		t.Errorf("third pass: %+v", s)
	}
	if b := all(t, r.to); len(b) != 3004 {
		t.Errorf("%d objects: deletes are followed without being asked", len(b))
	}
	r.cfg.Deletes = true
	s = r.mustPass(1)
	if s.Deleted != 2 || s.Objects != 3002 || s.Copied != 0 {
		t.Errorf("fourth pass: %+v", s)
	}
	r.equal()
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, read := range []bool{false, true} {
		v, err := l.Verify(t.Context(), VerifyConfig{To: r.to, Copy: r.copy, Read: read, Differ: func(k, how string) { t.Errorf("%s: %s", k, how) }})
		if err != nil || v.Objects != 3002 || v.Differ+v.Others != 0 {
			t.Errorf("verify: %+v %v", v, err)
		}
	}
	var one, two bytes.Buffer
	c, err := l.Manifest(&one)
	if err != nil || c.Objects != 3002 || strings.Count(one.String(), "\n") != 3003 {
		t.Errorf("manifest: %+v %v", c, err)
	}
	if _, err := l.Manifest(&two); err != nil || one.String() != two.String() {
		t.Error("the same ledger gives two manifests")
	}
}

// What is at the target is found out to be other than what was written.
func TestVerifyFinds(t *testing.T) {
	r := newRig(t)
	for i := range 50 {
		r.put(fmt.Sprint("k", i), 100, uint64(i))
	}
	r.mustPass(1)
	ctx := t.Context()
	if _, err := r.to.Delete(ctx, "k7"); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"k8", "other"} {
		if _, err := r.to.Put(ctx, k, objstore.Bytes([]byte("x")), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, read := range []bool{false, true} {
		found := map[string]string{}
		v, err := l.Verify(ctx, VerifyConfig{To: r.to, Read: read, Differ: func(k, how string) { found[k] = how }})
		if err != nil || v.Objects != 48 || v.Differ != 2 || !read && v.Others != 1 || found["k7"] != "it is missing" || !strings.Contains(found["k8"], "1 bytes") {
			t.Errorf("read %v: %+v %v %v", read, v, found, err)
		}
	}
}

// A ledger of another flow is refused.
func TestLedgerIdentity(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLedger(dir, "a to b", silent)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := OpenLedger(dir, "a to c", silent); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("another target: %v", err)
	}
}

// C16, C17, C18: however often everything ends in the middle, and the source is written to meanwhile, a pass over a source that stands still makes both equal, and little is
// done twice.
func TestStops(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 9))
			r := newRig(t)
			r.cfg.Deletes = true
			for i := range 600 {
				r.put(fmt.Sprintf("%x/%d", rnd.IntN(40), i), rnd.IntN(3000), rnd.Uint64())
			}
			for i := range 4 {
				r.put(fmt.Sprint("large", i), objstore.BlockSize+rnd.IntN(3*objstore.BlockSize), rnd.Uint64())
			}
			for range 12 {
				keys := slices.Sorted(maps.Keys(all(t, r.from)))
				for range 30 {
					k := keys[rnd.IntN(len(keys))]
					switch rnd.IntN(4) {
					case 0:
						if _, err := r.from.Delete(t.Context(), k); err != nil {
							t.Fatal(err)
						}
					case 1:
						r.put(fmt.Sprint("new", rnd.IntN(1000)), rnd.IntN(3000), rnd.Uint64())
					default:
						r.put(k, rnd.IntN(3000), rnd.Uint64())
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(60))*time.Millisecond)
				_, err := r.pass(ctx, false, 1+rnd.IntN(3))
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			}
			r.mustPass(2) // ends what is under way
			s := r.mustPass(2)
			r.equal()
			if s.Objects != int64(len(all(t, r.from))) {
				t.Errorf("%+v, %d objects", s, len(all(t, r.from)))
			}
		})
	}
}

// Uploads that nobody will end are swept; those of others stay.
func TestSweep(t *testing.T) {
	r := newRig(t)
	r.put("a", 10, 1)
	r.mustPass(1)
	for _, k := range []string{"a", "b"} {
		if _, err := r.to.Begin(t.Context(), k, objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLedger(r.dir, "from to", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ended, others, err := l.Sweep(t.Context(), r.to, r.copy); ended != 1 || others != 1 || err != nil {
		t.Errorf("%d ended, %d others: %v", ended, others, err)
	}
	ups, _, err := r.to.Uploads(t.Context(), "", objstore.UploadPlace{})
	if err != nil || len(ups) != 1 || ups[0].Key != "b" {
		t.Errorf("%v %v", ups, err)
	}
}
