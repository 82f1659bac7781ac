package sender

import (
	"testing"

	"github.com/moverd/mover/chunker"
	"github.com/moverd/mover/internal/buffers"
	"github.com/moverd/mover/mover"
)

// The write of a CHECK may come back after the group was answered, offered or put on another connection, and even acked. Whoever comes
// back last has to hand the batch on, or its pass never ends.
func TestLateWrite(t *testing.T) {
	for _, c := range []struct {
		name  string
		early bool // acked while the late write was still out
		gone  bool // the other connection broke meanwhile
		stage stage
		want  stage
		again int // batches to be done again
	}{
		{"put, then its ack", false, false, sending, sent, 0},
		{"put and acked", true, false, sending, sent, 0},
		{"put, connection gone", false, true, sending, queued, 1},
		{"offered", false, false, asked, asked, 0},
		{"offered, connection gone", false, true, asked, queued, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			first, second := &conn{Gone: make(chan struct{})}, &conn{Gone: make(chan struct{})}
			p := &pass{open: map[uint32]*batch{}}
			r := &run{pipeline: &pipeline{buffers: buffers.New(chunker.BatchSize, 2*chunker.BatchSize)}, p: p, wake: make(chan struct{}, 1),
				room: mover.Window{Limit: 1 << 30}, flight: map[*batch]struct{}{}, checks: map[uint32]*batch{}}
			b := newBatch(put)
			b.bytes = chunker.LeafSize
			r.room.Take(b.bytes)
			r.flight[b] = struct{}{}
			if !r.attach(b, first, asked, false) { // CHECK on the first
				t.Fatal("attach")
			}
			r.mu.Lock()
			r.detach(b) // DIFFER came
			r.mu.Unlock()
			if !r.attach(b, second, c.stage, true) { // PUT or OFFER on the second
				t.Fatal("attach")
			}
			b.final = c.stage == sending
			r.wrote(b, second, nil)
			b.early = c.early
			if c.gone {
				close(second.Gone)
				r.lost(second)
			}
			r.wrote(b, first, nil) // only now the CHECK's write comes back
			if _, inFlight := r.flight[b]; inFlight == c.early {
				t.Errorf("in flight: %v", inFlight)
			}
			if !c.early && b.stage != c.want {
				t.Errorf("stage %d, want %d", b.stage, c.want)
			}
			if len(p.again) != c.again {
				t.Errorf("%d batches to be done again, want %d", len(p.again), c.again)
			}
		})
	}
}
