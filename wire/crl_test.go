package wire

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
)

func (c certs) crl() string { return filepath.Join(c.dir, pki.CRLFile) }

func (c certs) revoke(t *testing.T, name string) {
	t.Helper()
	cert, err := pki.LoadCert(filepath.Join(c.dir, name+".pem"))
	must(t, err)
	_, err = pki.Revoke(c.dir, []*big.Int{cert.SerialNumber}, time.Hour)
	must(t, err)
}

// signCRL signs what moverctl would not.
func (c certs) signCRL(t *testing.T, number int64, until time.Time) {
	t.Helper()
	ca, err := pki.LoadCert(filepath.Join(c.dir, "ca.pem"))
	must(t, err)
	text, err := os.ReadFile(filepath.Join(c.dir, "ca.key"))
	must(t, err)
	b, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	must(t, err)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number),
		ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: until}, ca, key.(*ecdsa.PrivateKey))
	must(t, err)
	must(t, os.WriteFile(c.crl(), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o644))
}

// hear is what the source learns by its first read, and the gateway by its handshake.
func (c certs) hear(t *testing.T, server, client Files) (source, gateway error) {
	t.Helper()
	s, err := ServerTLS(server)
	must(t, err)
	k, err := ClientTLS(client, "localhost")
	must(t, err)
	l := listen(t, s)
	refused := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			g := NewConn(nc)
			err = g.Handshake(t.Context())
			g.Close()
		}
		refused <- err
	}()
	nc, err := Dial(t.Context(), l.Addr().String(), k)
	if err != nil {
		return err, <-refused
	}
	w := NewConn(nc)
	defer w.Close()
	_, err = w.ReadFrame(nil)
	return err, <-refused
}

func TestRevokedSourceHearsWhy(t *testing.T) {
	c := newCerts(t)
	must(t, pki.IssueHost(c.dir, c.dir, "acme", "db2", time.Hour))
	c.revoke(t, "db1")
	gw := c.files("gw")
	gw.CRL = c.crl()
	source, gateway := c.hear(t, gw, c.files("db1"))
	wantText(t, source, "was revoked on", "acme/db1")
	wantText(t, gateway, "was revoked on")
	if !errors.Is(source, sentinel.ErrDenied) || !errors.Is(gateway, sentinel.ErrDenied) {
		t.Errorf("%v; %v", source, gateway)
	}
	if _, gateway = c.hear(t, gw, c.files("db2")); gateway != nil {
		t.Errorf("another host: %v", gateway)
	}
}

func TestRevokedGateway(t *testing.T) {
	c := newCerts(t)
	c.revoke(t, "gw")
	host := c.files("db1")
	host.CRL = c.crl()
	source, _ := c.hear(t, c.files("gw"), host)
	wantText(t, source, "was revoked on")
}

func TestCRLErrorsAtStart(t *testing.T) {
	c, foreign := newCerts(t), newCerts(t)
	gw := c.files("gw")
	gw.CRL = c.crl()
	bad := func(part string) {
		t.Helper()
		_, err := ServerTLS(gw)
		wantText(t, err, "crl: ", part)
	}
	bad("no such file")
	must(t, os.WriteFile(c.crl(), []byte("nothing"), 0o644))
	bad("holds no list")
	foreign.revoke(t, "db1")
	b, err := os.ReadFile(foreign.crl())
	must(t, err)
	must(t, os.WriteFile(c.crl(), b, 0o644))
	bad("is not signed by the configured CA")
	c.signCRL(t, 1, time.Now().Add(-time.Minute))
	bad("ended on")
	c.signCRL(t, 1, time.Now().Add(time.Hour))
	b, err = os.ReadFile(c.crl())
	must(t, err)
	blk, _ := pem.Decode(b)
	blk.Bytes[len(blk.Bytes)-1] ^= 1 // the signature
	must(t, os.WriteFile(c.crl(), pem.EncodeToMemory(blk), 0o644))
	bad("is not signed by the configured CA")
}

