package receiver

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/shape"
	"github.com/moverd/mover/wire"
)

const straightRate = 10 << 20

func straightRig(t *testing.T, change ...func(*Config)) *rig {
	return newRig(t, append([]func(*Config){func(c *Config) {
		c.Straight = []StraightConfig{{"acme", "db1", "photos"}, {"acme", "db1", "films"}}
		c.Lines = []LineConfig{{Name: "idc", Shape: shape.LineConfig{Timetable: shape.Timetable{Rate: straightRate}}}}
	}}, change...)...)
}

func (r *rig) lease(flow string) (*client, error) {
	return r.dialWith("acme", "db1", newID(), flow, wire.CapZstd|wire.CapShape|wire.CapLease)
}

// granted asks for all there is until the lease is at least rate.
func (c *client) granted(t *testing.T, class uint8, rate uint64) wire.Grant {
	t.Helper()
	var g wire.Grant
	for end := time.Now().Add(5 * time.Second); ; {
		must(t, c.wc.Write(wire.TypeDemand, 0, &wire.Demand{Class: class, Serial: g.Serial, Want: wire.MaxSize}))
		f, err := c.wc.ReadFrame(nil)
		must(t, err)
		if f.Type != wire.TypeGrant {
			t.Fatalf("%v instead of GRANT", f.Type)
		}
		must(t, g.Decode(f.Payload))
		if g.Rate >= rate {
			must(t, c.wc.Write(wire.TypeDemand, 0, &wire.Demand{Class: class, Serial: g.Serial, Want: wire.MaxSize}))
			return g
		}
		if time.Now().After(end) {
			t.Fatalf("granted %+v", g)
		}
	}
}

// What was granted and not told counts as sent; what is told takes its place; and what a lease that is lost still lets through counts.
func TestGrantedCountsAsSent(t *testing.T) {
	r := straightRig(t)
	c, err := r.lease("photos")
	must(t, err)
	if w := c.welcome; w.Capabilities&(wire.CapShape|wire.CapLease) != wire.CapShape|wire.CapLease {
		t.Fatalf("capabilities %#x", w.Capabilities)
	}
	g := c.granted(t, 1, straightRate*9/10)
	if g.Line != "idc" || g.Safe == 0 || g.Safe > straightRate/3 {
		t.Errorf("granted %+v", g)
	}
	began, before := time.Now(), r.s.Lines()[0].MonthBytes
	time.Sleep(300 * time.Millisecond)
	l := r.s.Lines()[0]
	if d := time.Since(began).Seconds() * straightRate; float64(l.MonthBytes-before) < 0.25*straightRate || float64(l.MonthBytes-before) > d*1.1 {
		t.Errorf("%d bytes count within %v of a lease of %d", l.MonthBytes-before, time.Since(began), g.Rate)
	}
	if len(l.Leases) != 1 || l.Leases[0].Flow != "acme/db1/photos" || !l.Leases[0].Past || l.Leases[0].Class != "bulk" {
		t.Errorf("leases %+v", l.Leases)
	}
	// The lease is given back, and told is less than what counted.
	must(t, c.wc.Write(wire.TypeDemand, 0, &wire.Demand{Serial: g.Serial}))
	none := func() bool {
		l := r.s.Lines()[0]
		return len(l.Leases) == 1 && l.Leases[0].Rate == 0
	}
	serial := g.Serial
	for !none() || serial == g.Serial {
		f, err := c.wc.ReadFrame(nil)
		must(t, err)
		var n wire.Grant
		must(t, n.Decode(f.Payload))
		serial = n.Serial
	}
	must(t, c.wc.Write(wire.TypeDemand, 0, &wire.Demand{Serial: serial}))
	told := int64(1 << 20)
	must(t, c.wc.Write(wire.TypeSpent, 0, &wire.Spent{Bytes: uint64(told)}))
	small := int64(64 << 10) // frames of this connection
	eventually(t, "what was told", func() bool {
		n := r.s.Lines()[0].MonthBytes
		return n >= told && n <= told+small
	})
	must(t, c.wc.Write(wire.TypeSpent, 0, &wire.Spent{Bytes: 5 << 20}))
	eventually(t, "more than was granted", func() bool { return r.s.Lines()[0].MonthBytes >= told+5<<20 })

	c.granted(t, 2, straightRate*9/10)
	before = r.s.Lines()[0].MonthBytes
	c.close()
	eventually(t, "the end of the lease", func() bool { return len(r.s.Lines()[0].Leases) == 0 })
	if n := r.s.Lines()[0].MonthBytes - before; float64(n) < 0.5*straightRate || float64(n) > 2.5*straightRate {
		t.Errorf("%d bytes count when a lease of %d is lost", n, straightRate)
	}
}

