package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/objstore/objtest"
	"github.com/moverd/mover/objstore/retry"
)

var quick = retry.Config{Tries: 50, First: 1, Most: 1000} // nanoseconds: the suite has no time to lose

func TestConformance(t *testing.T) {
	objtest.Run(t, func(*testing.T) objtest.Subject {
		return objtest.Subject{Store: retry.New(mem.New(mem.Config{Limits: objstore.Limits{List: 100, Batch: 10, Meta: 2048}}), quick), Class: "COLD"}
	})
}

// TestConformanceUnderFaults: of all calls a third fail, before or after they did their work, and bodies break off; nobody above notices.
func TestConformanceUnderFaults(t *testing.T) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	draw := func(n int) int { mu.Lock(); defer mu.Unlock(); return r.IntN(n) }
	f := &flaky{Store: mem.New(mem.Config{Limits: objstore.Limits{List: 50, Batch: 10, Meta: 2048}})}
	f.before = func(op string, _ int) error {
		if draw(6) == 0 {
			return lost(op, "transient")
		}
		return nil
	}
	f.after = func(op string, _ int) error {
		if op != "begin" && draw(6) == 0 { // a lost answer of begin leaves an upload, which the suite would find
			return lost(op, "transient")
		}
		return nil
	}
	f.body = func(int) (int64, error) {
		if draw(3) == 0 {
			return int64(draw(100_000)), fmt.Errorf("cut: %w", io.ErrUnexpectedEOF)
		}
		return 0, nil
	}
	s := retry.New(f, quick)
	objtest.Run(t, func(*testing.T) objtest.Subject { return objtest.Subject{Store: s, Class: "COLD"} })
	if st := s.Stats(); st.Tries < st.Calls*5/4 || st.Resumed == 0 || st.Ended != 0 {
		t.Errorf("%+v", st)
	}
}

// always fails every try of every call.
func always(err error) func(string, int) error { return func(string, int) error { return err } }

// first fails the first n tries.
func first(n int, err error) func(string, int) error {
	return func(_ string, i int) error {
		if i < n {
			return err
		}
		return nil
	}
}

func TestBounds(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name  string
		fail  error
		c     retry.Config
		tries int
		most  time.Duration
	}{
		{"tries", lost("head", "transient"), retry.Config{Tries: 5, First: time.Second}, 5, 15 * time.Second},
		{"default", lost("head", "transient"), retry.Config{}, 10, 71 * time.Second},
		{"final", lost("head", "denied"), retry.Config{}, 1, 0},
		{"unknown", errors.New("?"), retry.Config{}, 1, 0},
		{"not there", &objstore.Error{Kind: objstore.ErrNotFound}, retry.Config{}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &flaky{Store: mem.New(mem.Config{}), before: always(c.fail)}
				s := retry.New(f, c.c)
				began := time.Now()
				_, err := s.Head(ctx, "a")
				if c.tries == 1 && !errors.Is(err, c.fail) {
					t.Errorf("error %v", err)
				}
				if c.tries > 1 && (!errors.Is(err, objstore.ErrTransient) || !strings.Contains(err.Error(), fmt.Sprintf("after %d tries", c.tries))) {
					t.Errorf("error %v", err)
				}
				if f.count("head") != c.tries || time.Since(began) > c.most {
					t.Errorf("%d tries in %v", f.count("head"), time.Since(began))
				}
			})
		})
	}
	t.Run("time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &flaky{Store: mem.New(mem.Config{}), before: always(lost("head", "transient"))}
			began := time.Now()
			_, err := retry.New(f, retry.Config{Tries: 1e6, Time: time.Hour}).Head(ctx, "a")
			if took := time.Since(began); took > time.Hour || took < 59*time.Minute || !objstore.Retryable(err) {
				t.Errorf("%v after %v", err, took)
			}
			// Full jitter of up to 20 s: 360 tries an hour, more or less.
			if n := f.count("head"); n < 300 || n > 430 {
				t.Errorf("%d tries", n)
			}
		})
	})
	t.Run("context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &flaky{Store: mem.New(mem.Config{}), before: always(lost("head", "transient"))}
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			began := time.Now()
			_, err := retry.New(f, retry.Config{Tries: 1e6}).Head(ctx, "a")
			if took := time.Since(began); took != 30*time.Second || !errors.Is(err, context.DeadlineExceeded) || objstore.Retryable(err) {
				t.Errorf("%v after %v", err, took)
			}
		})
	})
	t.Run("close", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &flaky{Store: mem.New(mem.Config{}), before: always(lost("head", "slow"))} // so that some wait at the brake
			s := retry.New(f, retry.Config{Tries: 1e6, First: time.Hour, Most: time.Hour, Time: 1000 * time.Hour})
			ended := make(chan error, 20)
			for range cap(ended) {
				go func() {
					_, err := s.Head(ctx, "a")
					ended <- err
				}()
			}
			time.Sleep(24 * time.Hour)
			began := time.Now()
			if err := errors.Join(s.Close(), s.Close()); err != nil {
				t.Error(err)
			}
			for range cap(ended) {
				if err := <-ended; err == nil || objstore.Retryable(err) {
					t.Error(err)
				}
			}
			if took := time.Since(began); took > 0 {
				t.Errorf("calls end %v after Close", took)
			}
		})
	})
	t.Run("log", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			told := 0
			c := retry.Config{Log: func(err error, wait time.Duration) {
				if told++; !objstore.Retryable(err) || wait < 0 {
					t.Error(err, wait)
				}
			}}
			f := &flaky{Store: mem.New(mem.Config{}), before: first(3, lost("list", "transient"))}
			if _, err := retry.New(f, c).List(ctx, objstore.Query{}); err != nil || told != 3 {
				t.Error(told, err)
			}
		})
	})
}

