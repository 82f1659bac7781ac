package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

// forge signs any certificate with the authority of c, as pki would not.
func (c certs) forge(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "ca.pem"), filepath.Join(c.dir, "ca.key"))
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "forged"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, URIs: uris("mover://acme/db1", "mover-gateway://gw"),
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Leaf, key.Public(), ca.PrivateKey)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uris(all ...string) (us []*url.URL) {
	for _, s := range all {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		us = append(us, u)
	}
	return us
}

// with is a client's config that presents another certificate.
func with(cfg *tls.Config, cert tls.Certificate) *tls.Config {
	cfg = cfg.Clone()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return cfg
}

// serverWith is a gateway's config that presents another certificate.
func serverWith(cfg *tls.Config, cert tls.Certificate) *tls.Config {
	get := cfg.GetConfigForClient
	return &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := get(h)
		c.Certificates = []tls.Certificate{cert}
		return c, err
	}}
}

// meet lets two ends shake hands and say HELLO, and returns what each has to say about it.
func meet(t *testing.T, server, client *tls.Config) (source, gateway error) {
	t.Helper()
	l := listen(t, server)
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		c := NewConn(nc)
		defer c.Close()
		_, err = c.ReadHello(t.Context())
		if err == nil {
			err = c.Write(TypeWelcome, 0, &Welcome{1, CapZstd, KeepaliveMS, MaxPlain, state})
		}
		done <- err
	}()
	nc, err := Dial(t.Context(), l.Addr().String(), client)
	if err == nil {
		c := NewConn(nc)
		// The gateway may have refused already; what it said is to be read all the same.
		werr := c.Write(TypeHello, 0, &Hello{1, 1, CapZstd, id(1), 0, "acme/db1/root", ""})
		if _, err = c.ReadFrame(nil); err == nil {
			err = werr
		}
		c.Close()
	}
	return err, <-done
}

func TestHandshakeErrors(t *testing.T) {
	ours, other := newCerts(t), newCerts(t)
	server, client := ours.server(t), ours.client(t)
	day := 24 * time.Hour
	plain := func(change func(*tls.Config)) *tls.Config {
		pair, err := tls.LoadX509KeyPair(ours.files("db1").Cert, ours.files("db1").Key)
		must(t, err)
		c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}, Certificates: []tls.Certificate{pair}}
		change(c)
		return c
	}
	plainServer := func(change func(*tls.Config)) *tls.Config {
		pair, err := tls.LoadX509KeyPair(ours.files("gw").Cert, ours.files("gw").Key)
		must(t, err)
		c := &tls.Config{NextProtos: []string{ALPN}, Certificates: []tls.Certificate{pair}}
		change(c)
		return c
	}
	forged := func(change func(*x509.Certificate)) tls.Certificate { return ours.forge(t, change) }
	elsewhere, err := ClientTLS(ours.files("db1"), "gw.example")
	must(t, err)
	for _, c := range []struct {
		name            string
		server, client  *tls.Config
		source, gateway string // in the text; empty: no error
		is              error
	}{
		{"good", server, client, "", "", nil},
		{"source of another CA", server, with(client, other.forge(t, func(*x509.Certificate) {})),
			"does not know the CA of our certificate", "is not signed by the configured CA", sentinel.ErrDenied},
		{"gateway of another CA", other.server(t), client, "is not signed by the configured CA", "does not accept our certificate", sentinel.ErrDenied},
		{"source expired", server, with(client, forged(func(x *x509.Certificate) { x.NotBefore, x.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day) })),
			"expired or is not valid yet", "expired on", sentinel.ErrDenied},
		{"source not yet valid", server, with(client, forged(func(x *x509.Certificate) { x.NotBefore, x.NotAfter = time.Now().Add(day), time.Now().Add(2*day) })),
			"compare the clocks", "is not valid before", sentinel.ErrDenied},
		{"gateway expired", serverWith(server, forged(func(x *x509.Certificate) { x.NotBefore, x.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day) })), client,
			"expired on", "does not accept our certificate", sentinel.ErrDenied},
		{"gateway not yet valid", serverWith(server, forged(func(x *x509.Certificate) { x.NotBefore = time.Now().Add(time.Minute) })), client,
			"is not valid before", "does not accept our certificate", sentinel.ErrDenied},
		{"no client certificate", server, with(client, tls.Certificate{}), "wants a client certificate", "has no client certificate", sentinel.ErrDenied},
		{"gateway's name", server, elsewhere, `not for "gw.example" that was dialled`, "does not accept our certificate", sentinel.ErrDenied},
		{"a host as gateway", serverWith(server, forged(func(x *x509.Certificate) { x.ExtKeyUsage = x.ExtKeyUsage[:1] })), client,
			"is for the other role", "does not accept our certificate", sentinel.ErrDenied},
		{"a gateway as host", server, with(client, forged(func(x *x509.Certificate) { x.ExtKeyUsage = x.ExtKeyUsage[1:] })),
			"does not accept our certificate", "is for the other role", sentinel.ErrDenied},
		{"gateway without a name", serverWith(server, forged(func(x *x509.Certificate) { x.URIs = nil })), client,
			"has no mover-gateway:// name", "does not accept our certificate", sentinel.ErrDenied},
		{"source without a name", server, with(client, forged(func(x *x509.Certificate) { x.URIs = nil })),
			"does not accept our certificate", "has no mover:// name", sentinel.ErrDenied},
		{"source with two names", server, with(client, forged(func(x *x509.Certificate) { x.URIs = uris("mover://a/b", "mover://a/c") })),
			"does not accept our certificate", "more than one mover:// name", sentinel.ErrDenied},
		{"TLS 1.2 source", server, plain(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
			"both ends need TLS 1.3", "TLS 1.2 or older", sentinel.ErrProtocol},
		{"TLS 1.2 gateway", plainServer(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), client,
			"TLS 1.3", "TLS 1.2 or older", sentinel.ErrProtocol},
		{"other ALPN", server, plain(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), "is no Mover", "is no Mover", sentinel.ErrProtocol},
		{"source without ALPN", server, plain(func(c *tls.Config) { c.NextProtos = nil }), "", "is no Mover", sentinel.ErrProtocol},
		{"gateway without ALPN", plainServer(func(c *tls.Config) { c.NextProtos = nil }), client, "is no Mover", "", sentinel.ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, gateway := meet(t, c.server, c.client)
			if c.source == "" && c.gateway == "" {
				if source != nil || gateway != nil {
					t.Fatalf("source: %v; gateway: %v", source, gateway)
				}
				return
			}
			if c.source != "" {
				wantText(t, source, c.source)
			}
			if c.gateway != "" {
				wantText(t, gateway, c.gateway)
			}
			if !errors.Is(source, c.is) && !errors.Is(gateway, c.is) {
				t.Errorf("neither %v nor %v is %v", source, gateway, c.is)
			}
			t.Logf("source:  %v", source)
			t.Logf("gateway: %v", gateway)
		})
	}
}

