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
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/mover/bucket"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/bos"
	"github.com/moverd/mover/objstore/dir"
	"github.com/moverd/mover/objstore/retry"
	"github.com/moverd/mover/wire"
)

// Child is one process of a flow: the coordinator, with the queue, or a worker; or the queue's server.
type Child struct {
	Role   string // coordinator, worker or server
	Name   string
	Ledger string // folder
	Work   string // folder for the queue
	Queue  string // host:port on which the coordinator's queue listens; or a server beside it, where External
	// External: the queue is a server of its own.
	External bool
	PKI      string // folder with certificates, of External
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
	if c.Role == "server" {
		return c.serve(ctx)
	}
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
		alone, err := c.alone()
		if err != nil {
			return err
		}
		defer alone.Close()
		nc, name, err := c.connect(ctx)
		if err != nil {
			return err
		}
		defer nc.Close()
		w, err := bucket.NewWorker(bucket.WorkerConfig{Flow: flowName, Name: name, Sole: true, From: from, To: to, Most: c.Most, Ahead: c.Most, Log: log}, nc)
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
	nc, closeQueue, err := c.queue(ctx)
	if err != nil {
		return err
	}
	defer closeQueue()
	co, err := bucket.NewCoordinator(bucket.Config{Name: flowName, From: from, To: to, Deletes: true, Linger: childLinger, Log: log}, l, nc)
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

// childLinger is enough for a server on this machine, which holds no request for longer than a third of a second.
const childLinger = 2 * time.Second

// alone takes the lock of the worker's name, which shows that no earlier process of that name is alive.
func (c Child) alone() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.Work, c.Name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another worker %s is alive: %w", c.Name, err), f.Close())
	}
	return f, nil
}

// serve runs a NATS server with JetStream, certificates and permissions, as an operator would.
func (c Child) serve(ctx context.Context) error {
	o, err := server.ProcessConfigFile(filepath.Join(c.PKI, natsConf))
	if err != nil {
		return err
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	return nil
}

// natsConf is the config of the server, in the folder of certificates.
const natsConf = "nats.conf"

// tenant is that of all certificates of a run.
const tenant = "soak"

// certify makes what an external server at address needs: an authority, its certificate, and its config, in which the coordinator may do all, and n workers what workers need.
func certify(dir, address string, n int) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		err = pki.Init(dir, "soak")
	}
	if err == nil {
		err = pki.IssueGateway(dir, dir, "server", []string{host}, time.Hour)
	}
	if err == nil {
		err = pki.IssueHost(dir, dir, tenant, "coordinator", time.Hour)
	}
	if err != nil {
		return err
	}
	text := fmt.Sprintf("host: %q\nport: %s\njetstream { max_mem: 64MB, store_dir: %q }\ntls { cert_file: %q, key_file: %q, ca_file: %q, verify_and_map: true }\nauthorization { users: [\n  { user: %q }\n",
		host, port, dir, filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.pem"), pki.HostURI(tenant, "coordinator"))
	for i := range n {
		name := workerName(i + 1)
		who := tenant + "/" + name
		text += fmt.Sprintf("  { user: %q, permissions: {\n    publish: [", pki.HostURI(tenant, name))
		for _, what := range []string{"ask", "result", "alive"} {
			text += fmt.Sprintf("%q, ", "mover."+flowName+"."+what+"."+who)
		}
		text += fmt.Sprintf("\"$JS.API.CONSUMER.INFO.mover-%s.workers\", \"$JS.API.CONSUMER.MSG.NEXT.mover-%s.workers\", \"$JS.ACK.mover-%s.workers.>\"],\n", flowName, flowName, flowName)
		text += fmt.Sprintf("    subscribe: [%q, %q] } }\n", "mover."+flowName+".who", "_INBOX."+who+".>")
	}
	return os.WriteFile(filepath.Join(dir, natsConf), []byte(text+"] }\n"), 0o600)
}

func workerName(i int) string { return fmt.Sprint("worker-", i) }

// connect connects to the queue of another process, and gives the worker's name there.
func (c Child) connect(ctx context.Context) (*nats.Conn, string, error) {
	if c.PKI == "" {
		nc, err := nats.Connect("nats://"+c.Queue, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(reconnect))
		return nc, c.Name, err
	}
	q, err := wire.QueueTLS(wire.Files{CA: filepath.Join(c.PKI, "ca.pem"), Cert: filepath.Join(c.PKI, c.Name+".pem"), Key: filepath.Join(c.PKI, c.Name+".key")})
	if err != nil {
		return nil, "", err
	}
	r := bucket.Remote{URL: []string{"nats://" + c.Queue}, TLS: q.TLS, Roots: q.Roots, Wait: reconnect}
	if c.Role == "worker" {
		r.Worker = q.Name.String()
	}
	for end := time.Now().Add(time.Minute); ; {
		nc, err := r.Dial()
		if err == nil || time.Now().After(end) {
			return nc, r.Worker, err
		}
		select {
		case <-time.After(reconnect):
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

func (c Child) queue(ctx context.Context) (*nats.Conn, func(), error) {
	if c.External {
		nc, _, err := c.connect(ctx)
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
