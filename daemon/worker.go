package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/internal/version"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

// Worker is the role that copies objects for the bucket flows of a source elsewhere. It keeps nothing: what it knows is told to the source.
const Worker = "worker"

// openQueue starts or dials what hands out the work of bucket flows.
func (b *buckets) openQueue(o Options, dir string) error {
	c := o.Config.Source
	q := c.Queue
	if len(q.URL) > 0 {
		host, err := wire.QueueTLS(q.Files())
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		b.dial = bucket.Remote{URL: q.URL, TLS: host.TLS, Roots: host.Roots, Log: func(err error) { o.Log.Warn("queue", "error", err) }}.Dial
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the queue: %w", err)
	}
	var server bucket.ServerConfig
	if q.Listen != "" {
		host, port, err := config.PortOf(q.Listen)
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		if port == 0 {
			port = -1 // any
		}
		secure, err := wire.ServerTLS(q.Files())
		if err != nil {
			return fmt.Errorf("queue: %w", err)
		}
		server = bucket.ServerConfig{Host: host, Port: port, TLS: secure, Log: func(text string) { o.Log.Warn("a worker was refused", "why", text) }}
		server.Admit = admit(c)
	}
	var err error
	if b.queue, err = bucket.NewServer(dir, server); err != nil {
		return err
	}
	b.dial = b.queue.Dial
	if q.Listen != "" {
		o.Log.Info("the queue listens for workers", "address", b.queue.Address())
	}
	return nil
}

// copyOf is how a flow's objects are copied, whoever does it.
func copyOf(c config.BucketFlow) bucket.CopyConfig {
	return bucket.CopyConfig{Memory: int64(c.Limits.Memory), FromPrefix: c.From.Prefix(), ToPrefix: c.To.Prefix(), Class: c.Class, Escape: c.EscapeKeys, Grants: c.Grants,
		NoTags: !c.Tags, Modified: c.Modified, Part: min(16<<20, int64(c.Limits.Memory)/4)}
}

// moves says what a flow moves where and how, and by which version: source and worker have to say the same.
func moves(s *config.Source, c config.BucketFlow) string {
	text := fmt.Sprintf("%s to %s, by moverd %s", describe(c.From), describe(c.To), version.String())
	for _, o := range []struct {
		on   bool
		what string
	}{{c.Class != "", "class " + c.Class}, {c.EscapeKeys, "escape-keys"}, {c.Grants, "grants"}, {!c.Tags, "no tags"}, {c.Modified, "keep-modified"}, {s.Straight(c), "over the gateway's line"}} {
		if o.on {
			text += ", " + o.what
		}
	}
	return text
}

// workerFlow is one flow that a worker works for.
type workerFlow struct {
	c     config.BucketFlow
	s     *config.Source
	url   []string
	queue *wire.Queue
	keys  *keyring
	log   *Log
	paced *paced
	now   *atomic.Pointer[bucket.Worker] // that works; nil: none
}

// RunWorker is a worker's life; nil when ctx ended it.
func RunWorker(ctx context.Context, o Options) error {
	c := o.Config.Worker
	if c == nil {
		return usagef("the config has no section worker")
	}
	setLevel(o, c.LogLevel)
	queue, err := wire.QueueTLS(c.Queue.Files())
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	alone, err := alone(queue.Name)
	if err != nil {
		return err
	}
	defer alone.Close()
	heap := int64(64 << 20)
	for _, f := range c.Buckets {
		heap += int64(f.Limits.Memory) * 5 / 4
	}
	debug.SetMemoryLimit(heap)
	keys := newKeyring(o.Log.Logger)
	g, gctx := errgroup.WithContext(ctx)
	for _, f := range c.Buckets {
		w, err := newWorkerFlow(f, c, queue, keys, o.Log)
		if err != nil {
			return errors.Join(err, keys.close())
		}
		g.Go(func() error { return w.run(gctx) })
		g.Go(func() error { return w.paced.run(gctx) })
	}
	o.Log.Info("ready", "role", Worker, "name", queue.Name.String(), "version", version.String(), "queue", c.Queue.URL, "config", o.File)
	notify("READY=1")
	if o.Ready != nil {
		o.Ready()
	}
	err = g.Wait()
	notify("STOPPING=1")
	return errors.Join(err, keys.close())
}

