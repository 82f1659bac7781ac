package points

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func junk(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

const owner = "0123456789abcdef"

var kinds = map[string][]string{"xfs": {"-m", "reflink=1"}, "btrfs": nil}

func store(t *testing.T, image, owner string) *reflink {
	t.Helper()
	p, err := Open(Options{Method: Reflink, Target: image, Owner: owner, Flow: "acme/db1/root"})
	must(t, err)
	return p.(*reflink)
}

// TestReflink: points stay what they were while the image changes; only what carries the owner's tag is listed and removed.
func TestReflink(t *testing.T) {
	ctx := context.Background()
	for kind, args := range kinds {
		t.Run(kind, func(t *testing.T) {
			l := looptest.New(t, 320<<20, looptest.Options{})
			looptest.Mkfs(t, l.Dev, kind, args...)
			image := filepath.Join(looptest.Mount(t, l.Dev), "disk.img")
			s := store(t, image, owner)
			var want [][]byte
			f, err := os.Create(image)
			must(t, err)
			defer f.Close()
			for i := range 5 {
				b := junk(4<<20, uint64(i))
				_, err := f.WriteAt(b, int64(i)<<20)
				must(t, err)
				must(t, s.Take(ctx, fmt.Sprintf("p-%d", i)))
				whole, err := os.ReadFile(image)
				must(t, err)
				want = append(want, whole)
			}
			if err := s.Take(ctx, "p-1"); !errors.Is(err, sentinel.ErrRefused) {
				t.Fatalf("a point was taken twice: %v", err)
			}
			all, err := s.List(ctx)
			must(t, err)
			if len(all) != 5 || all[0].Name != "p-0" {
				t.Fatalf("list %+v", all)
			}
			for i, w := range want {
				k, err := s.Open(ctx, fmt.Sprintf("p-%d", i))
				must(t, err)
				got := make([]byte, k.Size())
				_, err = k.ReadAt(got, 0)
				must(t, err)
				if !bytes.Equal(got, w) {
					t.Fatalf("point %d is not what the image was", i)
				}
				must(t, k.Close())
			}
			others(t, s, image)
			for i := range 5 {
				must(t, s.Remove(ctx, fmt.Sprintf("p-%d", i)))
			}
			if all, err = s.List(ctx); err != nil || len(all) != 0 {
				t.Fatalf("after removal: %v %v", all, err)
			}
			if _, err := s.Open(ctx, "p-1"); !errors.Is(err, sentinel.ErrNotFound) {
				t.Fatal(err)
			}
		})
	}
}

// TestReflinkConforms runs the suite that every method passes.
func TestReflinkConforms(t *testing.T) {
	l := looptest.New(t, 320<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "xfs", kinds["xfs"]...)
	image := filepath.Join(looptest.Mount(t, l.Dev), "disk.img")
	must(t, os.WriteFile(image, nil, 0o600))
	open := func(t *testing.T, owner string) blockdev.Points { return store(t, image, owner) }
	devtest.Points(t, image, open, func(t *testing.T, i int) []byte {
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt(junk(4<<20, uint64(i)), int64(i)<<20)
		must(t, errors.Join(err, f.Close()))
		whole, err := os.ReadFile(image)
		must(t, err)
		return whole
	})
}

// others: what is not this owner's is left alone.
func others(t *testing.T, s *reflink, image string) {
	t.Helper()
	ctx := context.Background()
	o := store(t, image, "ffffffffffffffff")
	must(t, o.Take(ctx, "p-0"))
	untagged := s.path("by-hand")
	must(t, os.WriteFile(untagged, []byte("x"), 0o600))
	cut := s.path("cut") + partial // killed before its first tag
	must(t, os.WriteFile(cut, nil, 0o600))
	all, err := s.List(ctx)
	must(t, err)
	if len(all) != 6 {
		t.Fatalf("list with others' files: %+v", all)
	}
	must(t, s.Remove(ctx, "cut"))
	if err := s.Remove(ctx, "by-hand"); !errors.Is(err, sentinel.ErrRefused) {
		t.Fatalf("a file without a tag was removed: %v", err)
	}
	for _, path := range []string{o.path("p-0"), untagged} {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if !s.Holds(path) || s.Holds(image) {
			t.Fatal("does not know where points are")
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Take(ctx, "late"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "../x", "-x", "a/b", "a.b"} {
		if err := s.Take(context.Background(), bad); !errors.Is(err, sentinel.ErrUsage) {
			t.Errorf("name %q: %v", bad, err)
		}
	}
}

// TestFull: no room is an error by name, and leaves nothing behind.
func TestFull(t *testing.T) {
	for kind, args := range kinds {
		t.Run(kind, func(t *testing.T) {
			l := looptest.New(t, 320<<20, looptest.Options{})
			looptest.Mkfs(t, l.Dev, kind, args...)
			dir := looptest.Mount(t, l.Dev)
			image := filepath.Join(dir, "disk.img")
			must(t, os.WriteFile(image, junk(1<<20, 1), 0o600))
			must(t, store(t, image, owner).Take(context.Background(), "before"))
			f, err := os.Create(filepath.Join(dir, "ballast"))
			must(t, err)
			defer f.Close()
			for b := junk(1<<20, 2); err == nil; {
				_, err = f.Write(b)
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			must(t, errors.Join(ignoreFull(f.Sync())))
			s := store(t, image, owner)
			err = s.Take(context.Background(), "p")
			if !errors.Is(err, sentinel.ErrRefused) || !strings.Contains(err.Error(), "free") {
				t.Fatal(err)
			}
			if all, err := s.List(context.Background()); err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			k, err := s.Open(context.Background(), "before")
			must(t, err)
			must(t, k.Close())
			must(t, s.Remove(context.Background(), "before")) // what makes room must not need any
		})
	}
}

func ignoreFull(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

// TestCannot: a method that the target cannot have is refused; auto does without.
func TestCannot(t *testing.T) {
	l := looptest.New(t, 64<<20, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "ext4")
	image := filepath.Join(looptest.Mount(t, l.Dev), "disk.img")
	loop := looptest.New(t, 16<<20, looptest.Options{})
	if _, err := Open(Options{Method: LVMThin, Target: loop.Dev}); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), "no logical volume") {
		t.Error(err)
	}
	if _, err := Open(Options{Method: LVMThin, Target: image}); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), "no block device") {
		t.Error(err)
	}
	for _, target := range []string{image, loop.Dev} {
		if _, err := Open(Options{Method: Reflink, Target: target}); !errors.Is(err, sentinel.ErrNotSupported) || !strings.Contains(err.Error(), target) {
			t.Errorf("%s: %v", target, err)
		}
		for _, m := range []string{Auto, None} {
			if p, err := Open(Options{Method: m, Target: target}); p != nil || err != nil {
				t.Errorf("%s, %s: %v %v", target, m, p, err)
			}
		}
	}
	if _, err := Open(Options{Method: "rsync", Target: image}); !errors.Is(err, sentinel.ErrUsage) {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(image))
	must(t, err)
	if len(left) != 1 { // lost+found
		t.Errorf("trying left %v", left)
	}
}
