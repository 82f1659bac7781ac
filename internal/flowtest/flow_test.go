package flowtest

import (
	"testing"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

func TestFullDeltaCutover(t *testing.T) {
	r := newRig(t, 37<<20+512*3, 0)
	r.vol.write(0, 5<<20)
	r.vol.write(20<<20, 9<<20)
	r.start()
	r.sync()
	r.same()
	for range 200 {
		r.vol.write(int64(randN(37<<8))*granule, granule)
	}
	r.vol.write(r.vol.Size()-512, 512)
	r.sync()
	r.same()
	s := r.flow.Status()
	if s.Passes < 2 || s.Totals.Put == 0 || s.Totals.Sent == 0 {
		t.Errorf("status %+v", s)
	}
	r.vol.write(1<<20+4096, 4096)
	rep, err := r.cutover(sender.CutoverOptions{})
	must(t, err)
	if !rep.OK || rep.SourceRoot != rep.TargetRoot || rep.Consistency != mover.Crash.String() || rep.Proof != "exact" || rep.Left != "frozen" {
		t.Errorf("report %+v", rep)
	}
	r.same()
	r.wait("done", func(s mover.Status) bool { return s.State == mover.Done })
}