// TestCRLChanges: a newer list is taken over by a running gateway; a forged, missing or older one changes nothing.
func TestCRLChanges(t *testing.T) {
	c, foreign := newCerts(t), newCerts(t)
	_, err := pki.Revoke(c.dir, nil, time.Hour)
	must(t, err)
	first, err := os.ReadFile(c.crl())
	must(t, err)
	gw := c.files("gw")
	gw.CRL = c.crl()
	_, judge, err := ServerJudge(gw)
	must(t, err)
	cert, err := pki.LoadCert(c.files("db1").Cert)
	must(t, err)
	must(t, judge(cert))
	c.revoke(t, "db1")
	wantText(t, judge(cert), "was revoked on")
	// Number 1 was good once.
	must(t, os.WriteFile(c.crl(), first, 0o644))
	wantText(t, judge(cert), "was revoked on")
	_, err = pki.Revoke(foreign.dir, nil, time.Hour)
	must(t, err)
	b, err := os.ReadFile(foreign.crl())
	must(t, err)
	must(t, os.WriteFile(c.crl(), b, 0o644))
	wantText(t, judge(cert), "was revoked on")
	must(t, os.Remove(c.crl()))
	wantText(t, judge(cert), "was revoked on")
	// The list of another number ends while the gateway runs: it warns, and refuses only when told to.
	c.signCRL(t, 9, time.Now().Add(-time.Minute))
	must(t, judge(cert))
	gw.CRLStrict = true
	c.signCRL(t, 10, time.Now().Add(time.Hour))
	_, judge, err = ServerJudge(gw)
	must(t, err)
	must(t, judge(cert))
	c.signCRL(t, 11, time.Now().Add(-time.Minute))
	wantText(t, judge(cert), "crl-strict")
}

// TestTwoAuthorities: during a rollover certificates of the old and the new CA work side by side, and each has its own list.
func TestTwoAuthorities(t *testing.T) {
	c, next := newCerts(t), newCerts(t)
	both := filepath.Join(t.TempDir(), "both.pem")
	var text, lists []byte
	for _, d := range []certs{c, next} {
		b, err := os.ReadFile(filepath.Join(d.dir, "ca.pem"))
		must(t, err)
		text = append(text, b...)
	}
	must(t, os.WriteFile(both, text, 0o644))
	next.revoke(t, "db1")
	_, err := pki.Revoke(c.dir, nil, time.Hour)
	must(t, err)
	for _, d := range []certs{c, next} {
		b, err := os.ReadFile(d.crl())
		must(t, err)
		lists = append(lists, b...)
	}
	crl := filepath.Join(t.TempDir(), "both.crl")
	must(t, os.WriteFile(crl, lists, 0o644))
	with := func(f Files) Files { f.CA = both; return f }
	for _, gw := range []certs{c, next} {
		f := with(gw.files("gw"))
		for _, host := range []certs{c, next} {
			if _, err := c.hear(t, f, with(host.files("db1"))); err != nil {
				t.Error(err)
			}
		}
		f.CRL = crl
		if _, err := c.hear(t, f, with(c.files("db1"))); err != nil {
			t.Error(err)
		}
		_, err := c.hear(t, f, with(next.files("db1")))
		wantText(t, err, "was revoked on")
	}
}

// TestRenewWhileConnected: a renewal leaves the connection alone, and the next one has the new certificate.
func TestRenewWhileConnected(t *testing.T) {
	c := newCerts(t)
	server, client := c.server(t), c.client(t)
	source, gateway := tlsPair(t, server, client)
	for _, name := range []string{"db1", "gw"} {
		_, _, err := pki.Renew(c.dir, c.files(name).Cert, 2*time.Hour)
		must(t, err)
	}
	_, again := tlsPair(t, server, client)
	a, _ := gateway.TLS()
	b, _ := again.TLS()
	if a.PeerCertificates[0].SerialNumber.Cmp(b.PeerCertificates[0].SerialNumber) == 0 {
		t.Error("the old certificate was presented after the renewal")
	}
	must(t, gateway.Write(TypeState, 7, &State{}))
	if f, err := source.ReadFrame(nil); err != nil || f.Seq != 7 {
		t.Errorf("old connection: %v, %v", f, err)
	}
}
