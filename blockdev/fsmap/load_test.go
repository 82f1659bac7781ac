package fsmap

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"golang.org/x/sys/unix"
)

// load changes files in dir at random. What it writes never repeats, so that a block that was written differs from what it held before.
type load struct {
	dir   string
	r     *rand.Rand
	bytes *rand.ChaCha8
	files []string
	no    int
}

func newLoad(t *testing.T, dir string, seed uint64) *load {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var key [32]byte
	key[0] = byte(seed)
	return &load{dir: dir, r: rand.New(rand.NewPCG(seed, 1)), bytes: rand.NewChaCha8(key)}
}

func (l *load) content(n int) []byte {
	b := make([]byte, n)
	l.bytes.Read(b)
	return b
}

func (l *load) pick() string { return l.files[l.r.IntN(len(l.files))] }

func (l *load) create(n int) error {
	l.no++
	dir := filepath.Join(l.dir, fmt.Sprint(l.no%13))
	os.Mkdir(dir, 0o700)
	name := filepath.Join(dir, fmt.Sprintf("%d-%x", l.no, l.content(4)))
	l.files = append(l.files, name)
	return os.WriteFile(name, l.content(n), 0o600)
}

func (l *load) drop() error {
	i := l.r.IntN(len(l.files))
	name := l.files[i]
	l.files[i] = l.files[len(l.files)-1]
	l.files = l.files[:len(l.files)-1]
	return os.Remove(name)
}

// step does one thing.
func (l *load) step() error {
	switch k := l.r.IntN(10); {
	case len(l.files) < 20 || k < 2:
		return l.create(l.r.IntN(300 << 10))
	case len(l.files) > 150 || k < 4:
		return l.drop()
	case k == 4:
		return os.Truncate(l.pick(), l.r.Int64N(200<<10))
	}
	f, err := os.OpenFile(l.pick(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off := l.r.Int64N(256 << 10)
	switch l.r.IntN(6) {
	case 0, 1:
		mode, n := uint32(0), int64(1<<18)
		if l.r.IntN(2) == 0 {
			mode, n = unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<16
		}
		if err := unix.Fallocate(int(f.Fd()), mode, off, n); !errors.Is(err, unix.EOPNOTSUPP) { // ext2 and ext3 cannot
			return err
		}
	case 2:
		return f.Sync()
	case 3: // by memory
		if err := f.Truncate(1 << 18); err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, 1<<18, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(m[off:], l.content(9000))
		return unix.Munmap(m)
	}
	_, err = f.WriteAt(l.content(l.r.IntN(100<<10)), off)
	return err
}

// age fills dir with files and takes half of them away.
func (l *load) age(t *testing.T, files, size int) {
	t.Helper()
	for range files {
		if err := l.create(l.r.IntN(size)); err != nil {
			t.Fatal(err)
		}
	}
	looptest.Run(t, "sync", "-f", l.dir) // what is deleted before it is written leaves nothing behind
	for range files / 2 {
		if err := l.drop(); err != nil {
			t.Fatal(err)
		}
	}
}

// run steps until stop is closed.
func (l *load) run(t *testing.T, wg *sync.WaitGroup, stop <-chan struct{}) {
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.step(); err != nil {
				t.Errorf("load: %v", err)
				return
			}
		}
	})
}

// sums is the digest of every file below dir, by name.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		out[name] = [32]byte(h.Sum(nil))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// differ tells how two sets of sums differ, or nothing.
func differ(a, b map[string][32]byte) string {
	if len(a) != len(b) {
		return fmt.Sprintf("%d files, not %d", len(b), len(a))
	}
	for name, sum := range a {
		if b[name] != sum {
			return name + " differs"
		}
	}
	return ""
}

const chunk = 256 << 10

var zeros [chunk]byte

// chunks reads a file piece by piece, but for its holes.
func chunks(t *testing.T, path string, do func(off int64, b []byte)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, chunk)
	for off := int64(0); ; off += chunk {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		off = data / chunk * chunk
		n, err := f.ReadAt(b, off)
		if n > 0 {
			do(off, b[:n])
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sparse makes a file of size bytes and returns how to write it; zeros are left out.
func sparse(t *testing.T, size int64) (path string, put func(off int64, b []byte)) {
	t.Helper()
	path = filepath.Join(looptest.Dir(t), "copy")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path, func(off int64, b []byte) {
		if bytes.Equal(b, zeros[:len(b)]) {
			return
		}
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshot copies a disk.
func snapshot(t *testing.T, disk string, size int64) string {
	t.Helper()
	path, put := sparse(t, size)
	chunks(t, disk, put)
	return path
}

// image makes what a mover would have made of the disk: now, but zeros where free and unchanged since before; before "": where free.
// It returns how many bytes that were not zero it left out.
func image(t *testing.T, before, now string, free *extent.Set) (path string, left int64) {
	t.Helper()
	const block = 512
	old, err := os.Open(cmp.Or(before, now))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	path, put := sparse(t, free.Size())
	was := make([]byte, chunk)
	chunks(t, now, func(off int64, b []byte) {
		if _, err := old.ReadAt(was[:len(b)], off); err != nil {
			t.Fatal(err)
		}
		for e := range free.Within(extent.Extent{Off: off, Len: int64(len(b))}) {
			for at := e.Off - off; at < e.End()-off; at += block {
				p := b[at:min(at+block, int64(len(b)))]
				if bytes.Equal(p, was[at:][:len(p)]) && !bytes.Equal(p, zeros[:len(p)]) {
					left += int64(len(p))
					clear(p)
				}
			}
		}
		put(off, b)
	})
	return path, left
}

// check proves an image: the filesystem's own checker finds nothing, and the files are the same. It returns what is wrong.
func check(t *testing.T, path, kind string, want map[string][32]byte) string {
	t.Helper()
	l := looptest.Attach(t, path, looptest.Options{})
	dir := filepath.Join(looptest.Dir(t), "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fsck := func() string {
		cmd := []string{"e2fsck", "-fn", l.Dev}
		if kind == "xfs" {
			cmd = []string{"xfs_repair", "-n", l.Dev}
		}
		return try(cmd...)
	}
	if kind != "xfs" { // XFS of a freeze still has a log to replay, by the mount
		if bad := fsck(); bad != "" {
			return bad
		}
	}
	mount := []string{"mount", l.Dev, dir}
	if kind == "xfs" {
		mount = append(mount, "-o", "nouuid") // the original may be mounted
	}
	if bad := try(mount...); bad != "" {
		return bad
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if bad := differ(want, sums(t, dir)); bad != "" {
		return bad
	}
	looptest.Unmount(t, dir)
	return fsck()
}
