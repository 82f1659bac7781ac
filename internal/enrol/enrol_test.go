package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/internal/audit"
	"github.com/moverd/mover/internal/pki"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error is %v, want %q in it", err, part)
	}
}

// authority is a CA with its server on loopback.
type authority struct {
	dir, addr string
	stop      func()
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	must(t, pki.Init(a.dir, "test CA"))
	a.start(t)
	return a
}

func (a *authority) start(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	a.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &Server{Dir: a.dir, Life: time.Hour, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, ln) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(a.stop)
}

func (a *authority) token(t *testing.T, host string) pki.Token {
	t.Helper()
	tok, err := pki.NewToken(a.dir, "acme", host, time.Hour, 30)
	must(t, err)
	return tok
}

// records counts what the trail says, after proving it.
func (a *authority) records(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{}
	_, err := audit.Verify(pki.TrailDir(a.dir), func(r audit.Record) error {
		n[r.Event]++
		if more, ok := r.Details["attempts"].(float64); ok {
			n["refused"] += int(more)
		} else if r.Event == refusedEvent {
			n["refused"]++
		}
		return nil
	})
	must(t, err)
	return n
}

func list(t *testing.T, dir string) (out []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out
}

func TestEnrol(t *testing.T) {
	a := newAuthority(t)
	tok := a.token(t, "db1")
	again, err := pki.ParseToken(tok.String())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "pki")
	until, err := Enrol(t.Context(), a.addr, again, dir)
	must(t, err)
	if d := time.Until(until); d < 29*24*time.Hour || d > 31*24*time.Hour {
		t.Errorf("good for %v", d)
	}
	for name, mode := range map[string]os.FileMode{"host.key": 0o600, "host.pem": 0o644, "ca.pem": 0o644, "": 0o700} {
		st, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %04o", name, st.Mode().Perm())
		}
	}
	pair, err := pki.LoadPair(filepath.Join(dir, "host.pem"))
	must(t, err)
	if tenant, host, err := pki.HostOf(pair.Leaf); tenant != "acme" || host != "db1" || err != nil {
		t.Error(tenant, host, err)
	}
	// Neither the token nor its secret is kept at the CA.
	must(t, filepath.WalkDir(a.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if secret := strings.Split(tok.String(), ":")[2][:32]; strings.Contains(string(b), secret) {
			t.Errorf("%s holds the token", path)
		}
		return err
	}))

	// Twice: on the same host before anything is asked, on another by the CA.
	_, err = Enrol(t.Context(), a.addr, tok, dir)
	wantText(t, err, "never overwritten")
	other := filepath.Join(t.TempDir(), "pki")
	_, err = Enrol(t.Context(), a.addr, tok, other)
	wantText(t, err, "was used on")
	wantText(t, err, "moverctl pki revoke --serial")
	if got := list(t, other); len(got) != 0 {
		t.Errorf("a refused enrolment left %v", got)
	}
	if got := list(t, dir); len(got) != 3 {
		t.Errorf("files %v", got)
	}
	a.stop()
	if n := a.records(t); n["pki.enrol"] != 1 || n["pki.token"] != 1 || n["refused"] != 1 || n["pki.serve"] != 1 {
		t.Errorf("records %v", n)
	}
	// A restart of the server forgets nothing.
	a.start(t)
	_, err = Enrol(t.Context(), a.addr, tok, other)
	wantText(t, err, "was used on")
}

