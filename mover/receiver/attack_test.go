package receiver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

func twoFlows(c *Config) {
	c.Flows = []FlowConfig{{Tenant: "acme", Host: "db1", Name: "root", Target: "/t/a"}, {Tenant: "acme", Host: "db2", Name: "root", Target: "/t/b"},
		{Tenant: "evil", Host: "db1", Name: "root", Target: "/t/c"}}
}

func randomSrc(size int64, seed uint64) *src {
	s := newSrc(size)
	fill(s.b, seed)
	return s
}

// first makes a point of s at the gateway.
func (r *rig) first(c *client, s *src) {
	r.t.Helper()
	_, err := c.run(s, s.newPass(mover.Full, s.whole(64)...))
	must(r.t, err)
}

// last returns the error with which the gateway ends the connection.
func (c *client) last() error {
	_, err := c.next()
	return err
}

func (r *rig) settled(key string) {
	r.t.Helper()
	must(r.t, r.s.flows[key].settled(context.Background(), nil))
}

func TestDedup(t *testing.T) {
	r := newRig(t, twoFlows, func(c *Config) { c.TenantDedup = true })
	s := randomSrc(300*leafSize, 1)
	r.first(r.mustDial("root"), s)
	same := &src{b: bytes.Clone(s.b), id: "vol-2", gen: newID()}

	// Another flow of the tenant sends nothing, another tenant everything.
	c, err := r.dialAs("acme", "db2", newID(), "root")
	must(t, err)
	p := same.newPass(mover.Full, same.whole(100)...)
	_, err = c.run(same, p)
	must(t, err)
	if tot := p.total(); tot.Copied != 300 || tot.Sent != 0 {
		t.Fatalf("counts %+v", tot)
	}
	evil := &src{b: bytes.Clone(s.b), id: "vol-3", gen: newID()}
	c, err = r.dialAs("evil", "db1", newID(), "root")
	must(t, err)
	p = evil.newPass(mover.Full, evil.whole(100)...)
	_, err = c.run(evil, p)
	must(t, err)
	if tot := p.total(); tot.Copied != 0 || tot.Sent != 300 {
		t.Fatalf("another tenant's content was used: %+v", tot)
	}
	root, err := c.readBack(wire.ScopeAll)
	must(t, err)
	if root.Digest != s.root(r, nil) {
		t.Fatal("roots differ")
	}

	// Stale candidates: the bytes change below the index; they must be needed, staged and direct.
	for _, path := range []string{"/t/a", "/t/b"} {
		if _, err := r.medium(path).crash.WriteAt(make([]byte, 100*leafSize), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, est := range []uint64{1, 1 << 50} {
		c, err = r.dialAs("acme", "db2", newID(), "root")
		must(t, err)
		copy(same.b[200*leafSize:], s.b[50*leafSize:150*leafSize])
		fill(same.b[200*leafSize:201*leafSize], est)
		b := batch{}
		for l := range int64(100) {
			b.leaves = append(b.leaves, 200+l)
		}
		p = same.newPass(mover.Delta, b)
		p.est = est
		mode, err := c.run(same, p)
		must(t, err)
		if want := map[uint64]mover.Mode{1: mover.Staged, 1 << 50: mover.Direct}[est]; mode != want {
			t.Fatalf("mode %v", mode)
		}
		if est == 1 && (p.total().Sent < 50 || p.total().Copied < 40) {
			t.Fatalf("counts %+v", p.total())
		}
		r.settled("acme/db2/root")
		if got := r.content("/t/b", int64(len(same.b))); !bytes.Equal(got[200*leafSize:], same.b[200*leafSize:]) {
			t.Fatal("copied leaves are wrong")
		}
	}
	if r.s.Metrics().DedupMismatches == 0 {
		t.Fatal("stale candidates were not met")
	}
}

// TestLies sends what must never reach a target (C7), counts that are wrong, and things out of place.
func TestLies(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize, 1)
	r.first(r.mustDial("root"), s)
	r.settled("acme/db1/root")
	old := r.content("/t/a", int64(len(s.b)))
	offer := func(c *client, p *spass) {
		t.Helper()
		_, err := c.open(s, p)
		must(t, err)
		var need wire.Need
		d := digest.Sum(make([]byte, 7))
		must(t, c.askSeq(1, wire.TypeOffer, &wire.Offer{Runs: []wire.Run{{First: 5, N: 1}}, Digests: []digest.Digest{d}}, &need))
		if need.Bitmap[0] != 1 {
			t.Fatal("not needed")
		}
	}
	leaf := make([]byte, leafSize)
	zstd, _ := codec.Compress(nil, leaf, chunker.Fastest)
	for name, do := range map[string]func(c *client, p *spass) error{
		"wrong data": func(c *client, p *spass) error {
			offer(c, p)
			return c.wc.Write(wire.TypeData, 1, &wire.Data{Plain: leafSize, Payload: leaf})
		},
		"wrong zstd data": func(c *client, p *spass) error {
			offer(c, p)
			return c.wc.Write(wire.TypeData, 1, &wire.Data{Codec: 1, Plain: leafSize, Payload: zstd})
		},
		"no zstd": func(c *client, p *spass) error {
			offer(c, p)
			return c.wc.Write(wire.TypeData, 1, &wire.Data{Codec: 1, Plain: leafSize, Payload: leaf[:99]})
		},
		"too little data": func(c *client, p *spass) error {
			offer(c, p)
			return c.wc.Write(wire.TypeData, 1, &wire.Data{Plain: 512, Payload: leaf[:512]})
		},
		"data of nothing": func(c *client, p *spass) error {
			offer(c, p)
			return c.wc.Write(wire.TypeData, 2, &wire.Data{Plain: 512, Payload: leaf[:512]})
		},
		"offer behind end": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			return c.wc.Write(wire.TypeOffer, 1, &wire.Offer{Runs: []wire.Run{{First: 63, N: 2}}, Digests: make2(digest.Free)})
		},
		"put behind end": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			return c.wc.Write(wire.TypePut, 1, &wire.Put{Items: []wire.Item{{Kind: wire.ItemZero, Off: 63 * leafSize, Len: 2 * leafSize}}, Digest: digest.Sum(nil)})
		},
		"put unaligned": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			return c.wc.Write(wire.TypePut, 1, &wire.Put{Items: []wire.Item{{Kind: wire.ItemZero, Off: 100, Len: 512}}, Digest: digest.Sum(nil)})
		},
		"put with a wrong digest": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			return c.wc.Write(wire.TypePut, 1, &wire.Put{Items: []wire.Item{{Kind: wire.ItemData, Off: 0, Len: 512}}, Plain: 512, Payload: leaf[:512], Digest: digest.Sum(nil)})
		},
		"seq far ahead": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			return c.wc.Write(wire.TypePut, 1<<30, &wire.Put{Items: []wire.Item{{Kind: wire.ItemZero, Off: 0, Len: 512}}, Digest: digest.Sum(nil)})
		},
		"no pass": func(c *client, p *spass) error {
			var a wire.Aborted
			must(t, c.ask(wire.TypeAbort, &wire.Abort{Pass: c.welcome.State.Pass}, &a))
			return c.wc.Write(wire.TypePut, 1, &wire.Put{Items: []wire.Item{{Kind: wire.ItemZero, Len: 512}}, Digest: digest.Sum(nil)})
		},
		"commit of no pass":    func(c *client, p *spass) error { _, err := c.commit(p); return err },
		"frame of the gateway": func(c *client, p *spass) error { return c.wc.Write(wire.TypeReleased, 0, &wire.Released{}) },
		"wrong counts": func(c *client, p *spass) error {
			_, err := c.open(s, p)
			must(t, err)
			must(t, c.send(s, p, 0))
			must(t, c.waitAcks(1))
			p.counts[0].Sent++
			_, err = c.commit(p)
			return err
		},
		"release of another root": func(c *client, p *spass) error {
			var rel wire.Released
			return c.ask(wire.TypeRelease, &wire.Release{Digest: digest.Sum(nil), Generation: s.gen, Epoch: s.ep}, &rel)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.mustDial("root")
			p := s.newPass(mover.Delta, batch{leaves: []int64{1, 2}})
			p.est = 1
			err := do(c, p)
			if err == nil {
				err = c.last()
			}
			var we *wire.Error
			if !errors.As(err, &we) || we.Code == wire.CodeInternal || we.Code == wire.CodeTargetIO {
				t.Fatalf("answer %v", err)
			}
			// Whatever it was, the flow goes on and the target is where it was.
			f := r.s.flows["acme/db1/root"]
			if got := r.content("/t/a", int64(len(s.b))); !bytes.Equal(got, old) || f.state().Phase != mover.Point {
				t.Fatal("the target has changed")
			}
		})
	}
}

