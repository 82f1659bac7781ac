package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/blockdev/devtest"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// BenchmarkImageWrite compares ways to fill holes of an image file: batches of 4 MiB, written as leaves of 16 KiB or whole, by 4 goroutines, one
// sync after 256 MiB.
func BenchmarkImageWrite(b *testing.B) {
	for _, way := range []string{"cached", "flushed", "direct", "direct+allocated"} {
		for _, piece := range []int{16 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%s/%dK", way, piece>>10), func(b *testing.B) { imageWrite(b, way, piece) })
		}
	}
}

// BenchmarkTarget is the same through OpenTarget, and on a loop device.
func BenchmarkTarget(b *testing.B) {
	const total = 256 << 20
	for _, kind := range []string{"image", "loop"} {
		for _, piece := range []int{16 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%s/%dK", kind, piece>>10), func(b *testing.B) {
				path := filepath.Join(looptest.Dir(b), "image")
				if kind == "loop" {
					path = looptest.New(b, total, looptest.Options{DirectIO: true}).Dev
				}
				targetWrite(b, path, piece, total)
			})
		}
	}
}

func targetWrite(b *testing.B, path string, piece, total int) {
	const batch, workers = 4 << 20, 4
	d, err := OpenTarget(path, TargetOptions{Size: int64(total), Create: true})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	data := devtest.Content(1, batch)
	b.SetBytes(int64(total))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if err := d.Zero(extent.Extent{Len: int64(total)}); err != nil {
			b.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for at := w * batch; at < total; at += workers * batch {
					for o := 0; o < batch; o += piece {
						if _, err := d.WriteAt(data[o:o+piece], int64(at+o)); err != nil {
							b.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if err := d.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func imageWrite(b *testing.B, way string, piece int) {
	const batch, total, workers = 4 << 20, 256 << 20, 4
	dir := looptest.Dir(b)
	data := devtest.Content(1, batch)
	b.SetBytes(total)
	for i := range b.N {
		path := filepath.Join(dir, fmt.Sprint(i))
		flags := os.O_RDWR | os.O_CREATE
		if way == "direct" || way == "direct+allocated" {
			flags |= unix.O_DIRECT
		}
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Truncate(1 << 40); err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for at := int64(w) * batch; at < total; at += workers * batch {
					if way == "direct+allocated" {
						if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, batch); err != nil {
							b.Error(err)
						}
					}
					for o := 0; o < batch; o += piece {
						if _, err := f.WriteAt(data[o:o+piece], at+int64(o)); err != nil {
							b.Error(err)
						}
					}
					if way == "flushed" {
						unix.SyncFileRange(int(f.Fd()), at, batch, unix.SYNC_FILE_RANGE_WRITE)
					}
				}
			})
		}
		wg.Wait()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		f.Close()
		os.Remove(path)
	}
}
