//go:build vm

package points

import (
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// These tests want a kernel with device mapper, LVM, and a disk that they may overwrite: build them with `go test -tags vm -c` and run the
// binary in a guest, as `points.test -test.run Thin -disk /dev/vdb`.
var (
	vmDisk = flag.String("disk", "", "a disk to overwrite")
	victim = flag.Bool("victim", false, "be the process that is killed")
)

const (
	volume = "/dev/vg/v"
	flow   = "acme/db1/ro ot;$(x)"
)

func sh(t testing.TB, script string) string {
	t.Helper()
	return looptest.Run(t, "sh", "-ec", script)
}

func lay(t *testing.T, script string) {
	t.Helper()
	if *vmDisk == "" {
		t.Fatal("-disk is missing")
	}
	t.Setenv("A", *vmDisk)
	t.Setenv("DM_DISABLE_UDEV", "1")
	t.Cleanup(func() { sh(t, "vgremove -qq -y -f vg; pvremove -qq -y $A") })
	sh(t, "pvcreate -qq -y $A; vgcreate -qq vg $A; "+script)
}

func openVolume(t *testing.T, owner string) blockdev.Points {
	t.Helper()
	p, err := Open(Options{Method: Auto, Target: volume, Owner: owner, Flow: flow})
	must(t, err)
	if p == nil || p.Method() != LVMThin {
		t.Fatalf("a thin volume has points by %v", p)
	}
	return p
}

// write changes a part of the volume, past the page cache, and returns all of it.
func write(t *testing.T, i int) []byte {
	t.Helper()
	f, err := os.OpenFile(volume, os.O_RDWR|os.O_EXCL|0x4000, 0) // O_DIRECT, held as a gateway holds it
	must(t, err)
	_, err = f.WriteAt(devtest.Content(uint64(i), 8<<20), int64(i)*5<<20)
	must(t, err)
	size, err := f.Seek(0, io.SeekEnd)
	must(t, err)
	all := devtest.Buffer(int(size))
	_, err = f.ReadAt(all, 0)
	must(t, err)
	must(t, f.Close())
	return all
}

const pool = "lvcreate -qq -y -T -L 200M vg/pool -V 64M -n v; "

func TestThin(t *testing.T) {
	lay(t, pool)
	before := sh(t, "dmsetup table | sort")
	devtest.Points(t, volume, openVolume, write)
	if after := sh(t, "dmsetup table | sort; lvs --noheadings -o lv_name | sort"); !strings.HasPrefix(after, before) || strings.Contains(after, "mover") {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestThinOthers: only what carries the owner's tag is removed, whatever its name; what reads a state keeps it.
func TestThinOthers(t *testing.T) {
	ctx := context.Background()
	lay(t, pool+"lvcreate -qq -y -s -n mover-pt-"+owner+"-byhand vg/v; lvcreate -qq -y -V 8M -T vg/pool -n mover-pt-"+owner+"-empty")
	s := openVolume(t, owner)
	if all, err := s.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for _, name := range []string{"byhand", "empty"} {
		if err := s.Remove(ctx, name); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.Take(ctx, "p"))
	k, err := s.Open(ctx, "p")
	must(t, err)
	if err := s.Remove(ctx, "p"); !errors.Is(err, sentinel.ErrRefused) {
		t.Errorf("a state that is read was removed: %v", err)
	}
	must(t, k.Close())
	must(t, s.Remove(ctx, "p"))
}

// TestThinFull: a pool that is nearly full costs the state, names the reason, and leaves the target alone; removing makes room.
func TestThinFull(t *testing.T) {
	ctx := context.Background()
	lay(t, "lvcreate -qq -y -T -L 64M vg/pool -V 64M -n v")
	s := openVolume(t, owner)
	write(t, 0)
	must(t, s.Take(ctx, "a"))
	write(t, 0)
	sh(t, "dd if=/dev/urandom of="+volume+" bs=1M seek=10 count=43 oflag=direct status=none")
	err := s.Take(ctx, "b")
	if !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "nearly full") || !strings.Contains(err.Error(), "vg/pool") {
		t.Error(err)
	}
	write(t, 1)
	must(t, s.Remove(ctx, "a"))
	must(t, s.Take(ctx, "b"))
}

// TestThinCannot: what has no points says why, and auto does without.
func TestThinCannot(t *testing.T) {
	lay(t, "lvcreate -qq -y -Wn -Zn -L 20M -n v vg; lvcreate -qq -y -T -L 64M vg/pool")
	for target, why := range map[string]string{volume: "outside of a thin pool", *vmDisk: "no logical volume", "/dev/mapper/vg-pool": "thin pool"} {
		if _, err := os.Stat(target); err != nil {
			continue
		}
		if _, err := Open(Options{Method: LVMThin, Target: target}); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", target, err)
		}
		if p, err := Open(Options{Method: Auto, Target: target}); p != nil || err != nil {
			t.Errorf("%s: %v %v", target, p, err)
		}
	}
}

// TestThinVictim takes and removes until it is killed.
func TestThinVictim(t *testing.T) {
	if !*victim {
		return // only for TestThinKill
	}
	s := openVolume(t, owner)
	for {
		must(t, s.Take(context.Background(), "v"))
		must(t, s.Remove(context.Background(), "v"))
	}
}

// TestThinKill: killed at any instant, the volume can be written, and a sweep finds what was left by its tag.
func TestThinKill(t *testing.T) {
	ctx := context.Background()
	lay(t, pool)
	s, left, kills := openVolume(t, owner), 0, 15
	if testing.Short() {
		kills = 5 // of a run of all cases in an emulated guest
	}
	for i := range kills {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestThinVictim$", "-victim")
		must(t, cmd.Start())
		time.Sleep(time.Second + rand.N(2*time.Second))
		must(t, cmd.Process.Kill())
		cmd.Wait()
		time.Sleep(time.Second) // the command that was under way ends by itself
		write(t, i%8)
		all, err := s.List(ctx)
		must(t, err)
		for _, a := range all {
			left++
			must(t, s.Remove(ctx, a.Name))
		}
		if got := sh(t, "lvs --noheadings -o lv_name; dmsetup info -c --noheadings -o name,suspended"); strings.Contains(got, "mover") || strings.Contains(got, "Suspended") {
			t.Fatalf("left: %s", got)
		}
	}
	t.Logf("%d of %d kills left a snapshot without a record", left, kills)
}
