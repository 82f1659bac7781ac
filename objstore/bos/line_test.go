package bos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
)

var quiet = log.New(io.Discard, "", 0)

// Whatever the size of a body, few bytes of it are in memory.
func TestMemory(t *testing.T) {
	size := int64(256 << 20)
	if raceEnabled { // the detector makes a CRC some 50 times slower
		size = 32 << 20
	}
	r := newRig(t, nil)
	var peak atomic.Uint64
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	r.put("warm", "x")
	runtime.GC()
	before := heap()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				peak.Store(max(peak.Load(), heap()))
			}
		}
	}()
	zeroes := objstore.Body{Size: size, Open: func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zero{}, size)), nil }}
	_, err := r.Put(r.ctx, "big", zeroes, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, in, err := r.Get(r.ctx, "big", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, in)
	if err = errors.Join(err, in.Close()); err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	close(stop)
	<-done
	if grown := int64(peak.Load()) - int64(before); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes while %d were put and read", grown, size)
	} else {
		t.Logf("the heap grew by %d KiB", grown>>10)
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Stores that are made and used at the same time share nothing.
func TestTogether(t *testing.T) {
	r := newRig(t, nil)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			s, err := bos.New(bos.Config{Endpoint: r.url, Bucket: "photos", Credentials: alice, Timeouts: bos.Timeouts{Stall: time.Duration(i+1) * time.Minute}})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for j := range 20 {
				key := fmt.Sprint(i, "/", j)
				if _, err := s.Put(r.ctx, key, stream(int64(j)<<10), objstore.PutOptions{}); err != nil {
					t.Error(err)
				}
				if b, _, err := get(r.ctx, s, key); err != nil || len(b) != j<<10 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				if _, err := s.List(r.ctx, objstore.Query{Prefix: fmt.Sprint(i, "/")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A server that says nothing, or stops in the middle, ends the call; so do the caller and Close.
func TestPatience(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, "/half") {
			w.Header().Set("Content-Length", "1000")
			w.Header().Set("ETag", `"e"`)
			w.Header().Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
			_, _ = w.Write(make([]byte, 500))
			_ = http.NewResponseController(w).Flush()
		}
		if q.Method == http.MethodPut && !strings.HasSuffix(q.URL.Path, "/deaf") {
			_, _ = io.Copy(io.Discard, q.Body)
		}
		select {
		case <-release:
		case <-q.Context().Done():
		}
	}))
	defer server.Close()
	defer close(release)
	r := &rig{t: t, url: server.URL, ctx: t.Context()}
	const short = 100 * time.Millisecond
	s := r.store(bos.Config{Timeouts: bos.Timeouts{Answer: short, Stall: short}})
	_, err := s.Head(r.ctx, "k")
	r.want("no answer", err, objstore.ErrTransient, true)
	_, err = s.Put(r.ctx, "k", stream(1<<20), objstore.PutOptions{})
	r.want("no answer to a put", err, objstore.ErrTransient, true)
	_, err = s.Put(r.ctx, "deaf", stream(64<<20), objstore.PutOptions{})
	r.want("nobody reads", err, objstore.ErrTransient, true)
	b, _, err := get(r.ctx, s, "half")
	if r.want("half a body", err, objstore.ErrTransient, true); len(b) != 500 {
		t.Errorf("%d bytes came", len(b))
	}

	s = r.store(bos.Config{})
	ctx, cancel := context.WithCancel(r.ctx)
	time.AfterFunc(short, cancel)
	_, err = s.Head(ctx, "k")
	r.want("given up", err, context.Canceled, false)
	ctx, cancel = context.WithTimeout(r.ctx, short)
	defer cancel()
	_, err = s.Head(ctx, "k")
	r.want("the caller's time is over", err, context.DeadlineExceeded, false)
	_, in, err := s.Get(r.ctx, "half", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(short, func() { _ = s.Close() })
	if _, err = io.ReadAll(in); err == nil || objstore.Retryable(err) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("closed while it was read: %v", err)
	}
	_ = in.Close()
	for range 100 {
		if _, err = s.Head(r.ctx, "k"); err == nil || !strings.Contains(err.Error(), "the store is closed") {
			t.Fatalf("closed: %v", err)
		}
	}

	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, err = r.store(bos.Config{Endpoint: gone.URL}).Head(r.ctx, "k")
	r.want("nobody listens", err, objstore.ErrTransient, true)
}

// What ended is noticed at once, not when the transport comes to it.
func TestEnds(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.Put(r.ctx, "k", stream(1<<20), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		ctx, cancel := context.WithCancel(r.ctx)
		_, in, err := r.Get(ctx, "k", objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if n, err := in.Read(make([]byte, 1)); n > 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("read on after the end: %d, %v", n, err)
		}
		_ = in.Close()
		s := r.store(bos.Config{})
		_ = s.Close()
		if _, err := s.List(r.ctx, objstore.Query{}); err == nil {
			t.Error("a closed store listed")
		}
	}
}

// A source that is slower than the line is patient with is no stall: only the other end's silence is.
func TestSlowSource(t *testing.T) {
	r := newRig(t, nil)
	s := r.store(bos.Config{Timeouts: bos.Timeouts{Stall: 100 * time.Millisecond, Answer: 100 * time.Millisecond}})
	b := objstore.Body{Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(&slow{4}), nil }}
	if _, err := s.Put(r.ctx, "k", b, objstore.PutOptions{}); err != nil {
		t.Error(err)
	}
}

type slow struct{ left int }

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(80 * time.Millisecond)
	s.left--
	p[0] = 'x'
	return 1, nil
}