// body counts how often it is opened.
func body(b []byte, opened *int, fail error) objstore.Body {
	return objstore.Body{Size: int64(len(b)), Open: func() (io.ReadCloser, error) {
		*opened++
		if fail != nil {
			return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), errorReader{fail})), nil
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

func TestBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, b, opened := context.Background(), []byte("these are the bytes"), 0
		f := &flaky{Store: mem.New(mem.Config{}), after: first(3, lost("put", "transient"))}
		s := retry.New(f, retry.Config{})
		if _, err := s.Put(ctx, "a", body(b, &opened, nil), objstore.PutOptions{}); err != nil || opened != 4 {
			t.Errorf("%v, opened %d times", err, opened)
		}
		// A body that breaks for good ends the call, also where the store says that another try may help.
		final := errors.New("bad sector")
		f.before, f.after, opened = nil, nil, 0
		_, err := s.Put(ctx, "b", body(b, &opened, final), objstore.PutOptions{})
		if !errors.Is(err, final) || objstore.Retryable(err) || opened != 1 {
			t.Errorf("%v, opened %d times", err, opened)
		}
		hides := hiding{f}
		opened = 0
		_, err = retry.New(hides, retry.Config{}).Put(ctx, "b", body(b, &opened, final), objstore.PutOptions{})
		if !errors.Is(err, final) || objstore.Retryable(err) || opened != 1 {
			t.Errorf("%v, opened %d times", err, opened)
		}
		// One that another store may give at another try does not.
		opened = 0
		_, err = s.Put(ctx, "b", body(b, &opened, lost("get", "transient")), objstore.PutOptions{})
		if !objstore.Retryable(err) || opened != 10 {
			t.Errorf("%v, opened %d times", err, opened)
		}
	})
}

// hiding tells of any error of a body that the line has failed, as an HTTP client may.
type hiding struct{ objstore.Store }

func (h hiding) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	w, err := h.Store.Put(ctx, key, b, o)
	if err != nil {
		err = lost("put", "transient")
	}
	return w, err
}

