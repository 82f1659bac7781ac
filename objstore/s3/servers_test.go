package s3_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/s3"
)

// The servers are started by the first test that needs them, and end with the tests.
var (
	ceph    = started(func(ctx context.Context, dir string) (*s3test.Ceph, error) { return s3test.StartCeph(ctx, dir) })
	versity = started(func(ctx context.Context, dir string) (*s3test.Versity, error) { return s3test.StartVersity(ctx, dir) })
	endings []func() error
)

func started[T io.Closer](start func(context.Context, string) (T, error)) func() (T, error) {
	return sync.OnceValues(func() (T, error) {
		var none T
		dir, err := os.MkdirTemp("", "mover-s3-")
		if err != nil {
			return none, err
		}
		endings = append(endings, func() error { return os.RemoveAll(dir) })
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		s, err := start(ctx, dir)
		if err != nil {
			return none, err
		}
		endings = append(endings, s.Close)
		return s, nil
	})
}

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

var which = flag.String("servers", "ceph", "the servers to test with: ceph, versity (which is built first), or both with a comma")

// servers are those that each test of this file runs against.
var servers = map[string]func(t *testing.T) s3test.Server{
	"ceph": func(t *testing.T) s3test.Server {
		c, err := ceph()
		if err != nil {
			t.Fatal(err)
		}
		return c.Server
	},
	"versity": func(t *testing.T) s3test.Server {
		v, err := versity()
		if err != nil {
			t.Fatal(err)
		}
		return v.Server
	},
}

var buckets atomic.Int32

// on runs a test on a new bucket of each server.
func on(t *testing.T, test func(t *testing.T, s *s3.Store, c s3.Config)) {
	for _, name := range strings.Split(*which, ",") {
		server := servers[name]
		t.Run(name, func(t *testing.T) {
			c := bucket(t, server(t))
			s, err := s3.New(c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			test(t, s, c)
		})
	}
}

// bucket makes a new bucket.
func bucket(t *testing.T, server s3test.Server) s3.Config {
	t.Helper()
	name := fmt.Sprintf("mover-test-%d", buckets.Add(1))
	if err := server.MakeBucket(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return s3.Config{Endpoint: server.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: server.ID, Secret: server.Secret}}
}

func TestWrongKeys(t *testing.T) {
	on(t, func(t *testing.T, _ *s3.Store, c s3.Config) {
		good := c.Credentials.(objstore.Fixed)
		for name, keys := range map[string]objstore.Fixed{
			"id": {ID: "NOBODY", Secret: good.Secret}, "secret": {ID: good.ID, Secret: good.Secret + "x"},
		} {
			c.Credentials = keys
			s, err := s3.New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for call, err := range all(s) {
				if err == nil {
					t.Errorf("%s with another %s is taken", call, name)
					continue
				}
				kind(t, err, objstore.ErrDenied)
			}
		}
		c.Credentials, c.Bucket = good, "no-such-bucket"
		s, err := s3.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for call, err := range all(s) {
			if err == nil {
				t.Errorf("%s in a bucket that is not there", call)
				continue
			}
			kind(t, err, objstore.ErrNotFound)
		}
	})
}

// pattern is a body of n bytes that is made while it is read.
type pattern struct{ left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for i := range b[:n] {
		b[i] = byte(int64(i) + p.left)
	}
	p.left -= int64(n)
	return n, nil
}

func (*pattern) Close() error { return nil }

// TestMemory puts and gets 256 MiB, and looks at the heap while it does.
func TestMemory(t *testing.T) {
	const size = 256 << 20
	on(t, func(t *testing.T, s *s3.Store, _ s3.Config) {
		base, most := watch(func() {
			b := objstore.Body{Size: size, Open: func() (io.ReadCloser, error) { return &pattern{size}, nil }}
			if _, err := s.Put(t.Context(), "large", b, objstore.PutOptions{}); err != nil {
				t.Error(err)
			}
		})
		if most > base+8<<20 {
			t.Errorf("put: the heap grew from %d to %d bytes", base, most)
		}
		t.Logf("put: the heap grew by %d KiB", (int64(most)-int64(base))>>10)
		base, most = watch(func() {
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
		if most > base+8<<20 {
			t.Errorf("get: the heap grew from %d to %d bytes", base, most)
		}
		t.Logf("get: the heap grew by %d KiB", (int64(most)-int64(base))>>10)
	})
}

// watch gives the heap before f, and the most that was in use while it ran.
func watch(f func()) (base, most uint64) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base = m.HeapInuse
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	for {
		select {
		case <-over:
			return base, most
		case <-time.After(20 * time.Millisecond):
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
		}
	}
}

// Benchmarks of small objects: BenchmarkSmall/ceph/put/16 and so on, 10 KiB each.
func BenchmarkSmall(b *testing.B) {
	for name, server := range map[string]func() (s3test.Server, error){
		"ceph": func() (s3test.Server, error) {
			c, err := ceph()
			if err != nil {
				return s3test.Server{}, err
			}
			return c.Server, nil
		},
	} {
		srv, err := server()
		if err != nil {
			b.Fatal(err)
		}
		bucket := fmt.Sprintf("mover-bench-%d", buckets.Add(1))
		if err := srv.MakeBucket(context.Background(), bucket); err != nil {
			b.Fatal(err)
		}
		s, err := s3.New(s3.Config{Endpoint: srv.Endpoint, Bucket: bucket, PathStyle: true, Credentials: objstore.Fixed{ID: srv.ID, Secret: srv.Secret}})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		body := bytes.Repeat([]byte("0123456789abcdef"), 640)
		for _, n := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/put/%d", name, n), func(b *testing.B) {
				flood(b, n, func(i int) error {
					_, err := s.Put(context.Background(), fmt.Sprintf("%d/%06d", n, i), objstore.Bytes(body), objstore.PutOptions{})
					return err
				})
			})
			b.Run(fmt.Sprintf("%s/get/%d", name, n), func(b *testing.B) {
				flood(b, n, func(i int) error {
					_, r, err := s.Get(context.Background(), fmt.Sprintf("%d/%06d", n, i%64), objstore.GetOptions{})
					if err != nil {
						return err
					}
					_, err = io.Copy(io.Discard, r)
					return errors.Join(err, r.Close())
				})
			})
		}
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
