package disk

import (
	"bytes"
	"os"
	"testing"

	"github.com/moverd/mover/internal/looptest"
)

// A writer that goes through the page cache and keeps the device open leaves its bytes there; the volume reads past the cache.
func TestFlushReachesPageCaches(t *testing.T) {
	l := looptest.New(t, 16<<20, looptest.Options{DirectIO: true})
	v, err := OpenVolume(l.Dev)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	w, err := os.OpenFile(l.Dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	want := bytes.Repeat([]byte{0x5a}, 4096)
	if _, err := w.WriteAt(want, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	f, err := os.Open(l.File) // what the device's medium holds, whatever the device's cache says
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 8<<20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the write is still only in the page cache after Flush")
	}
}
