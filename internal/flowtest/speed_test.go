package flowtest

import (
	"testing"
	"time"

	"github.com/moverd/mover/mover"
)

// BenchmarkFullPass is the whole path in memory over TLS on loopback: what the code costs without disks.
func BenchmarkFullPass(b *testing.B) {
	const size = 1 << 30
	for _, level := range []string{"auto", "off"} {
		b.Run(level, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for range b.N {
				b.StopTimer()
				r := newRig(b, size, 0)
				r.direct = true
				r.config.Conns, r.config.Compression = 4, level
				r.vol.write(0, size)
				r.startGateway()
				b.StartTimer()
				began := time.Now()
				r.startSource()
				s := r.wait("the full pass", func(s mover.Status) bool { return s.Passes == 1 })
				b.StopTimer()
				b.ReportMetric(float64(s.WireOut)/size, "wire/plain")
				b.ReportMetric(size/1e6/time.Since(began).Seconds(), "plainMB/s")
				r.stop()
			}
		})
	}
}
