package flowtest

import (
	"testing"
	"time"

	"github.com/moverd/mover/mover/sender"
)

// A freeze that was slow once, for what was dirty then, does not keep a cutover from ever converging.
func TestSlowFreezeIsForgotten(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 2<<20)
	r.start()
	r.sync()
	r.vol.onFreeze = func() { time.Sleep(1200 * time.Millisecond) }
	if _, err := r.cutover(sender.CutoverOptions{Rehearse: true, Limit: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	r.vol.onFreeze = nil
	rep, err := r.cutover(sender.CutoverOptions{Limit: time.Second, Timeout: 5 * time.Second})
	must(t, err)
	if !rep.OK || rep.Rounds > 10 {
		t.Errorf("report %+v", rep)
	}
	r.same()
}
