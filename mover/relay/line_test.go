package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moverd/mover/mover/receiver"
	"github.com/moverd/mover/mover/relay"
	"github.com/moverd/mover/mover/uplink"
	"github.com/moverd/mover/objstore"
	"github.com/moverd/mover/objstore/mem"
	"github.com/moverd/mover/shape"
)

// Objects that go by the gateway keep to the lease of its line, and the gateway counts them as it counts volumes.
func TestRelayedObjectsHaveALease(t *testing.T) {
	const limit = 8 << 20
	to := mem.New(mem.Config{})
	r := newRig(t, []relay.FlowConfig{flowTo("photos", inMemory(to))}, func(_ *relay.ServerConfig, c *receiver.Config) {
		c.Lines = []receiver.LineConfig{{Name: "idc", Shape: shape.LineConfig{Timetable: shape.Timetable{Rate: limit}}}}
	})
	dial := r.dialAs("acme", "db1")
	past := uplink.NewPast(uplink.Config{Flow: "photos", Paths: []uplink.Path{{Name: "only", Dial: dial}}, BackOff: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)},
		func() (shape.Class, int64) { return shape.Bulk, 1 << 30 })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = past.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	s, err := relay.Open(ctx, relay.Config{Flow: "photos", Dial: dial, Plain: true, Rules: rules, Pace: past.Pacer, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	defer s.Close()

	var n atomic.Int64
	var writers sync.WaitGroup
	stop := make(chan struct{})
	for i := range 8 {
		writers.Go(func() {
			b := make([]byte, 512<<10)
			rng := rand.NewChaCha8([32]byte{byte(i)})
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				if past.Pace(ctx, 0) != nil {
					return
				}
				_, _ = rng.Read(b)
				if _, err := s.Put(ctx, fmt.Sprintf("%d/%d", i, k), objstore.Bytes(b), objstore.PutOptions{}); err != nil {
					t.Error(err)
					return
				}
				n.Add(int64(len(b)))
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); n.Load() < 2<<20 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	l, best := r.door.Lines()[0], 0.0
	for range 4 { // a busy machine may leave the line idle for a while, but never lets it carry more
		began, before := time.Now(), l.MonthBytes
		time.Sleep(1500 * time.Millisecond)
		l = r.door.Lines()[0]
		rate := float64(l.MonthBytes-before) / time.Since(began).Seconds()
		t.Logf("%.3f of the line", rate/limit)
		if rate > 1.05*limit {
			t.Errorf("%.0f bytes/s on a line of %d", rate, limit)
		}
		if best = max(best, rate); best >= 0.8*limit {
			break
		}
	}
	if best < 0.8*limit {
		t.Errorf("%.0f bytes/s at best on a line of %d", best, limit)
	}
	if len(l.Leases) != 1 || l.Leases[0].Past || l.Leases[0].Flow != "acme/db1/photos" {
		t.Errorf("leases %+v", l.Leases)
	}
	close(stop)
	writers.Wait()
	if month := r.door.Lines()[0].MonthBytes; month < n.Load() || month > n.Load()+n.Load()/8 {
		t.Errorf("the gateway counted %d bytes, objects had %d", month, n.Load())
	}
}
