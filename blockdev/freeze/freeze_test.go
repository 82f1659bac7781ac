package freeze

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

var noContext = context.Background()

func newFreezer(t *testing.T, dirs ...string) *Freezer {
	t.Helper()
	f := New(dirs, Options{RunDir: runDir(t), Name: t.Name(), Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { f.Thaw() })
	return f
}

func mustFreeze(t *testing.T, f *Freezer, deadline time.Duration) {
	t.Helper()
	if err := f.Freeze(t.Context(), deadline); err != nil {
		t.Fatal(err)
	}
}

// gone tells whether nothing is left of a freeze: no record, no guardian, filesystems writable and not held open.
func gone(t *testing.T, f *Freezer) {
	t.Helper()
	if r := records(t, f.o.RunDir); len(r) > 0 {
		t.Errorf("records are left: %v", r)
	}
	for _, d := range f.dirs {
		if frozen(t, d) {
			t.Errorf("%s is frozen", d)
		}
	}
}

func TestFreezeThaw(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := newFS(t, kind)
			w := startWriter(t, dir)
			f := newFreezer(t, dir)
			if f.Held() || !closed(f.Thawed()) {
				t.Error("held before the freeze")
			}
			for range 3 {
				mustFreeze(t, f, time.Minute)
				n := w.n.Load()
				if !f.Held() || closed(f.Thawed()) {
					t.Error("not held after the freeze")
				}
				if len(records(t, f.o.RunDir)) != 1 {
					t.Error("no record of what is frozen")
				}
				if err := f.Freeze(t.Context(), time.Minute); !errors.Is(err, sentinel.ErrRefused) {
					t.Errorf("a second freeze: %v", err)
				}
				if !f.Held() || w.n.Load() > n+1 { // the one write that was under way may complete its count
					t.Errorf("%d writes while frozen", w.n.Load()-n)
				}
				for range 2 {
					if err := f.Thaw(); err != nil {
						t.Error(err)
					}
				}
				w.advance(t)
				if f.Held() || !closed(f.Thawed()) {
					t.Error("held after the thaw")
				}
			}
			gone(t, f)
			w.end(t)
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("something still holds %s: %v", dir, err)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	dir := newFS(t, "ext4")
	w := startWriter(t, dir)
	f := newFreezer(t, dir)
	begin := time.Now()
	mustFreeze(t, f, 300*time.Millisecond)
	<-f.Thawed()
	if took := time.Since(begin); took < 300*time.Millisecond || took > 2*time.Second {
		t.Errorf("thawed after %s", took)
	}
	w.advance(t)
	if f.Held() {
		t.Error("held after the deadline")
	}
	if err := f.Keep(); err == nil {
		t.Error("kept after the deadline")
	}
	for range 2 {
		if err := f.Thaw(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("thaw after the deadline: %v", err)
		}
	}
	gone(t, f)
	mustFreeze(t, f, time.Minute)
	if err := f.Thaw(); err != nil {
		t.Errorf("the next freeze inherits: %v", err)
	}
}

// TestStacked freezes an ext4 image that lies on XFS and the XFS below it.
func TestStacked(t *testing.T) {
	lower := newFS(t, "xfs")
	image := filepath.Join(lower, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	l := looptest.Attach(t, image, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	upper := looptest.Mount(t, l.Dev)
	t.Cleanup(func() { Thaw(lower); Thaw(upper) })
	wu, wl := startWriter(t, upper), startWriter(t, lower)
	for _, end := range []string{"told", "deadline", "killed"} {
		f := newFreezer(t, upper, lower)
		limit := time.Minute
		if end == "deadline" {
			limit = 500 * time.Millisecond
		}
		mustFreeze(t, f, limit)
		switch end {
		case "told":
			if !f.Held() {
				t.Error("not held")
			}
			if err := f.Thaw(); err != nil {
				t.Error(err)
			}
		case "killed":
			kill(t, f.cur.cmd.Process.Pid, unix.SIGKILL)
		}
		<-f.Thawed()
		wu.advance(t)
		wl.advance(t)
		f.Thaw()
		gone(t, f)
	}
	wu.end(t)
	wl.end(t)
	looptest.Unmount(t, upper)
}

func TestPartialFailure(t *testing.T) {
	a, b := newFS(t, "ext4"), newFS(t, "xfs")
	looptest.Run(t, "fsfreeze", "-f", b)
	w := startWriter(t, a)
	f := newFreezer(t, a, b)
	err := f.Freeze(t.Context(), time.Minute)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), b) {
		t.Errorf("freeze of what is frozen already: %v", err)
	}
	w.advance(t)
	if f.Held() {
		t.Error("held")
	}
	if !frozen(t, b) {
		t.Error("what somebody else froze was thawed")
	}
	if len(records(t, f.o.RunDir)) != 0 {
		t.Error("a record is left")
	}
	if err := Thaw(b); err != nil {
		t.Fatal(err)
	}
	if err := Thaw(b); err != nil {
		t.Errorf("thaw of what is not frozen: %v", err)
	}
	gone(t, f)
}

func TestForeignThaw(t *testing.T) {
	a, b := newFS(t, "ext4"), newFS(t, "ext4")
	f := newFreezer(t, a, b)
	mustFreeze(t, f, time.Minute)
	looptest.Run(t, "fsfreeze", "-u", b)
	if f.Held() {
		t.Error("held although somebody thawed")
	}
	if err := f.Keep(); err == nil {
		t.Error("kept although somebody thawed")
	}
	if err := f.Thaw(); err == nil || !strings.Contains(err.Error(), b) {
		t.Errorf("thaw after somebody else's: %v", err)
	}
	gone(t, f)
	mustFreeze(t, f, time.Minute) // and without asking in between
	looptest.Run(t, "fsfreeze", "-u", a)
	if err := f.Thaw(); err == nil || !strings.Contains(err.Error(), a) {
		t.Errorf("thaw after somebody else's: %v", err)
	}
	gone(t, f)
}

func TestRefused(t *testing.T) {
	dir := newFS(t, "ext4")
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	run := runDir(t)
	for name, c := range map[string]struct {
		dirs []string
		run  string
		want error
	}{
		"no mount point":      {[]string{dir, sub}, run, sentinel.ErrRefused},
		"not there":           {[]string{dir, dir + "/x"}, run, os.ErrNotExist},
		"record on frozen":    {[]string{dir}, filepath.Join(sub, "run"), sentinel.ErrRefused},
		"no folder of record": {[]string{dir}, "", sentinel.ErrUsage},
		"cannot be frozen":    {[]string{"/proc"}, run, unix.EOPNOTSUPP},
	} {
		f := New(c.dirs, Options{RunDir: c.run, Name: "x"})
		if err := f.Freeze(t.Context(), time.Minute); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if len(records(t, run)) != 0 || frozen(t, dir) {
			t.Errorf("%s: something is left", name)
		}
	}
	if err := New([]string{dir}, Options{RunDir: run}).Freeze(t.Context(), 0); !errors.Is(err, sentinel.ErrUsage) {
		t.Errorf("no deadline: %v", err)
	}
	missing := New([]string{dir}, Options{RunDir: run, Exec: []string{"/nonexistent"}})
	if err := missing.Freeze(t.Context(), time.Minute); !errors.Is(err, os.ErrNotExist) || len(records(t, run)) != 0 {
		t.Errorf("no guardian: %v", err)
	}
	exits := New([]string{dir}, Options{RunDir: run, Exec: []string{"/bin/true"}})
	if err := exits.Freeze(t.Context(), time.Minute); err == nil || len(records(t, run)) != 0 {
		t.Errorf("a guardian that exits: %v", err)
	}
}

func TestNothing(t *testing.T) {
	f := New(nil, Options{RunDir: "/nonexistent"})
	mustFreeze(t, f, time.Nanosecond)
	if !f.Held() || f.Keep() != nil || f.Thaw() != nil || f.Held() {
		t.Error("nothing to freeze is not simply held")
	}
	mustFreeze(t, f, time.Nanosecond)
}

// TestMountedTwice: bind mounts and btrfs subvolumes are one filesystem, whose second freeze would be refused.
func TestMountedTwice(t *testing.T) {
	l := looptest.New(t, 320<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "btrfs")
	top := looptest.Mount(t, l.Dev)
	looptest.Run(t, "btrfs", "subvolume", "create", top+"/sub vol")
	sub := looptest.Mount(t, l.Dev, "-o", "subvol=sub vol")
	space := filepath.Join(looptest.Dir(t), "with space\\and\tmore")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	looptest.MountAt(t, top, space, "--bind")
	f := newFreezer(t, space, sub, top)
	mustFreeze(t, f, time.Minute)
	if !f.Held() {
		t.Error("not held")
	}
	if err := f.Thaw(); err != nil {
		t.Error(err)
	}
	gone(t, f)
}

func TestUnmountedMeanwhile(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		l := looptest.New(t, 320<<20, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		dir := looptest.Mount(t, l.Dev)
		f := newFreezer(t, dir)
		mustFreeze(t, f, time.Minute)
		if err := unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			t.Fatalf("%s: unmount of what is frozen: %v", kind, err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if !f.Held() {
			t.Errorf("%s: a lazy unmount broke the freeze", kind)
		}
		if err := f.Thaw(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if err := f.Freeze(t.Context(), time.Minute); !errors.Is(err, sentinel.ErrRefused) {
			t.Errorf("%s: freeze of a folder where nothing is mounted: %v", kind, err)
		}
		looptest.MountAt(t, l.Dev, dir)
		if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
			t.Error(err)
		}
		gone(t, f)
	}
}

// TestStuck has the kernel not return from a freeze: the image's dirty data cannot be written, since the filesystem below is frozen.
func TestStuck(t *testing.T) {
	lower := newFS(t, "ext4")
	image := filepath.Join(lower, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	l := looptest.Attach(t, image, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	upper := looptest.Mount(t, l.Dev)
	other := newFS(t, "xfs")
	w := startWriter(t, other)
	t.Cleanup(func() { Thaw(lower); Thaw(upper) })
	for _, c := range []struct {
		name   string
		dry    bool
		cancel bool
		die    bool
	}{{name: "flush", cancel: true}, {name: "deadline", dry: true}, {name: "cancel", dry: true, cancel: true}, {name: "die", dry: true, die: true}} {
		t.Run(c.name, func(t *testing.T) {
			looptest.Run(t, "sync", "-f", upper)
			looptest.Run(t, "fsfreeze", "-f", lower)
			if err := os.WriteFile(filepath.Join(upper, c.name), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			f := New([]string{other, upper}, Options{RunDir: runDir(t), Name: c.name, Log: slog.New(slog.DiscardHandler), dry: c.dry})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			limit := time.Second
			if c.cancel || c.die {
				limit = time.Minute
			}
			go func() { // when it hangs
				for s := f.session(); s == nil || len(s.pending()) < 2 && c.dry || !c.dry && !flushing(s.cmd.Process.Pid); s = f.session() {
					<-time.After(time.Millisecond)
				}
				switch {
				case c.cancel:
					cancel()
				case c.die:
					f.session().cmd.Process.Kill()
				}
			}()
			begin := time.Now()
			err := f.Freeze(ctx, limit)
			t.Logf("after %s: %v", time.Since(begin), err)
			if err == nil || c.cancel && !errors.Is(err, context.Canceled) || c.name == "deadline" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a freeze that hangs: %v", err)
			}
			if c.dry && !strings.Contains(err.Error(), upper) {
				t.Errorf("the error does not name what hangs: %v", err)
			}
			w.advance(t) // what was frozen already runs again
			if err := f.Freeze(ctx, limit); !errors.Is(err, sentinel.ErrRefused) {
				t.Errorf("a freeze while the kernel works on one: %v", err)
			}
			if err := Thaw(lower); err != nil {
				t.Fatal(err)
			}
			<-f.cur.ended
			gone(t, f)
		})
	}
	if most := time.Duration(w.most.Load()); most > 20*time.Second {
		t.Errorf("a writer of another filesystem waited %s", most)
	}
}

// flushing tells whether a guardian is in the kernel to flush its second filesystem.
func flushing(pid int) bool {
	calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, call := range calls {
		if b, _ := os.ReadFile(call); strings.HasPrefix(string(b), fmt.Sprintf("%d %#x ", unix.SYS_SYNCFS, guardianFirst+1)) {
			return true
		}
	}
	return false
}

// TestThawDuringFreeze: an operator's thaw is heard also while the freeze is still under way.
func TestThawDuringFreeze(t *testing.T) {
	dir := newFS(t, "ext4")
	w := startWriter(t, dir)
	f := newFreezer(t, dir)
	for range 20 {
		result := make(chan error, 1)
		go func() { result <- f.Freeze(noContext, time.Minute) }()
		for f.Thaw(); len(result) == 0; f.Thaw() {
		}
		if err := <-result; err == nil && !closed(f.Thawed()) {
			f.Thaw()
		}
		w.advance(t)
		waitFor(t, "the session to end", func() bool { s := f.session(); return s == nil || closed(s.ended) })
	}
	gone(t, f)
}

// TestReadOnly: what cannot be frozen (FAT) is made read-only instead. This kernel has no FAT, so ext4 plays it.
func TestReadOnly(t *testing.T) {
	dir := newFS(t, "ext4")
	bind := filepath.Join(looptest.Dir(t), "ro") // as under ProtectSystem: this mount is read-only, the filesystem is not
	if err := os.Mkdir(bind, 0o700); err != nil {
		t.Fatal(err)
	}
	looptest.MountAt(t, dir, bind, "--bind")
	looptest.Run(t, "mount", "-o", "remount,bind,ro", bind)
	write := func() error { return os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600) }
	f := New([]string{bind}, Options{RunDir: runDir(t), Name: "x", Log: slog.New(slog.DiscardHandler), how: byRemount})
	defer f.Thaw()
	mustFreeze(t, f, time.Minute)
	if err := write(); !errors.Is(err, unix.EROFS) || !f.Held() {
		t.Errorf("write while read-only: %v", err)
	}
	if err := f.Thaw(); err != nil {
		t.Error(err)
	}
	if err := write(); err != nil {
		t.Error(err)
	}
	mustFreeze(t, f, time.Minute)
	kill(t, f.cur.cmd.Process.Pid, unix.SIGKILL)
	<-f.cur.ended
	if err := write(); err != nil {
		t.Errorf("after the guardian died: %v", err)
	}
	mustFreeze(t, f, time.Minute)
	looptest.Run(t, "mount", "-o", "remount,rw", dir)
	if f.Held() {
		t.Error("held although somebody made it writable")
	}
	if err := f.Thaw(); err == nil {
		t.Error("thaw after somebody made it writable: no error")
	}
	open, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Freeze(t.Context(), time.Minute); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with a file open: %v", err)
	}
	open.Close()
	mustFreeze(t, f, time.Minute)
	if err := f.Keep(); err != nil {
		t.Fatal(err)
	}
	if names, err := ThawRecorded(f.o.RunDir); err != nil || len(names) != 1 || write() != nil {
		t.Errorf("thawed by record: %v, %v", names, err)
	}
	gone(t, f)
}