func make2(d digest.Digest) []digest.Digest { return []digest.Digest{d, d} }

// TestFence: a newer link takes over, and the older one can neither write nor come back (C8).
func TestFence(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize, 1)
	one, two := newID(), newID()
	c1, err := r.dial(one, "root")
	must(t, err)
	r.first(c1, s)
	p := s.newPass(mover.Delta, batch{leaves: []int64{1}}, batch{leaves: []int64{2}})
	p.est = 1
	fill(s.b[leafSize:3*leafSize], 5)
	_, err = c1.open(s, p)
	must(t, err)
	must(t, c1.send(s, p, 0))
	must(t, c1.waitAcks(1))
	c2, err := r.dial(two, "root")
	must(t, err)
	if err := c1.last(); !errors.Is(err, sentinel.ErrFenced) {
		t.Fatalf("older link ended with %v", err)
	}
	if _, err := r.dial(one, "root"); !errors.Is(err, sentinel.ErrFenced) {
		t.Fatalf("older link came back: %v", err)
	}
	// The newer link resumes the pass: what was acked is listed, and what is needed of the rest is small.
	o, err := c2.open(s, p)
	must(t, err)
	if len(o.Done) != 1 || o.Done[0] != (wire.Range{First: 1, Last: 1}) {
		t.Fatalf("resumed with %v", o.Done)
	}
	must(t, c2.rest(s, p, o))
	// Older epochs and foreign generations are refused.
	for _, change := range []func(*src, *spass){
		func(s *src, p *spass) { p.epoch = s.ep },
		func(s *src, p *spass) { s.gen = newID() },
	} {
		q, x := *s, s.newPass(mover.Delta)
		change(&q, x)
		c := r.mustDial("root")
		if _, err := c.open(&q, x); !errors.Is(err, sentinel.ErrFenced) {
			t.Fatalf("opened: %v", err)
		}
	}
	r.settled("acme/db1/root")
	if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
		t.Fatal("target differs")
	}
}

