package wire

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
)

// certs is a CA with a gateway and a host.
type certs struct{ dir string }

func newCerts(t testing.TB) certs {
	t.Helper()
	c := certs{t.TempDir()}
	must(t, pki.Init(c.dir, "test CA"))
	must(t, pki.IssueGateway(c.dir, c.dir, "gw", []string{"localhost", "127.0.0.1"}, time.Hour))
	must(t, pki.IssueHost(c.dir, c.dir, "acme", "db1", time.Hour))
	return c
}

func (c certs) files(name string) Files {
	return Files{CA: filepath.Join(c.dir, "ca.pem"), Cert: filepath.Join(c.dir, name+".pem"), Key: filepath.Join(c.dir, name+".key")}
}

func (c certs) server(t testing.TB) *tls.Config {
	t.Helper()
	cfg, err := ServerTLS(c.files("gw"))
	must(t, err)
	return cfg
}

func (c certs) client(t testing.TB) *tls.Config {
	t.Helper()
	cfg, err := ClientTLS(c.files("db1"), "localhost")
	must(t, err)
	return cfg
}

// listen listens on loopback with the gateway's end of TLS.
func listen(t testing.TB, cfg *tls.Config) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return NewListener(l, cfg)
}

// tlsPair is a source's and a gateway's Conn over TLS on loopback, handshake done.
func tlsPair(t testing.TB, server, client *tls.Config) (source, gateway *Conn) {
	t.Helper()
	l := listen(t, server)
	type end struct {
		c   *Conn
		err error
	}
	accepted := make(chan end, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			accepted <- end{nil, err}
			return
		}
		c := NewConn(nc)
		accepted <- end{c, c.Handshake(t.Context())}
	}()
	nc, err := Dial(t.Context(), l.Addr().String(), client)
	must(t, err)
	source = NewConn(nc)
	e := <-accepted
	must(t, e.err)
	t.Cleanup(func() { source.Close(); e.c.Close() })
	return source, e.c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func peerOf(c *Conn) (Name, error) {
	s, _ := c.TLS()
	return PeerName(s)
}

// tlsPipe is tlsPair without sockets, for fake time: certificates are made in the bubble, where it is the year 2000.
func tlsPipe(t *testing.T) (source, gateway *Conn) {
	t.Helper()
	c := newCerts(t)
	x, y := net.Pipe()
	source = NewConn(tls.Client(NewCountConn(x), c.client(t)))
	gateway = NewConn(tls.Server(NewCountConn(y), c.server(t)))
	done := make(chan error, 1)
	go func() { done <- gateway.Handshake(t.Context()) }()
	must(t, source.Handshake(t.Context()))
	must(t, <-done)
	return source, gateway
}
