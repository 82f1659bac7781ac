package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/s3"
)

// ceph is started by the first test that needs it, and ends with the tests.
var ceph = sync.OnceValues(func() (*s3test.Ceph, error) {
	dir, err := os.MkdirTemp("", "mover-s3-")
	if err != nil {
		return nil, err
	}
	endings = append(endings, func() error { return os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := s3test.StartCeph(ctx, dir)
	if err == nil {
		endings = append(endings, c.Close)
	}
	return c, err
})

var endings []func() error

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(endings) - 1; i >= 0; i-- {
		if err := endings[i](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var buckets atomic.Int32

// rgw gives a store of a new bucket, and how it was opened.
func rgw(t *testing.T) (*s3.Store, s3.Config) {
	t.Helper()
	c := bucket(t)
	s, err := s3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, c
}

// bucket makes a new bucket.
func bucket(t testing.TB) s3.Config {
	t.Helper()
	server, err := ceph()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("mover-test-%d", buckets.Add(1))
	if err := server.MakeBucket(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	return s3.Config{Endpoint: server.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: server.ID, Secret: server.Secret}}
}

func TestWrongKeys(t *testing.T) {
	_, c := rgw(t)
	good := c.Credentials.(objstore.Fixed)
	try := func(name string, change func(*s3.Config), want error) {
		c := c
		change(&c)
		s, err := s3.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for call, err := range all(s) {
			if err == nil {
				t.Errorf("%s with %s is taken", call, name)
				continue
			}
			kind(t, err, want)
			if strings.Contains(err.Error(), good.Secret) {
				t.Errorf("%s tells the secret: %v", call, err)
			}
		}
	}
	try("another id", func(c *s3.Config) { c.Credentials = objstore.Fixed{ID: "NOBODY", Secret: good.Secret} }, objstore.ErrDenied)
	try("another secret", func(c *s3.Config) { c.Credentials = objstore.Fixed{ID: good.ID, Secret: good.Secret + "x"} }, objstore.ErrDenied)
	try("a bucket that is not there", func(c *s3.Config) { c.Bucket = "no-such-bucket" }, objstore.ErrNotFound)
}

// TestSession has keys of a session, which sign nothing without their token.
func TestSession(t *testing.T) {
	_, c := rgw(t)
	server, err := ceph()
	if err != nil {
		t.Fatal(err)
	}
	id, secret, token, err := server.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, give := range []string{token, "", token[:len(token)/2] + "AAAA" + token[len(token)/2+4:]} {
		c.Credentials = objstore.Fixed{ID: id, Secret: secret, Token: give}
		s, err := s3.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Put(t.Context(), "k", objstore.Bytes([]byte("x")), objstore.PutOptions{})
		if give == token {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if err == nil {
			t.Fatal("a session without its token is taken")
		}
		if give == "" {
			kind(t, err, objstore.ErrDenied)
		} else if objstore.Retryable(err) || strings.Contains(err.Error(), give) { // RGW: InvalidArgument
			t.Error(err)
		}
	}
}

// pattern is a body of left bytes that is made while it is read.
type pattern struct{ left int64 }

var block = bytes.Repeat([]byte("what is not there before it is read. "), 1<<10)

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(int64(len(b)), p.left)], block)
	p.left -= int64(n)
	return n, nil
}

func (*pattern) Close() error { return nil }

// TestMemory puts and gets 256 MiB, and looks at the heap while it does.
func TestMemory(t *testing.T) {
	const size, room = 256 << 20, 8 << 20
	s, _ := rgw(t)
	grown := watch(func() {
		b := objstore.Body{Size: size, Open: func() (io.ReadCloser, error) { return &pattern{size}, nil }}
		if _, err := s.Put(t.Context(), "large", b, objstore.PutOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Logf("put: the heap grew by %d KiB", grown>>10)
	if grown > room {
		t.Errorf("put: the heap grew by %d bytes", grown)
	}
	grown = watch(func() {
		_, r, err := s.Get(t.Context(), "large", objstore.GetOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		if n, err := io.Copy(io.Discard, r); err != nil || n != size {
			t.Error(n, err)
		}
	})
	t.Logf("get: the heap grew by %d KiB", grown>>10)
	if grown > room {
		t.Errorf("get: the heap grew by %d bytes", grown)
	}
}

// watch tells by how much the heap in use grew while f ran.
func watch(f func()) (grown int64) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base := int64(m.HeapInuse)
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	for {
		select {
		case <-over:
			return grown
		case <-time.After(20 * time.Millisecond):
			runtime.ReadMemStats(&m)
			grown = max(grown, int64(m.HeapInuse)-base)
		}
	}
}

// BenchmarkSmall puts and gets objects of 10 KiB in a Ceph RGW on this machine, 1, 16 and 64 at once.
func BenchmarkSmall(b *testing.B) {
	s, err := s3.New(bucket(b))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	body := bytes.Repeat([]byte("0123456789abcdef"), 640)
	for i := range 64 {
		if _, err := s.Put(context.Background(), fmt.Sprintf("get/%02d", i), objstore.Bytes(body), objstore.PutOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("put/%d", n), func(b *testing.B) {
			flood(b, n, func(i int) error {
				_, err := s.Put(context.Background(), fmt.Sprintf("%d/%06d", n, i), objstore.Bytes(body), objstore.PutOptions{})
				return err
			})
		})
		b.Run(fmt.Sprintf("get/%d", n), func(b *testing.B) {
			flood(b, n, func(i int) error {
				_, r, err := s.Get(context.Background(), fmt.Sprintf("get/%02d", i%64), objstore.GetOptions{})
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, r)
				return errors.Join(err, r.Close())
			})
		})
	}
}

// flood calls f b.N times, n at once.
func flood(b *testing.B, n int, f func(i int) error) {
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				if err := f(int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

// Older states and marks of deletes are counted over pages, whatever the key is at which one ends.
func TestOlder(t *testing.T) {
	c := bucket(t)
	server, err := ceph()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.KeepVersions(t.Context(), c.Bucket); err != nil {
		t.Fatal(err)
	}
	s, err := s3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const each = 420
	keys := []string{"a +%", "b %2B+", "p/c"}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range each * len(keys) {
		g.Go(func() error {
			_, err := s.Put(t.Context(), keys[i%len(keys)], objstore.Bytes([]byte("xy")), objstore.PutOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), "b %2B+"); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]objstore.Older{"": {Versions: 3*each - 2, Bytes: 2 * (3*each - 2), Markers: 1}, "p/": {Versions: each - 1, Bytes: 2 * (each - 1)}} {
		var got objstore.Older
		pages := 0
		for place := ""; pages == 0 || place != "" && pages < 10; pages++ {
			n, next, err := s.Older(t.Context(), prefix, place)
			if err != nil {
				t.Fatal(err)
			}
			got.Versions, got.Bytes, got.Markers = got.Versions+n.Versions, got.Bytes+n.Bytes, got.Markers+n.Markers
			place = next
		}
		if got != want || prefix == "" && pages != 2 {
			t.Errorf("%q: %+v on %d pages, want %+v", prefix, got, pages, want)
		}
	}
}