// TestDenied: nobody learns about, or gets at, flows of others.
func TestDenied(t *testing.T) {
	r := newRig(t, twoFlows)
	for _, who := range [][3]string{{"evil", "db1", "nothing"}, {"acme", "db2", "../db1/root"}, {"acme", "db1", "root2"}} {
		_, err := r.dialAs(who[0], who[1], newID(), who[2])
		if !errors.Is(err, sentinel.ErrDenied) || strings.Contains(err.Error(), "/t/") {
			t.Errorf("%v: %v", who, err)
		}
	}
	c, err := r.dial(newID(), "root")
	must(t, err)
	_ = c
	for range 2 {
		l := newID()
		for range wire.MaxConns {
			_, err := r.dial(l, "root")
			must(t, err)
		}
		if _, err := r.dial(l, "root"); err == nil {
			t.Error("a link has more connections than allowed")
		}
	}
}

func TestClaims(t *testing.T) {
	r := newRig(t, twoFlows)
	ctx := context.Background()
	m := r.add("/t/a", 64*leafSize)
	m.blank, m.sign = false, []string{"ext4 filesystem"}
	if _, err := r.dial(newID(), "root"); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "moverctl claim acme/db1/root") {
		t.Fatalf("unclaimed target: %v", err)
	}
	if _, err := r.s.Claim(ctx, "acme/db1/root", false); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("claimed a filesystem: %v", err)
	}
	text, err := r.s.Claim(ctx, "acme/db1/root", true)
	must(t, err)
	t.Log(text)
	if _, err := r.s.Claim(ctx, "acme/db1/root", false); err != nil {
		t.Fatal("claiming again:", err)
	}
	// The same device under another path.
	r.mu.Lock()
	r.media["/t/b"] = m
	r.mu.Unlock()
	if _, err := r.s.Claim(ctx, "acme/db2/root", true); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "acme/db1/root") {
		t.Fatalf("claimed twice: %v", err)
	}
	// Too large a volume, and another volume than before.
	s := randomSrc(65*leafSize, 1)
	if _, err := r.mustDial("root").open(s, s.newPass(mover.Full)); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("volume larger than the target: %v", err)
	}
	s = randomSrc(60*leafSize, 1)
	r.first(r.mustDial("root"), s)
	other := *s
	other.id = "vol-9"
	if _, err := r.mustDial("root").open(&other, s.newPass(mover.Rescan)); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("another volume: %v", err)
	}
	small := *s
	small.b = s.b[:50*leafSize]
	if _, err := r.mustDial("root").open(&small, s.newPass(mover.Rescan)); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("shrunk volume: %v", err)
	}
	big := randomSrc(62*leafSize, 1)
	big.ep = s.ep
	big.gen = s.gen
	if _, err := r.mustDial("root").open(big, big.newPass(mover.Delta)); !errors.Is(err, sentinel.ErrFenced) {
		t.Fatalf("delta of a grown volume: %v", err)
	}
	_, err = r.mustDial("root").run(big, big.newPass(mover.Rescan, big.whole(64)...))
	must(t, err)
	// Another device in its place at the next start.
	r.stop()
	m.mem.SetIdentity("somebody else")
	r.start()
	if _, err := r.dial(newID(), "root"); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "somebody else") {
		t.Fatalf("another device: %v", err)
	}
	if st := r.s.Status()[0]; st.State != mover.Stopped || st.Reason == "" {
		t.Fatalf("status %+v", st)
	}
	must(t, r.s.Drop(ctx, "acme/db1/root"))
	if _, err := r.s.Claim(ctx, "acme/db2/root", true); err != nil {
		t.Fatalf("claim after drop: %v", err)
	}
	// A second gateway on the same state.
	if _, err := New(r.cfg); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("second gateway: %v", err)
	}
}

