package receiver

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

func (r *rig) pointOf(id string) mover.RecoveryPoint {
	r.t.Helper()
	all, err := r.s.Points(testFlow)
	must(r.t, err)
	for _, p := range all {
		if p.ID == id {
			return p
		}
	}
	r.t.Fatalf("no point %q in %+v", id, all)
	return mover.RecoveryPoint{}
}

// TestKeep: a commit alone is fuzzy and not kept, whatever it says of itself; KEEP makes it what it is worth and keeps it, once (C13).
func TestKeep(t *testing.T) {
	r, _, image := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(64*leafSize+512, 1)
	c := r.dialKeep("root")
	if c.welcome.Capabilities&wire.CapKeep == 0 {
		t.Fatal("the gateway does not say that it knows KEEP")
	}
	r.first(c, s)
	r.settled(testFlow)
	if st := r.s.Status()[0]; st.Points != 0 || st.PointConsistency != "fuzzy" {
		t.Fatalf("an unconfirmed commit: %+v", st)
	}
	m := s.moment(mover.App)
	m.Members, m.Group, m.Flags = 3, "db1", wire.FlagRehearse
	first, err := c.keep(m)
	must(t, err)
	if first.Consistency != uint8(mover.App) || first.Point == "" || first.Text != "" {
		t.Fatalf("%+v", first)
	}
	want := bytes.Clone(s.b)
	p := r.pointOf(first.Point)
	if p.Consistency != mover.App || p.Group != "db1" || p.Members != 3 || !p.Rehearsed || p.Cutover || p.Root == "" || p.Moment != mover.ID(m.Moment).String() {
		t.Fatalf("%+v", p)
	}
	if st := r.s.Status()[0]; st.Points != 1 || st.PointConsistency != "app" {
		t.Fatalf("%+v", st)
	}
	again := func(c *client) {
		t.Helper()
		a, err := c.keep(m)
		must(t, err)
		if a != first {
			t.Fatalf("asked again: %+v, was %+v", a, first)
		}
	}
	again(c)
	refused := func(change func(*wire.Keep), why string) {
		t.Helper()
		x := *m
		change(&x)
		a, err := c.keep(&x)
		must(t, err) // the connection stays
		if a.Consistency != 0 || a.Point != "" || !strings.Contains(a.Text, why) {
			t.Fatalf("%+v", a)
		}
	}
	refused(func(m *wire.Keep) { m.Moment = newID() }, "confirmed as moment")
	refused(func(m *wire.Keep) { m.Moment, m.Epoch = newID(), m.Epoch+1 }, "not at epoch 2")
	refused(func(m *wire.Keep) { m.Moment, m.Generation = newID(), newID() }, "generation")
	refused(func(m *wire.Keep) { m.Epoch++ }, "is the point of epoch 1")
	r.next(c, s, 2)
	refused(func(m *wire.Keep) { m.Moment = newID() }, "not at epoch 1")
	again(c) // late, but it is the same moment
	r.stop()
	r.start()
	again(r.dialKeep("root"))
	if files, _ := os.ReadDir(image + ".points"); len(files) != 1 {
		t.Fatalf("copies: %v", files)
	}
	if !bytes.Equal(r.pointContent(first.Point), want) {
		t.Fatal("the point is not what was confirmed")
	}
}

// TestKeepFuzzy: where fuzzy points are kept, the copy of the commit becomes that of the moment; and a confirmation as fuzzy keeps nothing
// where they are not.
func TestKeepFuzzy(t *testing.T) {
	r, _, image := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(64*leafSize, 1)
	c := r.dialKeep("root")
	r.first(c, s)
	a, err := c.keep(s.moment(mover.Fuzzy))
	must(t, err)
	if a.Consistency != uint8(mover.Fuzzy) || a.Point != "" {
		t.Fatalf("%+v", a)
	}
	c.close()
	r.stop()
	r.cfg.Flows[0].Points.Fuzzy = true
	r.start()
	c = r.dialKeep("root")
	r.next(c, s, 2)
	all, err := r.s.Points(testFlow)
	must(t, err)
	if len(all) != 1 || all[0].Consistency != mover.Fuzzy || all[0].Moment != "" {
		t.Fatalf("%+v", all)
	}
	must(t, r.s.Pin(context.Background(), testFlow, all[0].ID, true))
	a, err = c.keep(s.moment(mover.Crash))
	must(t, err)
	p := r.pointOf(all[0].ID)
	if a.Point != all[0].ID || p.Consistency != mover.Crash || p.Moment == "" || !p.Pinned {
		t.Fatalf("%+v %+v", a, p)
	}
	if files, _ := os.ReadDir(image + ".points"); len(files) != 1 {
		t.Fatalf("copies: %v", files)
	}
}