func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		content := make([]byte, 3<<20)
		rand.NewChaCha8([32]byte{7}).Read(content)
		f := &flaky{Store: mem.New(mem.Config{})}
		s := retry.New(f, retry.Config{})
		if _, err := s.Put(ctx, "a", objstore.Bytes(content), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		cuts := []error{io.ErrUnexpectedEOF, io.EOF, lost("get", "transient"), &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}}
		for i, at := range []int64{0, 1, 1000, 70_000, 1 << 20, 3<<20 - 1} {
			for j, cut := range cuts {
				for k, g := range []objstore.GetOptions{{}, {Off: 5}, {Off: 100, Len: 200_000}, {Len: 3 << 20}} {
					if k > 0 && (i+j+k)%4 != 0 {
						continue // each with each would take long
					}
					f.body = func(n int) (int64, error) { return at, cut }
					if at < 1<<19 { // no progress to speak of: not every one may break
						once := f.count("get") + 3
						f.body = func(n int) (int64, error) {
							if n < once {
								return at, cut
							}
							return 0, nil
						}
					}
					want := content[g.Off:]
					if g.Len > 0 {
						want = want[:min(g.Len, int64(len(want)))]
					}
					_, r, err := s.Get(ctx, "a", g)
					if err != nil {
						t.Fatal(err)
					}
					var got bytes.Buffer
					got.Grow(len(want) + bytes.MinRead)
					if _, err := got.ReadFrom(r); err != nil || !bytes.Equal(got.Bytes(), want) {
						t.Fatalf("cut at %d by %v, %+v: %d bytes, %v", at, cut, g, got.Len(), err)
					}
					r.Close()
				}
			}
		}

		// It ends where nothing comes any more.
		f.body = func(int) (int64, error) { return 10, io.ErrUnexpectedEOF }
		before := f.count("get")
		_, r, err := s.Get(ctx, "a", objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if n != 100 || !objstore.Retryable(err) || f.count("get")-before != 10 {
			t.Errorf("%d bytes, %v after %d tries", n, err, f.count("get")-before)
		}
		r.Close()

		// What is not of the line is told at once.
		for _, cut := range []error{objstore.ErrCorrupt, errors.New("?"), lost("get", "denied")} {
			f.body = func(int) (int64, error) { return 10, cut }
			before := f.count("get")
			_, r, err := s.Get(ctx, "a", objstore.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); n != 10 || !errors.Is(err, cut) || f.count("get")-before != 1 {
				t.Errorf("%d bytes, %v after %d tries", n, err, f.count("get")-before)
			}
			r.Close()
		}

		// Nobody reads half of one state and half of another.
		f.body = func(n int) (int64, error) { return 1 << 20, io.ErrUnexpectedEOF }
		_, r, err = s.Get(ctx, "a", objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Store.Put(ctx, "a", objstore.Bytes(content[1:]), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); n != 1<<20-10 || !errors.Is(err, objstore.ErrChanged) {
			t.Errorf("%d bytes, %v", n, err)
		}
		r.Close()

		// Close ends a read that waits.
		f.body = func(n int) (int64, error) { return 0, io.ErrUnexpectedEOF }
		_, r, err = s.Get(ctx, "a", objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, r)
			ended <- err
		}()
		synctest.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("a body that was closed ends well")
		}
	})
}

func TestAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, o := context.Background(), objstore.PutOptions{Absent: true}
		f := &flaky{Store: mem.New(mem.Config{})}
		s := retry.New(f, retry.Config{})
		f.after = func(op string, n int) error {
			if op == "put" && n == 0 {
				return lost(op, "transient")
			}
			return nil
		}
		if w, err := s.Put(ctx, "a", objstore.Bytes([]byte("mine")), o); err != nil || w.ETag == "" {
			t.Errorf("a lost answer: %+v, %v", w, err)
		}
		if _, err := s.Put(ctx, "a", objstore.Bytes([]byte("mine")), o); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("the same bytes, but nothing was lost: %v", err)
		}
		for _, others := range []string{"hers", "others"} { // of the same size, and not
			f.n, f.after = nil, nil
			f.before = func(op string, n int) error {
				if op == "put" && n == 0 {
					f.Store.Put(ctx, others, objstore.Bytes([]byte(others)), objstore.PutOptions{})
					return lost(op, "transient")
				}
				return nil
			}
			if _, err := s.Put(ctx, others, objstore.Bytes([]byte("mine")), o); !errors.Is(err, objstore.ErrExists) || objstore.Retryable(err) {
				t.Errorf("another's object: %v", err)
			}
		}
		f.n, f.after = nil, nil // one that cannot be read
		f.before = func(op string, n int) error {
			switch {
			case op == "put" && n == 0:
				f.Store.Put(ctx, "x", objstore.Bytes([]byte("mine")), objstore.PutOptions{})
				return lost(op, "transient")
			case op == "get":
				return lost(op, "denied")
			}
			return nil
		}
		if _, err := s.Put(ctx, "x", objstore.Bytes([]byte("mine")), o); !errors.Is(err, objstore.ErrExists) || errors.Is(err, objstore.ErrDenied) {
			t.Errorf("an object that cannot be read: %v", err)
		}
	})
}