func TestRefused(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	tok := a.token(t, "db1")
	dir := filepath.Join(t.TempDir(), "pki")
	try := func(addr string, tok pki.Token, want string) {
		t.Helper()
		_, err := Enrol(t.Context(), addr, tok, dir)
		wantText(t, err, want)
		if got := list(t, dir); len(got) != 0 {
			t.Errorf("a refused enrolment left %v", got)
		}
	}
	try(b.addr, tok, "another authority")

	// A gateway of the same CA is not its enrolment server, whatever it shows.
	must(t, pki.IssueGateway(a.dir, a.dir, "gw", []string{"127.0.0.1"}, time.Hour))
	pair, err := tls.LoadX509KeyPair(a.dir+"/gw.pem", a.dir+"/gw.key")
	must(t, err)
	ca, err := pki.LoadCert(a.dir + "/ca.pem")
	must(t, err)
	pair.Certificate = append(pair.Certificate, ca.Raw)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{alpn}})
	must(t, err)
	defer ln.Close()
	heard := make(chan int, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		n, _ := io.Copy(io.Discard, nc)
		heard <- int(n)
	}()
	try(ln.Addr().String(), tok, "not an authority's")
	if n := <-heard; n != 0 {
		t.Errorf("a man in the middle heard %d bytes", n)
	}

	// The names in the token are changed and its sum made right: the record decides.
	forged := tok
	forged.Host = "db2"
	try(a.addr, forged, "the token is for acme/db1")
	unknown, err := pki.NewToken(b.dir, "acme", "db1", time.Hour, 1)
	must(t, err)
	unknown.CA = tok.CA
	try(a.addr, unknown, "not known here")

	// Expired: the record's time is put back.
	old := a.token(t, "db3")
	files, err := filepath.Glob(a.dir + "/tokens/*.json")
	must(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		if strings.Contains(string(text), `"db3"`) {
			year := fmt.Sprint(time.Now().Year())
			must(t, os.WriteFile(f, []byte(strings.ReplaceAll(string(text), `"`+year, `"2001`)), 0o600))
		}
	}
	try(a.addr, old, "expired on 2001")

	for _, bad := range []string{"", "x", "mover1:acme/db1:", tok.String()[:60], tok.String() + "A", strings.Replace(tok.String(), "db1", "db2", 1), "mover1:ACME/db1:AAAA",
		strings.Replace(tok.String(), "mover1", "mover2", 1)} {
		if _, err := pki.ParseToken(bad); err == nil {
			t.Errorf("%q is taken for a token", bad)
		}
	}
	// A ca.pem of another authority is told before the token is spent.
	taken := t.TempDir()
	text, err := os.ReadFile(b.dir + "/ca.pem")
	must(t, err)
	must(t, os.WriteFile(taken+"/ca.pem", text, 0o644))
	_, err = Enrol(t.Context(), a.addr, tok, taken)
	wantText(t, err, "is not among these")
	_, err = Enrol(t.Context(), a.addr, tok, dir) // after all this it is still good
	must(t, err)
	a.stop()
	if n := a.records(t); n["refused"] != 3 || n["pki.enrol"] != 1 {
		t.Errorf("records %v", n)
	}
}

// TestRace: two hosts with one token; one gets a certificate, also when they ask two servers of one folder.
func TestRace(t *testing.T) {
	a := newAuthority(t)
	second := &authority{dir: a.dir}
	second.start(t)
	for round := range 5 {
		tok := a.token(t, fmt.Sprintf("db%d", round))
		errs := make(chan error)
		base := t.TempDir()
		for i := range 8 {
			addr := []string{a.addr, second.addr}[i%2]
			go func() {
				_, err := Enrol(context.Background(), addr, tok, filepath.Join(base, fmt.Sprint(i)))
				errs <- err
			}()
		}
		good := 0
		for range 8 {
			if err := <-errs; err == nil {
				good++
			} else {
				wantText(t, err, "was used on")
			}
		}
		if good != 1 {
			t.Errorf("%d hosts enrolled with one token", good)
		}
	}
	all, err := pki.IssuedBy(a.dir)
	must(t, err)
	if len(all) != 5+2 { // the two servers' own
		t.Errorf("%d certificates were issued", len(all))
	}
}

func TestRenewFromAfar(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	_, err := Enrol(t.Context(), a.addr, a.token(t, "db1"), dir)
	must(t, err)
	path, ca := dir+"/host.pem", dir+"/ca.pem"
	old, err := pki.LoadPair(path)
	must(t, err)
	until, err := Renew(t.Context(), a.addr, path, ca)
	must(t, err)
	now, err := pki.LoadPair(path)
	must(t, err)
	if now.Leaf.SerialNumber.Cmp(old.Leaf.SerialNumber) == 0 || now.Leaf.URIs[0].String() != "mover://acme/db1" || !until.Equal(now.Leaf.NotAfter) || time.Until(until) > time.Hour {
		t.Errorf("%v until %v", now.Leaf.URIs, until)
	}
	// A gateway renews in the same way, and keeps its addresses.
	must(t, pki.IssueGateway(a.dir, dir, "gw", []string{"127.0.0.1", "gw.example"}, time.Hour))
	_, err = Renew(t.Context(), a.addr, dir+"/gw.pem", ca)
	must(t, err)
	gw, err := pki.LoadPair(dir + "/gw.pem")
	must(t, err)
	if gw.Leaf.VerifyHostname("127.0.0.1") != nil || gw.Leaf.VerifyHostname("gw.example") != nil {
		t.Error("addresses are lost")
	}
	// Another CA's server, and another CA's certificate.
	_, err = Renew(t.Context(), b.addr, path, ca)
	wantText(t, err, "not good")
	must(t, pki.IssueHost(b.dir, dir+"/b", "acme", "db1", time.Hour))
	_, err = Renew(t.Context(), a.addr, dir+"/b/db1.pem", ca)
	wantText(t, err, "was not signed by an authority")
	// The server's own kind cannot be renewed, nor can anything be made of a request for other names.
	before := now.Leaf.SerialNumber
	ask1 := func(uri string, dns ...string) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		u, err := url.Parse(uri)
		must(t, err)
		req, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}, DNSNames: dns}, key)
		must(t, err)
		cfg := config()
		cfg.InsecureSkipVerify = true
		cfg.Certificates = []tls.Certificate{now}
		_, err = ask(t.Context(), a.addr, cfg, question{Do: "renew", Request: req})
		return err
	}
	wantText(t, ask1("mover://acme/db2"), "not for mover://acme/db1 alone")
	wantText(t, ask1("mover://acme/db1", "gw.example"), "keeps all names")
	// Revoked.
	_, err = pki.Revoke(a.dir, []*big.Int{before}, time.Hour)
	must(t, err)
	_, err = Renew(t.Context(), a.addr, path, ca)
	wantText(t, err, "is revoked")
	if after, err := pki.LoadPair(path); err != nil || after.Leaf.SerialNumber.Cmp(before) != 0 {
		t.Error("a refused renewal changed the pair", err)
	}
	// Too often.
	for range renewals {
		_, err = Renew(t.Context(), a.addr, dir+"/gw.pem", ca)
	}
	wantText(t, err, "within an hour")
	a.stop()
	if n := a.records(t); n["pki.renew"] != 1+renewals {
		t.Errorf("records %v", n)
	}
}