// TestNoResumption: a source never gets a ticket, so that every connection is judged by its certificate.
func TestNoResumption(t *testing.T) {
	c := newCerts(t)
	server, client := c.server(t), c.client(t)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		source, gateway := meet(t, server, client)
		must(t, source)
		must(t, gateway)
	}
	s, g := tlsPair(t, server, client)
	for _, c := range []*Conn{s, g} {
		st, ok := c.TLS()
		if !ok || st.DidResume || st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != ALPN {
			t.Errorf("%+v", st)
		}
	}
	st, _ := s.TLS()
	if name, err := GatewayName(st); name != "gw" || err != nil {
		t.Errorf("gateway is %q, %v", name, err)
	}
}

// TestRenewal: files that change are read again, by both ends; while they are not usable the ones before stay.
func TestRenewal(t *testing.T) {
	c := newCerts(t)
	server, client := c.server(t), c.client(t)
	serials := func() (gw, host string) {
		s, g := tlsPair(t, server, client)
		ss, _ := s.TLS()
		gs, _ := g.TLS()
		return ss.PeerCertificates[0].SerialNumber.String(), gs.PeerCertificates[0].SerialNumber.String()
	}
	gw1, host1 := serials()
	fresh := t.TempDir()
	must(t, pki.IssueGateway(c.dir, fresh, "gw", []string{"localhost"}, time.Hour))
	must(t, pki.IssueHost(c.dir, fresh, "acme", "db1", time.Hour))
	must(t, os.Rename(filepath.Join(fresh, "gw.pem"), filepath.Join(c.dir, "gw.pem")))
	must(t, os.Rename(filepath.Join(fresh, "db1.pem"), filepath.Join(c.dir, "db1.pem")))
	if gw, host := serials(); gw != gw1 || host != host1 { // the keys are still the old ones
		t.Error("half a renewal is in use")
	}
	must(t, os.Rename(filepath.Join(fresh, "gw.key"), filepath.Join(c.dir, "gw.key")))
	must(t, os.Rename(filepath.Join(fresh, "db1.key"), filepath.Join(c.dir, "db1.key")))
	gw2, host2 := serials()
	if gw2 == gw1 || host2 == host1 {
		t.Error("the renewal is not in use")
	}
	must(t, os.Remove(filepath.Join(c.dir, "gw.pem")))
	must(t, os.WriteFile(filepath.Join(c.dir, "db1.key"), []byte("rubbish"), 0o600))
	if gw, host := serials(); gw != gw2 || host != host2 {
		t.Error("what was good before is not in use")
	}

	// Another authority: who was let in before is not any more.
	other := newCerts(t)
	for _, name := range []string{"ca.pem", "gw.pem", "gw.key"} {
		must(t, os.Rename(filepath.Join(other.dir, name), filepath.Join(c.dir, name)))
	}
	client.VerifyConnection = nil // only the gateway's judgement
	source, gateway := meet(t, server, client)
	wantText(t, source, "does not know the CA")
	wantText(t, gateway, "is not signed by the configured CA")
}

