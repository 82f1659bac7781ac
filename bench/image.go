package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// image is a file that holds a volume.
type image struct {
	Path string
	Size int64 // bytes of the volume
	Used int64 // of these, bytes that are not a hole of the file
}

func openImage(path string) (image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return image{}, err
	}
	return image{path, fi.Size(), fi.Sys().(*syscall.Stat_t).Blocks * 512}, nil
}

// usrFile is a file below /usr.
type usrFile struct {
	path string
	size int64
}

// usrFiles are regular files below /usr of about want bytes (0: all), always the same of the same tree: which, follows from their names. A file that
// would be more than a tenth of the sample is left out of it.
func usrFiles(want int64) ([]usrFile, error) {
	var all []usrFile
	var total int64
	err := filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		fi, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		if want > 0 && fi.Size() > want/10 {
			return nil
		}
		all, total = append(all, usrFile{path, fi.Size()}), total+fi.Size()
		return nil
	})
	if err != nil || want == 0 || total <= want {
		return all, err
	}
	var some []usrFile
	for _, f := range all {
		h := fnv.New32a()
		io.WriteString(h, f.path)
		if float64(h.Sum32())/(1<<32) < float64(want)/float64(total) {
			some = append(some, f)
		}
	}
	return some, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// usr makes, once, an ext4 volume holding about want bytes of /usr; 0: all of it, in 12 GiB or more.
func (p *Perf) usr(ctx context.Context, want int64) (image, error) {
	name := filepath.Join(p.Work, "usr-all.img")
	if want > 0 {
		name = filepath.Join(p.Work, fmt.Sprintf("usr-%dMiB.img", want>>20))
	}
	if img, err := openImage(name); err == nil {
		return img, nil
	}
	files, err := usrFiles(want)
	if err != nil {
		return image{}, err
	}
	least := int64(512 << 20)
	if want == 0 {
		least = 12 << 30
	}
	return p.ext4Of(ctx, name, "/", least, files)
}

// Kinds of a second host, by what its volume shares with the first one's. All but the clone are file systems of their own, with the same files.
const (
	cloned      = "a clone of the image with own files, 1 %"
	sameLayout  = "the same layout"
	otherInodes = "another number of inodes"
	otherOrder  = "files written in another order"
)

// twinOf makes a volume of the files of img, as a second host of the same operating system has it.
func (p *Perf) twinOf(ctx context.Context, r *Rig, img image, kind string) (image, error) {
	name := filepath.Join(p.Work, "twin.img")
	if kind == cloned {
		return cloneOf(ctx, r, img, name)
	}
	dir, err := r.Mount(ctx, img.Path, "first", "-o", "loop,ro,noload")
	if err != nil {
		return image{}, err
	}
	defer Unmount(dir)
	var files []usrFile
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		files = append(files, usrFile{strings.TrimPrefix(path, dir), fi.Size()})
		return err
	})
	if err != nil {
		return image{}, err
	}
	if kind == otherOrder {
		rand.New(rand.NewPCG(3, 1)).Shuffle(len(files), func(i, k int) { files[i], files[k] = files[k], files[i] })
	}
	var mkfs []string
	if kind != sameLayout {
		mkfs = []string{"-N", fmt.Sprint(len(files)*2 + 10_000)}
	}
	return p.ext4Of(ctx, name, dir, img.Size, files, mkfs...)
}

// cloneOf copies an image and writes files into it that nobody else has.
func cloneOf(ctx context.Context, r *Rig, img image, name string) (image, error) {
	if _, err := Run(ctx, "cp", "--sparse=always", "--reflink=auto", img.Path, name); err != nil {
		return image{}, err
	}
	dir, err := r.Mount(ctx, name, "clone", "-o", "loop")
	if err != nil {
		return image{}, err
	}
	const piece = 4 << 20 // of randomFiles
	if err := errors.Join(randomFiles(ctx, dir, max(img.Used/100/piece*piece, piece)), Unmount(dir)); err != nil {
		return image{}, err
	}
	return openImage(name)
}

// ext4Of makes an ext4 volume of least bytes, or what is needed, holding files of root in this order.
func (p *Perf) ext4Of(ctx context.Context, name, root string, least int64, files []usrFile, mkfs ...string) (img image, err error) {
	var sum int64
	for _, f := range files {
		sum += (f.size + page - 1) / page * page
	}
	const gib = 1 << 30
	size := max(least, (sum*3/2+gib/2-1)/(gib/2)*(gib/2))
	p.say("making %s, an ext4 volume of %d MiB holding %d files of /usr, %d MiB", name, size>>20, len(files), sum>>20)
	tmp, dir := name+".new", name+".mnt"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.RemoveAll(tmp)); err != nil {
		return img, err
	}
	defer func() {
		err = errors.Join(err, Unmount(dir), os.Remove(dir))
		if err == nil {
			err = os.Rename(tmp, name)
		}
		if err == nil {
			img, err = openImage(name)
		}
	}()
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprint(size), tmp},
		append(append([]string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, mkfs...), tmp),
		{"mount", "-o", "loop", tmp, dir},
	} {
		if _, err := Run(ctx, c[0], c[1:]...); err != nil {
			return img, err
		}
	}
	made := map[string]bool{}
	for _, f := range files {
		if ctx.Err() != nil {
			return img, ctx.Err()
		}
		to := filepath.Join(dir, f.path)
		if parent := filepath.Dir(to); !made[parent] {
			if err := os.MkdirAll(parent, 0o755); err != nil {
				return img, err
			}
			made[parent] = true
		}
		if err := ignoreGone(copyFile(filepath.Join(root, f.path), to)); err != nil {
			return img, err
		}
	}
	return img, nil
}

// cold makes file durable and takes it out of the page cache, of which nothing else is touched.
func cold(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// compareSparse compares two files where either has data, past what the page cache held.
func compareSparse(ctx context.Context, a, b string, size int64) error {
	var fs [2]*os.File
	for i, path := range []string{a, b} {
		if err := cold(path); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fs[i] = f
	}
	bufs := [2][]byte{make([]byte, 1<<20), make([]byte, 1<<20)}
	for off := int64(0); off < size; {
		next := size
		for _, f := range fs {
			at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
			if err != nil && !errors.Is(err, unix.ENXIO) {
				return err
			}
			if err == nil {
				next = min(next, at)
			}
		}
		if off = next; off >= size {
			return nil
		}
		n := min(size-off, int64(len(bufs[0])))
		for i, f := range fs {
			if _, err := f.ReadAt(bufs[i][:n], off); err != nil {
				return err
			}
		}
		if at := differ(bufs[0][:n], bufs[1][:n]); at >= 0 {
			return fmt.Errorf("%s and %s differ at byte %d", a, b, off+int64(at))
		}
		off += n
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// differ is where two slices of one length first differ; -1: nowhere.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
