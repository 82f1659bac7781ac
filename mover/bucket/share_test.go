package bucket

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// The sum of the shares never exceeds the rate, whatever is lost, whoever comes and goes; those that want more get what others leave.
func TestShares(t *testing.T) {
	const all, life = 1000, 10 * time.Second
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		var s shares
		now := time.Unix(1000, 0)
		type worker struct {
			use   Use
			heard time.Time // by the worker: it may use its share for as long as life
		}
		workers := map[Who]*worker{}
		for range 200 {
			now = now.Add(time.Duration(rnd.IntN(1500)) * time.Millisecond)
			w := Who{fmt.Sprint(rnd.IntN(5)), ""}
			me := workers[w]
			if me == nil {
				me = &worker{}
				workers[w] = me
			} else if now.Sub(me.heard) >= life {
				me.use = Use{} // started again
			}
			me.use.Waited, me.use.Counted = rnd.IntN(2) == 0, me.use.Share != 0
			me.use.Rate = me.use.Share * int64(rnd.IntN(101)) / 100
			if got := s.share(w, me.use, all, life, now); rnd.IntN(4) > 0 { // else the answer is lost
				me.use.Share, me.heard = got, now
			}
			sum := int64(0)
			for _, o := range workers {
				if now.Sub(o.heard) < life {
					sum += o.use.Share
				}
			}
			if sum > all {
				t.Fatalf("seed %d: %d of %d are given", seed, sum, all)
			}
		}
	}
	// One that is hungry gets nearly all, beside three that send little; four that are hungry get a quarter each.
	var s shares
	now := time.Unix(1000, 0)
	use := map[string]Use{"a": {Waited: true}, "b": {Rate: 10}, "c": {Rate: 10}, "d": {Rate: 10}}
	turn := func() {
		for range 6 {
			for _, n := range []string{"a", "b", "c", "d"} {
				u := use[n]
				u.Counted = true
				u.Share = s.share(Who{n, ""}, u, all, life, now)
				use[n] = u
			}
			now = now.Add(2 * time.Second)
		}
	}
	turn()
	if use["a"].Share < all/2 || use["b"].Share < 12 {
		t.Errorf("%+v", use)
	}
	for n, u := range use {
		u.Waited = true
		use[n] = u
	}
	turn()
	for n, u := range use {
		if u.Share != all/4 {
			t.Errorf("%s: %+v", n, u)
		}
	}
}

// A worker keeps to its share, also when it changes while it waits.
func TestPacer(t *testing.T) {
	p := newPacer(nil)
	p.set(0)
	done := make(chan time.Time, 1)
	began := time.Now()
	go func() {
		_ = p.pace(context.Background(), 10)
		done <- time.Now()
	}()
	time.Sleep(100 * time.Millisecond)
	p.set(10 << 20)
	if d := (<-done).Sub(began); d < 100*time.Millisecond {
		t.Errorf("10 bytes went after %v, without a share", d)
	}
	p.use()
	var wg sync.WaitGroup
	began = time.Now()
	for range 8 {
		wg.Go(func() {
			for range 16 {
				_ = p.pace(context.Background(), 64<<10)
			}
		})
	}
	wg.Wait() // 8 MiB, of which a burst goes at once
	if d := time.Since(began); d < 500*time.Millisecond || d > 3*time.Second {
		t.Errorf("8 MiB at 10 MiB/s took %v", d)
	}
	if u := p.use(); !u.Waited || u.Rate < 2<<20 || u.Rate > 17<<20 {
		t.Errorf("%+v", u)
	}
}
