package receiver

import (
	"bytes"
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/digest"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

// TestDedupScope: who offers digests of leaves that another host has brought is asked for all of them, as if nobody had them; so is a host that asks about its own
// target by CHECK and LEAVES. Flows of one host answer each other.
func TestDedupScope(t *testing.T) {
	r := newRig(t, twoFlows, func(c *Config) {
		c.Flows = append(c.Flows, FlowConfig{Tenant: "acme", Host: "db1", Name: "data", Target: "/t/d"})
	})
	secret := randomSrc(2*groupSize, 1)
	r.first(r.mustDial("root"), secret)
	r.settled(testFlow)
	own := r.mustDial("data")
	copied := &src{b: bytes.Clone(secret.b), id: "vol-4", gen: newID()}
	p := copied.newPass(mover.Full, copied.whole(256)...)
	_, err := own.run(copied, p)
	must(t, err)
	if tot := p.total(); tot.Copied != 512 {
		t.Fatalf("the host's own leaves were not found: %+v", tot)
	}
	for _, who := range [][2]string{{"acme", "db2"}, {"evil", "db1"}} {
		c, err := r.dialAs(who[0], who[1], newID(), "root")
		must(t, err)
		mine := newSrc(2 * groupSize)
		mine.b[0] = 1
		_, err = c.run(mine, mine.newPass(mover.Full, mine.whole(256)...))
		must(t, err)
		before := r.s.Metrics()
		_, err = c.open(mine, mine.newPass(mover.Delta))
		must(t, err)
		for seq, first := range []uint64{1, 256} { // no leaf of zeros, which stands for itself
			ds := chunker.Digests(secret.b[first*leafSize:(first+200)*leafSize], nil)
			var need wire.Need
			must(t, c.askSeq(uint32(seq+1), wire.TypeOffer, &wire.Offer{Runs: []wire.Run{{First: first, N: 200}}, Digests: ds}, &need))
			for i := range 200 {
				if !wire.Bit(need.Bitmap, i) {
					t.Fatalf("%v learns that somebody holds leaf %d: %+v", who, first+uint64(i), need)
				}
			}
			if need.Same != 0 || need.Copied != 0 {
				t.Fatalf("%v: %+v", who, need)
			}
			var differ wire.Differ
			must(t, c.ask(wire.TypeLeaves, &wire.Leaves{First: first, Digests: ds}, &differ))
			for i := range 200 {
				if !wire.Bit(differ.Bitmap, i) {
					t.Fatalf("%v: LEAVES tells about others", who)
				}
			}
		}
		var groups wire.Differ
		table := chunker.NewTree(groupSize)
		table.Add(chunker.Digests(secret.b[:groupSize], nil))
		must(t, c.ask(wire.TypeCheck, &wire.Check{Digests: []digest.Digest{table.Root()}}, &groups))
		if !wire.Bit(groups.Bitmap, 0) {
			t.Fatalf("%v: CHECK tells about others", who)
		}
		if m := r.s.Metrics(); m.DedupHits != before.DedupHits || m.DedupMismatches != before.DedupMismatches {
			t.Fatalf("%v: others' leaves were looked at, which takes time that can be measured", who)
		}
		c.close()
	}
}
