package relay_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/objstore"
)

// BenchmarkDocuments puts the files of a folder of documents (MOVER_DOCS; /usr/share/doc) by the gateway into memory, over TLS and loopback, 64 at a time: what crosses
// the line for each plain byte, and objects a second.
func BenchmarkDocuments(b *testing.B) {
	dir := os.Getenv("MOVER_DOCS")
	if dir == "" {
		dir = "/usr/share/doc"
	}
	var files [][]byte
	plain := int64(0)
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || plain > 256<<20 {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil && len(text) < 1<<20 {
			files = append(files, text)
			plain += int64(len(text))
		}
		return nil
	})
	if len(files) == 0 {
		b.Skip("there are no documents")
	}
	for b.Loop() {
		b.StopTimer()
		r := newRig(b, []relay.FlowConfig{flowTo("photos", inMemory(memory()))})
		s, err := relay.Open(b.Context(), r.config("photos"))
		must(b, err)
		b.StartTimer()
		each(len(files), 64, func(i int) {
			if _, err := s.Put(b.Context(), fmt.Sprint(i), objstore.Bytes(files[i]), objstore.PutOptions{}); err != nil {
				b.Error(err)
			}
		})
		k := s.Counts()
		b.ReportMetric(float64(k.WireOut)/float64(plain), "wire/plain")
		b.ReportMetric(float64(k.Needed)/float64(plain), "needed/plain")
		b.ReportMetric(float64(plain)/float64(len(files)), "bytes/object")
		must(b, s.Close())
	}
	b.ReportMetric(float64(len(files)*b.N)/b.Elapsed().Seconds(), "objects/s")
}