// opaque is a store whose ETags are no digests.
type opaque struct{ *flaky }

func (o opaque) Head(ctx context.Context, key string) (objstore.Object, error) {
	h, err := o.flaky.Head(ctx, key)
	h.ETag = "tag of " + h.ETag
	return h, err
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		name   string
		before string // what is there before; "": nothing
		absent bool
		opaque bool
		first  func(f *flaky, up string) // instead of the first try, whose answer is lost; nil: it is done
		want   error
	}{
		{name: "lost"},
		{name: "lost, over another", before: "old"},
		{name: "lost, over the same", before: "part"},
		{name: "lost, absent", absent: true},
		{name: "lost, opaque", opaque: true},
		{name: "lost, opaque, over another of that size", before: "trap", opaque: true},
		{name: "not done", first: func(*flaky, string) {}},
		{name: "not done, absent, another came", absent: true, want: objstore.ErrExists,
			first: func(f *flaky, _ string) {
				f.Store.Put(context.Background(), "a", objstore.Bytes([]byte("part")), objstore.PutOptions{})
			}},
		{name: "was there, absent", before: "part", absent: true, want: objstore.ErrExists, first: func(*flaky, string) {}},
		{name: "aborted", want: objstore.ErrNotFound, first: func(f *flaky, up string) { f.Store.Abort(context.Background(), "a", up) }},
		{name: "aborted, over another", before: "old", want: objstore.ErrNotFound, first: func(f *flaky, up string) { f.Store.Abort(context.Background(), "a", up) }},
		{name: "aborted, over another of that size", before: "trap", want: objstore.ErrNotFound, first: func(f *flaky, up string) { f.Store.Abort(context.Background(), "a", up) }},
		{name: "aborted, opaque, over another of that size", before: "trap", opaque: true, want: objstore.ErrNotFound,
			first: func(f *flaky, up string) { f.Store.Abort(context.Background(), "a", up) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, o := context.Background(), objstore.PutOptions{Absent: c.absent}
				f := &flaky{Store: mem.New(mem.Config{})}
				s := retry.New(f, retry.Config{})
				if c.opaque {
					s = retry.New(opaque{f}, retry.Config{})
				}
				if c.before != "" {
					if _, err := f.Store.Put(ctx, "a", objstore.Bytes([]byte(c.before)), objstore.PutOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Second)
				up, err := s.Begin(ctx, "a", o)
				if err != nil {
					t.Fatal(err)
				}
				p, err := s.PutPart(ctx, "a", up, 1, objstore.Bytes([]byte("part")))
				if err != nil {
					t.Fatal(err)
				}
				f.before = func(op string, n int) error {
					if op == "complete" && n == 0 && c.first != nil {
						c.first(f, up)
						return lost(op, "transient")
					}
					return nil
				}
				f.after = func(op string, n int) error {
					if op == "complete" && n == 0 {
						return lost(op, "transient")
					}
					return nil
				}
				w, err := s.Complete(ctx, "a", up, []objstore.Part{{No: 1, Size: 4, ETag: p.ETag}}, o)
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && w.ETag == "" || objstore.Retryable(err) {
					t.Errorf("%+v, %v; want %v", w, err, c.want)
				}
				if _, r, err := f.Store.Get(ctx, "a", objstore.GetOptions{}); c.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					if b, _ := io.ReadAll(r); string(b) != "part" {
						t.Errorf("the object is %q", b)
					}
				}
			})
		})
	}
}

// left is a store that leaves keys in a batch delete.
type left struct {
	*mem.Store
	leave func(key string) error
}

