package receiver

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/points"
	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/wire"
)

const testFlow = "acme/db1/root"

func openPoints(method, target, owner, flow string) (blockdev.Points, error) {
	return points.Open(points.Options{Method: method, Target: target, Owner: owner, Flow: flow})
}

// pointRig is a gateway whose target is an image file on XFS.
func pointRig(t *testing.T, keep mover.Keep) (r *rig, dir, image string) {
	t.Helper()
	l := looptest.New(t, 400<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "xfs", "-m", "reflink=1")
	dir = looptest.Mount(t, l.Dev)
	image = filepath.Join(dir, "target.img")
	return newRig(t, func(c *Config) {
		c.OpenTarget, c.Inspect, c.OpenPoints = openDisk, inspectDisk, openPoints
		c.OpenCopy = func(path string, size int64) (blockdev.Target, error) {
			t, err := disk.OpenTarget(path, disk.TargetOptions{Size: size, Create: true})
			if err != nil {
				return nil, err
			}
			return t, nil
		}
		c.Flows[0].Target = image
		c.Flows[0].Points = PointsConfig{Method: "reflink", Keep: keep}
	}), dir, image
}

// next changes some leaves of s and commits them.
func (r *rig) next(c *client, s *src, n uint64) {
	r.t.Helper()
	at := int64(n*7) % 50 * leafSize
	fill(s.b[at:at+3*leafSize], n)
	_, err := c.run(s, s.newPass(mover.Delta, s.whole(16)...))
	must(r.t, err)
	r.kept(c, s)
}

// kept confirms what was committed last.
func (r *rig) kept(c *client, s *src) {
	r.t.Helper()
	a, err := c.keep(s.moment(mover.Crash))
	must(r.t, err)
	if a.Consistency != uint8(mover.Crash) || (a.Point == "") == (a.Text == "") {
		r.t.Fatalf("%+v", a)
	}
}

func (r *rig) pointContent(id string) []byte {
	r.t.Helper()
	k, size, done, err := r.s.OpenPoint(context.Background(), testFlow, id)
	must(r.t, err)
	b := make([]byte, size)
	must(r.t, readFull(k, b, 0))
	must(r.t, done())
	return b
}

// TestPoints: each point holds what the target was at its commit while later passes change it; retention, pins, removal and restores.
func TestPoints(t *testing.T) {
	ctx := context.Background()
	r, dir, image := pointRig(t, mover.Keep{Last: 3})
	s := randomSrc(64*leafSize+512, 1)
	c := r.dialKeep("root")
	r.first(c, s)
	r.kept(c, s)
	all, err := r.s.Points(testFlow)
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("points %+v, status %+v", all, r.s.Status())
	}
	want := map[string][]byte{all[0].ID: bytes.Clone(s.b)}
	pinned := all[0].ID
	must(t, r.s.Pin(ctx, testFlow, pinned, true))
	for i := range uint64(6) {
		r.next(c, s, i+2)
		all, _ = r.s.Points(testFlow)
		want[all[len(all)-1].ID] = bytes.Clone(s.b)
	}
	if len(all) != 4 || len(want) != 7 || all[0].ID != pinned {
		t.Fatalf("kept %+v", all)
	}
	c.close()
	r.stop()
	r.start() // what is kept outlives the gateway
	for _, p := range all {
		if !bytes.Equal(r.pointContent(p.ID), want[p.ID]) {
			t.Fatalf("point %s is not what the target was at its commit", p.ID)
		}
	}
	files, err := os.ReadDir(image + ".points")
	must(t, err)
	if len(files) != 4 {
		t.Fatalf("files %v", files)
	}
	restoreCases(t, r, dir, image, pinned, want[pinned])
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got[:len(s.b)], s.b) {
		t.Fatal("the target was altered by something else than replication", err)
	}
	_, _, done, err := r.s.OpenPoint(ctx, testFlow, pinned)
	must(t, err)
	if err := r.s.RemovePoint(ctx, testFlow, pinned); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("a point was removed while it was read: %v", err)
	}
	must(t, done())
	must(t, r.s.RemovePoint(ctx, testFlow, pinned))
	if err := r.s.RemovePoint(ctx, testFlow, pinned); !errors.Is(err, sentinel.ErrNotFound) {
		t.Fatal(err)
	}
}

func restoreCases(t *testing.T, r *rig, dir, image, id string, want []byte) {
	t.Helper()
	ctx := context.Background()
	restore := func(to string, overwrite bool) error {
		_, err := r.s.Restore(ctx, testFlow, id, to, overwrite, nil)
		return err
	}
	file := filepath.Join(dir, "restored.img")
	loop := looptest.New(t, 4<<20, looptest.Options{})
	for _, to := range []string{file, loop.Dev} {
		must(t, restore(to, false))
		got, err := os.ReadFile(to)
		must(t, err)
		if !bytes.Equal(got[:len(want)], want) {
			t.Fatalf("%s is not the point", to)
		}
		if err := restore(to, false); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "blank") {
			t.Fatalf("%s was overwritten unasked: %v", to, err)
		}
		must(t, restore(to, true))
	}
	small := looptest.New(t, 512<<10, looptest.Options{})
	mounted := looptest.New(t, 32<<20, looptest.Options{})
	looptest.Mkfs(t, mounted.Dev, "ext4")
	looptest.Mount(t, mounted.Dev)
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(image, link))
	kept, err := filepath.Glob(image + ".points/*")
	must(t, err)
	refused := map[string]string{small.Dev: "too small", mounted.Dev: "mounted", image: "the target", link: "the target by another name", kept[0]: "a point",
		filepath.Join(image+".points", "new.img"): "a new file among the points", loop.File: "behind a loop device"}
	for to, what := range refused {
		before, _ := os.ReadFile(to)
		if err := restore(to, true); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s (%s): %v", to, what, err)
		}
		if after, _ := os.ReadFile(to); to != mounted.Dev && !bytes.Equal(before, after) { // a filesystem writes on its own
			t.Errorf("%s (%s) was altered", to, what)
		}
	}
	if _, err := r.s.Restore(ctx, testFlow, "nix", file, true, nil); !errors.Is(err, sentinel.ErrNotFound) {
		t.Error(err)
	}
}

