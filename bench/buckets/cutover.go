package buckets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/bench"
	"github.com/moverd/mover/internal/s3test"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/bosemu"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/objstore/s3"
)

// CutoverOptions of a campaign of cutovers under a live writer. Run i uses seed Seed+i, and the target Targets[i modulo their number]: "rgw" or "bos".
type CutoverOptions struct {
	Bin     string // folder of moverd and moverctl
	Work    string // folder
	Runs    int
	Seed    uint64
	Objects int // at the beginning
	Writers int // goroutines
	Targets []string
	Out     io.Writer
	Results *bench.Results
}

// cutovers is a campaign: one server for all its runs.
type cutovers struct {
	CutoverOptions
	dir  string
	ceph *s3test.Ceph
	emu  *bosemu.Server
	web  string // address of emu
}

// Cutover moves buckets of a real Ceph RGW with the real daemon while they are written to, cuts them over with a stop hook that stops the writer, and has both ends
// compared: by Mover's own drivers, and by programs that share no code with them (rclone, and Baidu's own client).
func Cutover(ctx context.Context, o CutoverOptions) (err error) {
	c := &cutovers{CutoverOptions: o}
	if c.dir, err = os.MkdirTemp(o.Work, "mover-cutover-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	for _, d := range []string{"ceph", "spill"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			return err
		}
	}
	if c.ceph, err = s3test.StartCeph(ctx, filepath.Join(c.dir, "ceph")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.ceph.Close()) }()
	stop, err := c.emulate()
	if err != nil {
		return err
	}
	defer stop()
	var pauses []float64
	failed := 0
	for i := range o.Runs {
		r := &cutoverRun{cutovers: c, n: i, target: o.Targets[i%len(o.Targets)]}
		if err := r.run(ctx); err != nil {
			failed++
			fmt.Fprintf(o.Out, "run %d, rgw to %s: FAILED: %v\n", i, r.target, err)
			continue
		}
		pauses = append(pauses, r.pause)
		fmt.Fprintf(o.Out, "run %d, rgw to %s: %d objects, %.1f MB; the writer did %d puts and %d deletes; pause %.2f s; listings and digests agree, by Mover and by %s\n", i, r.target, r.objects,
			float64(r.bytes)/1e6, r.puts.Load(), r.deletes.Load(), r.pause, map[string]string{"rgw": "rclone", "bos": "rclone and bce-sdk-go"}[r.target])
	}
	fmt.Fprintf(o.Out, "%d runs, %d failed; pause median %.2f s\n", o.Runs, failed, bench.Median(pauses))
	if o.Results != nil {
		err = errors.Join(o.Results.Add("bucket cutover", "mover", "runs", float64(o.Runs), ""), o.Results.Add("bucket cutover", "mover", "runs that failed (0)", float64(failed), ""))
		for _, p := range pauses {
			err = errors.Join(err, o.Results.Add("bucket cutover", "mover", "writers stood still", p, "s"))
		}
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d runs failed", failed, o.Runs))
	}
	return err
}

// emulate starts the emulator of BOS with a bucket for each run.
func (c *cutovers) emulate() (stop func(), err error) {
	cfg := bosemu.Config{Dir: filepath.Join(c.dir, "spill"), Accounts: []bosemu.Account{{ID: "soak", AccessKey: soakKey, SecretKey: soakSecret}}}
	for i := range c.Runs {
		cfg.Buckets = append(cfg.Buckets, bosemu.Bucket{Name: fmt.Sprintf("target-%d", i), Owner: "soak"})
	}
	if c.emu, err = bosemu.New(cfg); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, c.emu.Close())
	}
	c.web = "http://" + ln.Addr().String()
	srv := &http.Server{Handler: c.emu}
	go func() { _ = srv.Serve(ln) }()
	return func() { _ = srv.Close(); _ = c.emu.Close() }, nil
}

// cutoverRun is one of them.
type cutoverRun struct {
	*cutovers
	n      int
	target string

	dir           string
	puts, deletes atomic.Int64
	objects       int
	bytes         int64
	pause         float64
}

func (r *cutoverRun) names() (from, to string) {
	return fmt.Sprintf("source-%d", r.n), fmt.Sprintf("target-%d", r.n)
}

func (r *cutoverRun) path(name string) string { return filepath.Join(r.dir, name) }

// open opens a bucket of the server, or of the emulator.
func (r *cutoverRun) open(kind, name string) (s objstore.Store, err error) {
	if kind == "bos" {
		s, err = bos.New(bos.Config{Endpoint: r.web, Bucket: name, Credentials: objstore.Fixed{ID: soakKey, Secret: soakSecret}})
	} else {
		s, err = s3.New(s3.Config{Endpoint: r.ceph.Endpoint, Bucket: name, PathStyle: true, Credentials: objstore.Fixed{ID: r.ceph.ID, Secret: r.ceph.Secret}})
	}
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Config{}), nil
}

func (r *cutoverRun) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	r.dir = filepath.Join(r.cutovers.dir, fmt.Sprint("run-", r.n))
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	from, to := r.names()
	if err := r.ceph.MakeBucket(ctx, from); err != nil {
		return err
	}
	if r.target == "rgw" {
		if err := r.ceph.MakeBucket(ctx, to); err != nil {
			return err
		}
	}
	src, err := r.open("rgw", from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := r.open(r.target, to)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := r.fill(ctx, src); err != nil {
		return err
	}
	writers, err := r.write(ctx, src)
	if err != nil {
		return err
	}
	err = r.move(ctx)
	if err != nil { // the writers end, whatever has become of the cutover
		err = errors.Join(err, os.WriteFile(r.path("stop"), nil, 0o600))
	}
	if err := errors.Join(err, writers.Wait()); err != nil {
		return err
	}
	return r.judge(ctx, src, dst)
}

