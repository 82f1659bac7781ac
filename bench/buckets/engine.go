package buckets

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
)

// engine is a flow inside this process: its ledger and its queue stand in a folder, for the next one.
type engine struct {
	ledger *bucket.Ledger
	server *bucket.Server
	nc     *nats.Conn
}

func startEngine(dir string) (e *engine, err error) {
	e = &engine{}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.ledger, err = bucket.OpenLedger(filepath.Join(dir, "ledger"), "bench", quiet); err != nil {
		return e, err
	}
	if e.server, err = bucket.NewServer(filepath.Join(dir, "queue"), bucket.ServerConfig{}); err != nil {
		return e, err
	}
	e.nc, err = e.server.Dial()
	return e, err
}

func (e *engine) close() (err error) {
	if e.nc != nil {
		e.nc.Close()
	}
	if e.server != nil {
		e.server.Close()
	}
	if e.ledger != nil {
		err = e.ledger.Close()
	}
	return err
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// pass runs one pass with one worker, until it ends or ctx does.
func (e *engine) pass(ctx context.Context, from, to objstore.Store, listers int, w bucket.WorkerConfig) (bucket.State, error) {
	co, err := bucket.NewCoordinator(bucket.Config{Name: "bench", From: from, To: to, Listers: listers, Log: quiet}, e.ledger, e.nc)
	if err != nil {
		return bucket.State{}, err
	}
	w.Flow, w.Name, w.From, w.To, w.Log = "bench", "one", from, to, quiet
	worker, err := bucket.NewWorker(w, e.nc)
	if err != nil {
		return bucket.State{}, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		defer stop() // without it the pass would not end
		if err := worker.Run(ctx); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	st, err := co.Pass(ctx, false)
	stop()
	if e := g.Wait(); e != nil {
		err = e
	}
	return st, err
}
