package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
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
	fill(s.b[:leafSize], 9)
	_, err = c.run(s, s.newPass(mover.Delta, s.whole(16)...))
	must(t, err)
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
	fill(s.b[:leafSize], 9)
	_, err = c.run(s, s.newPass(mover.Delta, s.whole(16)...))
	must(t, err)
	r.settled(testFlow)
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

// TestKeepRoot: a point says what its bytes amount to, free leaves and leaves that were sent in parts as well; what reads otherwise is not restored.
func TestKeepRoot(t *testing.T) {
	ctx := context.Background()
	r, dir, image := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(2*groupSize+9*leafSize+512, 1)
	c := r.dialKeep("root")
	free := map[int64]bool{3: true, 4: true, 300: true}
	p := s.newPass(mover.Full, s.whole(64)...)
	for i := range p.batches {
		p.batches[i].free = free
	}
	_, err := c.run(s, p)
	must(t, err)
	for l := range free {
		clear(s.leaf(l))
	}
	e := extent.Extent{Off: 7*leafSize + 512, Len: 1024}
	fill(s.b[e.Off:e.End()], 5)
	_, err = c.run(s, s.newPass(mover.Delta, batch{items: []wire.Item{item(wire.ItemData, e)}}))
	must(t, err)
	a, err := c.keep(s.moment(mover.Crash))
	must(t, err)
	_, err = c.keep(s.moment(mover.Crash)) // refused, but it comes after the root
	must(t, err)
	tree := chunker.NewTree(int64(len(s.b)))
	for off := 0; off < len(s.b); off += groupSize {
		tree.Add(chunker.Digests(s.b[off:min(len(s.b), off+groupSize)], nil))
	}
	if p := r.pointOf(a.Point); p.Root != s.root(r, free).String() || p.Image != tree.Root().String() {
		t.Fatalf("%+v, want root %v and image root %v", p, s.root(r, free), tree.Root())
	}
	text, err := r.s.Restore(ctx, testFlow, a.Point, filepath.Join(dir, "good.img"), false, nil)
	if err != nil || !strings.Contains(text, "root as recorded") {
		t.Fatal(text, err)
	}
	kept, err := filepath.Glob(image + ".points/*")
	must(t, err)
	must(t, os.Chmod(kept[0], 0o600))
	f, err := os.OpenFile(kept[0], os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rot"), 5*leafSize)
	must(t, errors.Join(err, f.Close()))
	if _, err := r.s.Restore(ctx, testFlow, a.Point, filepath.Join(dir, "bad.img"), false, nil); !errors.Is(err, sentinel.ErrCorrupt) || !strings.Contains(err.Error(), "do not use it") {
		t.Fatal(err)
	}
	if _, err := r.s.CheckPoint(ctx, testFlow, a.Point, nil); !errors.Is(err, sentinel.ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestKeepWithoutRoot: a point whose root would take too long says so.
func TestKeepWithoutRoot(t *testing.T) {
	defer func(n int64) { rootRead = n }(rootRead)
	rootRead = 0
	r, _, _ := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(groupSize, 1)
	c := r.dialKeep("root")
	r.first(c, s)
	e := extent.Extent{Off: 7*leafSize + 512, Len: 1024}
	fill(s.b[e.Off:e.End()], 5)
	_, err := c.run(s, s.newPass(mover.Delta, batch{items: []wire.Item{item(wire.ItemData, e)}}))
	must(t, err)
	a, err := c.keep(s.moment(mover.Crash))
	must(t, err)
	_, err = c.keep(s.moment(mover.Crash)) // refused, but it comes after the root
	must(t, err)
	if p := r.pointOf(a.Point); p.Root != "" || !strings.Contains(p.NoRoot, "16.0 KiB of the target had not been read back") {
		t.Errorf("%+v", p)
	}
}

// TestKeepKill: the gateway dies before the copy, between the copy and its record, or anywhere, while a point is confirmed. Asked again it
// answers with one copy of what was committed; and what was never confirmed is fuzzy and has none.
func TestKeepKill(t *testing.T) {
	l := looptest.New(t, 400<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "xfs", "-m", "reflink=1")
	dir := looptest.Mount(t, l.Dev)
	c := newChild(t, 64<<20)
	c.kill()
	flag := filepath.Join(dir, "kill")
	c.cc.Target, c.cc.KillAtPoint, c.cc.State = filepath.Join(dir, "target.img"), flag, filepath.Join(dir, "state")
	c.start()
	t.Cleanup(c.kill) // before the unmount
	s := randomSrc(64*leafSize, 1)
	rnd := rand.New(rand.NewPCG(1, 7))
	copies := 0
	for i, when := range []string{"before", "after", "never", "any", "any", "any", "any"} {
		kind := mover.Delta
		if i == 0 {
			kind = mover.Full
		}
		fill(s.b[:9*leafSize], uint64(i)+2)
		cl := c.r.dialKeep("root")
		_, err := cl.run(s, s.newPass(kind, s.whole(16)...))
		must(t, err)
		m := s.moment(mover.Crash)
		switch when {
		case "before", "after":
			must(t, os.WriteFile(flag, []byte(when), 0o600))
		case "never":
			c.kill()
			c.start()
			continue
		default:
			time.AfterFunc(time.Duration(rnd.IntN(12_000))*time.Microsecond, func() { _ = c.cmd.Process.Signal(unix.SIGKILL) })
		}
		first, err := cl.keep(m)
		if when != "any" && err == nil {
			t.Fatalf("%s: answered %+v by a gateway that dies", when, first)
		}
		_ = c.cmd.Wait()
		_ = os.Remove(flag)
		c.kill()
		c.start()
		again, kerr := c.r.dialKeep("root").keep(m)
		must(t, kerr)
		if again.Consistency != uint8(mover.Crash) || again.Point == "" || err == nil && again != first {
			t.Fatalf("%s: asked again %+v, before %+v %v", when, again, first, err)
		}
		copies++
		now, err := filepath.Glob(c.cc.Target + ".points/*.img")
		must(t, err)
		holds := func(p string) bool { b, _ := os.ReadFile(p); return bytes.Equal(b, s.b) }
		if k := slices.IndexFunc(now, holds); len(now) != copies || k < 0 || !strings.Contains(now[k], again.Point) {
			t.Fatalf("%s: %v, want %d, one of them %s with what was committed", when, now, copies, again.Point)
		}
	}
}

// hostRig is a gateway with the disks of one server.
func hostRig(t *testing.T, keep mover.Keep, names ...string) (r *rig, dir string) {
	t.Helper()
	r, dir, _ = pointRig(t, keep)
	r.stop()
	flow := r.cfg.Flows[0]
	r.cfg.Flows = nil
	for _, n := range names {
		flow.Name, flow.Target = n, filepath.Join(dir, n+".img")
		r.cfg.Flows = append(r.cfg.Flows, flow)
	}
	r.start()
	return r, dir
}

// TestMomentsOfGroup: moments of several disks, listed, pinned and removed together, and pruned so that none is torn.
func TestMomentsOfGroup(t *testing.T) {
	ctx := context.Background()
	r, _ := hostRig(t, mover.Keep{Last: 2}, "root", "data")
	var cs []*client
	var ss []*src
	for i, n := range []string{"root", "data"} {
		cs, ss = append(cs, r.dialKeep(n)), append(ss, randomSrc(16*leafSize, uint64(i)))
		r.first(cs[i], ss[i])
	}
	at := time.Now()
	moment := func(members int, worth ...mover.Consistency) string {
		t.Helper()
		id := newID()
		at = at.Add(time.Minute)
		for i := range members {
			fill(ss[i].b[:leafSize], uint64(at.Unix()))
			_, err := cs[i].run(ss[i], ss[i].newPass(mover.Delta, ss[i].whole(16)...))
			must(t, err)
			m := ss[i].moment(worth[i])
			m.Moment, m.Members, m.Group, m.UnixNano = id, 2, "all", at.UnixNano()
			a, err := cs[i].keep(m)
			must(t, err)
			if a.Point == "" {
				t.Fatalf("%+v", a)
			}
		}
		return mover.PointID(at, mover.ID(id).String())
	}
	const group = "acme/db1/all"
	list := func() (out []string) {
		t.Helper()
		// What the first member's points have held goes in the background.
		for range 100 {
			if len(r.s.flows["acme/db1/root"].expired())+len(r.s.flows["acme/db1/data"].expired()) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		all, err := r.s.Moments(group)
		must(t, err)
		for _, m := range all {
			out = append(out, fmt.Sprintf("%s %s %v", m.ID, m.Worth, m.Complete))
		}
		return out
	}
	first := moment(2, mover.App, mover.Crash)
	if got := list(); !slices.Equal(got, []string{first + " crash true"}) {
		t.Fatal(got)
	}
	must(t, r.s.PinMoment(ctx, group, first, true))
	second, third := moment(2, mover.App, mover.App), moment(2, mover.App, mover.App)
	half, half2 := moment(1, mover.App), moment(1, mover.App) // the other disk's line is down
	want := []string{first + " crash true", second + " app true", third + " app true", half + " app false", half2 + " app false"}
	if got := list(); !slices.Equal(got, want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	m, err := r.s.Moment(group, half)
	must(t, err)
	if !slices.Equal(m.Lacking, []string{"acme/db1/data"}) || len(m.Points) != 1 {
		t.Fatalf("%+v", m)
	}
	whole, last := moment(2, mover.App, mover.App), moment(2, mover.App, mover.App)
	must(t, r.s.PinMoment(ctx, group, first, false))
	next := moment(2, mover.App, mover.App)
	if got := list(); !slices.Equal(got, []string{last + " app true", next + " app true"}) {
		t.Fatalf("got %v without %s", got, whole)
	}
	must(t, r.s.RemoveMoment(ctx, group, last))
	if got := list(); !slices.Equal(got, []string{next + " app true"}) {
		t.Fatal(got)
	}
	for _, key := range []string{group, "acme/db1", "acme/db1/root", ""} {
		if m, err := r.s.Moment(key, next); err != nil || len(m.Points) != 2 {
			t.Fatalf("%q: %+v %v", key, m, err)
		}
	}
	if _, err := r.s.Moment("acme/db1/nix", next); !errors.Is(err, sentinel.ErrNotFound) {
		t.Fatal(err)
	}
}
