//go:build vm

package lvmsnap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/cbt"
	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/dm"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// These tests want a kernel with device mapper, LVM, and two disks that they may overwrite: build them with `go test -tags vm -c` and run the
// binary in a guest, as `lvmsnap.test -disks /dev/vdb,/dev/vdc`.
var (
	vmDisks = flag.String("disks", "", "two disks to overwrite, divided by a comma")
	victim  = flag.String("victim", "", "be the process that is killed: path of a volume")
)

// rounds is fewer with -test.short, for a run of all cases in an emulated guest.
func rounds(n int) int {
	if testing.Short() {
		return (n + 2) / 3
	}
	return n
}

const runDir = "/run/mover-test"

func sh(t testing.TB, script string) string {
	t.Helper()
	return looptest.Run(t, "sh", "-ec", script)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lay makes a volume group on both disks and what script adds.
func lay(t testing.TB, script string) {
	t.Helper()
	a, b, ok := strings.Cut(*vmDisks, ",")
	if !ok {
		t.Fatal("-disks is missing")
	}
	t.Setenv("A", a)
	t.Setenv("B", b)
	if _, err := os.Stat("/run/udev/control"); err != nil {
		t.Setenv("DM_DISABLE_UDEV", "1")
	} else {
		os.Unsetenv("DM_DISABLE_UDEV") // as on a server
	}
	t.Cleanup(func() { sh(t, "vgremove -qq -y -f vg; pvremove -qq -y $A $B") })
	sh(t, "pvcreate -qq -y $A $B; vgcreate -qq vg $A $B;"+script)
}

const path = "/dev/vg/v"

// open makes a snapshotter of the volume, and what is there of it.
func open(t testing.TB, expect int64) (*Snapshotter, *disk.Volume) {
	t.Helper()
	v, err := disk.OpenVolume(path)
	must(t, err)
	t.Cleanup(func() { v.Close() })
	s, err := New(Options{Flow: "v", RunDir: runDir, Path: path, Dev: v.Device(), Size: v.Size(), ID: v.Identity(), Expect: func() int64 { return expect },
		Open: func(p string) (blockdev.Volume, error) { return disk.OpenVolume(p) }})
	must(t, err)
	return s, v
}

// state is what must be again as it was: all tables, and all volumes but their number of changes.
func state(t testing.TB) string {
	t.Helper()
	return sh(t, "dmsetup table | sort; lvs -a --noheadings -o lv_name,lv_size,lv_attr,segtype,devices,lv_tags | sort")
}

// write changes random pages of a file until stop; it gives how many.
func write(t testing.TB, dir string, stop *atomic.Bool) <-chan int {
	f, err := os.OpenFile(filepath.Join(dir, "pages"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	const size = 32 << 20
	must(t, f.Truncate(size))
	out := make(chan int, 1)
	go func() {
		defer f.Close()
		n, p := 0, make([]byte, 4096)
		for ; !stop.Load(); n++ {
			for i := range p {
				p[i] = byte(n + i)
			}
			if _, err := f.WriteAt(p, rand.Int64N(size/4096)*4096); err != nil {
				t.Error(err)
				break
			}
			if n%64 == 0 {
				if err := f.Sync(); err != nil {
					t.Error(err)
					break
				}
			}
		}
		out <- n
	}()
	return out
}

func freeze(t testing.TB, dir string) (thaw func()) {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	must(t, unix.IoctlSetInt(int(d.Fd()), 0xc0045877, 0))
	return func() {
		must(t, unix.IoctlSetInt(int(d.Fd()), 0xc0045878, 0))
		d.Close()
	}
}

func readAll(t testing.TB, v blockdev.Volume) []byte {
	t.Helper()
	out := devtest.Buffer(int(v.Size()))
	for off := 0; off < len(out); off += 1 << 20 {
		n := min(len(out), off+1<<20)
		if _, err := v.ReadAt(out[off:n], int64(off)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	return out
}

const (
	linear  = "lvcreate -qq -y -Wn -Zn -L 160M -n v vg $A; lvextend -qq vg/v -L 200M $B"
	striped = "lvcreate -qq -y -Wn -Zn -i2 -I64k -L 160M -n v vg"
	thin    = "lvcreate -qq -y -Zn -T -L 400M vg/pool -V 160M -n v"
	tight   = "lvcreate -qq -y -Zn -T -l 95%FREE vg/pool -V 160M -n v" // no room for a store but in the pool
)

// TestView: what is read after the thaw, while writers go on, is what the volume held when it was frozen; then nothing is left.
func TestView(t *testing.T) {
	ctx := context.Background()
	for name, script := range map[string]string{"linear": linear, "striped": striped, "thin": thin, "thin, full group": tight} {
		t.Run(name, func(t *testing.T) {
			lay(t, script)
			looptest.Mkfs(t, path, "ext4")
			dir := looptest.Mount(t, path)
			defer looptest.Unmount(t, dir)
			before := state(t)
			s, v := open(t, 0)
			var stop atomic.Bool
			done := write(t, dir, &stop)
			for range rounds(4) {
				must(t, s.Prepare(ctx))
				thaw := freeze(t, dir)
				want := readAll(t, v)
				begin := time.Now()
				must(t, s.Snap(ctx))
				pause := time.Since(begin)
				thaw()
				view, err := s.Volume()
				must(t, err)
				time.Sleep(300 * time.Millisecond)
				got := readAll(t, view)
				if !bytes.Equal(got, want) {
					t.Fatal("the view is not what the volume held")
				}
				if view.Identity() != v.Identity() || view.Size() != v.Size() {
					t.Errorf("the view is %s of %d bytes", view.Identity(), view.Size())
				}
				must(t, view.Check())
				if links := sh(t, "udevadm settle -t 10; ls -l /dev/disk/by-* /dev/mapper 2>/dev/null | grep -e mover-snap -e "+filepath.Base(node(s.view))+"$ -e "+filepath.Base(node(s.real))+"$ || true"); links != "" {
					t.Errorf("udev made links to a view: %s", links)
				}
				t.Logf("snapped in %v; now %d of the volume's bytes differ", pause, differ(want, readAll(t, v)))
				must(t, v.Check())
				must(t, s.Drop(ctx))
				must(t, s.Drop(ctx))
			}
			stop.Store(true)
			t.Logf("%d writes", <-done)
			if after := state(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func differ(a, b []byte) (n int) {
	for i := 0; i < len(a); i += 4096 {
		if !bytes.Equal(a[i:i+4096], b[i:i+4096]) {
			n += 4096
		}
	}
	return n
}

// TestOverflow: a store that is too small makes an error, never wrong content, and the volume does not notice.
func TestOverflow(t *testing.T) {
	ctx := context.Background()
	lay(t, "lvcreate -qq -y -Wn -Zn -L 400M -n v vg; lvcreate -qq -y -Wn -Zn -l 100%FREE -n ballast vg; lvreduce -qq -f -L -84M vg/ballast")
	s, v := open(t, 1)
	must(t, s.Prepare(ctx))
	must(t, s.Snap(ctx))
	view, err := s.Volume()
	must(t, err)
	must(t, view.Check())
	sh(t, "dd if=/dev/urandom of="+path+" bs=1M count=300 oflag=direct status=none")
	if err := view.Check(); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "overflowed") {
		t.Errorf("check: %v", err)
	}
	if _, err := view.ReadAt(devtest.Buffer(1<<20), 0); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "overflowed") {
		t.Errorf("read: %v", err)
	}
	readAll(t, v)
	must(t, s.Drop(ctx))
	sh(t, "lvextend -qq vg/ballast -L +50M")
	if err := s.Prepare(ctx); !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "free") {
		t.Errorf("no room: %v", err)
	}
	if left := sh(t, "dmsetup ls; lvs"); strings.Contains(left, "mover") {
		t.Errorf("left: %s", left)
	}
}

// TestLVM: an LVM command that changes the volume meanwhile wins, and the view says that it is none.
func TestLVM(t *testing.T) {
	ctx := context.Background()
	lay(t, linear)
	for _, c := range []struct{ before, early, late string }{
		{"", "", "lvchange --refresh vg/v"},
		{"", "", "lvextend -qq -y vg/v -L +8M"},
		{"", "", "lvcreate -qq -y -s -L 20M -n s vg/v"},
		{"lvremove -qq -y vg/s", "lvextend -qq -y vg/v -L +8M", ""},
		{"", "lvresize -qq -f -y vg/v -L -8M", ""},
	} {
		sh(t, "true; "+c.before)
		s, _ := open(t, 0)
		must(t, s.Prepare(ctx))
		sh(t, "true; "+c.early)
		err := s.Snap(ctx)
		if c.early != "" {
			if !errors.Is(err, sentinel.ErrRefused) {
				t.Errorf("%s before the snapshot: %v", c.early, err)
			}
		} else {
			must(t, err)
			view, err := s.Volume()
			must(t, err)
			sh(t, c.late)
			if err := view.Check(); !errors.Is(err, sentinel.ErrRefused) {
				t.Errorf("%s: %v", c.late, err)
			}
		}
		table := sh(t, "dmsetup table vg-v")
		if bytes, size := sh(t, "lvs --noheadings --units s --nosuffix -o lv_size vg/v"), sh(t, "blockdev --getsz "+path); bytes != size || strings.Contains(table, "mover") {
			t.Errorf("%+v: LVM says %s sectors, the kernel %s", c, bytes, size)
		}
		must(t, s.Drop(ctx))
		if now := sh(t, "dmsetup table vg-v"); now != table || strings.Contains(sh(t, "dmsetup ls; lvs"), "mover") {
			t.Errorf("%+v: table %s, was %s", c, now, table)
		}
	}
}

// TestTracking: a snapshot that comes and goes leaves no gap in the history of changes.
func TestTracking(t *testing.T) {
	ctx := context.Background()
	lay(t, linear)
	looptest.Mkfs(t, path, "ext4")
	dir := looptest.Mount(t, path)
	defer looptest.Unmount(t, dir)
	s, v := open(t, 0)
	tr, err := cbt.Open(cbt.Options{Name: "lvmsnap-test", Map: v.Map(), Size: v.Size(), PinDir: "/sys/fs/bpf/lvmsnap-test",
		Identity: func() (string, error) { return v.Identity(), v.Check() },
		Remap:    func() (extent.Map, error) { return disk.Resolve(v.Device()) }})
	must(t, err)
	defer tr.Remove()
	var stop atomic.Bool
	done := write(t, dir, &stop)
	_, _, err = tr.Take(ctx)
	must(t, err)
	model := readAll(t, v) // what a target would hold
	for i := range rounds(6) {
		must(t, s.Prepare(ctx))
		thaw := freeze(t, dir)
		epoch, set, err := tr.Take(ctx)
		must(t, err)
		must(t, s.Snap(ctx))
		want := readAll(t, v)
		thaw()
		view, err := s.Volume()
		must(t, err)
		time.Sleep(200 * time.Millisecond)
		for e := range set.All() {
			e = e.Intersect(extent.Extent{Len: v.Size()})
			p := devtest.Buffer(int(e.Len))
			if _, err := view.ReadAt(p, e.Off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			copy(model[e.Off:], p)
		}
		must(t, view.Check())
		if !bytes.Equal(model, want) {
			t.Fatalf("moment %d: what was read of the changes does not make the volume", i)
		}
		must(t, tr.Retire(epoch))
		must(t, s.Drop(ctx))
		t.Logf("moment %d: %d bytes were dirty, %d are", i, set.Bytes(), tr.Pending())
	}
	stop.Store(true)
	<-done
	looptest.Run(t, "sync", "-f", dir)
	if p, err := tr.Prove(ctx); err != nil || p != blockdev.Proven {
		t.Errorf("proof %v, %v", p, err)
	}
}

// TestVictim is the process that TestKill kills.
func TestVictim(t *testing.T) {
	if *victim == "" {
		return // only for TestKill
	}
	s, _ := open(t, 0)
	for {
		fmt.Println("preparing")
		must(t, s.Prepare(context.Background()))
		fmt.Println("prepared")
		must(t, s.Snap(context.Background()))
		fmt.Println("snapped")
		time.Sleep(200 * time.Millisecond)
		fmt.Println("dropping")
		must(t, s.Drop(context.Background()))
	}
}

// killAt kills the victim some time after it has said what it does.
func killAt(t *testing.T, what string, within time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestVictim$", "-victim", path, "-disks", *vmDisks)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != what; {
	}
	time.Sleep(rand.N(within))
	must(t, cmd.Process.Kill())
	cmd.Wait()
}

// TestKill: killed at any instant, the volume works, and the next start leaves nothing.
func TestKill(t *testing.T) {
	lay(t, linear)
	looptest.Mkfs(t, path, "ext4")
	dir := looptest.Mount(t, path)
	defer looptest.Unmount(t, dir)
	before := state(t)
	var stop atomic.Bool
	done := write(t, dir, &stop)
	defer func() { stop.Store(true); t.Logf("%d writes", <-done) }()
	found := map[string]int{}
	for i := range rounds(24) {
		switch i % 4 {
		case 0:
			killAt(t, "preparing", 4*time.Second) // an emulated guest needs seconds for LVM's commands
		case 1:
			killAt(t, "prepared", 40*time.Millisecond)
		case 2:
			killAt(t, "snapped", 200*time.Millisecond)
		case 3:
			killAt(t, "dropping", 2*time.Second)
		}
		found[strings.Join(layers(t), " ")]++
		probe := filepath.Join(dir, fmt.Sprint(i))
		must(t, os.WriteFile(probe, []byte("x"), 0o600))
		looptest.Run(t, "timeout", "10", "sync", "-f", dir)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		err := Sweep(ctx, "/run/other")
		if err == nil {
			err = Sweep(ctx, runDir)
		}
		cancel()
		must(t, err)
		if after := state(t); after != before {
			t.Fatalf("before:\n%s\nafter:\n%s", before, after)
		}
	}
	t.Logf("found after kills: %v", found)
	for _, want := range []string{"snapshot-origin", "linear"} {
		if !strings.Contains(fmt.Sprint(found), want) {
			t.Errorf("no kill left the volume with a table of type %s", want)
		}
	}
}

// layers tells what stands of a view.
func layers(t *testing.T) (out []string) {
	all, err := dm.List()
	must(t, err)
	for _, d := range all {
		if strings.Contains(d.Name, "mover") {
			out = append(out, d.Name[strings.LastIndexByte(d.Name, '-')+1:])
		}
		if d.Name == "vg-v" {
			table, err := dm.Table(d.Dev)
			must(t, err)
			out = append(out, table[0].Type)
		}
	}
	return out
}
