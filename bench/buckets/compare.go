package buckets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
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
	Versity   bool   // the server is a versitygw on /dev/shm, not a Ceph
	Objects   int
	Size      int // bytes of each
	Large     int // objects
	LargeSize int64
	Repeat    int
	Within    time.Duration // no repetition but the first of each size begins that would not end in it; 0: all are made
	Transfers int           // of rclone
	Profile   string        // file for a profile of the processor's time that Mover's first pass takes; "": none
	Out       io.Writer
	Results   *bench.Results
}

// compare is one comparison.
type compare struct {
	CompareOptions
	server running
	n      int // buckets so far

	profiled bool
	began    time.Time
}

// running is an S3 server with all its programs.
type running interface {
	At() s3test.Server
	MakeBucket(ctx context.Context, name string) error
	CPU() (time.Duration, error)
	Reclaim(ctx context.Context) error
	Close() error
}

// spent is what a pass took.
type spent struct {
	wall           time.Duration
	client, server time.Duration // of processors
}

// Compare copies the same objects with Mover and with rclone, alternately, and again when nothing has changed.
func Compare(ctx context.Context, o CompareOptions) (err error) {
	c := &compare{CompareOptions: o, began: time.Now()}
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
	all := []workload{{"small", o.Objects, int64(o.Size), [2]string{"at least 2", "at least 5"}}, {"large", o.Large, o.LargeSize, [2]string{"at least 1.5", ""}}}
	all = slices.DeleteFunc(all, func(w workload) bool { return w.objects == 0 })
	for i, w := range all {
		until := c.Within * time.Duration(i+1) / time.Duration(len(all))
		if err := c.workload(ctx, dir, w, until); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// workload is objects of one size; bounds are those of the first pass and of one when nothing has changed.
type workload struct {
	name    string
	objects int
	size    int64
	bounds  [2]string
}

func (c *compare) start(ctx context.Context, dir string) (stop func() error, err error) {
	if c.Versity {
		if dir, err = os.MkdirTemp("/dev/shm", "mover-compare-"); err != nil {
			return nil, err
		}
		v, err := s3test.StartVersity(ctx, dir)
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		c.server = v
		return func() error { return errors.Join(v.Close(), os.RemoveAll(dir)) }, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	s, err := s3test.StartCeph(ctx, dir)
	if err != nil {
		return nil, err
	}
	c.server = s
	return s.Close, nil
}

// bucket makes an empty bucket.
func (c *compare) bucket(ctx context.Context) (string, error) {
	c.n++
	name := fmt.Sprintf("bucket-%d", c.n)
	return name, c.server.MakeBucket(ctx, name)
}

func (c *compare) open(name string) (objstore.Store, error) {
	at := c.server.At()
	s, err := s3.New(s3.Config{Endpoint: at.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: at.ID, Secret: at.Secret}})
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Config{}), nil
}

// passes are what each of both does.
var passes = [2]string{"first pass", "nothing changed"}

func (c *compare) workload(ctx context.Context, dir string, w workload, until time.Duration) error {
	from, err := c.bucket(ctx)
	if err != nil {
		return err
	}
	src, err := c.open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := fillBucket(ctx, src, w.objects, w.size); err != nil {
		return err
	}
	time.Sleep(settle) // what was written in the second of the listing is copied again by the next pass
	times, cores := map[string][]float64{}, map[string][]float64{}
	for range c.Repeat {
		began := time.Now()
		for _, who := range []string{"mover", "rclone"} {
			if err := c.one(ctx, dir, w, who, src, from, times, cores); err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
		}
		if c.Within > 0 && time.Since(c.began)+time.Since(began) > until {
			break
		}
	}
	for i, pass := range passes {
		ours, theirs := bench.Median(times["mover, "+pass]), bench.Median(times["rclone, "+pass])
		metric := "ratio of median times"
		if w.bounds[i] != "" {
			metric += " (" + w.bounds[i] + ")"
		}
		err := errors.Join(c.add(w.name, "mover, "+pass, "objects a second", float64(w.objects)/ours, "1/s"), c.add(w.name, "rclone / mover, "+pass, metric, theirs/ours, "ratio"),
			c.add(w.name, "rclone / mover, "+pass, "ratio of the clients' cores", bench.Median(cores["rclone, "+pass])/bench.Median(cores["mover, "+pass]), "ratio"))
		if err != nil {
			return err
		}
	}
	return nil
}

// one has one of both make its passes into a new bucket, looks at what is there.
func (c *compare) one(ctx context.Context, dir string, w workload, who string, src objstore.Store, from string, times, cores map[string][]float64) error {
	to, err := c.bucket(ctx)
	if err != nil {
		return err
	}
	for _, pass := range passes {
		s, err := c.pass(ctx, who, dir, from, to, w.objects)
		if err != nil {
			return fmt.Errorf("%s: %w", pass, err)
		}
		subject := who + ", " + pass
		times[subject] = append(times[subject], s.wall.Seconds())
		cores[subject] = append(cores[subject], s.client.Seconds())
		err = errors.Join(c.add(w.name, subject, "seconds", s.wall.Seconds(), "s"), c.add(w.name, subject, "seconds of core, client", s.client.Seconds(), "s"),
			c.add(w.name, subject, "seconds of core, server", s.server.Seconds(), "s"))
		if err != nil {
			return err
		}
	}
	dst, err := c.open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	copied, err := same(ctx, src, dst)
	if err != nil {
		return err
	}
	if w.size*int64(w.objects) < copiesKept {
		return nil
	}
	for keys := range slices.Chunk(slices.Collect(maps.Keys(copied)), dst.Limits().Batch) {
		left, err := dst.Delete(ctx, keys...)
		for key, why := range left {
			err = errors.Join(err, fmt.Errorf("delete %s: %w", key, why))
		}
		if err != nil {
			return err
		}
	}
	return c.server.Reclaim(ctx)
}

// copiesKept is the bytes of a copy that stays in the server's memory: deleting many small objects takes long.
const copiesKept = 1 << 30

// pass runs one pass and tells what it took.
func (c *compare) pass(ctx context.Context, who, dir, from, to string, n int) (s spent, err error) {
	before, err := c.server.CPU()
	if err != nil {
		return s, err
	}
	began := time.Now()
	if who == "mover" {
		stop, err := c.profile()
		if err != nil {
			return s, err
		}
		own := ownCPU()
		err = c.mover(ctx, dir, from, to, n)
		s.client = ownCPU() - own
		if err = errors.Join(err, stop()); err != nil {
			return s, err
		}
	} else {
		s.client, err = c.rclone(ctx, dir, from, to)
	}
	s.wall = time.Since(began)
	if err != nil {
		return s, err
	}
	after, err := c.server.CPU()
	s.server = after - before
	return s, err
}

// profile writes a profile of what runs until stop, once.
func (c *compare) profile() (stop func() error, err error) {
	if c.Profile == "" || c.profiled {
		return func() error { return nil }, nil
	}
	c.profiled = true
	f, err := os.Create(c.Profile)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// ownCPU is the time of processors that this process has taken.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // of oneself it cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (c *compare) add(workload, subject, metric string, v float64, unit string) error {
	fmt.Fprintf(c.Out, "bucket %-6s %-34s %-44s %10.4g %s\n", workload, subject, metric, v, unit)
	if c.Results == nil {
		return nil
	}
	if c.Versity {
		workload += " versitygw"
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
func (c *compare) rclone(ctx context.Context, dir, from, to string) (time.Duration, error) {
	conf := filepath.Join(dir, "rclone.conf")
	at := c.server.At()
	text := fmt.Sprintf("[s]\ntype = s3\nprovider = Ceph\nendpoint = %s\naccess_key_id = %s\nsecret_access_key = %s\nregion = us-east-1\n", at.Endpoint, at.ID, at.Secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return 0, err
	}
	n := fmt.Sprint(c.Transfers)
	cmd := exec.CommandContext(ctx, "rclone", "--config", conf, "copy", "s:"+from, "s:"+to, "--transfers", n, "--checkers", n, "--s3-no-check-bucket", "--disable", "copy")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir} // and nothing of what AWS's SDK would read
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// same compares both buckets by key, size, and MD5 where the server has one of the whole object, which it makes of the bytes that it stores.
func same(ctx context.Context, src, dst objstore.Store) (map[string]objstore.Entry, error) {
	a, err := listing(ctx, src)
	if err != nil {
		return nil, err
	}
	b, err := listing(ctx, dst)
	if err != nil {
		return nil, err
	}
	if len(a) != len(b) {
		return nil, fmt.Errorf("%d objects, not %d", len(b), len(a))
	}
	for k, e := range a {
		if got := b[k]; got.Size != e.Size || got.ETag != e.ETag && !strings.Contains(e.ETag+got.ETag, "-") {
			return nil, fmt.Errorf("%s has %d bytes with ETag %s, not %d with %s", k, got.Size, got.ETag, e.Size, e.ETag)
		}
	}
	return b, nil
}

func listing(ctx context.Context, s objstore.Store) (map[string]objstore.Entry, error) {
	out := map[string]objstore.Entry{}
	for after := ""; ; {
		p, err := s.List(ctx, objstore.Query{After: after})
		if err != nil {
			return nil, err
		}
		for _, e := range p.Entries {
			out[e.Key], after = e, e.Key
		}
		if !p.More {
			return out, nil
		}
	}
}