func TestFiles(t *testing.T) {
	c := newCerts(t)
	good := c.files("gw")
	write := func(name string, mode os.FileMode, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, b, mode))
		must(t, os.Chmod(path, mode))
		return path
	}
	key, err := os.ReadFile(good.Key)
	must(t, err)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o644, 0o601} {
		_, err := ServerTLS(Files{CA: good.CA, Cert: good.Cert, Key: write("k", mode, key)})
		wantText(t, err, "is open to others", "chmod 600")
		if !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%v", err)
		}
	}
	missing := filepath.Join(c.dir, "missing")
	for _, bad := range []struct {
		f    Files
		text string
	}{
		{Files{CA: missing, Cert: good.Cert, Key: good.Key}, "ca: open"},
		{Files{CA: good.CA, Cert: missing, Key: good.Key}, "certificate: open"},
		{Files{CA: good.CA, Cert: good.Cert, Key: missing}, "key: open"},
		{Files{CA: good.Key, Cert: good.Cert, Key: good.Key}, "holds no certificate"},
		{Files{CA: good.CA, Cert: good.Cert, Key: c.files("db1").Key}, "private key does not match"},
		{Files{CA: newCerts(t).files("gw").CA, Cert: good.Cert, Key: good.Key}, "not signed by the configured CA"},
		{c.files("db1"), "is for the other role"},
		{Files{CA: c.dir, Cert: good.Cert, Key: good.Key}, "not a regular file"},
		{Files{CA: write("big", 0o600, make([]byte, 2<<20)), Cert: good.Cert, Key: good.Key}, "that is no PEM file"},
		{Files{CA: "credential:ca", Cert: good.Cert, Key: good.Key}, "$CREDENTIALS_DIRECTORY is not set"},
	} {
		_, err := ServerTLS(bad.f)
		wantText(t, err, bad.text)
	}
	if _, err := ClientTLS(good, "localhost"); err == nil {
		t.Error("a gateway's certificate serves a source")
	}
	_, err = ClientTLS(c.files("db1"), "")
	wantText(t, err, "no name to check")

	// As systemd hands them over: the group bits are an ACL's mask.
	dir := t.TempDir()
	for _, name := range []string{"ca.pem", "gw.pem", "gw.key"} {
		b, err := os.ReadFile(filepath.Join(c.dir, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o440))
	}
	t.Setenv(CredentialsEnv, dir)
	_, err = ServerTLS(Files{CA: "credential:ca.pem", Cert: "credential:gw.pem", Key: "credential:gw.key"})
	must(t, err)
	_, err = ServerTLS(Files{CA: good.CA, Cert: good.Cert, Key: filepath.Join(dir, "gw.key")})
	must(t, err)
	for _, bad := range []string{"credential:", "credential:..", "credential:a/b"} {
		_, err := ServerTLS(Files{CA: good.CA, Cert: good.Cert, Key: bad})
		wantText(t, err, "plain name")
	}
	end, err := good.NotAfter()
	if err != nil || time.Until(end) > time.Hour || time.Until(end) < 50*time.Minute {
		t.Errorf("ends on %v, %v", end, err)
	}
}

func TestDialErrors(t *testing.T) {
	c := newCerts(t)
	client := c.client(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	for greeting, text := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\n\r\n": "plain HTTP",
		"SSH-2.0-OpenSSH_9.2\r\n":          "speaks SSH",
		"220 mail.example ESMTP\r\n":       "does not speak TLS",
		"":                                 "peer closed before the handshake",
	} {
		go func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Read(make([]byte, 1<<16))
			nc.Write([]byte(greeting))
			nc.Close()
		}()
		_, err := Dial(t.Context(), addr, client)
		wantText(t, err, text)
	}
	l.Close()
	_, err = Dial(t.Context(), addr, client)
	wantText(t, err, "nothing listens there")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, addr, client); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
