package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moverd/mover/wire"
)

// wrongKind is one way of being wrong. do speaks over nc until the peer has ended it; its error is something that a peer must not get.
type wrongKind struct {
	name string
	ca   bool // it goes to the CA's server
	do   func(ctx context.Context, nc net.Conn) error
}

// attack makes wrong connections and counts them.
type attack struct {
	r     *wrongRig
	kinds []wrongKind
	next  atomic.Uint64
	gw    atomic.Int64 // that reached the gateway
	ca    atomic.Int64

	mu  sync.Mutex // guards all below
	bad map[string]int
}

const patience = 20 * time.Second // of a wrong peer

func newAttack(r *wrongRig) *attack {
	a := &attack{r: r, bad: map[string]int{}}
	pair := func(dir, name string) *tls.Certificate {
		c, err := tls.LoadX509KeyPair(filepath.Join(r.path(dir), name+".pem"), filepath.Join(r.path(dir), name+".key"))
		if err != nil {
			panic(err) // made just now
		}
		return &c
	}
	hello := func(flow string) []byte {
		var link [16]byte
		crand.Read(link[:])
		b, err := wire.AppendFrame(nil, 0, &wire.Hello{MinVersion: 1, MaxVersion: 1, Capabilities: wire.CapZstd, Link: link, Conn: 0, Flow: flow, Agent: "wrong"})
		if err != nil {
			panic(err)
		}
		return b
	}
	asks := func(c *tls.Certificate, flow string) func(context.Context, net.Conn) error {
		return func(ctx context.Context, nc net.Conn) error { return speak(ctx, nc, client(c), hello(flow), false) }
	}
	web1, web2, web6 := pair("pki", "web1"), pair("pki", "web2"), pair("pki", "web6")
	a.kinds = []wrongKind{
		{name: "no certificate", do: asks(nil, "disk")},
		{name: "foreign CA", do: asks(pair("foreign", "web1"), "disk")},
		{name: "foreign tenant", do: asks(pair("evil", "web1"), "disk")},
		{name: "foreign host", do: asks(web2, "disk")},
		{name: "other host's flow", do: asks(web1, "secret")},
		{name: "unclaimed target", do: asks(web2, "secret")},
		{name: "revoked", do: asks(pair("pki", "web3"), "disk")},
		{name: "expired", do: asks(pair("pki", "web4"), "disk")},
		{name: "refused by policy", do: asks(pair("pki", "web5"), "refused")},
		{name: "gateway's certificate", do: asks(pair("pki", "gw"), "disk")},
		{name: "TLS 1.2", do: func(ctx context.Context, nc net.Conn) error {
			c := client(web2)
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return speak(ctx, nc, c, nil, false)
		}},
		{name: "wrong ALPN", do: func(ctx context.Context, nc net.Conn) error {
			c := client(web2)
			c.NextProtos = []string{"h2"}
			return speak(ctx, nc, c, nil, false)
		}},
		{name: "plain text", do: func(_ context.Context, nc net.Conn) error { return shout(nc, hello("disk")) }},
		{name: "random bytes", do: func(_ context.Context, nc net.Conn) error {
			b := make([]byte, 1+rand.IntN(2000))
			crand.Read(b)
			if rand.IntN(2) == 0 && len(b) > 5 {
				copy(b, []byte{22, 3, 1, 0, byte(len(b))}) // looks like a record of TLS
			}
			return shout(nc, b)
		}},
		{name: "fuzzed hello", do: func(ctx context.Context, nc net.Conn) error {
			b := hello("disk")
			for range 1 + rand.IntN(8) {
				b[rand.IntN(len(b))] = byte(rand.Uint32())
			}
			return speak(ctx, nc, client(web2), b[:1+rand.IntN(len(b))], false)
		}},
		{name: "oversize hello", do: func(ctx context.Context, nc net.Conn) error {
			b := hello("disk")
			binary.BigEndian.PutUint32(b, 1<<31)
			return speak(ctx, nc, client(web2), b, false)
		}},
		{name: "oversize frame", do: func(ctx context.Context, nc net.Conn) error {
			b := append(hello("own"), 0xff, 0xff, 0xff, 0xff, byte(wire.TypePut), 0, 0, 0, 0, 0, 0, 1)
			return speak(ctx, nc, client(web6), b, true)
		}},
		{name: "truncated frame", do: func(ctx context.Context, nc net.Conn) error {
			b := append(hello("own"), 0, 0, 0x40, 0, byte(wire.TypePut), 0, 0, 0, 0, 0, 0, 1, 1, 2, 3)
			return speak(ctx, nc, client(web6), b, true)
		}},
		{name: "silent", do: func(ctx context.Context, nc net.Conn) error {
			defer context.AfterFunc(ctx, func() { nc.Close() })() // when its phase ends; else when the gateway has had enough
			return quiet(nc)
		}},
		{name: "silent behind the handshake", do: func(ctx context.Context, nc net.Conn) error {
			t := tls.Client(nc, client(web2))
			if err := t.HandshakeContext(ctx); err != nil {
				return nil
			}
			defer context.AfterFunc(ctx, func() { nc.Close() })()
			return answers(t, false)
		}},
		{name: "closes at once", do: func(context.Context, net.Conn) error { return nil }},
		{name: "replayed token", ca: true, do: a.replay},
	}
	return a
}

