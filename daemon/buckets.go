package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/meter"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/objstore/s3"
	"github.com/moverd/mover/shape"
)

// buckets are the bucket flows of a source, with the queue that they share.
type buckets struct {
	flows []*bucketFlow
	queue *bucket.Server // inside this process; nil: it is elsewhere
	dial  func() (*nats.Conn, error)
	keys  *keyring
}

// bucketFlow is one of them.
type bucketFlow struct {
	*bucket.Flow
	*paced
	o    Options
	c    config.BucketFlow
	c0   *config.Source
	here machine
	keys *keyring

	mu     sync.Mutex // guards all below
	meters [2]*meter.Store
	before [2]meter.Snapshot // of meters of earlier stores
	way    *relay.Store      // the target by the gateway, as it was opened last; nil: never
	gone   relay.Counts      // of those before it
}

// bucketMemory is what a flow takes beside limits.memory: its ledger's cache and tables, its share of the queue.
const bucketMemory = 112 << 20

func openBuckets(o Options, here machine) (_ *buckets, err error) {
	c := o.Config.Source
	b := &buckets{keys: newKeyring(o.Log.Logger)}
	if len(c.Buckets) == 0 {
		return b, nil
	}
	home := filepath.Join(string(c.State), "buckets")
	if err := b.openQueue(o, filepath.Join(home, ".queue")); err != nil {
		return nil, err
	}
	for _, f := range c.Buckets {
		flow := &bucketFlow{o: o, c: f, c0: c, here: here, keys: b.keys}
		cfg, err := flow.config(filepath.Join(home, f.Name))
		if err == nil {
			flow.paced, err = newPaced(c, f, o.Log, func() (shape.Class, int64) { return flow.Flow.Wants() })
		}
		if err == nil {
			cfg.Dial, cfg.Copy.Pace, cfg.Rate, cfg.Line = b.dial, flow.pace, flow.all, flow.line()
			flow.Flow, err = bucket.NewFlow(cfg)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bucket flow %s: %w", f.Name, err), b.close())
		}
		b.flows = append(b.flows, flow)
	}
	return b, nil
}

// config is what the engine is told, but for its queue and its pace.
func (f *bucketFlow) config(home string) (bucket.FlowConfig, error) {
	c := f.c
	filter, err := bucket.NewFilter(c.Include, c.Exclude)
	if err != nil {
		return bucket.FlowConfig{}, err
	}
	from, to := describe(c.From), describe(c.To)
	cfg := bucket.FlowConfig{
		Name: c.Name, Dir: home, Identity: from + " to " + to, From: from, To: to, Filter: filter, Deletes: c.Deletes == "follow", Claim: c.Claim,
		Interval: time.Duration(c.Interval), Objects: c.Limits.Objects, Log: f.o.Log.With("flow", c.Name), Counts: f.counts, Open: f.open, Note: f.o.Log.note,
		Copy: copyOf(c), Moves: moves(f.c0, c), Workers: append([]string{}, c.Workers...),
	}
	if len(c.Cutover.StopHook) > 0 {
		cfg.Stopper = &bucketStopper{c: c, run: string(f.c0.Run), o: f.o}
	}
	return cfg, nil
}

// describe names an end for people, and in the ledger.
func describe(e config.End) string {
	switch {
	case e.Dir != nil:
		return "dir:" + filepath.Join(string(e.Dir.Path), "/") + "/" + e.Dir.Prefix
	case e.S3 != nil:
		at := e.S3.Endpoint
		if at == "" {
			at = e.S3.Region
		}
		return "s3://" + e.S3.Bucket + "/" + e.S3.Prefix + " at " + at
	}
	if e.Gateway != nil {
		return "gateway:" + e.Gateway.Prefix
	}
	return "bos://" + e.BOS.Bucket + "/" + e.BOS.Prefix + " at " + e.BOS.Endpoint
}

// open opens both ends. A copy of this machine that boots elsewhere opens nothing.
func (f *bucketFlow) open(ctx context.Context) (from, to bucket.End, err error) {
	if err := f.here.check(); err != nil {
		return from, to, err
	}
	if from, err = f.end(ctx, 0, f.c.From); err != nil {
		return from, to, fmt.Errorf("source: %w", err)
	}
	if to, err = f.end(ctx, 1, f.c.To); err != nil {
		return from, to, errors.Join(fmt.Errorf("target: %w", err), from.Store.Close())
	}
	if err := f.here.record(); err != nil {
		return from, to, errors.Join(err, from.Store.Close(), to.Store.Close())
	}
	return from, to, nil
}

