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
