package bucket

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/moverd/mover/mover"
	"github.com/moverd/mover/objstore"
)

// stuckStore is a store whose puts wait.
type stuckStore struct {
	objstore.Store
	held chan struct{}
}

func (s stuckStore) Put(ctx context.Context, key string, b objstore.Body, o objstore.PutOptions) (objstore.Written, error) {
	select {
	case <-s.held:
	case <-ctx.Done():
		return objstore.Written{}, ctx.Err()
	}
	return s.Store.Put(ctx, key, b, o)
}

// A pass that does nothing for too long is found; a flow at rest, one that works, and one whose bytes wait for their turn, are not. What passes came to is told, once.
func TestPulse(t *testing.T) {
	l := newLife(t)
	l.cfg.Claim = true
	var mu sync.Mutex
	var told []mover.Event
	l.cfg.Note = func(e mover.Event) { mu.Lock(); defer mu.Unlock(); told = append(told, e) }
	turn := make(chan struct{})
	l.cfg.Copy.Pace = func(ctx context.Context, n int) error {
		select {
		case <-turn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	held := make(chan struct{})
	l.dst = stuckStore{l.to, held}
	for _, key := range []string{"a", "b", "c"} {
		l.put(key, 100, 1)
	}
	l.clock.pass(time.Hour)
	if err := (note{Begun: time.Now()}).write(l.cfg.Dir); err != nil { // both ends were found fit: nothing is put to try it
		t.Fatal(err)
	}
	f := l.start()
	await := func(what string, ok func(p mover.Pulse) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(f.Pulse()); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never %s: %+v", what, f.Pulse())
			}
		}
	}
	await("shaped", func(p mover.Pulse) bool { return f.pacing.Load() == 3 && !p.Working })
	close(turn)
	await("stuck", func(p mover.Pulse) bool { return f.pacing.Load() == 0 && p.Working })
	stalls := mover.Stalls{After: time.Minute}
	time.Sleep(50 * time.Millisecond) // until all that can be done is done
	begin := time.Now()
	stalls.Look(begin, []mover.Pulse{f.Pulse()})
	if got := stalls.Look(begin.Add(2*time.Minute), []mover.Pulse{f.Pulse()}); got != l.cfg.Name {
		t.Error("a pass that hangs is not found")
	}
	close(held)
	if err := l.sync(); err != nil {
		t.Fatal(err)
	}
	if got := stalls.Look(begin.Add(4*time.Minute), []mover.Pulse{f.Pulse()}); got != "" {
		t.Error("a flow that went on is taken for one that hangs")
	}
	l.until(mover.Idle)
	if p := f.Pulse(); p.Working {
		t.Errorf("at rest, and at work: %+v", p)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) < 1 || told[0].Pass.Kind != "first" || told[0].Pass.Bucket.Copied != 3 || told[0].Pass.Moved.Sent != 300 || told[0].Error != "" || told[0].Began.IsZero() {
		t.Errorf("%+v", told)
	}
}
