package fsmap

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
	"github.com/moverd/mover/internal/sentinel"
)

// strict takes only what a disk that is read past the page cache takes.
type strict struct {
	r    io.ReaderAt
	size int64
}

func (s strict) ReadAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if off%4096 != 0 || end%4096 != 0 && end != s.size || uintptr(unsafe.Pointer(&p[0]))%4096 != 0 {
		return 0, fmt.Errorf("misaligned read of %d bytes at %d into %p", len(p), off, p)
	}
	return s.r.ReadAt(p, off)
}

func openFile(t *testing.T, path string) io.ReaderAt {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return strict{f, st.Size()}
}

// oracle is what the filesystem's own tools call free.
func oracle(t *testing.T, path, kind string, size int64) *extent.Set {
	t.Helper()
	free := extent.NewSet(size, 512)
	if kind == "xfs" {
		info := looptest.Run(t, "xfs_db", "-r", "-c", "sb 0", "-c", "p blocksize agblocks", path)
		var bs, agBlocks int64
		if _, err := fmt.Sscanf(info, "blocksize = %d\nagblocks = %d", &bs, &agBlocks); err != nil {
			t.Fatal(info, err)
		}
		for s := bufio.NewScanner(strings.NewReader(looptest.Run(t, "xfs_db", "-r", "-c", "freesp -d", path))); s.Scan(); {
			var ag, from, n int64
			if c, _ := fmt.Sscanf(strings.TrimSpace(s.Text()), "%d %d %d", &ag, &from, &n); c == 3 && len(strings.Fields(s.Text())) == 3 {
				free.Add(extent.Extent{Off: (ag*agBlocks + from) * bs, Len: n * bs})
			}
		}
		return free
	}
	out := looptest.Run(t, "dumpe2fs", path)
	var bs, cluster int64
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if rest, ok := strings.CutPrefix(line, "Cluster size:"); ok {
			fmt.Sscan(rest, &cluster)
		}
		if rest, ok := strings.CutPrefix(line, "Block size:"); ok {
			fmt.Sscan(rest, &bs)
		}
		rest, ok := strings.CutPrefix(line, "Free blocks:")
		if !ok || !strings.HasPrefix(s.Text(), "  ") {
			continue
		}
		for _, r := range strings.Split(rest, ",") {
			var a, b int64
			switch n, _ := fmt.Sscanf(strings.TrimSpace(r), "%d-%d", &a, &b); n {
			case 1:
				b = a
			case 0:
				continue
			}
			free.Add(extent.Extent{Off: a * bs, Len: (b-a)*bs + max(bs, cluster)}) // b is the first block of its cluster
		}
	}
	return free
}

func subset(a, b *extent.Set) (extent.Extent, bool) {
	for e := range a.All() {
		if !b.Contains(e) {
			return e, false
		}
	}
	return extent.Extent{}, true
}

var layouts = []struct {
	name, kind string
	size       int64
	mkfs       []string
	slack      int64 // per mille of the free space that may be called in use: groups whose bitmap was never written, XFS's reserve
}{
	{"ext4", "ext4", 520 << 20, nil, 30},
	{"ext4 odd size", "ext4", 100<<20 + 512, nil, 30},
	{"ext4 1 KiB blocks", "ext4", 100 << 20, []string{"-b", "1024"}, 60},
	{"ext4 2 KiB blocks, 32 bits", "ext4", 100 << 20, []string{"-b", "2048", "-O", "^64bit"}, 60},
	{"ext4 meta_bg", "ext4", 160 << 20, []string{"-b", "4096", "-O", "meta_bg,^resize_inode", "-g", "1024"}, 30},
	{"ext4 meta_bg, 1 KiB blocks", "ext4", 100 << 20, []string{"-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"}, 60},
	{"ext4 bigalloc", "ext4", 160 << 20, []string{"-b", "4096", "-O", "bigalloc", "-C", "65536"}, 30},
	{"ext4 no checksums", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "^metadata_csum"}, 30},
	{"ext4 group checksums", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "^metadata_csum,uninit_bg"}, 30},
	{"ext4 group checksums, 32 bits", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "^metadata_csum,uninit_bg,^64bit"}, 30},
	{"ext4 no flex_bg", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "^flex_bg,^resize_inode"}, 30},
	{"ext4 flex_bg of 64, small groups", "ext4", 160 << 20, []string{"-b", "4096", "-G", "64", "-g", "2048"}, 400},
	{"ext4 sparse_super2", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "sparse_super2,^resize_inode"}, 30},
	{"ext4 checksum seed, orphan file", "ext4", 160 << 20, []string{"-b", "4096", "-g", "16384", "-O", "metadata_csum_seed,orphan_file"}, 30},
	{"ext3", "ext3", 160 << 20, nil, 0},
	{"ext2", "ext2", 160 << 20, nil, 0},
	{"xfs", "xfs", 320 << 20, nil, 1},
	{"xfs odd size", "xfs", 320<<20 + 512*7, nil, 1},
	{"xfs 4 KiB sectors, 7 groups", "xfs", 600 << 20, []string{"-s", "size=4096", "-d", "agcount=7"}, 1},
	{"xfs 1 KiB blocks", "xfs", 320 << 20, []string{"-b", "size=1024", "-m", "rmapbt=1", "-l", "su=4096"}, 1},
	{"xfs old features", "xfs", 320 << 20, []string{"-m", "finobt=0,reflink=0,bigtime=0,inobtcount=0", "-i", "sparse=0", "-l", "version=2,su=65536"}, 1},
}