func (r *cutoverRun) key(i int) string { return fmt.Sprintf("dir %d/照片+%%20&%05d.jpg", i%17, i) }

func (r *cutoverRun) fill(ctx context.Context, src objstore.Store) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	rnd := rand.New(rand.NewPCG(r.Seed+uint64(r.n), 1))
	for i := range r.Objects {
		n, seed := rnd.IntN(40_000), rnd.Uint64()
		g.Go(func() error { return put(ctx, src, r.key(i), n, seed) })
	}
	g.Go(func() error { return putLarge(ctx, src, "large/0", 40<<20, r.Seed) })
	return g.Wait()
}

// write lets writers put, overwrite and delete until the stop hook has asked them to stop; it waits until they have.
func (r *cutoverRun) write(ctx context.Context, src objstore.Store) (*errgroup.Group, error) {
	g, ctx := errgroup.WithContext(ctx)
	var left atomic.Int64
	left.Store(int64(r.Writers))
	for w := range r.Writers {
		rnd := rand.New(rand.NewPCG(r.Seed+uint64(r.n), uint64(10+w)))
		g.Go(func() error {
			for {
				if _, err := os.Stat(r.path("stop")); err == nil {
					if left.Add(-1) == 0 {
						return os.WriteFile(r.path("stopped"), nil, 0o600)
					}
					return nil
				}
				if err := r.step(ctx, src, rnd, w); err != nil {
					return err
				}
				time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
			}
		})
	}
	return g, ctx.Err()
}

// step is one write. Each writer has keys of its own.
func (r *cutoverRun) step(ctx context.Context, src objstore.Store, rnd *rand.Rand, w int) error {
	i := rnd.IntN(r.Objects*3/2)/r.Writers*r.Writers + w
	switch n := rnd.IntN(100); {
	case n < 20:
		r.deletes.Add(1)
		left, err := src.Delete(ctx, r.key(i))
		return errors.Join(err, left[r.key(i)])
	case n == 20:
		r.puts.Add(1)
		return putLarge(ctx, src, fmt.Sprint("large/", 1+w), 33<<20+rnd.Int64N(8<<20), rnd.Uint64())
	}
	r.puts.Add(1)
	return put(ctx, src, r.key(i), rnd.IntN(40_000), rnd.Uint64())
}

// move runs the daemon and cuts over.
func (r *cutoverRun) move(ctx context.Context) error {
	if err := r.config(); err != nil {
		return err
	}
	log, err := os.Create(r.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(r.Bin, "moverd"), "source", "-c", r.path("moverd.yaml"))
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
		}
	}()
	for { // until it answers
		if _, err := os.Stat(r.path("source.sock")); err == nil {
			break
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("moverd ended: %v: %s", err, r.logs())
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for range 2 { // the first copy, and a pass over what was written meanwhile
		if err := r.ctl(ctx, "sync", "photos"); err != nil {
			return err
		}
	}
	if err := r.ctl(ctx, "cutover", "photos", "--yes", "--report", r.path("report.json")); err != nil {
		return err
	}
	var report mover.Report
	text, err := os.ReadFile(r.path("report.json"))
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	r.pause = report.Pause
	return err
}

func (r *cutoverRun) config() error {
	from, to := r.names()
	keys := func(id, secret string) []byte {
		return fmt.Appendf(nil, "access-key: %s\nsecret-key: %s\n", id, secret)
	}
	end := fmt.Sprintf("{s3: {endpoint: %q, bucket: %s, path-style: true, credentials: {file: %s}}}", r.ceph.Endpoint, to, r.path("rgw.keys"))
	if r.target == "bos" {
		end = fmt.Sprintf("{bos: {endpoint: %q, bucket: %s, credentials: {file: %s}}}", r.web, to, r.path("bos.keys"))
	}
	hook := fmt.Sprintf("touch %[1]s/stop; until [ -e %[1]s/stopped ]; do sleep 0.01; done", r.dir)
	text := fmt.Sprintf(`source:
  state: %[1]s/state
  run: %[1]s/run
  socket: %[1]s/source.sock
  metrics: {listen: "off"}
  buckets:
    - name: photos
      from: {s3: {endpoint: %[2]q, bucket: %[3]s, path-style: true, credentials: {file: %[1]s/rgw.keys}}}
      to: %[4]s
      deletes: follow
      interval: 200ms
      cutover: {stop-hook: [/bin/sh, -c, %[5]q], start-hook: [/bin/true]}
`, r.dir, r.ceph.Endpoint, from, end, hook)
	return errors.Join(os.WriteFile(r.path("rgw.keys"), keys(r.ceph.ID, r.ceph.Secret), 0o600), os.WriteFile(r.path("bos.keys"), keys(soakKey, soakSecret), 0o600),
		os.WriteFile(r.path("moverd.yaml"), []byte(text), 0o600))
}

// ctl runs moverctl.
func (r *cutoverRun) ctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(r.Bin, "moverctl"), append([]string{"-s", r.path("source.sock")}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("moverctl %s: %w: %s\n%s", args[0], err, bytes.TrimSpace(out), r.logs())
	}
	return nil
}

// logs is the end of what the daemon has said.
func (r *cutoverRun) logs() string {
	b, _ := os.ReadFile(r.path("log"))
	return string(b[max(0, len(b)-1000):])
}
