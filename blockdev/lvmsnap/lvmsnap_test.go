package lvmsnap

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

func TestStoreSize(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct{ volume, expect, free, unit, want int64 }{
		{100 * gib, 0, 200 * gib, 4 * mib, 102*gib + 16*mib}, // unknown: all that can be used
		{100 * gib, 0, 20 * gib, 4 * mib, 18 * gib},          // or what there is
		{100 * gib, gib, 30 * gib, 4 * mib, 20 * gib},
		{100 * gib, gib, 100 * gib, 4 * mib, 45 * gib}, // half of what may be taken
		{100 * gib, gib, 400 * gib, 4 * mib, 102*gib + 16*mib},
		{100 * gib, gib, 6 * gib, 4 * mib, 5*gib + 408*mib},
		{100 * gib, gib, 4 * gib, 4 * mib, 0}, // less than is expected
		{100 * gib, 0, 60 * mib, 4 * mib, 0},
		{100 * mib, 0, 200 * mib, 4 * mib, 120 * mib},
		{100 * gib, 0, 0, 4 * mib, 0},
		{100 * gib, 0, gib, 0, 0}, // a report that makes no sense
	} {
		if got := storeSize(c.volume, c.expect, c.free, c.unit); got != c.want {
			t.Errorf("%+v: %d MiB, want %d", c, got/mib, c.want/mib)
		}
	}
}

func TestNames(t *testing.T) {
	id := owner("/run/mover") + owner("root")
	if len(id) != idLen || owner("/run/mover") == owner("/run/mover2") {
		t.Fatalf("id %q", id)
	}
	for name, want := range map[string]string{
		prefix + id + "-real": "-real", prefix + id + "-view": "-view", prefix + id: "", "vg-" + prefix + id + "-real": "", prefix: "", "": "",
		prefix + "0000000000000000-real": "", prefix + id[:8] + "-real": "",
	} {
		for _, by := range []string{id, id[:8]} {
			if got, ok := part(name, by); got != want || ok != (want != "") {
				t.Errorf("%q by %s: %q %v", name, by, got, ok)
			}
		}
	}
	if _, ok := part(prefix+id+"-real", owner("/run/other")); ok {
		t.Error("another daemon's view would be removed")
	}
}

func TestJudge(t *testing.T) {
	s := &Snapshotter{o: Options{Path: "/dev/vg/lv"}, vg: "vg"}
	for status, ok := range map[string]bool{"16/204800 16": true, "0/204800 0": true, "Invalid": false, "Overflow": false, "Merge failed": false, "": false} {
		err := s.judge([]dm.Target{{Type: "snapshot", Params: status}})
		if (err == nil) != ok || err != nil && !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%q: %v", status, err)
		}
	}
	if s.judge(nil) == nil || s.judge([]dm.Target{{Type: "linear"}}) == nil {
		t.Error("what is no snapshot was taken for one")
	}
	real := unix.Mkdev(253, 7)
	for _, table := range [][]dm.Target{nil, {{Type: "linear", Params: "253:7 0"}}, {{Type: "snapshot-origin", Params: "253:8"}}} {
		if leads(table, real) {
			t.Errorf("%+v", table)
		}
	}
	if !leads([]dm.Target{{Len: 512, Type: "snapshot-origin", Params: "253:7"}}, real) {
		t.Error("does not know its own table")
	}
}

// TestCannot: what is no logical volume has no view, by name, and nothing is left to drop.
func TestCannot(t *testing.T) {
	l := looptest.New(t, 16<<20, looptest.Options{})
	var st unix.Stat_t
	if err := unix.Stat(l.Dev, &st); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{Path: l.Dev, Dev: st.Rdev, Size: 16 << 20}, {Path: "/srv/a.img"}} {
		s, err := New(o)
		if !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), o.Path) || s != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := Sweep(context.Background(), t.TempDir()); err != nil {
		t.Error(err)
	}
}