// TestTargetErrors: I/O errors stop the flow with the reason, and it goes on when they end.
func TestTargetErrors(t *testing.T) {
	for _, op := range []fault.Op{fault.Write, fault.Sync, fault.Read, fault.Zero} {
		for _, est := range []uint64{1, 1 << 50} {
			t.Run(op.String(), func(t *testing.T) {
				r := newRig(t)
				s := randomSrc(64*leafSize, 1)
				c := r.mustDial("root")
				r.first(c, s)
				r.settled("acme/db1/root")
				fill(s.b[:20*leafSize], 3)
				clear(s.b[4*leafSize : 6*leafSize])
				p := s.newPass(mover.Delta, batch{leaves: []int64{0, 1, 2, 3, 4, 5}}, batch{leaves: []int64{6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}})
				p.est = est
				r.medium("/t/a").plan.Fail(op, fault.All, syscall.EIO)
				_, err := c.run(s, p)
				if err == nil {
					_, err = c.readBack(wire.ScopeTouched)
				}
				var we *wire.Error
				if !errors.As(err, &we) && err != io.EOF {
					t.Fatalf("ended with %v", err)
				}
				if errors.As(err, &we) && we.Code != wire.CodeTargetIO {
					t.Fatalf("ended with %v", err)
				}
				if st := r.s.Status()[0]; st.State != mover.Stopped || !strings.Contains(st.Reason, "/t/a") {
					t.Fatalf("status %+v", st)
				}
				r.medium("/t/a").plan.Clear()
				c = r.mustDial("root")
				for s.ep != p.epoch {
					if c.welcome.State.Epoch == p.epoch {
						s.ep = p.epoch // it was committed, only the rest went wrong
						break
					}
					o, err := c.open(s, p)
					must(t, err)
					must(t, c.rest(s, p, o))
				}
				root, err := c.readBack(wire.ScopeTouched)
				must(t, err)
				if root.Digest != s.root(r, nil) || r.s.Metrics().ReadBackDiffers != 0 {
					t.Fatal("roots differ")
				}
			})
		}
	}
}

// TestResent: a batch that is sent again with other content replaces its earlier self (C10), in both modes, also over a crash.
func TestResent(t *testing.T) {
	for _, est := range []uint64{1, 1 << 50} {
		for _, crash := range []bool{false, true} {
			r := newRig(t)
			s := randomSrc(64*leafSize, 1)
			r.first(r.mustDial("root"), s)
			p := s.newPass(mover.Delta, batch{leaves: []int64{1, 2, 3}}, batch{items: []wire.Item{item(wire.ItemData, extent.Extent{Off: 9*leafSize + 512, Len: 4096})}})
			p.est = est
			c := r.mustDial("root")
			_, err := c.open(s, p)
			must(t, err)
			for round := range uint64(3) {
				fill(s.b[leafSize:4*leafSize], 10+round)
				fill(s.b[9*leafSize+512:9*leafSize+512+4096], 10+round)
				for i := range p.batches {
					must(t, c.send(s, p, i))
				}
				c.acked.Clear()
				must(t, c.waitAcks(2))
			}
			if crash {
				r.powerCut(7)
				c = r.mustDial("root")
				o, err := c.open(s, p)
				must(t, err)
				must(t, c.rest(s, p, o))
			} else {
				_, err = c.commit(p)
				must(t, err)
			}
			_, err = c.readBack(wire.ScopeTouched)
			must(t, err)
			if !bytes.Equal(r.content("/t/a", int64(len(s.b))), s.b) {
				t.Fatalf("target differs (estimate %d, crash %v)", est, crash)
			}
		}
	}
}
