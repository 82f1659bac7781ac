package fsmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
	"golang.org/x/sys/unix"
)

// try runs a program and returns what it says if it fails.
func try(cmd ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).CombinedOutput()
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%s: %v: %s", strings.Join(cmd, " "), err, out)
}

// collect makes a set of what a call tells, and checks the order of the extents.
func collect(t *testing.T, size int64) (*extent.Set, func(extent.Extent) error) {
	free, end := extent.NewSet(size, 512), int64(-1)
	return free, func(e extent.Extent) error {
		if e.Empty() || e.Off <= end || e.End() > size || e.Off%512 != 0 || e.Len%512 != 0 {
			t.Errorf("extent %v after %d on %d bytes", e, end, size)
		}
		end = e.End()
		free.Add(e)
		return nil
	}
}

// TestFree moves a filesystem under load as the source would: what is free is left out, what is written after the tracking began is not.
// The image must be sound and hold the same files.
func TestFree(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		mkfs       []string
		mount      []string
	}{
		{"ext4", "ext4", []string{"-b", "4096"}, nil},
		{"ext4 2 KiB blocks, no journal", "ext4", []string{"-b", "2048", "-O", "^has_journal"}, nil},
		{"ext4 bigalloc", "ext4", []string{"-b", "4096", "-O", "bigalloc", "-C", "65536"}, nil},
		{"ext4 writeback, small groups", "ext4", []string{"-b", "4096", "-g", "4096", "-E", "lazy_itable_init=1"}, []string{"-o", "data=writeback,discard"}},
		{"xfs", "xfs", nil, nil},
		{"xfs reverse map", "xfs", []string{"-m", "rmapbt=1,reflink=1", "-b", "size=1024"}, []string{"-o", "discard"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			size := int64(160 << 20)
			if c.kind == "xfs" {
				size = 300 << 20 // mkfs wants no less
			}
			l := looptest.New(t, size, looptest.Options{})
			looptest.Mkfs(t, l.Dev, c.kind, c.mkfs...)
			dir := looptest.Mount(t, l.Dev, c.mount...)
			var loads []*load
			for i := range uint64(3) {
				w := newLoad(t, filepath.Join(dir, fmt.Sprint(i)), i)
				w.age(t, 200, 200<<10)
				loads = append(loads, w)
			}
			marker := loads[0].content(4096)
			if err := os.WriteFile(filepath.Join(dir, "marker"), marker, 0o600); err != nil {
				t.Fatal(err)
			}
			looptest.Run(t, "sync", "-f", dir)
			stop, wg := make(chan struct{}), &sync.WaitGroup{}
			for _, w := range loads {
				w.run(t, wg, stop)
			}
			before := snapshot(t, l.File, size) // tracking begins
			free, add := collect(t, size)
			kind, err := Free(dir, add)
			if err != nil || kind != c.kind {
				t.Errorf("%s, %v", kind, err)
			}
			<-time.After(300 * time.Millisecond)
			close(stop)
			wg.Wait()
			want := sums(t, dir)
			now := frozenSnapshot(t, dir, l.File, size)
			path, left := image(t, before, now, free)
			if bad := check(t, path, c.kind, want); bad != "" {
				t.Errorf("frozen: %s", bad)
			}
			looptest.Unmount(t, dir)
			path, _ = image(t, before, l.File, free)
			if bad := check(t, path, c.kind, want); bad != "" {
				t.Errorf("unmounted: %s", bad)
			}
			t.Logf("%d files; %d MiB free, of these %d KiB not zero and left out", len(want), free.Bytes()>>20, left>>10)
			if left < 256<<10 && !strings.Contains(strings.Join(c.mount, ""), "discard") || free.Bytes() < size/10 {
				t.Error("too little was left out to prove anything")
			}
			at := int64(-1)
			chunks(t, now, func(off int64, b []byte) {
				if i := bytes.Index(b, marker[:1024]); i >= 0 { // of a block: the next one may lie elsewhere
					at = off + int64(i)
				}
			})
			free.Add(extent.Extent{Off: at, Len: 512})
			path, _ = image(t, before, now, free)
			if bad := check(t, path, c.kind, want); bad != "marker differs" {
				t.Errorf("an image without a block at %d that is in use: %q", at, bad)
			}
		})
	}
}

// frozenSnapshot copies the disk while its filesystem is frozen.
func frozenSnapshot(t *testing.T, dir, file string, size int64) string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	if err := unix.IoctlSetInt(int(f.Fd()), fifreeze, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.IoctlSetInt(int(f.Fd()), fithaw, 0)
	return snapshot(t, file, size)
}

func TestFreeRefused(t *testing.T) {
	none := func(extent.Extent) error { return errors.New("called") }
	l := looptest.New(t, 200<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "btrfs")
	small := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, small.Dev, "ext4", "-b", "1024")
	for _, dir := range []string{looptest.Mount(t, l.Dev), looptest.Mount(t, small.Dev), "/proc", "/dev/shm"} {
		if _, err := Free(dir, none); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := Free("/nonexistent", none); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, kind := range []string{"ext4", "xfs"} {
		l := looptest.New(t, 600<<20, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		dir := looptest.Mount(t, l.Dev, "-o", "ro")
		if _, err := Free(dir, func(extent.Extent) error { return nil }); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("%s read-only: %v", kind, err)
		}
		looptest.Run(t, "mount", "-o", "remount,rw", dir)
		newLoad(t, filepath.Join(dir, "load"), 9).age(t, 10, 10<<10)
		looptest.Run(t, "xfs_io", "-x", "-c", "shutdown", dir) // as after an error of the disk
		if _, err := Free(dir, func(extent.Extent) error { return nil }); err == nil {
			t.Errorf("%s after an error: what is free is believed", kind)
		} else {
			t.Log(err)
		}
	}
	ok := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, ok.Dev, "ext4", "-b", "4096")
	enough := errors.New("enough")
	if _, err := Free(looptest.Mount(t, ok.Dev), func(extent.Extent) error { return enough }); err != enough {
		t.Errorf("an error of the callback: %v", err)
	}
}

// TestManyExtents has far more records than one call of the kernel returns.
func TestManyExtents(t *testing.T) {
	const size = 320 << 20
	for _, kind := range []string{"ext4", "xfs"} {
		l := looptest.New(t, size, looptest.Options{})
		args := map[string][]string{"ext4": {"-b", "4096"}}
		looptest.Mkfs(t, l.Dev, kind, args[kind]...)
		dir := looptest.Mount(t, l.Dev)
		f, err := os.Create(filepath.Join(dir, "sieve"))
		if err != nil {
			t.Fatal(err)
		}
		const blocks = 30000
		err = unix.Fallocate(int(f.Fd()), 0, 0, blocks*4096)
		for i := int64(0); i < blocks && err == nil; i += 2 {
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, i*4096, 4096)
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		count := 0
		mounted, add := collect(t, size)
		if _, err := Free(dir, func(e extent.Extent) error { count++; return add(e) }); err != nil || count < blocks/2 {
			t.Errorf("%s: %d extents, %v", kind, count, err)
		}
		looptest.Unmount(t, dir)
		unmounted, add := collect(t, size)
		if _, err := Unmounted(openFile(t, l.File), size, add); err != nil {
			t.Error(err)
		}
		if a, b := mounted.Bytes(), unmounted.Bytes(); a < b*9/10 || b < a*9/10 {
			t.Errorf("%s: %d bytes free mounted, %d unmounted", kind, a, b)
		}
	}
}
