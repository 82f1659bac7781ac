package receiver

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/internal/pki"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// witness keeps what the door tells.
type witness struct {
	mu  sync.Mutex
	all []Event
}

func (w *witness) hear(e Event) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, e)
	return true
}

// await returns the event n, which may still be on its way.
func (w *witness) await(t *testing.T, n int) Event {
	t.Helper()
	for range 2000 {
		w.mu.Lock()
		if len(w.all) > n {
			e := w.all[n]
			w.mu.Unlock()
			return e
		}
		w.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("event %d is missing", n)
	return Event{}
}

// TestDoor: whoever is let in or refused is told with what he has shown, and what only somebody says is marked as that.
func TestDoor(t *testing.T) {
	var w witness
	r := newRig(t, twoFlows, func(c *Config) { c.Audit = w.hear })
	n := 0
	expect := func(did, kind, name string, proven bool) {
		t.Helper()
		e := w.await(t, n)
		n++
		if e.Did != did || e.Kind != kind || e.Name != name || e.Proven != proven || e.Peer == nil || (e.Serial == "") != (name == "") || (e.Err == nil) != (did == Accepted) {
			t.Errorf("event %+v, want %s %s %s", e, did, kind, name)
		}
	}
	link := newID()
	for range 2 { // a link's second connection is no event
		if _, err := r.dial(link, "root"); err != nil {
			t.Fatal(err)
		}
	}
	expect(Accepted, "", "mover://acme/db1", true)
	if _, err := r.dial(newID(), "other"); !errors.Is(err, sentinel.ErrDenied) {
		t.Error(err)
	}
	expect(Refused, KindForeign, "mover://acme/db1", true)

	strange := t.TempDir()
	must(t, pki.Init(strange, "strange CA"))
	must(t, pki.IssueHost(strange, strange, "acme", "db1", time.Hour))
	pair, err := tls.LoadX509KeyPair(filepath.Join(strange, "db1.pem"), filepath.Join(strange, "db1.key"))
	must(t, err)
	shake := func(cfg *tls.Config) {
		t.Helper()
		cfg.InsecureSkipVerify = true
		if cfg.NextProtos == nil {
			cfg.NextProtos = []string{wire.ALPN}
		}
		nc, err := tls.Dial("tcp", r.addr, cfg)
		if err == nil {
			nc.Read(make([]byte, 1))
			nc.Close()
		}
	}
	shake(&tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }})
	expect(Refused, wire.KindForeignCA, "mover://acme/db1", false)
	shake(&tls.Config{})
	expect(Refused, wire.KindNoCert, "", false)
	shake(&tls.Config{MaxVersion: tls.VersionTLS12})
	expect(Refused, wire.KindOldTLS, "", false)
	shake(&tls.Config{NextProtos: []string{"h2"}})
	expect(Refused, wire.KindALPN, "", false)
	nc, err := net.Dial("tcp", r.addr)
	must(t, err)
	fmt.Fprint(nc, "SSH-2.0-x\r\n")
	nc.(*net.TCPConn).CloseWrite()
	expect(Refused, wire.KindPlain, "", false)
	nc.Close()
	nc, err = net.Dial("tcp", r.addr)
	must(t, err)
	nc.Close()
	expect(Refused, wire.KindClosed, "", false)
	good, err := wire.Dial(t.Context(), r.addr, r.clientTLS("acme", "db1"))
	must(t, err)
	good.Write(bytes.Repeat([]byte{0xff}, 64))
	expect(Refused, wire.KindProtocol, "mover://acme/db1", true)
	good.Close()
	good, err = wire.Dial(t.Context(), r.addr, r.clientTLS("acme", "db1"))
	must(t, err)
	hello, err := wire.AppendFrame(nil, 0, &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: wire.CapZstd, Link: newID(), Conn: 1, Flow: "root"})
	must(t, err)
	good.Write(append(hello, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0))
	expect(Accepted, "", "mover://acme/db1", true)
	expect(Ended, wire.KindProtocol, "mover://acme/db1", true)
	good.Close()
}