func (f *bucketFlow) end(ctx context.Context, i int, e config.End) (bucket.End, error) {
	var by reach
	var err error
	if i == 1 {
		by, err = f.reach(f.c0, f.c)
	}
	if err != nil {
		return bucket.End{}, err
	}
	s, regions, err := f.store(ctx, e, by, i == 0)
	if err != nil {
		return bucket.End{}, err
	}
	m := meter.New(s)
	f.mu.Lock()
	if was := f.meters[i]; was != nil {
		f.before[i] = sum(f.before[i], was.Snapshot())
	}
	f.meters[i] = m
	f.mu.Unlock()
	log := f.o.Log.With("flow", f.c.Name)
	r := retry.New(m, retry.Config{Log: func(err error, wait time.Duration) { log.Debug("store is asked again", "error", err, "in", wait) }})
	return bucket.End{Store: r, Regions: regions}, nil
}

// store opens an end, straight or by the gateway.
func (f *bucketFlow) store(ctx context.Context, e config.End, by reach, readOnly bool) (objstore.Store, []string, error) {
	if e.Gateway == nil {
		return driver(e, f.c0.Allowed(), f.keys, by, readOnly)
	}
	s, err := f.byGateway(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s, nil, nil
}

// driver is the only place that knows the drivers. regions: those of allowed where its bucket may be; nil: anywhere.
func driver(e config.End, allowed []string, keys *keyring, by reach, source bool) (_ objstore.Store, regions []string, err error) {
	if e.Dir != nil {
		s, err := dir.Open(dir.Config{Path: string(e.Dir.Path), ReadOnly: source})
		return s, nil, err
	}
	credentials, err := keys.of(e)
	if err != nil {
		return nil, nil, err
	}
	if e.BOS != nil {
		cfg := bos.Config{Endpoint: e.BOS.Endpoint, Bucket: e.BOS.Bucket, Credentials: credentials, Dialer: by.dialer, Conn: by.conn}
		if cfg.RootCAs, err = authorities(e.BOS.CA); err != nil {
			return nil, nil, err
		}
		s, err := bos.New(cfg)
		return s, allowed, err
	}
	cfg := s3.Config{Endpoint: e.S3.Endpoint, Region: e.S3.Region, Bucket: e.S3.Bucket, PathStyle: e.S3.PathStyle, Credentials: credentials}
	pool, err := authorities(e.S3.CA)
	if err != nil {
		return nil, nil, err
	}
	cfg.Transport = by.transport(pool)
	if e.S3.Bound() {
		regions = allowed
	}
	s, err := s3.New(cfg)
	return s, regions, err
}

// authorities are those of a file; nil: the system's.
func authorities(file config.File) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	path, err := file.Path()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}

func sum(a, b meter.Snapshot) meter.Snapshot {
	out := meter.Snapshot{}
	for _, s := range []meter.Snapshot{a, b} {
		for op, c := range s {
			o := out[op]
			o.Calls, o.In, o.Out, o.Seconds = o.Calls+c.Calls, o.In+c.In, o.Out+c.Out, o.Seconds+c.Seconds
			for kind, n := range c.Errors {
				if o.Errors == nil {
					o.Errors = map[string]uint64{}
				}
				o.Errors[kind] += n
			}
			out[op] = o
		}
	}
	return out
}

// counts is what was asked of both ends since start.
func (f *bucketFlow) counts() map[string]mover.BucketCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]mover.BucketCounts{}
	for i, name := range []string{"source", "target"} {
		all := f.before[i]
		if m := f.meters[i]; m != nil {
			all = sum(all, m.Snapshot())
		}
		c := mover.BucketCounts{Errors: map[string]uint64{}}
		for op, n := range all {
			if op != "get body" { // one call with its get
				c.Calls += n.Calls
			}
			c.In, c.Out = c.In+n.In, c.Out+n.Out
			for kind, k := range n.Errors {
				c.Errors[kind] += k
			}
		}
		out[name] = c
	}
	return out
}

// bucketStopper runs the hooks of a bucket flow.
type bucketStopper struct {
	c   config.BucketFlow
	run string
	o   Options

	mu   sync.Mutex
	hook *freeze.Hook // that has stopped something, in this process
}

// bucketStop is how long a cutover may take before the writers go on although it has not ended.
const bucketStop = 24 * time.Hour

