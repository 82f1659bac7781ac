// Package buckets has the workloads of bucket flows: soak, and measurements against peers.
package buckets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/retry"
)

// Child is one process of a flow: the coordinator, with the queue, or a worker.
type Child struct {
	Role   string // coordinator or worker
	Name   string
	Ledger string // folder
	Work   string // folder for the queue
	Queue  string // host:port on which the coordinator's queue listens; or a server beside it, where External
	// External: the queue is a server of its own.
	External bool
	From     Place
	To       Place
	Final    bool // the writers stand still: sweep and verify too
	Most     int  // objects under way in a worker
}

// Place is a bucket: a folder, or one of BOS.
type Place struct {
	Dir                             string
	Endpoint, Bucket, Key, Password string
}

func (p Place) open() (objstore.Store, error) {
	if p.Dir != "" {
		s, err := dir.Open(dir.Config{Path: p.Dir})
		if err != nil {
			return nil, err
		}
		return retry.New(s, retry.Config{}), nil
	}
	s, err := bos.New(bos.Config{Endpoint: p.Endpoint, Bucket: p.Bucket, Credentials: objstore.Fixed{ID: p.Key, Secret: p.Password}})
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Config{}), nil
}

// flowName is the only flow of a run.
const flowName = "soak"

// Run is the life of a child; the coordinator prints its state when its pass has ended.
func (c Child) Run(ctx context.Context, out io.Writer) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("name", c.Name)
	from, err := c.From.open()
	if err != nil {
		return err
	}
	to, err := c.To.open()
	if err != nil {
		return errors.Join(err, from.Close())
	}
	defer func() { _ = errors.Join(from.Close(), to.Close()) }()
	if c.Role == "worker" {
		nc, err := nats.Connect("nats://"+c.Queue, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(reconnect))
		if err != nil {
			return err
		}
		defer nc.Close()
		w, err := bucket.NewWorker(bucket.WorkerConfig{Flow: flowName, Name: c.Name, From: from, To: to, Most: c.Most, Log: log}, nc)
		if err != nil {
			return err
		}
		return w.Run(ctx)
	}
	return c.coordinate(ctx, from, to, log, out)
}

// Outcome is what the coordinator prints at the end.
type Outcome struct {
	State    bucket.State
	Swept    int
	Others   int
	Verified bucket.Verified
	Differ   []string
}

func (c Child) coordinate(ctx context.Context, from, to objstore.Store, log *slog.Logger, out io.Writer) error {
	l, err := bucket.OpenLedger(c.Ledger, fmt.Sprintf("%s to %s", from, to), log)
	if err != nil {
		return err
	}
	defer l.Close()
	nc, closeQueue, err := c.queue()
	if err != nil {
		return err
	}
	defer closeQueue()
	co, err := bucket.NewCoordinator(bucket.Config{Name: flowName, From: from, To: to, Deletes: true, Log: log}, l, nc)
	if err != nil {
		return err
	}
	var o Outcome
	if o.State, err = co.Pass(ctx, c.Final); err != nil {
		return err
	}
	if c.Final {
		if o.Swept, o.Others, err = l.Sweep(ctx, to, bucket.CopyConfig{}); err != nil {
			return err
		}
		o.Verified, err = l.Verify(ctx, bucket.VerifyConfig{To: to, Read: true, Differ: func(key, how string) { o.Differ = append(o.Differ, key+": "+how) }})
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(o)
}

func (c Child) queue() (*nats.Conn, func(), error) {
	if c.External {
		nc, err := nats.Connect("nats://"+c.Queue, nats.MaxReconnects(-1), nats.ReconnectWait(reconnect))
		return nc, func() { nc.Close() }, err
	}
	host, port, err := net.SplitHostPort(c.Queue)
	if err != nil {
		return nil, nil, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, nil, err
	}
	s, err := bucket.NewServer(c.Work, bucket.ServerConfig{Host: host, Port: n})
	if err != nil {
		return nil, nil, err
	}
	nc, err := s.Dial()
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return nc, func() { nc.Close(); s.Close() }, nil
}