// TestPolicy: what the policy does not allow neither opens a link nor a pass; what it stops to allow ends.
func TestPolicy(t *testing.T) {
	var w witness
	var mu sync.Mutex
	limit := Ask{Conns: 9, Flows: 1, Total: 100 * leafSize}
	deny := ""
	r := newRig(t, func(c *Config) {
		c.Audit = w.hear
		c.Flows = []FlowConfig{{Tenant: "acme", Host: "db1", Name: "root", Target: "/t/a"}, {Tenant: "acme", Host: "db1", Name: "data", Target: "/t/b"},
			{Tenant: "acme", Host: "db2", Name: "root", Target: "/t/c"}}
		c.Policy = func(a Ask) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.Tenant+"/"+a.Host+"/"+a.Flow == deny:
				return fmt.Errorf("policy: %s is not allowed: %w", a.Target, sentinel.ErrDenied)
			case a.Total > limit.Total:
				return fmt.Errorf("policy: %d bytes: %w", a.Total, sentinel.ErrDenied)
			case a.Flows > limit.Flows:
				return fmt.Errorf("policy: %d flows: %w", a.Flows, sentinel.ErrDenied)
			case a.Conns > limit.Conns:
				return &wire.Error{Code: wire.CodeBusy, Text: "policy: connections"}
			}
			return nil
		}
	})
	set := func(f func()) { mu.Lock(); f(); mu.Unlock() }
	big := randomSrc(101*leafSize, 1)
	c := r.mustDial("root")
	_, err := c.open(big, big.newPass(mover.Full, big.whole(64)...))
	wantError(t, err, sentinel.ErrDenied, "policy: ")
	c.close()
	if got := r.s.flows["acme/db1/root"].record(); got.Volume.Size != 0 {
		t.Errorf("a refused volume is recorded: %+v", got.Volume)
	}
	s := randomSrc(64*leafSize, 2)
	c = r.mustDial("root")
	r.first(c, s)
	r.settled("acme/db1/root")

	// Its second flow is one too many; then its volume.
	wantError(t, r.mustDialOr("data"), sentinel.ErrDenied, "policy: 2 flows")
	set(func() { limit.Flows = 2 })
	e := r.mustDial("data")
	over := randomSrc(37*leafSize, 3)
	_, err = e.open(over, over.newPass(mover.Full, over.whole(64)...))
	wantError(t, err, sentinel.ErrDenied, "policy: ")
	e.close()
	e = r.mustDial("data")
	fits := randomSrc(36*leafSize, 3)
	r.first(e, fits)
	r.settled("acme/db1/data")
	left := func() { // connections that were refused leave when their peer has read why
		for n := 0; n != 2; {
			time.Sleep(time.Millisecond)
			r.s.mu.Lock()
			n = r.s.hosts["acme/db1"]
			r.s.mu.Unlock()
		}
	}
	left()
	set(func() { limit.Conns = 2 })
	wantError(t, r.mustDialOr("data"), nil, "policy: connections") // the host's third
	left()
	other, err := r.dialAs("acme", "db2", newID(), "root")
	must(t, err)

	// The policy changes below live links: the flow that it names ends, the host's other one and other hosts go on.
	set(func() { deny = "acme/db1/root" })
	if n := r.s.Enforce(); n != 1 {
		t.Errorf("%d links were ended", n)
	}
	wantError(t, c.last(), sentinel.ErrDenied, "is not allowed")
	if _, err := e.run(fits, fits.newPass(mover.Delta, batch{leaves: []int64{1}})); err != nil {
		t.Error(err)
	}
	if _, err := other.run(fits, fits.newPass(mover.Full, fits.whole(64)...)); err != nil {
		t.Error(err)
	}
	set(func() { limit.Conns = 9 })
	wantError(t, r.mustDialOr("root"), sentinel.ErrDenied, "is not allowed")
	policy := 0
	w.mu.Lock()
	for _, e := range w.all {
		if e.Kind == KindPolicy && e.Proven && e.Err != nil && (e.Did == Refused || e.Did == Ended) {
			policy++
		}
	}
	w.mu.Unlock()
	if policy < 5 {
		t.Errorf("%d events of the policy in %+v", policy, w.all)
	}
}

func (r *rig) mustDialOr(flow string) error {
	_, err := r.dial(newID(), flow)
	return err
}

func wantError(t *testing.T, err, is error, text string) {
	t.Helper()
	if err == nil || is != nil && !errors.Is(err, is) || !bytes.Contains([]byte(err.Error()), []byte(text)) {
		t.Errorf("error %v, want %v with %q", err, is, text)
	}
}

// TestFullGateway: hosts that are known may fill the gateway's connections; strangers cannot.
func TestFullGateway(t *testing.T) {
	r := newRig(t, twoFlows, func(c *Config) { c.Conns = 1 })
	var held []net.Conn
	for range 300 {
		nc, err := net.Dial("tcp", r.addr)
		must(t, err)
		held = append(held, nc)
	}
	r.mustDial("root")
	_, err := r.dialAs("acme", "db2", newID(), "root")
	wantError(t, err, nil, "connections already")
	for _, nc := range held {
		nc.Close()
	}
}