// client is a source's end of TLS that checks nothing.
func client(c *tls.Certificate) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN}, MinVersion: tls.VersionTLS12}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c == nil {
			return &tls.Certificate{}, nil
		}
		return c, nil
	}
	return cfg
}

// speak shakes hands, says b, hangs up its half and looks at the answers. A peer with a flow of its own hears WELCOME about that.
func speak(ctx context.Context, nc net.Conn, cfg *tls.Config, b []byte, own bool) error {
	t := tls.Client(nc, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil // refused
	}
	if cfg.MaxVersion == tls.VersionTLS12 || cfg.NextProtos[0] != wire.ALPN {
		return errors.New("the handshake was taken")
	}
	t.Write(b)
	t.CloseWrite()
	return answers(t, own)
}

// answers reads to the end. Only ERROR may come, and where the peer has a flow, WELCOME and keepalives, which Conn takes for itself.
func answers(t *tls.Conn, own bool) error {
	c := wire.NewConn(t)
	for {
		f, err := c.ReadFrame(nil)
		switch {
		case errors.As(err, new(*wire.Error)), err != nil:
			return nil
		case own && f.Type == wire.TypeWelcome:
		default:
			return fmt.Errorf("the gateway answered with %v", f.Type)
		}
	}
}

// shout says b without TLS. What comes back is an alert of TLS, a record of its handshake, or an answer for browsers.
func shout(nc net.Conn, b []byte) error {
	nc.Write(b)
	nc.(*net.TCPConn).CloseWrite()
	return quiet(nc)
}

func quiet(nc net.Conn) error {
	got, _ := io.ReadAll(io.LimitReader(nc, 64<<10))
	if len(got) > 0 && got[0] != 21 && got[0] != 22 || len(got) > 4096 {
		return fmt.Errorf("the gateway answered %d bytes: %.40q", len(got), got)
	}
	return nil
}

// replay asks the CA for a certificate with a token that was used.
func (a *attack) replay(ctx context.Context, nc net.Conn) error {
	t := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mover-enrol/1"}, MinVersion: tls.VersionTLS13})
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("the CA does not answer: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return err
	}
	name := &url.URL{Scheme: "mover", Host: "demo", Path: "/web7"}
	request, err := x509.CreateCertificateRequest(crand.Reader, &x509.CertificateRequest{URIs: []*url.URL{name}}, key)
	if err != nil {
		return err
	}
	q, err := json.Marshal(map[string]any{"do": "enrol", "token": a.r.token, "request": request})
	if err != nil {
		return err
	}
	t.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(q))), q...))
	t.CloseWrite()
	got, _ := io.ReadAll(io.LimitReader(t, 64<<10))
	var answer struct {
		Error    string
		Cert, CA []byte
	}
	if len(got) < 4 || json.Unmarshal(got[4:], &answer) != nil || answer.Error == "" || len(answer.Cert) > 0 || len(answer.CA) > 0 {
		return fmt.Errorf("the CA answered %.80q", got)
	}
	return nil
}

// one makes one wrong connection, from one of 200 addresses.
func (a *attack) one(ctx context.Context, k wrongKind) {
	n := a.next.Add(1)
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, byte(n/50%4), byte(1+n%50))}}
	addr, count := a.r.addr, &a.gw
	if k.ca {
		addr, count = a.r.caAddr, &a.ca
	}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		a.wrong(fmt.Sprintf("%s: %v", k.name, err))
		return
	}
	defer nc.Close()
	count.Add(1)
	nc.SetDeadline(time.Now().Add(patience))
	if err := k.do(ctx, nc); err != nil && ctx.Err() == nil {
		a.wrong(k.name + ": " + err.Error())
	}
}

func (a *attack) wrong(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.bad) < 100 {
		a.bad[text]++
	}
}

// clean tells what any of them got that it must not get.
func (a *attack) clean() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.bad) > 0 {
		return fmt.Errorf("wrong connections got what they must not get: %v", a.bad)
	}
	return nil
}

// reached is how many connections there were, to the gateway and to the CA.
func (a *attack) reached() (gw, ca int) { return int(a.gw.Load()), int(a.ca.Load()) }

// burst makes n connections of each kind as fast as they are answered; those that wait are many at once.
func (a *attack) burst(ctx context.Context, n int) error {
	slots := make(chan struct{}, 192)
	var all sync.WaitGroup
	for range n {
		for _, k := range a.kinds {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				all.Wait()
				return ctx.Err()
			}
			all.Go(func() {
				a.one(ctx, k)
				<-slots
			})
		}
	}
	all.Wait()
	return nil
}

// paced makes perSecond connections of all kinds in turn until ctx ends, and waits for them.
func (a *attack) paced(ctx context.Context, perSecond int) error {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for i := rand.IntN(len(a.kinds)); ; i++ {
		select {
		case <-tick.C:
			all.Go(func() { a.one(ctx, a.kinds[i%len(a.kinds)]) })
		case <-ctx.Done():
			return nil
		}
	}
}