// TestUnmounted compares with the filesystem's tools, fresh from mkfs and after use; and proves an image without what is free.
func TestUnmounted(t *testing.T) {
	for _, c := range layouts {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := looptest.New(t, c.size, looptest.Options{})
			looptest.Mkfs(t, l.Dev, c.kind, c.mkfs...)
			compare := func(when string) *extent.Set {
				free, add := collect(t, c.size)
				kind, err := Unmounted(openFile(t, l.File), c.size, add)
				if err != nil || kind != strings.Replace(strings.Replace(c.kind, "ext2", "ext4", 1), "ext3", "ext4", 1) {
					t.Fatalf("%s: %s, %v", when, kind, err)
				}
				want := oracle(t, l.File, c.kind, c.size)
				if e, ok := subset(free, want); !ok {
					t.Errorf("%s: %v is called free but is not", when, e)
				}
				if missing := want.Bytes() - free.Bytes(); missing > want.Bytes()*c.slack/1000 {
					t.Errorf("%s: %d of %d free bytes are called in use", when, missing, want.Bytes())
				}
				return free
			}
			compare("fresh")
			dir := looptest.Mount(t, l.Dev)
			w := newLoad(t, filepath.Join(dir, "load"), 5)
			w.age(t, 300, 100<<10)
			for range 200 {
				if err := w.step(); err != nil {
					t.Fatal(err)
				}
			}
			want := sums(t, dir)
			looptest.Unmount(t, dir)
			free := compare("used")
			path, _ := image(t, "", l.File, free)
			if bad := check(t, path, c.kind, want); bad != "" {
				t.Error(bad)
			}
		})
	}
}

// TestUnclean: what was not unmounted, or shows any damage, is all in use.
func TestUnclean(t *testing.T) {
	none := func(extent.Extent) error { return nil }
	for _, kind := range []string{"ext4", "ext2", "xfs"} {
		const size = 320 << 20
		l := looptest.New(t, size, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		dir := looptest.Mount(t, l.Dev)
		newLoad(t, filepath.Join(dir, "load"), 6).age(t, 50, 10<<10)
		looptest.Run(t, "sync", "-f", dir)
		for _, when := range []string{"mounted", "frozen"} {
			if when == "frozen" && kind != "xfs" { // ext4 makes itself clean for a freeze, and then is
				continue
			}
			path := snapshot(t, l.File, size)
			if when == "frozen" {
				path = frozenSnapshot(t, dir, l.File, size)
			}
			if _, err := Unmounted(openFile(t, path), size, none); !errors.Is(err, sentinel.ErrNotSupported) {
				t.Errorf("%s while %s: %v", kind, when, err)
			} else {
				t.Logf("%s while %s: %v", kind, when, err)
			}
		}
		if kind == "ext2" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		looptest.Run(t, "xfs_io", "-x", "-c", "shutdown -f", dir)
		looptest.Unmount(t, dir)
		if _, err := Unmounted(openFile(t, l.File), size, none); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("%s after a crash: %v", kind, err)
		}
		back := looptest.Mount(t, l.Dev)
		looptest.Unmount(t, back)
		if _, err := Unmounted(openFile(t, l.File), size, none); err != nil {
			t.Errorf("%s after a repair: %v", kind, err)
		}
	}
}

