package bucket

import (
	"fmt"
	"testing"
)

// BenchmarkPass copies small objects from memory to memory: what the flow itself costs.
func BenchmarkPass(b *testing.B) {
	const n = 20_000
	for b.Loop() {
		b.StopTimer()
		r := newRig(b)
		for i := range n {
			r.put(fmt.Sprintf("data/%06d", i), 10<<10, uint64(i))
		}
		b.StartTimer()
		if s := r.mustPass(1); s.Copied != n {
			b.Fatalf("%+v", s)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}
