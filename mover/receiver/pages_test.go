package receiver

import (
	"bytes"
	"errors"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

func threeFlows(c *Config) {
	twoFlows(c)
	c.Flows = append(c.Flows, FlowConfig{Tenant: "acme", Host: "db1", Name: "data", Target: "/t/d"})
}

// shifted is a volume with the content of s that begins by so many pages later.
func shifted(s *src, by int, id string) *src {
	x := randomSrc(int64(len(s.b)), 99)
	x.id = id
	copy(x.b[by*pageSize:], s.b)
	return x
}

// overZeros makes the target hold zeros, and returns a delta that brings all of x.
func overZeros(t *testing.T, c *client, x *src) *spass {
	base := newSrc(int64(len(x.b)))
	base.id, base.gen = x.id, x.gen
	_, err := c.run(base, base.newPass(mover.Full, base.whole(256)...))
	must(t, err)
	x.ep = base.ep
	return x.newPass(mover.Delta, x.whole(256)...)
}

// TestPagesShifted: what lies on other multiples of 4 KiB is found, whatever the offset, in a direct and in a staged pass; the leaf in which it begins is
// made of both. Another host, or tenant, finds nothing of it.
func TestPagesShifted(t *testing.T) {
	for by := 1; by <= 3; by++ {
		r := newRig(t, threeFlows)
		s := randomSrc(2*groupSize, 1)
		r.first(r.mustDial("root"), s)
		x := shifted(s, by, "vol-d")
		c := r.dialPages("acme", "db1", "data")
		p := overZeros(t, c, x)
		if p.est = 1; by == 2 {
			p.est = 1 << 40
		}
		mode, err := c.run(x, p)
		must(t, err)
		if want := map[bool]mover.Mode{true: mover.Direct, false: mover.Staged}[by == 2]; mode != want {
			t.Errorf("pass by %d is %v", by, mode)
		}
		// Around the end of the first batch's finds nothing is known to lie near; all else is found.
		tot := p.total()
		if tot.Copied < 500 || tot.Copied+tot.Sent != 512 || tot.Sent < 1 {
			t.Errorf("by %d pages: %+v", by, tot)
		}
		r.settled("acme/db1/data")
		if !bytes.Equal(r.content("/t/d", int64(len(x.b))), x.b) {
			t.Fatalf("by %d pages: the target differs", by)
		}
		m := r.s.Metrics()
		if m.PagesFound < 2000 || m.PageMismatches != 0 {
			t.Errorf("%+v", m)
		}
		for _, who := range [][2]string{{"acme", "db2"}, {"evil", "db1"}} {
			y := shifted(s, by, "vol-"+who[0])
			c := r.dialPages(who[0], who[1], "root")
			p := y.newPass(mover.Full, y.whole(256)...)
			_, err := c.run(y, p)
			must(t, err)
			if tot := p.total(); tot.Copied != 0 {
				t.Errorf("%v has found pages of another host: %+v", who, tot)
			}
			if r.s.Metrics().PagesFound != m.PagesFound {
				t.Errorf("%v: pages of another host were looked at", who)
			}
		}
	}
}

// TestPagesOfTenant: with that scope hosts of a tenant find each other's pages, and other tenants do not.
func TestPagesOfTenant(t *testing.T) {
	r := newRig(t, twoFlows, func(c *Config) { c.TenantDedup = true })
	s := randomSrc(groupSize, 1)
	r.first(r.mustDial("root"), s)
	for _, who := range [][2]string{{"acme", "db2"}, {"evil", "db1"}} {
		x := shifted(s, 1, "vol-"+who[0])
		p := x.newPass(mover.Full, x.whole(256)...)
		_, err := r.dialPages(who[0], who[1], "root").run(x, p)
		must(t, err)
		if tot := p.total(); (tot.Copied > 250) != (who[0] == "acme") {
			t.Errorf("%v: %+v", who, tot)
		}
	}
}

// mixed has one page of its own in each leaf, so that all leaves are made of found pages and sent ones.
func mixed(s *src) *src {
	x := shifted(s, 1, "vol-d")
	for at := 0; at < len(x.b); at += leafSize {
		fill(x.b[at+pageSize:at+2*pageSize], uint64(at/leafSize)+1000)
	}
	return x
}

// TestPagesStale: what was found is overwritten before DATA comes, then all of it has changed: the batch is offered again, whole, and the target is right.
func TestPagesStale(t *testing.T) {
	for _, est := range []uint64{1, 1 << 40} {
		r := newRig(t, threeFlows)
		s := randomSrc(groupSize, 1)
		r.first(r.mustDial("root"), s)
		x := mixed(s)
		c := r.dialPages("acme", "db1", "data")
		p := overZeros(t, c, x)
		p.est = est
		o, err := c.open(x, p)
		must(t, err)
		c.prints = func(plain []byte) []uint64 {
			ps := truth(plain)
			must(t, c.askSeq(1, wire.TypePrints, &wire.Prints{Prints: ps}, &c.pages))
			junk := make([]byte, groupSize)
			fill(junk, 5)
			_, err := r.medium("/t/a").crash.WriteAt(junk, 0)
			must(t, err)
			return nil
		}
		must(t, c.sendPages(x, p))
		must(t, c.rest(x, p, o))
		if c.agains != 1 || p.total().Sent != 256 {
			t.Errorf("%d times again: %+v", c.agains, p.total())
		}
		r.settled("acme/db1/data")
		if !bytes.Equal(r.content("/t/d", int64(len(x.b))), x.b) {
			t.Fatal("the target differs")
		}
		// The prints are stale now for all that come later: nothing is found, nothing goes wrong.
		c.prints = truth
		y := &src{b: bytes.Clone(s.b), id: x.id, gen: x.gen, ep: x.ep}
		must(t, c.again(y))
		r.settled("acme/db1/data")
		if !bytes.Equal(r.content("/t/d", int64(len(y.b))), y.b) {
			t.Fatal("the target differs from what came later")
		}
	}
}

// sendPages sends the first batch by the book, with c.prints doing what it likes after PAGES.
func (c *client) sendPages(s *src, p *spass) error {
	c.s, c.p = s, p
	o := &wire.Offer{Runs: []wire.Run{{First: 0, N: 256}}, Digests: chunker.Digests(s.b, nil)}
	var need wire.Need
	if err := c.askSeq(1, wire.TypeOffer, o, &need); err != nil {
		return err
	}
	if need.Flags != wire.FlagPrints {
		return errors.New("prints were not asked for")
	}
	c.prints(s.b)
	c.prints = nil
	var plain []byte
	for i := range int(c.pages.N) {
		if wire.Bit(c.pages.Bitmap, i) {
			plain = append(plain, s.b[i*pageSize:(i+1)*pageSize]...)
		}
	}
	if len(plain) == 0 || len(plain) > len(s.b)/2 {
		return errors.New("not made of both")
	}
	return c.bulk(wire.TypeData, 1, &wire.Data{Plain: uint32(len(plain)), Payload: plain})
}

// again sends a delta of everything.
func (c *client) again(s *src) error {
	_, err := c.run(s, s.newPass(mover.Delta, s.whole(256)...))
	return err
}

// TestPagesLie: prints of pages that are there, of which the leaves are not made. Leaves that would be found wholly are needed at once, others make the batch
// be offered again, and what arrives is what the source has.
func TestPagesLie(t *testing.T) {
	for name, every := range map[string]int{"wholly": 1, "in part": 3} {
		r := newRig(t, threeFlows)
		s := randomSrc(groupSize, 1)
		r.first(r.mustDial("root"), s)
		x := randomSrc(groupSize, 7)
		x.id = "vol-d"
		c := r.dialPages("acme", "db1", "data")
		lie := truth(s.b)
		c.prints = func(plain []byte) []uint64 {
			ps := truth(plain)
			for i := range ps {
				if i%4 < 4/every {
					ps[i] = lie[(i+8)%len(lie)]
				}
			}
			return ps
		}
		p := x.newPass(mover.Full, x.whole(256)...)
		_, err := c.run(x, p)
		must(t, err)
		if (c.agains == 1) != (every > 1) || p.total().Sent != 256 || r.s.Metrics().PageMismatches == 0 {
			t.Errorf("%s: again %d times, %+v", name, c.agains, p.total())
		}
		r.settled("acme/db1/data")
		if !bytes.Equal(r.content("/t/d", groupSize), x.b) {
			t.Fatalf("%s: the target differs", name)
		}
	}
}

// TestPagesProtocol: prints out of place end the connection, and nothing else.
func TestPagesProtocol(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize+512, 1) // a short page at the end
	for name, do := range map[string]func(c *client) error{
		"no offer": func(c *client) error {
			return c.askSeq(1, wire.TypePrints, &wire.Prints{Prints: []uint64{1}}, &c.pages)
		},
		"too many": func(c *client) error {
			c.prints = func(plain []byte) []uint64 { return append(truth(plain), 1) }
			return c.send(s, s.newPass(mover.Full, s.whole(256)...), 0)
		},
		"too few": func(c *client) error {
			c.prints = func(plain []byte) []uint64 { return truth(plain)[1:] }
			return c.send(s, s.newPass(mover.Full, s.whole(256)...), 0)
		},
		"twice": func(c *client) error {
			c.prints = func(plain []byte) []uint64 {
				must(t, c.askSeq(1, wire.TypePrints, &wire.Prints{Prints: truth(plain)}, &c.pages))
				return truth(plain)
			}
			return c.send(s, s.newPass(mover.Full, s.whole(256)...), 0)
		},
		"zeros in a short page": func(c *client) error { // which is not 4 KiB of zeros, whatever its print says
			c.prints = func(plain []byte) []uint64 {
				ps := truth(make([]byte, len(plain)))
				ps[len(ps)-1] = ps[0]
				return ps
			}
			if err := c.send(s, s.newPass(mover.Full, s.whole(256)...), 0); err != nil {
				return err
			}
			return c.waitAcks(1)
		},
	} {
		fill(s.b, uint64(len(name))) // nothing of it is there yet
		c := r.dialPages("acme", "db1", "root")
		_, err := c.open(s, s.newPass(mover.Full, s.whole(256)...))
		must(t, err)
		err = do(c)
		if ok := name == "zeros in a short page"; ok != (err == nil) || !ok && !errors.Is(err, sentinel.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
		c.close()
	}
	c := r.dialPages("acme", "db1", "root")
	_, err := c.run(s, s.newPass(mover.Full, s.whole(256)...))
	must(t, err)
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("the target differs")
	}
}