// Only named flows of the certificate's host have leases, and such a connection carries nothing else. Where lines are not configured everybody hears that nothing
// is held back.
func TestLeaseIsForNamedFlows(t *testing.T) {
	r := straightRig(t)
	if _, err := r.lease("others"); !errors.Is(err, sentinel.ErrDenied) || !strings.Contains(err.Error(), `flow "others" of acme/db1 may have no lease`) {
		t.Errorf("a flow that is not named: %v", err)
	}
	if _, err := r.dialWith("acme", "db2", newID(), "photos", wire.CapZstd|wire.CapLease); !errors.Is(err, sentinel.ErrDenied) {
		t.Errorf("another host: %v", err)
	}
	for name, m := range map[string]wire.Message{"STATE": &wire.State{}, "OPEN": &wire.Open{Pass: newID(), Generation: newID(), Epoch: 1, Kind: 1, Consistency: 1, VolumeSize: 1 << 20, BlockSize: 512, LeafSize: 16384}} {
		c, err := r.lease("photos")
		must(t, err)
		must(t, c.wc.Write(wire.TypeOf(m), 1, m))
		for err == nil {
			_, err = c.wc.ReadFrame(nil)
		}
		if !errors.Is(err, sentinel.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, err := r.lease("photos") // workers of one flow each have theirs: none fences another
	must(t, err)
	b, err := r.lease("photos")
	must(t, err)
	a.granted(t, 1, 1)
	b.granted(t, 1, 1)

	free := newRig(t)
	c, err := free.lease("anything")
	must(t, err)
	if c.welcome.Capabilities&wire.CapShape != 0 || c.welcome.Capabilities&wire.CapLease == 0 {
		t.Errorf("capabilities %#x without lines", c.welcome.Capabilities)
	}
}

// A lease ends with the certificate and with the policy that let it in, and the peer hears why; so it does when the gateway stops.
func TestLeaseEndsWithItsRight(t *testing.T) {
	allowed := true
	r := straightRig(t, func(c *Config) {
		c.Policy = func(a Ask) error {
			if !a.Lease || a.Conns == 0 {
				t.Errorf("asked %+v", a)
			}
			if !allowed {
				return sentinel.ErrDenied
			}
			return nil
		}
	})
	ended := func(c *client, code uint16) {
		t.Helper()
		var err error
		for err == nil {
			_, err = c.wc.ReadFrame(nil)
		}
		if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != code {
			t.Errorf("ended by %v, want code %d", err, code)
		}
	}
	c, err := r.lease("photos")
	must(t, err)
	if n := r.s.Judge(func(*x509.Certificate) error { return sentinel.ErrDenied }); n != 1 {
		t.Errorf("%d connections judged", n)
	}
	ended(c, wire.CodeDenied)
	eventually(t, "it is gone", func() bool { return len(r.s.leasing()) == 0 })
	c, err = r.lease("photos")
	must(t, err)
	allowed = false
	if n := r.s.Enforce(); n != 1 {
		t.Errorf("%d connections enforced", n)
	}
	ended(c, wire.CodeDenied)
	allowed = true
	eventually(t, "it is gone", func() bool { return len(r.s.leasing()) == 0 })
	c, err = r.lease("films")
	must(t, err)
	r.clients = nil
	closed := make(chan error)
	go func() { closed <- r.s.Close() }()
	ended(c, wire.CodeStopping)
	c.close()
	must(t, <-closed)
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.s = nil
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 5 s", what)
		}
	}
}
