package bucket

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// A store serves some requests side by side, and gets slower beyond that. The level has to come near to what gets most done, soon, and stay there.
func TestLevel(t *testing.T) {
	for _, knee := range []float64{4, 16, 60, 200} {
		rnd := rand.New(rand.NewPCG(1, uint64(knee)))
		done := func(n int) float64 { // a second
			x := float64(n)
			return 100 * min(x, knee) / (1 + 0.002*max(0, x-knee)) * (1 + 0.04*(rnd.Float64()-0.5))
		}
		l := Level{Least: 2, Most: 256}
		sum, n := 0.0, 0
		for i := range 400 {
			r := done(l.Now())
			l.Look(int(r/4), 250*time.Millisecond, false)
			if i >= 25 {
				sum, n = sum+r, n+1
			}
		}
		if got, most := sum/float64(n), 100*knee; got < most*0.8 {
			t.Errorf("a store of %v requests side by side does %.0f a second, of %.0f; level %d", knee, got, most, l.Now())
		}
		before := l.Now()
		l.Look(100, time.Second, true)
		if got := l.Now(); float64(got) > math.Ceil(float64(before)*0.6) {
			t.Errorf("level %d after %d when the store asks for fewer", got, before)
		}
	}
}

// TestLevelNoise: a store that does a little more with many requests side by side than with few, on a machine whose speed goes up and down by itself. The level must not
// follow that down.
func TestLevelNoise(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		l := Level{Least: 2, Most: 256}
		machine, sum := 1.0, 0.0
		for i := range 400 {
			machine = min(1, max(0.5, machine*(1+0.1*(rnd.Float64()-0.5))))
			n := float64(l.Now())
			good := n / (n + 4) / (1 + 0.0005*n) // 0.66 of what is possible with 8 side by side, 0.8 with 16, 0.91 with 64, 0.87 with 256
			if i >= 10 {
				sum += good
			}
			l.Look(int(1000*good*machine*(1+0.2*(rnd.Float64()-0.5))), time.Second, false)
		}
		if mean := sum / 390; mean < 0.88 {
			t.Errorf("seed %d: %.2f of what is possible, level %d at the end", seed, mean, l.Now())
		}
	}
}
