package daemon

import (
	"testing"

	"github.com/moverd/mover/mover"
)

func TestExpect(t *testing.T) {
	for _, c := range []struct {
		s    mover.Status
		want int64
	}{
		{mover.Status{}, 0},
		{mover.Status{Rate: 100, Size: 1000, Dirty: 500}, 0}, // no writers, or not known
		{mover.Status{DirtyRate: 10, Size: 1000, Dirty: 500}, 0},
		{mover.Status{DirtyRate: 10, Rate: 100, Size: 1000, Dirty: 500, Tracking: "ebpf"}, 50},
		{mover.Status{DirtyRate: 10, Rate: 100, Size: 1000, Dirty: 500, Tracking: "scan: thin"}, 100}, // reads all
		{mover.Status{DirtyRate: 1000, Rate: 10, Size: 1000, Dirty: 500, Tracking: "ebpf"}, 1000},     // never more than all
	} {
		if got := expect(c.s); got != c.want {
			t.Errorf("%+v: %d", c.s, got)
		}
	}
}