// newWorkerFlow makes one. Its part of the flow's rate is told by the source; a lease of the gateway's line it has itself.
func newWorkerFlow(f config.BucketFlow, c *config.Worker, queue *wire.Queue, keys *keyring, log *Log) (*workerFlow, error) {
	w := &workerFlow{f, c.Source(), c.Queue.URL, queue, keys, log, nil, &atomic.Pointer[bucket.Worker]{}}
	f.Limits.Rate = 0
	var err error
	w.paced, err = newPaced(w.s, f, log, func() (shape.Class, int64) {
		if now := w.now.Load(); now != nil {
			return now.Wants()
		}
		return 0, 0
	})
	return w, err
}

// alone holds the worker's name on this machine for as long as this process lives: who has it knows that no other process of the name is alive (C20).
func alone(n wire.Name) (net.Listener, error) {
	l, err := net.Listen("unix", "@mover-worker/"+n.String())
	if err != nil {
		return nil, fmt.Errorf("another worker with the certificate of %s runs on this machine; stop it first: %w", n, sentinel.ErrRefused)
	}
	return l, nil
}

// run works until ctx ends, and begins again after each error.
func (f *workerFlow) run(ctx context.Context) error {
	log := f.log.With("flow", f.c.Name)
	for wait, last := firstWait, ""; ; wait = min(2*wait, mostWait) {
		began := time.Now()
		err := f.work(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > mostWait {
			wait, last = firstWait, ""
		}
		if text := err.Error(); text != last {
			last = text
			log.Error("the worker cannot work for the flow", "error", err, "again_in", wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// Bounds of the wait after an error.
const (
	firstWait = 2 * time.Second
	mostWait  = time.Minute
)

// work works until ctx ends, or something does not work.
func (f *workerFlow) work(ctx context.Context) (err error) {
	from, err := f.open(f.c.From, true)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := f.open(f.c.To, false)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	nc, err := bucket.Remote{URL: f.url, TLS: f.queue.TLS, Roots: f.queue.Roots, Worker: f.queue.Name.String(),
		Log: func(err error) { f.log.Warn("queue", "flow", f.c.Name, "error", err) }}.Dial()
	if err != nil {
		return err
	}
	defer nc.Close()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	how := copyOf(f.c)
	how.Pace = f.paced.pace
	w, err := bucket.NewWorker(bucket.WorkerConfig{Flow: bucket.QueueName(f.c.Name), Name: f.queue.Name.String(), Host: host, Moves: moves(f.s, f.c), Sole: true, From: from, To: to,
		Copy: how, Most: f.c.Limits.Objects, Log: f.log.With("flow", f.c.Name)}, nc)
	if err != nil {
		return err
	}
	f.now.Store(w)
	defer f.now.Store(nil)
	f.log.Info("works for the flow", "flow", f.c.Name, "server", nc.ConnectedAddr())
	return w.Run(ctx)
}

func (f *workerFlow) open(e config.End, source bool) (objstore.Store, error) {
	var by reach
	var err error
	if !source {
		by, err = f.paced.reach(f.s, f.c)
	}
	if err != nil {
		return nil, err
	}
	s, _, err := driver(e, f.s.Allowed(), f.keys, by, source)
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Config{}), nil
}

// admit tells which flows of a source a certificate may work for.
func admit(c *config.Source) func(s tls.ConnectionState) (string, []string, error) {
	return func(s tls.ConnectionState) (string, []string, error) {
		n, err := wire.PeerName(s)
		if err != nil {
			return "", nil, err
		}
		var flows []string
		for _, f := range c.Buckets {
			if slices.Contains(f.Workers, n.String()) {
				flows = append(flows, f.Name)
			}
		}
		if flows == nil {
			err = fmt.Errorf("no flow names it in workers: %w", sentinel.ErrDenied)
		}
		return n.String(), flows, err
	}
}
