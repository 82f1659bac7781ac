package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/wire"
)

// Queue is how the work of bucket flows reaches workers of other machines. Nothing given: it does not.
type Queue struct {
	Listen    string   `yaml:"listen,omitempty"`   // host:port: the server inside the source
	URL       []string `yaml:"url,omitempty,flow"` // of a NATS cluster; in a worker also of a source that listens
	CA        File     `yaml:"ca,omitempty"`
	Cert      File     `yaml:"cert,omitempty"`
	Key       File     `yaml:"key,omitempty"`
	CRL       File     `yaml:"crl,omitempty"`
	CRLStrict bool     `yaml:"crl-strict,omitempty"`
}

// On tells whether anything is given.
func (q Queue) On() bool { return q.Listen != "" || len(q.URL) > 0 }

// Files are the paths as wire wants them.
func (q Queue) Files() wire.Files {
	return wire.Files{CA: string(q.CA), Cert: string(q.Cert), Key: string(q.Key), CRL: string(q.CRL), CRLStrict: q.CRLStrict}
}

// Worker is the role that copies what a source has listed.
type Worker struct {
	LogLevel string       `yaml:"log-level"`
	Queue    Queue        `yaml:"queue"`
	Regions  []string     `yaml:"regions,omitempty,flow"`
	Gateway  Dial         `yaml:"gateway,omitempty"` // as at the source, where flows share a line of it
	Links    []Link       `yaml:"links,omitempty"`   // ways to the gateway; none: what the routes say
	Buckets  []BucketFlow `yaml:"buckets"`           // as at the source
}

// Defaults are those of moverd.yaml(5).
func (w *Worker) Defaults() { *w = Worker{LogLevel: "info", Gateway: Dial{Connections: 1}} }

// Source is a source with the same flows, as far as a worker is concerned.
func (w *Worker) Source() *Source {
	s := &Source{Regions: w.Regions, Gateway: w.Gateway, Links: w.Links}
	for _, f := range w.Buckets {
		f.Cutover = BucketCutover{} // its hooks are of the source's machine
		s.Buckets = append(s.Buckets, f)
	}
	return s
}

func (v *validator) worker(w *Worker) {
	v.among("worker.log-level", w.LogLevel, "debug", "info", "warn", "error")
	if len(w.Buckets) == 0 {
		v.bad("worker.buckets", "needs at least one flow, as it stands in the source's source.buckets")
	}
	switch {
	case w.Queue.Listen != "":
		v.bad("worker.queue.listen", "is for the source; a worker names it by url")
	case len(w.Queue.URL) == 0:
		v.bad("worker.queue.url", "is missing; write it as in [nats://10.0.0.5:9467], the address of the source's queue.listen or of a NATS cluster")
	default:
		v.queue("worker.queue", w.Queue)
	}
	if w.Gateway.Address != "" {
		v.dial("worker.gateway", w.Gateway)
	}
	v.links("worker", w.Source())
	v.bucketsOf("worker", w.Source(), nil)
}

// queue looks at a queue that is on.
func (v *validator) queue(key string, q Queue) {
	if q.Listen != "" && len(q.URL) > 0 {
		v.bad(key+".url", "stands beside listen; the server is inside the source, or elsewhere, not both")
	}
	if q.Listen != "" {
		v.address(key+".listen", q.Listen, ":9467")
		v.certs(key, q.Files(), func(f wire.Files) error { _, err := wire.ServerTLS(f); return err })
		return
	}
	for i, s := range q.URL {
		u, err := url.Parse(s)
		if err != nil || !slices.Contains([]string{"nats", "tls"}, u.Scheme) || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
			v.bad(fmt.Sprintf("%s.url[%d]", key, i), "%q is not nats://HOST:PORT, without a user", s)
			return
		}
	}
	v.certs(key, q.Files(), func(f wire.Files) error { _, err := wire.QueueTLS(f); return err })
}

// workers looks at who may work for a flow.
func (v *validator) workers(key string, s *Source, names []string) {
	for i, n := range names {
		tenant, host, ok := strings.Cut(n, "/")
		if !ok || pki.CheckName("tenant", tenant) != nil || pki.CheckName("host", host) != nil {
			v.bad(fmt.Sprintf("%s[%d]", key, i), "%q is not TENANT/HOST, as in the worker's certificate", n)
		}
	}
	if len(names) > 0 && !s.Queue.On() && strings.HasPrefix(key, "source.") {
		v.bad(key, "cannot reach the queue: source.queue needs listen or url")
	}
}

// PortOf is the port of host:port.
func PortOf(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = net.LookupPort("tcp", text)
	}
	return host, port, err
}
