package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// workplace is a source that listens for workers, between two folders.
type workplace struct {
	t       *testing.T
	dir     string
	flow    config.BucketFlow
	buckets *buckets
}

func newWorkplace(t *testing.T) *workplace {
	w := &workplace{t: t, dir: t.TempDir()}
	ca := filepath.Join(w.dir, "pki")
	err := errors.Join(pki.Init(ca, "test"), pki.IssueGateway(ca, ca, "queue", []string{"127.0.0.1"}, time.Hour))
	for _, host := range []string{"w1", "w2", "stranger"} {
		err = errors.Join(err, pki.IssueHost(ca, ca, "acme", host, time.Hour))
	}
	for _, d := range []string{"from", "to", "elsewhere", "state"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(w.dir, d), 0o700))
	}
	for i := range 300 {
		err = errors.Join(err, os.WriteFile(filepath.Join(w.dir, "from", fmt.Sprint("k", i)), []byte(fmt.Sprint("content ", i)), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.flow.Defaults()
	w.flow.Name, w.flow.Workers, w.flow.Interval = "photos.2024", []string{"acme/w1", "acme/w2"}, config.Duration(time.Hour)
	w.flow.From, w.flow.To = w.end("from"), w.end("to")
	return w
}

func (w *workplace) end(dir string) config.End {
	return config.End{Dir: &config.DirEnd{Path: config.File(filepath.Join(w.dir, dir))}}
}

func (w *workplace) queue(name, dir string) config.Queue {
	at := func(file string) config.File { return config.File(filepath.Join(w.dir, dir, file)) }
	return config.Queue{CA: at("ca.pem"), Cert: at(name + ".pem"), Key: at(name + ".key")}
}

// start runs the source until the end of the test.
func (w *workplace) start() {
	c := &config.Config{Source: &config.Source{}}
	c.Source.Defaults()
	c.Source.State, c.Source.Run = config.File(filepath.Join(w.dir, "state")), config.File(w.dir)
	c.Source.Queue = w.queue("queue", "pki")
	c.Source.Queue.Listen = "127.0.0.1:0"
	c.Source.Buckets = []config.BucketFlow{w.flow}
	b, err := openBuckets(Options{Role: Source, Config: c, Log: NewLog(w.t.Output(), nil)}, machineOf(string(c.Source.State)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.buckets = b
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, b.close()); err != nil {
			w.t.Error(err)
		}
	})
}

// worker is one with the certificate of name.
func (w *workplace) worker(name, dir string, flow config.BucketFlow) *workerFlow {
	w.t.Helper()
	q, err := wire.QueueTLS(w.queue(name, dir).Files())
	if err != nil {
		w.t.Fatal(err)
	}
	c := &config.Worker{Queue: config.Queue{URL: []string{"nats://" + w.buckets.queue.Address()}}, Buckets: []config.BucketFlow{flow}}
	f, err := newWorkerFlow(flow, c, q, w.buckets.keys, NewLog(w.t.Output(), nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// A worker whose config does not say that the flow crosses the gateway's line is refused: it would send there as much as it can.
func TestWorkerOnALine(t *testing.T) {
	var f config.BucketFlow
	f.Defaults()
	f.From, f.To = config.End{Dir: &config.DirEnd{Path: "/srv"}}, config.End{BOS: &config.BOSEnd{Endpoint: "bj.bcebos.com", Bucket: "photos"}}
	source := &config.Source{Gateway: config.Dial{Address: "gw.example:9465"}}
	with, without := (&config.Worker{Gateway: source.Gateway}).Source(), (&config.Worker{}).Source()
	if a, b := moves(source, f), moves(with, f); a != b || !strings.HasSuffix(a, ", over the gateway's line") {
		t.Errorf("source %q, worker %q", a, b)
	}
	if a, b := moves(source, f), moves(without, f); a == b {
		t.Errorf("source and worker say %q", a)
	}
}

func (w *workplace) bucket() *mover.Bucket { return w.buckets.flows[0].Status().Bucket }

// Workers of other machines join with a certificate, are shown, and copy; strangers, and workers that would copy something else, are refused with the reason.
func TestWorkersJoin(t *testing.T) {
	w := newWorkplace(t)
	w.start()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	other := w.flow
	other.To = w.end("elsewhere")
	strange := filepath.Join(w.dir, "strange")
	if err := errors.Join(pki.Init(strange, "another CA"), pki.IssueHost(strange, strange, "acme", "w1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	working, end := context.WithCancel(ctx)
	go func() { done <- w.worker("w1", "pki", w.flow).work(working) }()
	for !strings.Contains(fmt.Sprint(w.bucket().Workers), "acme/w1") || w.bucket().Objects < 300 {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatalf("%+v", w.bucket())
		case <-time.After(20 * time.Millisecond):
		}
	}
	end()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		worker *workerFlow
		want   string
	}{
		"not named by the flow": {w.worker("stranger", "pki", w.flow), "Authorization Violation"},
		"of another CA":         {w.worker("w1", "strange", w.flow), "certificate"},
	} {
		if err := c.worker.work(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.worker("w2", "pki", other).work(ctx); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("with another target: %v", err)
	}
}