func (l left) Delete(ctx context.Context, keys ...string) (map[string]error, error) {
	out := map[string]error{}
	for _, key := range keys {
		if err := l.leave(key); err != nil {
			out[key] = err
		} else if _, err := l.Store.Delete(ctx, key); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func TestDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, tries := context.Background(), map[string]int{}
		l := left{mem.New(mem.Config{}), func(key string) error {
			switch tries[key]++; {
			case key == "denied":
				return lost("delete", "denied")
			case key == "stuck" || strings.HasPrefix(key, "slow") && tries[key] < 4:
				return lost("delete", "transient")
			}
			return nil
		}}
		s := retry.New(l, retry.Config{})
		keys := []string{"a", "slow 1", "b", "denied", "slow 2"}
		for _, key := range append(keys, "stuck") {
			if _, err := s.Put(ctx, key, objstore.Bytes(nil), objstore.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		rest, err := s.Delete(ctx, keys...)
		if err != nil || len(rest) != 1 || !errors.Is(rest["denied"], objstore.ErrDenied) {
			t.Errorf("%v, %v", rest, err)
		}
		if tries["a"] != 1 || tries["denied"] != 1 || tries["slow 1"] != 4 || tries["slow 2"] != 4 {
			t.Errorf("tries %v", tries)
		}
		rest, err = s.Delete(ctx, "denied", "stuck")
		if err != nil || len(rest) != 2 || !errors.Is(rest["stuck"], objstore.ErrTransient) || tries["stuck"] != 10 {
			t.Errorf("%v, %v, %v", rest, err, tries)
		}
	})
}

// metered is a store that takes so many calls a second.
type metered struct {
	*mem.Store
	mu     sync.Mutex
	rate   float64
	tokens float64
	at     time.Time
	taken  int
	slowed int
}

func (m *metered) Head(ctx context.Context, key string) (objstore.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.tokens = min(m.rate/5, m.tokens+now.Sub(m.at).Seconds()*m.rate)
	m.at = now
	if m.rate > 0 && m.tokens < 1 {
		m.slowed++
		return objstore.Object{}, lost("head", "slow")
	}
	m.tokens--
	m.taken++
	return objstore.Object{}, nil
}

// TestBrake: many callers of a store that takes 100 calls a second get nearly all of them, few are refused, and when the store takes more they have it.
func TestBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &metered{Store: mem.New(mem.Config{}), rate: 100, at: time.Now()}
		s := retry.New(m, retry.Config{Tries: 1e6, Time: time.Hour})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := s.Head(ctx, "a"); err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					sleep := time.NewTimer(10 * time.Millisecond) // so a call takes
					<-sleep.C
				}
			})
		}
		during := func(d time.Duration) (taken, slowed int) {
			m.mu.Lock()
			taken, slowed = m.taken, m.slowed
			m.mu.Unlock()
			time.Sleep(d)
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.taken - taken, m.slowed - slowed
		}
		during(20 * time.Second)
		taken, slowed := during(2 * time.Minute)
		t.Logf("2 minutes at 100/s: %d taken, %d refused", taken, slowed)
		if taken < 7_200 || slowed > taken/50 {
			t.Errorf("%d taken, %d refused in 2 minutes at 100/s", taken, slowed)
		}
		m.mu.Lock()
		m.rate = 1e6
		m.mu.Unlock()
		during(20 * time.Second)
		taken, slowed = during(time.Second)
		t.Logf("a second without a limit: %d taken, %d refused", taken, slowed)
		if taken < 5_000 || slowed != 0 {
			t.Errorf("%d taken, %d refused in a second without a limit", taken, slowed)
		}
		cancel()
		wg.Wait()
	})
}

// TestBrakeOfAnother: a source that asks for fewer requests does not slow down the store that its bytes go to.
func TestBrakeOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, opened := context.Background(), 0
		s := retry.New(mem.New(mem.Config{}), retry.Config{Tries: 3})
		slow := &objstore.Error{Op: "get", Store: "source", Kind: objstore.ErrSlowDown}
		if _, err := s.Put(ctx, "a", body([]byte("bytes"), &opened, slow), objstore.PutOptions{}); !objstore.Retryable(err) || opened != 3 {
			t.Errorf("%v, opened %d times", err, opened)
		}
		began := time.Now()
		for range 1000 {
			if _, err := s.List(ctx, objstore.Query{}); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 0 || s.Stats().Slow != 0 {
			t.Errorf("1000 calls took %v, slow %d", took, s.Stats().Slow)
		}
	})
}