func (s *bucketStopper) options() freeze.HookOptions {
	return freeze.HookOptions{Flow: s.c.Name, RunDir: s.run, Log: s.o.Log.Logger}
}

func (s *bucketStopper) Stop(ctx context.Context) error {
	h := freeze.NewHook(s.c.Cutover.StopHook, s.c.Cutover.StartHook, s.options())
	if err := h.Freeze(ctx, bucketStop); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = h
	return nil
}

func (s *bucketStopper) Keep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hook.Keep()
}

// Start runs the start hook for what Stop has stopped, in this process or in an earlier one.
func (s *bucketStopper) Start() error {
	s.mu.Lock()
	h := s.hook
	s.hook = nil
	s.mu.Unlock()
	if h == nil {
		if _, err := os.Stat(filepath.Join(s.run, "stopped-"+s.c.Name+".json")); err != nil {
			return nil
		}
		h = freeze.NewHook(nil, s.c.Cutover.StartHook, s.options()) // its stop does nothing: it has been done
		if err := h.Freeze(context.Background(), time.Hour); err != nil {
			return err
		}
	}
	return h.Thaw()
}

// Status tells how the flow stands, and the sessions of its ends.
func (f *bucketFlow) Status() mover.Status {
	s := f.Flow.Status()
	f.relayed(&s)
	for name, e := range map[string]config.End{"source": f.c.From, "target": f.c.To} {
		k, used := f.keys.state(e)
		if !used {
			continue
		}
		if s.Bucket.Keys == nil {
			s.Bucket.Keys = map[string]mover.BucketKeys{}
		}
		s.Bucket.Keys[name] = k
		if s.Reason == "" && k.Left == 0 && k.Trouble != "" { // requests wait for them
			s.Reason = "there are no keys for the " + name + ": " + k.Trouble
		}
	}
	return s
}

func (b *buckets) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range b.flows {
		g.Go(func() error { return f.Run(ctx) })
		g.Go(func() error { return f.paced.run(ctx) })
	}
	return g.Wait()
}

func (b *buckets) close() error {
	if b.queue != nil {
		b.queue.Close()
	}
	return b.keys.close()
}

func (b *buckets) flow(name string) *bucketFlow {
	for _, f := range b.flows {
		if f.c.Name == name {
			return f
		}
	}
	return nil
}

// do runs a verb of a bucket flow.
func (f *bucketFlow) do(ctx context.Context, verb string, r control.Request, progress func(mover.Progress)) (control.Result, error) {
	text := func(err error, format string, a ...any) (control.Result, error) {
		if err != nil {
			return control.Result{}, err
		}
		return control.Result{Text: r.Flow + " " + fmt.Sprintf(format, a...)}, nil
	}
	switch verb {
	case control.Pause:
		return text(f.Pause(), "is paused; what has been listed and copied is kept")
	case control.Resume:
		f.retry()
		return text(f.Resume(), "goes on")
	case control.Sync:
		return text(f.Sync(ctx), "is in sync with what was written before")
	case control.Verify:
		report, err := f.Verify(ctx, bucket.VerifyOptions{Read: r.All}, progress)
		return control.Result{Report: report}, err
	case control.Cutover:
		if r.Rehearse || r.Limit != 0 || r.Deadline != 0 || r.Leave != "" {
			return control.Result{}, usagef("cutover of the bucket flow %s: --rehearse, --limit, --deadline and --leave are for volumes", r.Flow)
		}
		report, err := f.Cutover(ctx, bucket.VerifyOptions{Read: r.All, WithoutRefused: r.WithoutRefused}, progress)
		return control.Result{Report: report}, err
	case control.Rollback:
		return text(f.Rollback(ctx), "goes on: what changes at the source is copied again; what was written to the target meanwhile stays, unless its key is copied again")
	case control.Finish:
		return text(f.Finish(ctx), "is finished: no rollback lets it go on")
	case control.Manifest:
		c, path, err := f.Manifest(r.To)
		return text(err, "is in %s: %d objects, %d bytes, %d others; root %s", path, c.Objects, c.Bytes, c.Others, c.Root)
	case control.Plan:
		plan, err := f.Plan(ctx, f.openToRead, progress)
		return f.priced(plan, err)
	case control.Objects:
		objects, next, err := f.Objects(ctx, r.After, r.Outcomes)
		return control.Result{Objects: objects, Next: next}, err
	}
	return control.Result{}, usagef("%s is not for bucket flows", verb)
}

// trusting is TLS that trusts the CAs of a file.
func trusting(pool *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
}
