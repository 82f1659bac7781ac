package flowtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/blockdev/fault"
	"github.com/moverd/mover/extent"
	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/mover/sender"
)

// A gateway that is told to stop while it hands the target over says so to the source, and has handed it over. The source must not take that
// for a failure and let its writers go on.
func TestReleaseWhileGatewayStops(t *testing.T) {
	r := newRig(t, 8<<20, 0)
	r.vol.write(0, 8<<20)
	r.start()
	r.wait("a point", func(s mover.Status) bool { return s.PointEpoch > 0 })
	var once sync.Once
	ended := make(chan struct{})
	r.plan.Hook(func(op fault.Op, _ extent.Extent) error {
		r.vol.mu.Lock()
		kept := r.vol.kept
		r.vol.mu.Unlock()
		if op == fault.Sync && kept { // of RELEASE
			once.Do(func() {
				end := r.gwEnd
				go func() { defer close(ended); end() }()
				time.Sleep(200 * time.Millisecond) // until the source has read that the gateway stops
			})
		}
		return nil
	})
	started := make(chan struct{})
	go func() {
		defer close(started)
		<-ended
		r.gwEnd = nil
		r.startGateway()
	}()
	rep, err := r.cutover(sender.CutoverOptions{Limit: 10 * time.Second, Deadline: 20 * time.Second})
	select {
	case <-started:
	case <-time.After(30 * time.Second):
		t.Fatalf("the gateway was not told to stop: %v; %+v", err, rep)
	}
	if err != nil || !rep.OK || rep.Left != "frozen" || !(freezer{r.vol}).Held() {
		t.Fatalf("%v; %+v", err, rep)
	}
	r.same()
	must(t, r.flow.Rollback(context.Background()))
}
