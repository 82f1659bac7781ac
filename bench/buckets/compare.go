package buckets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/objstore/s3"
)

// CompareOptions of a comparison with rclone, from one bucket of a server to another.
type CompareOptions struct {
	Work      string // folder
	Objects   int
	Size      int // bytes of each
	Large     int // objects
	LargeSize int64
	Repeat    int
	Transfers int // of rclone
	Out       io.Writer
	Results   *bench.Results
}

// compare is one comparison.
type compare struct {
	CompareOptions
	server s3test.Server
	n      int // buckets so far
}

// Compare copies the same objects with Mover and with rclone, alternately, and again when nothing has changed.
func Compare(ctx context.Context, o CompareOptions) (err error) {
	c := &compare{CompareOptions: o}
	dir, err := os.MkdirTemp(o.Work, "mover-compare-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stop, err := c.start(ctx, filepath.Join(dir, "server"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, w := range []struct {
		name    string
		objects int
		size    int64
		bounds  [2]string
	}{{"small", o.Objects, int64(o.Size), [2]string{"at least 2", "at least 5"}}, {"large", o.Large, o.LargeSize, [2]string{"at least 1.5", ""}}} {
		if w.objects == 0 {
			continue
		}
		if err := c.workload(ctx, dir, w.name, w.objects, w.size, w.bounds); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

func (c *compare) start(ctx context.Context, dir string) (stop func() error, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	s, err := s3test.StartCeph(ctx, dir)
	if err != nil {
		return nil, err
	}
	c.server = s.Server
	return s.Close, nil
}

// bucket makes an empty bucket.
func (c *compare) bucket(ctx context.Context) (string, error) {
	c.n++
	name := fmt.Sprintf("bucket-%d", c.n)
	return name, c.server.MakeBucket(ctx, name)
}

func (c *compare) open(name string) (objstore.Store, error) {
	s, err := s3.New(s3.Config{Endpoint: c.server.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: c.server.ID, Secret: c.server.Secret}})
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Config{}), nil
}

func (c *compare) workload(ctx context.Context, dir, name string, n int, size int64, bounds [2]string) error {
	from, err := c.bucket(ctx)
	if err != nil {
		return err
	}
	src, err := c.open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := fillBucket(ctx, src, n, size); err != nil {
		return err
	}
	time.Sleep(settle) // what was written in the second of the listing is copied again by the next pass
	times := map[string][]float64{}
	for range c.Repeat {
		for _, who := range []string{"mover", "rclone"} {
			to, err := c.bucket(ctx)
			if err != nil {
				return err
			}
			for _, pass := range []string{"first pass", "nothing changed"} {
				began := time.Now()
				if who == "mover" {
					err = c.mover(ctx, dir, from, to, n)
				} else {
					err = c.rclone(ctx, dir, from, to)
				}
				if err != nil {
					return fmt.Errorf("%s, %s: %w", who, pass, err)
				}
				d := time.Since(began).Seconds()
				times[who+pass] = append(times[who+pass], d)
				if err := c.add(name, who+", "+pass, "seconds", d, "s"); err != nil {
					return err
				}
			}
			if err := c.same(ctx, src, to); err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
		}
	}
	for i, pass := range []string{"first pass", "nothing changed"} {
		ours, theirs := bench.Median(times["mover"+pass]), bench.Median(times["rclone"+pass])
		metric := "ratio of median times"
		if bounds[i] != "" {
			metric += " (" + bounds[i] + ")"
		}
		err := errors.Join(c.add(name, "mover, "+pass, "objects a second", float64(n)/ours, "1/s"), c.add(name, "rclone / mover, "+pass, metric, theirs/ours, "ratio"))
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *compare) add(workload, subject, metric string, v float64, unit string) error {
	fmt.Fprintf(c.Out, "bucket %-6s %-34s %-44s %10.4g %s\n", workload, subject, metric, v, unit)
	if c.Results == nil {
		return nil
	}
	return c.Results.Add("bucket "+workload, subject, metric, v, unit)
}

func fillBucket(ctx context.Context, s objstore.Store, n int, size int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	if size > 64<<20 {
		g.SetLimit(1)
	}
	for i := range n {
		g.Go(func() error { return putLarge(ctx, s, fmt.Sprintf("data/%02d/%06d", i%50, i), size, uint64(i)) })
	}
	return g.Wait()
}

// putLarge puts an object of any size, in parts if need be.
func putLarge(ctx context.Context, s objstore.Store, key string, size int64, seed uint64) error {
	const part = 32 << 20
	if size <= part {
		return put(ctx, s, key, int(size), seed)
	}
	up, err := s.Begin(ctx, key, objstore.PutOptions{})
	if err != nil {
		return err
	}
	var parts []objstore.Part
	for no := 1; size > 0; no++ {
		n := min(size, part)
		b := noise(int(n), seed*1000+uint64(no))
		w, err := s.PutPart(ctx, key, up, no, objstore.Bytes(b))
		if err != nil {
			return err
		}
		parts = append(parts, objstore.Part{No: no, Size: n, ETag: w.ETag})
		size -= n
	}
	_, err = s.Complete(ctx, key, up, parts, objstore.PutOptions{})
	return err
}

// mover runs one pass of a flow in this process: the ledger is kept for the next one.
func (c *compare) mover(ctx context.Context, dir, from, to string, n int) (err error) {
	src, err := c.open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := c.open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	e, err := startEngine(filepath.Join(dir, to))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	st, err := e.pass(ctx, src, dst, 0, bucket.WorkerConfig{})
	if err == nil && (st.Objects != int64(n) || st.Failed+st.Refused > 0) {
		err = fmt.Errorf("%d objects: %+v", n, st)
	}
	return err
}

// rclone copies with so many transfers; what the second run compares is its default: size and time of change.
func (c *compare) rclone(ctx context.Context, dir, from, to string) error {
	conf := filepath.Join(dir, "rclone.conf")
	text := fmt.Sprintf("[s]\ntype = s3\nprovider = Ceph\nendpoint = %s\naccess_key_id = %s\nsecret_access_key = %s\nregion = us-east-1\n", c.server.Endpoint, c.server.ID, c.server.Secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	n := fmt.Sprint(c.Transfers)
	cmd := exec.CommandContext(ctx, "rclone", "--config", conf, "copy", "s:"+from, "s:"+to, "--transfers", n, "--checkers", n, "--s3-no-check-bucket", "--disable", "copy")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir} // and nothing of what AWS's SDK would read
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// same compares both buckets by key, size and content.
func (c *compare) same(ctx context.Context, src objstore.Store, to string) error {
	dst, err := c.open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	a, err := listing(ctx, src)
	if err != nil {
		return err
	}
	b, err := listing(ctx, dst)
	if err != nil {
		return err
	}
	if len(a) != len(b) {
		return fmt.Errorf("%d objects, not %d", len(b), len(a))
	}
	for k, size := range a {
		if b[k] != size {
			return fmt.Errorf("%s has %d bytes, not %d", k, b[k], size)
		}
	}
	return nil
}

func listing(ctx context.Context, s objstore.Store) (map[string]int64, error) {
	out := map[string]int64{}
	for after := ""; ; {
		p, err := s.List(ctx, objstore.Query{After: after})
		if err != nil {
			return nil, err
		}
		for _, e := range p.Entries {
			out[e.Key], after = e.Size, e.Key
		}
		if !p.More {
			return out, nil
		}
	}
}
