package receiver

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

func fill(b []byte, seed uint64) {
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
	c.Read(b)
}

// TestLife goes from a target that does not exist to its release and back.
func TestLife(t *testing.T) {
	r := newRig(t)
	s := newSrc(40*leafSize + 512*5 + 100) // an odd end
	fill(s.b, 1)
	clear(s.b[3*leafSize : 5*leafSize])
	c := r.mustDial("root")
	if c.welcome.State.Phase != uint8(mover.Fresh) || c.welcome.State.VolumeSize != 0 {
		t.Fatalf("state %+v", c.welcome.State)
	}
	mode, err := c.run(s, s.newPass(mover.Full, s.whole(16)...))
	must(t, err)
	if mode != mover.Direct {
		t.Fatal("full pass is staged")
	}
	root, err := c.readBack(wire.ScopeTouched)
	must(t, err)
	if root.Digest != s.root(r, nil) {
		t.Fatal("roots differ after the full pass")
	}
	if root, err = c.readBack(wire.ScopeTouched); err != nil || root.ReadBack != 0 {
		t.Fatal("second read back reads again", root, err)
	}

	// A delta with parts, zeros, free leaves and unchanged leaves.
	fill(s.b[7*leafSize+4096:7*leafSize+8192], 2)
	fill(s.b[20*leafSize:22*leafSize], 3)
	clear(s.b[10*leafSize : 12*leafSize])
	tail := extent.Extent{Off: 40 * leafSize, Len: 512*5 + 100}
	fill(s.b[tail.Off:tail.End()], 4)
	clear(s.b[30*leafSize : 31*leafSize])
	p := s.newPass(mover.Delta,
		batch{items: []wire.Item{item(wire.ItemData, extent.Extent{Off: 7*leafSize + 4096, Len: 4096}), item(wire.ItemZero, extent.Extent{Off: 10 * leafSize, Len: 2 * leafSize}),
			item(wire.ItemFree, extent.Extent{Off: 30 * leafSize, Len: leafSize}), item(wire.ItemData, tail)}},
		batch{leaves: []int64{20, 21, 22}})
	p.est = 1 << 20
	before := r.content("/t/a", int64(len(s.b)))
	if mode, err = c.run(s, p); err != nil || mode != mover.Staged {
		t.Fatal(mode, err)
	}
	if p.counts[1].Same != 1 || p.counts[1].Sent != 2 {
		t.Fatalf("counts %+v", p.counts[1])
	}
	root, err = c.readBack(wire.ScopeTouched)
	must(t, err)
	if root.Digest != s.root(r, map[int64]bool{30: true}) || root.Free != 1 {
		t.Fatal("roots differ after the delta")
	}
	if got := r.content("/t/a", int64(len(s.b))); !bytes.Equal(got, s.b) || bytes.Equal(got, before) {
		t.Fatal("target is not the source")
	}

	// CHECK and LEAVES between passes.
	var d wire.Differ
	must(t, c.ask(wire.TypeLeaves, &wire.Leaves{First: 19, Digests: chunker.Digests(s.b[18*leafSize:21*leafSize], nil)}, &d))
	if d.N != 3 || d.Bitmap[0] != 7 {
		t.Fatalf("differ %+v", d)
	}

	last := s.moment(mover.Crash)
	if a, err := c.keep(last); err != nil || a.Consistency != uint8(mover.Crash) || a.Point != "" || a.Text != "" { // no copies are configured
		t.Fatalf("%+v %v", a, err)
	}
	var rel wire.Released
	must(t, c.ask(wire.TypeRelease, &wire.Release{Digest: root.Digest, Generation: s.gen, Epoch: s.ep, Report: "{}"}, &rel))
	if r.medium("/t/a").crash != nil {
		t.Fatal("released target is open")
	}
	st := r.s.Status()[0]
	if st.State != mover.Done || st.PointConsistency != "crash" {
		t.Fatalf("status %+v", st)
	}
	if a, err := c.keep(last); err != nil || a.Consistency != uint8(mover.Crash) { // a lost answer
		t.Fatalf("%+v %v", a, err)
	}
	if a, err := c.keep(s.moment(mover.Crash)); err != nil || a.Consistency != 0 || !strings.Contains(a.Text, "released") {
		t.Fatalf("%+v %v", a, err)
	}
	c.close()
	c = r.mustDial("root")
	if _, err := c.open(s, s.newPass(mover.Rescan)); err == nil {
		t.Fatal("released target was opened")
	}
	c = r.mustDial("root")
	back := s.newPass(mover.Rescan, s.whole(16)...)
	back.flags = wire.FlagReclaim
	fill(s.b[:leafSize], 9)
	s.gen, back.epoch = newID(), 1
	if _, err := c.run(s, back); err != nil {
		t.Fatal(err)
	}
	if back.total().Sent != 1 {
		t.Fatalf("rescan after reclaim sent %+v", back.total())
	}
	if root, err = c.readBack(wire.ScopeAll); err != nil || root.Digest != s.root(r, nil) {
		t.Fatal(root, err)
	}
}

// TestTableIsKept: a digest table that cannot be had for now is not taken for a damaged one, and the point outlives it.
func TestTableIsKept(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize, 1)
	r.first(r.mustDial("root"), s)
	r.settled("acme/db1/root")
	path := filepath.Join(r.s.flows["acme/db1/root"].dir(), "table")
	r.stop()
	other, err := chunker.OpenTable(path, int64(len(s.b)))
	must(t, err)
	r.start()
	fill(s.b[:leafSize], 2)
	c, err := r.dial(newID(), "root")
	if err == nil {
		_, err = c.run(s, s.newPass(mover.Delta, batch{leaves: []int64{0}}))
	}
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("with the table in use: %v", err)
	}
	r.stop()
	must(t, other.Close())
	r.start()
	c = r.mustDial("root")
	if st := c.welcome.State; st.Phase != uint8(mover.Point) {
		t.Fatalf("state %+v", st)
	}
	if _, err := c.run(s, s.newPass(mover.Delta, batch{leaves: []int64{0}})); err != nil {
		t.Fatal(err)
	}
}