// patched is a disk some bytes of which are damaged.
type patched struct {
	io.ReaderAt
	at map[int64]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for at, v := range p.at {
		if at >= off && at < off+int64(n) {
			b[at-off] ^= v
		}
	}
	return n, err
}

// watched remembers which blocks were read.
type watched struct {
	io.ReaderAt
	seen map[int64]bool
}

func (w watched) ReadAt(b []byte, off int64) (int, error) {
	for o := off; o < off+int64(len(b)); o += 4096 {
		w.seen[o] = true
	}
	return w.ReaderAt.ReadAt(b, off)
}

// TestDamage flips bytes in what is read: the answer is never more than the truth. Both filesystems have checksums.
func TestDamage(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		const size = 320 << 20
		l := looptest.New(t, size, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		dir := looptest.Mount(t, l.Dev)
		newLoad(t, filepath.Join(dir, "load"), 7).age(t, 300, 100<<10)
		looptest.Unmount(t, dir)
		w := watched{openFile(t, l.File), map[int64]bool{}}
		truth, add := collect(t, size)
		if _, err := Unmounted(w, size, add); err != nil {
			t.Fatal(err)
		}
		var blocks []int64
		for o := range w.seen {
			blocks = append(blocks, o)
		}
		refused := 0
		const tries = 100
		r := rand.New(rand.NewPCG(1, 2))
		for i := range tries {
			at := blocks[r.IntN(len(blocks))] + r.Int64N(4096)
			if i%3 == 0 {
				at = r.Int64N(1536) // the superblock
			}
			free := extent.NewSet(size, 512)
			p := patched{w.ReaderAt, map[int64]byte{at: byte(1 + r.IntN(255))}}
			_, err := Unmounted(p, size, func(e extent.Extent) error { free.Add(e); return nil })
			if err != nil {
				refused++
			} else if e, ok := subset(free, truth); !ok {
				t.Errorf("%s with byte %d damaged: %v is called free", kind, at, e)
			}
		}
		t.Logf("%s: %d of %d damaged disks refused", kind, refused, tries)
		if refused == 0 {
			t.Errorf("%s: no damage was noticed", kind)
		}
	}
}

// TestMountedMeanwhile: somebody mounts and writes while the free space is looked for.
func TestMountedMeanwhile(t *testing.T) {
	for _, kind := range []string{"ext4", "ext2", "xfs"} {
		const size = 320 << 20
		l := looptest.New(t, size, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		once := sync.OnceFunc(func() {
			dir := looptest.Mount(t, l.Dev)
			newLoad(t, filepath.Join(dir, "load"), 8).age(t, 10, 10<<10)
		})
		if _, err := Unmounted(openFile(t, l.File), size, func(extent.Extent) error { once(); return nil }); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("%s: %v", kind, err)
		} else {
			t.Log(err)
		}
	}
}

func TestSwap(t *testing.T) {
	const size = 64 << 20
	l := looptest.New(t, size, looptest.Options{})
	looptest.Mkfs(t, l.Dev, "swap")
	free, add := collect(t, size)
	if kind, err := Unmounted(openFile(t, l.File), size, add); err != nil || kind != "swap" || free.Bytes() != size-64<<10 || free.Contains(extent.Extent{Len: 64 << 10}) {
		t.Errorf("%s, %v, %d bytes free", kind, err, free.Bytes())
	}
	f, err := os.OpenFile(l.File, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(off int64, b []byte) {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	put(1028, binary.LittleEndian.AppendUint32(nil, 4095)) // a swap area that is smaller than the disk
	free, add = collect(t, size)
	if _, err := Unmounted(openFile(t, l.File), size, add); err != nil || free.Bytes() != 16<<20-64<<10 {
		t.Errorf("%v, %d bytes free", err, free.Bytes())
	}
	put(4086, []byte("S1SUSPEND\x00"))
	if _, err := Unmounted(openFile(t, l.File), size, add); !errors.Is(err, sentinel.ErrNotSupported) {
		t.Errorf("a hibernation image: %v", err)
	}
	for _, n := range []int64{0, 512, 4096, 70000} {
		path := filepath.Join(t.TempDir(), "blank")
		if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Unmounted(openFile(t, path), n, add); !errors.Is(err, sentinel.ErrNotSupported) {
			t.Errorf("%d blank bytes: %v", n, err)
		}
	}
}