// TestPointCrash: the gateway goes down between the copy and its record. The next start removes the copy, applies the log again,
// and takes the point; nothing of others is touched.
func TestPointCrash(t *testing.T) {
	r, _, image := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(64*leafSize, 1)
	c := r.dialKeep("root")
	r.first(c, s)
	r.kept(c, s)
	f := r.s.flows[testFlow]
	rec := f.record()
	store, err := f.points()
	must(t, err)
	must(t, store.Take(context.Background(), "20260101T000000Z-00000000")) // a copy whose record a crash prevented
	stranger := filepath.Join(image+".points", "mine.img")
	must(t, os.WriteFile(stranger, []byte("x"), 0o600))
	r.stop()
	r.start()
	files, err := filepath.Glob(image + ".points/*")
	must(t, err)
	if len(files) != 2 || !slices.Contains(files, stranger) || len(rec.Points) != 1 {
		t.Fatalf("after the start: %v", files)
	}
	if !bytes.Equal(r.pointContent(rec.Points[0].ID), s.b) {
		t.Fatal("the point that has a record is damaged")
	}
}

// TestPointFull: a full filesystem costs the point and says so; the flow goes on.
func TestPointFull(t *testing.T) {
	r, dir, image := pointRig(t, mover.Keep{Last: 9})
	s := randomSrc(64*leafSize, 1)
	c := r.dialKeep("root")
	r.first(c, s)
	r.kept(c, s)
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	must(t, err)
	defer ballast.Close()
	must(t, unix.Fallocate(int(ballast.Fd()), 0, 0, int64(st.Bavail)*st.Bsize*95/100))
	r.next(c, s, 2)
	got, err := os.ReadFile(image)
	must(t, err)
	status := r.s.Status()[0]
	if !bytes.Equal(got, s.b) || status.PointEpoch != s.ep || status.LastError != "" {
		t.Fatalf("the flow suffered: %+v", status)
	}
	if status.Points != 1 || status.PointError == "" || !strings.Contains(status.Reason, "no recovery point") || r.s.Metrics().PointsMissed != 1 {
		t.Fatalf("nobody is told: %+v", status)
	}
	must(t, ballast.Truncate(0))
	r.next(c, s, 3)
	if status = r.s.Status()[0]; status.Points != 2 || status.PointError != "" {
		t.Fatalf("after room was made: %+v", status)
	}
}

// TestPointRefused: a method that a target cannot have ends the start, by the flow's name.
func TestPointRefused(t *testing.T) {
	r := newRig(t)
	r.stop()
	cfg := r.cfg
	cfg.OpenPoints = openPoints
	cfg.Flows[0].Target = looptest.New(t, 16<<20, looptest.Options{}).Dev
	cfg.Flows[0].Points.Method = "reflink"
	if _, err := New(cfg); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), testFlow) {
		t.Fatal(err)
	}
	r.start()
}

// TestPointKill: kill -9 between a point's copy and its record, and a start. The copy without a record is gone, the log is applied again,
// the point is there, and holds what was committed.
func TestPointKill(t *testing.T) {
	l := looptest.New(t, 400<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "xfs", "-m", "reflink=1")
	dir := looptest.Mount(t, l.Dev)
	c := newChild(t, 64<<20)
	c.kill()
	flag := filepath.Join(dir, "kill")
	c.cc.Target, c.cc.KillAtPoint, c.cc.State, c.cc.Fuzzy = filepath.Join(dir, "target.img"), flag, filepath.Join(dir, "state"), true
	c.start()
	t.Cleanup(c.kill) // before the unmount
	s := randomSrc(64*leafSize, 1)
	for i := range uint64(4) {
		must(t, os.WriteFile(flag, nil, 0o600))
		kind := mover.Delta
		if i == 0 {
			kind = mover.Full
		}
		fill(s.b[:9*leafSize], i+2)
		cl := c.r.mustDial("root")
		_, _ = cl.run(s, s.newPass(kind, s.whole(16)...))
		_ = c.cmd.Wait() // killed by itself
		cut, err := filepath.Glob(c.cc.Target + ".points/*")
		must(t, err)
		must(t, os.Remove(flag))
		c.kill()
		c.start()
		cl = c.r.mustDial("root")
		must(t, cl.ask(wire.TypeLeaves, &wire.Leaves{First: 0, Digests: chunker.Digests(s.b[:leafSize], nil)}, new(wire.Differ))) // after the log
		s.ep = cl.welcome.State.Epoch
		now, err := filepath.Glob(c.cc.Target + ".points/*")
		must(t, err)
		if len(cut) != int(i)+1 || len(now) != int(i)+1 {
			t.Fatalf("round %d: %d copies when it died, %d after the start", i, len(cut), len(now))
		}
		if !slices.ContainsFunc(now, func(p string) bool { b, _ := os.ReadFile(p); return bytes.Equal(b, s.b) }) {
			t.Fatalf("round %d: no point holds what was committed", i)
		}
	}
}
