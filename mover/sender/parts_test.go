package sender

import (
	"context"
	"errors"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/wire"
)

func TestReaderFindsTheBlock(t *testing.T) {
	mem := fault.NewMem(8 << 20)
	var plan fault.Plan
	bad := []extent.Extent{{Off: 3<<20 + 1024, Len: 512}, {Off: 3<<20 + 4096, Len: 1024}}
	for _, e := range bad {
		plan.Fail(fault.Read, e, errors.New("medium error"))
	}
	for _, how := range []string{"stop", "skip"} {
		t.Run(how, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			r := newReader(fault.NewVolume(mem, &plan), Config{OnReadError: how})
			ended := make(chan error, 1)
			go func() { ended <- r.run(ctx, 4) }()
			defer func() { cancel(); <-ended }()
			buf := make([]byte, 4<<20)
			got, err := r.read(ctx, []extent.Extent{{Off: 1 << 20, Len: 1 << 20}, {Off: 3 << 20, Len: 3 << 20}}, buf)
			if how == "stop" {
				re, ok := errors.AsType[*readError](err)
				if !ok || re.ext != bad[0] {
					t.Fatalf("error %v, want one at %v", err, bad[0])
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			for _, e := range got {
				sum += e.Len
				if !slices.ContainsFunc(bad, func(b extent.Extent) bool { return b.Intersect(e) == e }) {
					t.Errorf("%v is not bad", e)
				}
			}
			if sum != 1536 || len(r.unreadable()) != 2 {
				t.Errorf("%d bytes bad: %v, named %v", sum, got, r.unreadable())
			}
			plan.Clear()
			if _, err := r.read(ctx, []extent.Extent{{Off: 3 << 20, Len: 1 << 20}}, buf); err != nil || len(r.unreadable()) != 0 {
				t.Errorf("still named after it was read: %v %v", r.unreadable(), err)
			}
		})
	}
}

func TestReadRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := newReader(fault.NewMem(64<<20), Config{ReadRate: 8 << 20})
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx, 4) }()
		defer func() { cancel(); <-ended }()
		buf := make([]byte, 4<<20)
		began := time.Now()
		for i := range int64(10) {
			if _, err := r.read(ctx, []extent.Extent{{Off: i * 4 << 20, Len: 4 << 20}}, buf); err != nil {
				t.Fatal(err)
			}
		}
		// 40 MiB at 8 MiB/s, of which 8 MiB, a batch, are the burst.
		if d := time.Since(began).Seconds(); d < 3.9 || d > 4.1 {
			t.Errorf("40 MiB took %v s", d)
		}
		r.inHurry(true)
		began = time.Now()
		if _, err := r.read(ctx, []extent.Extent{{Off: 0, Len: 4 << 20}}, buf); err != nil || time.Since(began) != 0 {
			t.Errorf("capped while the writers stand still: %v %v", time.Since(began), err)
		}
	})
}

func TestGovernor(t *testing.T) {
	now, used := time.Unix(0, 0), time.Duration(0)
	g := newGovernor(1, 4)
	g.now, g.used = func() time.Time { return now }, func() time.Duration { return used }
	if g.delay() != 0 {
		t.Fatal("waits before anything was used")
	}
	now, used = now.Add(time.Second), used+time.Second // one core, as allowed
	if d := g.delay(); d != 0 {
		t.Errorf("waits %v within the limit", d)
	}
	now, used = now.Add(time.Second), used+3*time.Second
	if d := g.delay(); d < 1900*time.Millisecond || d > 2100*time.Millisecond {
		t.Errorf("waits %v, 2 s over", d)
	}
	now = now.Add(10 * time.Second) // idle saves up little
	g.delay()
	now, used = now.Add(time.Second), used+2*time.Second
	if d := g.delay(); d < 700*time.Millisecond {
		t.Errorf("waits %v after saving up too much", d)
	}
	g.limit(4, 4)
	if g.delay() != 0 {
		t.Error("limited by all cores")
	}
}

// What OPENED lists decides what is sent again: nothing durable whose counts are known, and no pass that lost acked bytes goes on.
func TestResume(t *testing.T) {
	fresh := func() *pass {
		p := &pass{open: map[uint32]*batch{}, lastSeq: 6}
		for seq, b := range map[uint32]*batch{
			1: {seq: 1, final: true, counts: mover.Counts{Put: 10}, bytes: 10},
			2: {seq: 2, final: true, counts: mover.Counts{Offered: 4, Same: 4}, bytes: 40}, // nothing sent: never listed
			3: {seq: 3, final: true, counts: mover.Counts{Offered: 4, Sent: 4}, bytes: 40},
			4: {seq: 4, final: false, counts: mover.Counts{Offered: 4}, bytes: 40}, // its NEED was lost
			5: {seq: 5, final: true, counts: mover.Counts{Put: 5}, bytes: 5},
		} {
			p.open[seq] = b
			if seq <= 2 {
				p.settle(b)
			} else {
				p.again = append(p.again, b)
			}
		}
		return p
	}
	p := fresh()
	if !p.resume(&wire.Opened{Mode: 1, Done: []wire.Range{{First: 1, Last: 1}, {First: 3, Last: 4}}}) {
		t.Fatal("does not resume")
	}
	if len(p.again) != 2 || p.open[4] == nil || p.open[5] == nil || p.open[3] != nil || p.acked.Load() != 90 || p.counts.Sent != 4 {
		t.Errorf("again %d, acked %d, counts %+v", len(p.again), p.acked.Load(), p.counts)
	}
	if fresh().resume(&wire.Opened{Mode: 1, Done: []wire.Range{{First: 3, Last: 3}}}) {
		t.Error("goes on although acked bytes of batch 1 are gone (C3)")
	}
}

func TestLinkTellsWhyAndWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		l := newLink(Config{Conns: 4, BackOff: time.Second}.withDefaults(), onePath(func(context.Context) (net.Conn, error) {
			tries++
			return nil, errors.New("connection refused")
		}), discard)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		time.Sleep(10 * time.Second) // of the bubble's clock
		v := l.view()
		if s := connecting("10.0.0.5:7443", v); !strings.HasPrefix(s, "gateway 10.0.0.5:7443: connection refused, next try in ") {
			t.Errorf("%q", s)
		}
		if tries < 3 || tries > 6 { // one slot asks, and backs off: about 1, 2, 4, 8 s
			t.Errorf("%d tries in 10 s", tries)
		}
		cancel()
		<-ended
	})
}

func TestConfigNamesTheField(t *testing.T) {
	for field, c := range map[string]Config{"Flow": {}, "Conns": {Flow: "a", Conns: 17}, "QueueDepth": {Flow: "a", QueueDepth: -1},
		"Compression": {Flow: "a", Compression: "lots"}, "OnReadError": {Flow: "a", OnReadError: "panic"}, "negative": {Flow: "a", Window: -1}} {
		if err := c.Validate(); !errors.Is(err, sentinel.ErrUsage) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := (Config{Flow: "a"}).withDefaults().Validate(); err != nil {
		t.Error(err)
	}
}

func TestNewNeedsItsDeps(t *testing.T) {
	if _, err := New(Config{Flow: "a"}, Deps{}); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("%v", err)
	}
	pool := buffers.New(4096, 1<<20)
	defer pool.Close()
	_, err := New(Config{Flow: "a"}, Deps{Volume: fault.NewMem(1 << 20), Tracker: mover.NewScan(1<<20, newID(), ""), Table: "t", Buffers: pool,
		Paths: onePath(func(context.Context) (net.Conn, error) { return nil, nil })})
	if !errors.Is(err, sentinel.ErrUsage) || !strings.Contains(err.Error(), "buffers") {
		t.Errorf("%v", err)
	}
}

// News never wait for who reads them, and none comes after told.
func TestRelay(t *testing.T) {
	release, seen := make(chan struct{}), 0
	tell, told := relay(func(mover.Progress) { <-release; seen++ })
	for range 10 * newsKept {
		tell.say("x", "y", 0, 0)
	}
	close(release)
	told()
	before := seen
	tell.say("x", "late", 0, 0)
	if seen == 0 || seen > newsKept+1 || seen != before {
		t.Errorf("%d seen", seen)
	}
}

func TestPriority(t *testing.T) {
	if _, err := NewPriority("highest"); err == nil {
		t.Error("accepted an unknown class")
	}
	p, err := NewPriority("idle")
	if err != nil {
		t.Fatal(err)
	}
	at := func(want int) {
		t.Helper()
		got, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioProcess, uintptr(unix.Gettid()), 0)
		if int(got) != want {
			t.Errorf("priority is %d/%d, want %d/%d", got>>13, got&7, want>>13, want&7)
		}
	}
	at(ioprioIdle)
	round := p.raise(fair)
	at(ioprioLow)
	a, b := p.raise(urgent), p.raise(urgent)
	a()
	a()
	at(ioprioUrgent)
	b()
	at(ioprioLow)
	round()
	at(ioprioIdle)
	var none *Priority
	none.raise(urgent)()
}

// A step is taken by all members or by none, whoever leaves when.
func TestGroupStepIsAllOrNone(t *testing.T) {
	for seed := range uint64(300) {
		rng := mathrand.New(mathrand.NewPCG(seed, 1))
		g := NewGroup("", nil, 4)
		var did atomic.Int64
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			ctx, cancel := context.WithCancelCause(t.Context())
			if d := rng.IntN(8); d < 2 { // leaves at about the time when the last comes
				time.AfterFunc(time.Duration(rng.IntN(100))*time.Microsecond, func() { cancel(errors.New("gone")) })
			}
			late := time.Duration(rng.IntN(100)) * time.Microsecond
			wg.Go(func() {
				time.Sleep(late) // members come at any time
				errs[i] = g.step(ctx, func() error { did.Add(1); return nil })
				cancel(nil)
			})
		}
		wg.Wait()
		failed := 0
		for _, err := range errs {
			if err != nil {
				failed++
			}
		}
		if failed != 0 && failed != 4 || did.Load() != int64(1-failed/4) {
			t.Fatalf("seed %d: %d of 4 failed, done %d times: %v", seed, failed, did.Load(), errs)
		}
	}
}

// onePath is the only way to a gateway.
func onePath(dial func(context.Context) (net.Conn, error)) []uplink.Path {
	return []uplink.Path{{Name: "only", Dial: dial}}
}
