package fsmap

import (
	"runtime"
	"testing"
	"time"

	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/internal/looptest"
)

// TestLarge: 8 TiB, of which next to nothing is used, take neither long nor much memory.
func TestLarge(t *testing.T) {
	const size = 8 << 40
	for _, kind := range []string{"ext4", "xfs"} {
		l := looptest.New(t, size, looptest.Options{})
		looptest.Mkfs(t, l.Dev, kind)
		ask := func(how string, f func(func(extent.Extent) error) (string, error)) {
			t.Helper()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin, n, bytes := time.Now(), 0, int64(0)
			if _, err := f(func(e extent.Extent) error { n++; bytes += e.Len; return nil }); err != nil {
				t.Fatalf("%s %s: %v", kind, how, err)
			}
			runtime.ReadMemStats(&after)
			t.Logf("%s %s: %s, %d extents, %d KiB allocated", kind, how, time.Since(begin), n, (after.TotalAlloc-before.TotalAlloc)>>10)
			if bytes < size*9/10 {
				t.Errorf("%s %s: %d bytes free", kind, how, bytes)
			}
			if after.TotalAlloc-before.TotalAlloc > 512<<20 {
				t.Errorf("%s %s: %d bytes allocated", kind, how, after.TotalAlloc-before.TotalAlloc)
			}
		}
		file := openFile(t, l.File)
		ask("unmounted", func(f func(extent.Extent) error) (string, error) { return Unmounted(file, size, f) })
		dir := looptest.Mount(t, l.Dev)
		ask("mounted", func(f func(extent.Extent) error) (string, error) { return Free(dir, f) })
		looptest.Unmount(t, dir)
	}
}