// TestCutOff: whichever step a kill of the host follows, the next enrolment finds nothing, or all of it.
func TestCutOff(t *testing.T) {
	a := newAuthority(t)
	for step, placed := range [][]string{{"ca.pem"}, {"ca.pem", "host.key"}, {}} {
		dir := t.TempDir()
		tok := a.token(t, "db1")
		_, err := Enrol(t.Context(), a.addr, tok, dir)
		must(t, err)
		for _, name := range []string{"ca.pem", "host.key", "host.pem"} {
			must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".new")))
		}
		for _, name := range placed {
			must(t, os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)))
		}
		if _, err := Enrol(t.Context(), a.addr, tok, dir); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		if _, err := pki.LoadPair(filepath.Join(dir, "host.pem")); err != nil {
			t.Error(err)
		}
		if got := list(t, dir); len(got) != 3 {
			t.Errorf("step %d: files %v", step, got)
		}
	}
	// Cut before the certificate was written: nothing of it stays, and a token is needed.
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/host.key.new", []byte("half"), 0o600))
	must(t, os.WriteFile(dir+"/host.pem.new", []byte("-----BEGIN"), 0o600))
	_, err := Enrol(t.Context(), a.addr, a.token(t, "db1"), dir)
	must(t, err)
	// Between the two renames of a renewal.
	path := dir + "/host.pem"
	_, err = Renew(t.Context(), a.addr, path, dir+"/ca.pem")
	must(t, err)
	must(t, os.Rename(path, dir+"/host.new.pem"))
	must(t, os.Rename(path+".old", path))
	pair, err := pki.LoadPair(path)
	must(t, err)
	if len(pair.Certificate) == 0 || len(list(t, dir)) != 4 {
		t.Errorf("files %v", list(t, dir))
	}
}

// TestStrangers: silent ones, rubbish and oversized questions cost little, keep nobody out, and are all counted.
func TestStrangers(t *testing.T) {
	a := newAuthority(t)
	grown := heap()
	const n = 600
	var held []net.Conn
	for i := range n {
		nc, err := net.Dial("tcp", a.addr)
		must(t, err)
		switch i % 4 {
		case 0: // silent
			held = append(held, nc)
			continue
		case 1:
			nc.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		case 2:
			nc.Write([]byte{22, 3, 1, 255, 255, 1})
		case 3:
			c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13})
			if c.Handshake() == nil {
				c.Write([]byte{255, 255, 255, 255, 0})
				c.Read(make([]byte, 1))
			}
		}
		nc.Close()
	}
	if _, err := Enrol(t.Context(), a.addr, a.token(t, "db1"), t.TempDir()); err != nil {
		t.Errorf("an honest host is kept out: %v", err)
	}
	if d := heap() - grown; d > 8<<20 {
		t.Errorf("the heap has grown by %d bytes", d)
	}
	for _, nc := range held {
		nc.Close()
	}
	a.stop()
	got := a.records(t)
	if got["refused"] < n*9/10 || got[refusedEvent] > 60 {
		t.Errorf("%d attempts, records %v", n, got)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
