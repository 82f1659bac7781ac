package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/freeze"
	"github.com/moverd/mover/daemon/config"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// mounted is a loop disk with a filesystem that is mounted.
func mounted(t *testing.T, kind string, size int64) (*disk.Volume, string) {
	t.Helper()
	l := looptest.New(t, size, looptest.Options{})
	looptest.Mkfs(t, l.Dev, kind)
	dir := looptest.Mount(t, l.Dev)
	t.Cleanup(func() { freeze.Thaw(dir) })
	return openVolume(t, l.Dev), dir
}

func openVolume(t *testing.T, dev string) *disk.Volume {
	t.Helper()
	v, err := disk.OpenVolume(dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// shm is a folder for records that no test freezes.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "daemon-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func groupFreezer(t *testing.T, run string, cut config.Cutover, vs ...*disk.Volume) *freezer {
	t.Helper()
	f := newGroupFreezer(freezerOptions{Name: "server", Cutover: cut, Run: run, Log: slog.New(slog.DiscardHandler),
		Volumes: func() ([]*disk.Volume, error) { return vs, nil }})
	t.Cleanup(func() { f.Thaw() })
	return f
}

// writable tells whether a file can be made in dir within a second. A writer that hangs ends with the thaw.
func writable(dir string) bool {
	done := make(chan error, 1)
	go func() {
		done <- os.WriteFile(filepath.Join(dir, "probe"), []byte("x"), 0o600)
	}()
	select {
	case err := <-done:
		return err == nil
	case <-time.After(time.Second):
		return false
	}
}

// TestGroupFreezer freezes two volumes as one: one record, both or none, thawed together, also by a later process.
func TestGroupFreezer(t *testing.T) {
	a, dirA := mounted(t, "ext4", 64<<20)
	b, dirB := mounted(t, "xfs", 320<<20)
	run := shm(t)
	f := groupFreezer(t, run, config.Cutover{}, a, b)
	if err := f.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if !f.Held() || writable(dirA) || writable(dirB) {
		t.Error("not frozen")
	}
	records, _ := filepath.Glob(filepath.Join(run, "frozen-*.json"))
	if len(records) != 1 || filepath.Base(records[0]) != "frozen-server.json" {
		t.Errorf("records %v", records)
	}
	if err := f.Thaw(); err != nil || !writable(dirA) || !writable(dirB) {
		t.Errorf("thaw: %v", err)
	}

	// What an earlier process left frozen is thawed under the group's name.
	if err := errors.Join(f.Freeze(t.Context(), time.Minute), f.Keep()); err != nil {
		t.Fatal(err)
	}
	later := groupFreezer(t, run, config.Cutover{}, a, b)
	if err := later.Thaw(); err != nil || !writable(dirA) || !writable(dirB) {
		t.Errorf("thaw by a later process: %v", err)
	}

	// A volume that is away refuses the freeze of all.
	away := groupFreezer(t, run, config.Cutover{}, a, b)
	away.o.Volumes = func() ([]*disk.Volume, error) { return nil, sentinel.ErrNotFound }
	if err := away.Freeze(t.Context(), time.Minute); !errors.Is(err, sentinel.ErrNotFound) || !writable(dirA) {
		t.Errorf("freeze without one of the volumes: %v", err)
	}
}

// TestGroupReadOnly leaves a group read-only, one volume of it without a filesystem. Each flow of the group says so, and takes it back.
func TestGroupReadOnly(t *testing.T) {
	a, dir := mounted(t, "ext4", 64<<20)
	bare := looptest.New(t, 8<<20, looptest.Options{})
	b := openVolume(t, bare.Dev)
	f := groupFreezer(t, shm(t), config.Cutover{}, a, b)
	if err := f.Freeze(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.leave(t.Context(), "read-only", false); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Thaw(); err != nil {
		t.Fatal(err)
	}
	if ro, err := disk.IsReadOnly(bare.Dev); !ro || err != nil || writable(dir) {
		t.Errorf("left writable: device read-only %v, %v", ro, err)
	}
	for range 2 {
		if err := f.leave(t.Context(), "read-only", true); err != nil {
			t.Fatal(err)
		}
	}
	if ro, err := disk.IsReadOnly(bare.Dev); ro || err != nil || !writable(dir) {
		t.Errorf("not taken back: device read-only %v, %v", ro, err)
	}
}
