package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/wire"
)

// moverctl runs the command with text on its standard input.
func moverctl(ctx context.Context, in string, args ...string) (code int, out, errs string) {
	var o, e lockedBuffer
	code = run(ctx, args, &terminal{in: strings.NewReader(in), out: &o, err: &e, now: time.Now})
	return code, o.String(), e.String()
}

// serveCA runs pki serve for the CA in dir and returns its address.
func serveCA(t *testing.T, dir string) string {
	t.Helper()
	var log lockedBuffer
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"pki", "serve", "--dir", dir, "--listen", "127.0.0.1:0"}, &terminal{in: strings.NewReader(""), out: io.Discard, err: &log, now: time.Now})
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("pki serve: exit %d, %s", code, log.String())
		}
	})
	at := regexp.MustCompile(`address=(\S+)`)
	for range 1000 {
		if m := at.FindStringSubmatch(log.String()); m != nil {
			return m[1]
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("pki serve does not start: %s", log.String())
	return ""
}

// TestEnrolCommands goes from nothing to a connection that a gateway takes, and through a renewal that a running end takes over.
func TestEnrolCommands(t *testing.T) {
	ca, host := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "pki")
	must := func(in string, args ...string) string {
		t.Helper()
		code, out, errs := moverctl(t.Context(), in, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d, %s%s", args, code, out, errs)
		}
		return out
	}
	must("", "pki", "init", "--dir", ca)
	must("", "pki", "gateway", "--dir", ca, "--out", ca, "--name", "gw", "--address", "127.0.0.1")
	addr := serveCA(t, ca)
	token := must("", "pki", "token", "--dir", ca, "--tenant", "acme", "--host", "db1")
	if strings.Count(token, "\n") != 1 {
		t.Errorf("pki token prints %q", token)
	}
	if out := must(token, "pki", "enrol", "--dir", host, "--address", addr, "--token", "-"); !strings.Contains(out, "mover://acme/db1") || !strings.Contains(out, "moverd-renew.timer") {
		t.Error(out)
	}
	env, err := os.ReadFile(filepath.Join(host, pki.RenewEnv))
	if err != nil || string(env) != "MOVER_CA_ADDRESS="+addr+"\n" {
		t.Errorf("%q, %v", env, err)
	}
	code, _, errs := moverctl(t.Context(), "", "pki", "enrol", "--dir", host+"2", "--address", addr, "--token", strings.TrimSpace(token))
	if code != 1 || !strings.Contains(errs, "was used on") {
		t.Errorf("exit %d, %s", code, errs)
	}

	// Both ends are made once; the certificate changes below them.
	server, err := wire.ServerTLS(wire.Files{CA: ca + "/ca.pem", Cert: ca + "/gw.pem", Key: ca + "/gw.key"})
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.ClientTLS(wire.Files{CA: host + "/ca.pem", Cert: host + "/host.pem", Key: host + "/host.key"}, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	serial := func() string {
		t.Helper()
		got := make(chan string, 1)
		go func() {
			nc, err := ln.Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			defer nc.Close()
			if err := nc.(*tls.Conn).Handshake(); err != nil {
				got <- err.Error()
				return
			}
			got <- nc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
		}()
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if err := tls.Client(nc, client).Handshake(); err != nil {
			t.Fatal(err)
		}
		return <-got
	}
	before := serial()
	if out := must("", "pki", "renew", "--dir", host, "--address", addr, "--due"); !strings.Contains(out, "nothing is due") {
		t.Error(out)
	}
	must("", "pki", "renew", "--dir", host, "--address", addr)
	if after := serial(); after == before || strings.Contains(after, " ") {
		t.Errorf("serial before %s, after %s", before, after)
	}
	// Revoked certificates renew nothing.
	must("", "pki", "revoke", "--dir", ca, "--host", "acme/db1")
	key, err := os.ReadFile(host + "/host.key")
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs = moverctl(t.Context(), "", "pki", "renew", "--dir", host, "--address", addr)
	if now, err := os.ReadFile(host + "/host.key"); code != 1 || !strings.Contains(errs, "is revoked") || err != nil || !bytes.Equal(key, now) {
		t.Errorf("exit %d, %s, %v", code, errs, err)
	}
	if out := must("", "audit", "verify", ca+"/audit"); !strings.Contains(out, "are whole") {
		t.Error(out)
	}
}
