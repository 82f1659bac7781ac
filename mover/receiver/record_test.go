package receiver

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/moverd/mover/mover/catalog"
)

// TestRecordConcurrent: changes of a flow's record that come together are all made, on disk too, and who reads it meanwhile sees no half of one.
func TestRecordConcurrent(t *testing.T) {
	r := newRig(t)
	s := randomSrc(64*leafSize, 1)
	c := r.mustDial("root")
	r.first(c, s)
	r.settled(testFlow)
	f := r.s.flows[testFlow]
	const each = 20
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("p-%d-%d", w, i)
				err := f.update(func(r *catalog.Record) { r.Points = append(r.Points, catalog.KeptPoint{ID: id}) })
				err = errors.Join(err, f.update(func(r *catalog.Record) {
					for k := range r.Points {
						r.Points[k].Pinned = true
					}
				}))
				if err != nil {
					t.Error(err)
				}
				f.pointList()
			}
		})
	}
	wg.Wait()
	stored, _ := r.s.cat.Get(testFlow)
	if n, m := len(f.record().Points), len(stored.Points); n != 4*each || m != 4*each {
		t.Fatalf("%d records of points, %d of them stored, %d were made", n, m, 4*each)
	}
}
