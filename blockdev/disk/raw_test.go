package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

func rawUsers(t *testing.T, m extent.Map) []string {
	t.Helper()
	st, err := StackOn(m)
	if err != nil {
		t.Fatal(err)
	}
	users, err := st.RawUsers()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, u := range users {
		out = append(out, u.String())
	}
	return out
}

// hold starts a process that has path open in the shell's way ("<", "<>", ">>").
func hold(t *testing.T, path, way string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", fmt.Sprintf("exec 7%s'%s'; echo; read x", way, path))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	end = func() {
		in.Close()
		cmd.Wait()
	}
	t.Cleanup(end)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, end
}

// TestRawUsers: who has the disk, a partition of it, a loop device on it, or a loop device on a file on it open for writing is named; who
// reads, or writes another disk, is not.
func TestRawUsers(t *testing.T) {
	l := looptest.New(t, 256<<20, looptest.Options{})
	_, m := mustResolve(t, l.Dev)
	p, q := l.Partition(1, 1<<20, 100<<20), l.Partition(2, 101<<20, 100<<20)
	looptest.Mkfs(t, q, "ext4")
	image := filepath.Join(looptest.Mount(t, q), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	onFile, onPart := looptest.Attach(t, image, looptest.Options{}), looptest.Attach(t, p, looptest.Options{})
	other := looptest.New(t, 1<<20, looptest.Options{})
	if got := rawUsers(t, m); len(got) != 0 {
		t.Fatalf("of an idle disk: %q", got)
	}
	hold(t, l.Dev, "<")
	hold(t, other.Dev, "<>")
	for _, dev := range []string{l.Dev, p, onFile.Dev, onPart.Dev} {
		pid, end := hold(t, dev, "<>")
		want := fmt.Sprintf("%s: sh (pid %d) has it open for writing", dev, pid)
		if got := rawUsers(t, m); len(got) != 1 || got[0] != want {
			t.Errorf("got %q, want %q", got, want)
		}
		end()
	}
	_, mp := mustResolve(t, p)
	hold(t, onFile.Dev, "<>")
	if got := rawUsers(t, mp); len(got) != 0 {
		t.Errorf("of the other partition: %q", got)
	}
}

// TestTargets: exports of the kernel are read from its configuration tree.
func TestTargets(t *testing.T) {
	l := looptest.New(t, 1<<20, looptest.Options{})
	dev, m := mustResolve(t, l.Dev)
	root := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put("kernel/config/target/core/iblock_0/disk1/udev_path", l.Dev+"\n")
	put("kernel/config/target/core/iblock_1/other/udev_path", "/dev/null\n")
	put("kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path", l.Dev+"\n")
	put("block/drbd0/size", "2048\n")
	put("block/drbd0/dev", "147:0\n")
	put("block/drbd1/size", "0\n")
	put("block/drbd1/dev", "147:1\n")
	look := rawLook{s: &system{root: root}, on: m, hits: map[uint64]bool{dev: true}}
	look.targets()
	look.drbd()
	var got []string
	for _, u := range look.out {
		got = append(got, u.Who)
	}
	want := []string{"it is exported to other hosts as disk1 (LIO)", "it is exported to other hosts as nqn.x/1 (NVMe target)", "it is a replicated device (DRBD)"}
	for i, w := range want {
		if len(got) != len(want) || !strings.HasPrefix(got[i], w) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestWritten(t *testing.T) {
	l := looptest.New(t, 8<<20, looptest.Options{})
	p := l.Partition(1, 1<<20, 4<<20)
	dev, _ := mustResolve(t, p)
	before, ok := Written(dev)
	looptest.Run(t, "dd", "if=/dev/zero", "of="+p, "bs=64k", "count=2", "oflag=direct", "status=none")
	var after int64
	for end := time.Now().Add(5 * time.Second); after-before < 128<<10 && time.Now().Before(end); {
		after, _ = Written(dev)
	}
	if !ok || after-before != 128<<10 {
		t.Errorf("from %d to %d, %v", before, after, ok)
	}
	if _, ok := Written(1 << 40); ok {
		t.Error("a device that is not there is accounted")
	}
}
