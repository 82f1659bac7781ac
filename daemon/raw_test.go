package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
)

// TestRawUser: a process that has a disk of the group open for writing is named, also one that comes while it is frozen. A pre hook that
// ends it in time is in time.
func TestRawUser(t *testing.T) {
	v, _ := mounted(t, "ext4", 64<<20)
	bare := looptest.New(t, 8<<20, looptest.Options{})
	b := openVolume(t, bare.Dev)
	pids := filepath.Join(t.TempDir(), "pid")
	start := func() string {
		cmd := exec.Command("sh", "-c", fmt.Sprintf("exec 7<>%s; echo; read x", bare.Dev))
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		go cmd.Wait()
		t.Cleanup(func() { in.Close() })
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		pid := fmt.Sprint(cmd.Process.Pid)
		if err := os.WriteFile(pids, []byte(pid), 0o600); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	run := shm(t)
	f := groupFreezer(t, run, config.Cutover{}, v, b)
	f.o.Hooks = config.Hooks{Pre: []string{"sh", "-c", "kill -9 $(cat " + pids + "); sleep 0.2"}, Post: []string{"true"}, Timeout: config.Duration(10 * time.Second)}
	f = newGroupFreezer(f.o)
	moment := func(hook bool, during func()) []string {
		t.Helper()
		if hook {
			if err := f.pre(t.Context(), "m"); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Freeze(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		during()
		if err := errors.Join(f.Thaw(), f.post()); err != nil {
			t.Fatal(err)
		}
		return f.users()
	}
	if got := moment(false, func() {}); len(got) != 0 {
		t.Errorf("nobody writes: %q", got)
	}
	pid := start()
	if got := moment(false, func() {}); len(got) != 1 || got[0] != fmt.Sprintf("%s: sh (pid %s) has it open for writing", bare.Dev, pid) {
		t.Errorf("got %q", got)
	}
	if got := moment(true, func() {}); len(got) != 0 {
		t.Errorf("after the pre hook: %q", got)
	}
	if got := moment(false, func() { pid = start() }); len(got) != 1 || !strings.Contains(got[0], "pid "+pid) {
		t.Errorf("who came meanwhile: %q", got)
	}
}

// TestSwapUser: active swap counts only when it is written while frozen.
func TestSwapUser(t *testing.T) {
	l := looptest.New(t, 256<<20, looptest.Options{})
	p, q := l.Partition(1, 1<<20, 16<<20), l.Partition(2, 32<<20, 200<<20)
	looptest.Mkfs(t, q, "ext4")
	dir := looptest.Mount(t, q)
	looptest.Mkfs(t, p, "swap")
	swapOn(t, p)
	v := openVolume(t, l.Dev)
	f := groupFreezer(t, shm(t), config.Cutover{}, v)
	moment := func(during func()) []string {
		t.Helper()
		if err := f.Freeze(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		during()
		if err := f.Thaw(); err != nil {
			t.Fatal(err)
		}
		return f.users()
	}
	scribble(t, dir) // what is written outside of the freeze does not count
	if got := moment(func() {}); len(got) != 0 {
		t.Errorf("quiet swap: %q", got)
	}
	got := moment(func() { swapOut(t, l.Dev) })
	if len(got) != 1 || !strings.HasPrefix(got[0], p+": active swap") {
		t.Errorf("written swap: %q", got)
	}
	looptest.Run(t, "swapoff", p)
	file := filepath.Join(dir, "swap file") // its filesystem is frozen, it is not
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	looptest.Mkfs(t, file, "swap")
	swapOn(t, file)
	if got := moment(func() {}); len(got) != 0 {
		t.Errorf("quiet swap file: %q", got)
	}
	if got := moment(func() { swapOut(t, l.Dev) }); len(got) != 1 || !strings.HasPrefix(got[0], file+": active swap") {
		t.Errorf("written swap file: %q", got)
	}
}

func swapOn(t *testing.T, path string) {
	t.Helper()
	looptest.Run(t, "swapon", "-p", "32767", path)
	t.Cleanup(func() { exec.Command("swapoff", path).Run() })
}

// swapOut makes the kernel write memory of this process to the swap on the disk dev, which nobody else writes.
func swapOut(t *testing.T, dev string) {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for i := 0; i < len(mem); i += 4096 {
		mem[i] = byte(i>>12) | 1
	}
	from := swapped(t, dev)
	for end := time.Now().Add(20 * time.Second); swapped(t, dev) <= from; time.Sleep(20 * time.Millisecond) {
		if err := unix.Madvise(mem, unix.MADV_PAGEOUT); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the kernel swaps nothing out")
		}
	}
}

// swapped is how many sectors have been written to the disk dev.
func swapped(t *testing.T, dev string) int64 {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(b))[6], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
